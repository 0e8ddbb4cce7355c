"""What all explorers are made of: a box of controls around one figure, and events in measure."""

import asyncio
import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from lgqlib.explorers.sent import SentWhole
from lgqlib.figures.pictures import png_bytes


class Throttled:
    """Call an action with the newest arguments only, at most once in `seconds`.

    Inside a kernel the action runs a moment after the first event of a burst; without an event
    loop it runs at once.
    """

    def __init__(self, action: Callable[..., None], *, seconds: float = 0.015):
        self.action, self.seconds = action, seconds
        self._arguments: tuple[Any, ...] = ()
        self._pending = False

    def __call__(self, *arguments: Any) -> None:
        self._arguments = arguments
        if self._pending:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.action(*arguments)
            return
        self._pending = True
        loop.call_later(self.seconds, self._run)

    def _run(self) -> None:
        self._pending = False
        self.action(*self._arguments)


class Explorer:
    """Show one FigureWidget between its controls; every control can be reached with the Tab key."""

    name = "explorer"

    def __init__(self, figure: go.Figure):
        # Text beside the figure wraps, is read out, and costs the figure no redraw.
        self.headline = ipywidgets.HTML()
        caption = (figure.layout.title.subtitle.text or "").replace("<br>", " ")
        self.caption = ipywidgets.HTML(f"<span style='opacity: .75'>{caption}</span>")
        figure = go.Figure(figure).update_layout(title=None, margin_t=44)
        figure.layout.height -= 40
        self.figure = SentWhole(figure)
        self.traces = {trace.name: trace for trace in self.figure.data if trace.name}
        self.box = ipywidgets.VBox()

    def lay_out(self, *rows: Sequence[ipywidgets.Widget] | ipywidgets.Widget) -> None:
        """Stack rows of controls and, where the figure comes, its headline, itself and its
        caption.
        """
        children: list[ipywidgets.Widget] = []
        for row in rows:
            if row is self.figure:
                children += [self.headline, row, self.caption]
            else:
                children.append(row if isinstance(row, ipywidgets.Widget) else wrapped(*row))
        self.box.children = children

    def show(self, finding: str, **traces: dict[str, Any]) -> None:
        """Say what is found, and change overlay traces by name in one message."""
        self.headline.value = f"<b>{html.escape(finding)}</b>"
        with self.figure.batch_update():
            for name, changes in traces.items():
                self.traces[name].update(changes)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = self.box._repr_mimebundle_(**options)
        note = f"{self.name}: interactive where a kernel runs; its static twin is below."
        return {**bundle, "text/plain": note}


def wrapped(*widgets: ipywidgets.Widget) -> ipywidgets.Widget:
    """Put widgets in a row that breaks where the window ends."""
    return ipywidgets.HBox(widgets, layout={"flex_flow": "row wrap", "align_items": "center"})


def slider(label: str, options: Sequence[Any], *, index: int = 0, width: int = 420) -> Any:
    """Make a slider over given values, (label, value) pairs or plain ones, moved by arrow keys."""
    return ipywidgets.SelectionSlider(
        options=options,
        index=index,
        description=label,
        style={"description_width": "initial"},
        layout={"width": f"{width}px"},
    )


def play(target: ipywidgets.SelectionSlider, *, milliseconds: int = 300) -> ipywidgets.Play:
    """Make a play button that runs a slider from start to end."""
    button = ipywidgets.Play(
        value=target.index,
        max=len(target.options) - 1,
        interval=milliseconds,
        show_repeat=False,
    )
    ipywidgets.link((button, "value"), (target, "index"))
    return button


def dropdown(label: str, options: Sequence[Any], value: Any = None) -> ipywidgets.Dropdown:
    """Make a drop-down list."""
    return ipywidgets.Dropdown(
        options=options,
        value=options[0] if value is None else value,
        description=label,
        style={"description_width": "initial"},
        layout={"width": "auto"},
    )


def whole(label: str, top: int, *, value: int = 0) -> ipywidgets.BoundedIntText:
    """Make a field for a whole number from 0 to `top`."""
    return ipywidgets.BoundedIntText(
        value=value,
        min=0,
        max=top,
        description=label,
        style={"description_width": "initial"},
        layout={"width": "150px"},
    )


def picture() -> ipywidgets.Image:
    """Make a place for a picture, which takes no room until there is one."""
    # A box would stretch a small picture over the whole width.
    layout = {"max_width": "100%", "align_self": "flex-start", "display": "none"}
    return ipywidgets.Image(format="png", layout=layout)


def fill(image: ipywidgets.Image, pixels: Any) -> None:
    """Put pixels into a place for a picture; None leaves it empty."""
    image.layout.display = "none" if pixels is None else None
    image.value = b"" if pixels is None else png_bytes(pixels)
