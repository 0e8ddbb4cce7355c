"""How every figure looks: one template, one color a method, panels to draw on."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from IPython.display import display
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from lgqlib.quantizers import METHODS

WIDTH = 960  # of a figure in pixels: what a report shows is what was seen
INK = "#7a7a7a"  # text and axes: readable on white and on JupyterLab's dark background
GRID, HAZE, FAINT = (f"rgba(128, 128, 128, {alpha})" for alpha in (0.22, 0.12, 0.35))
# Okabe and Ito's colors, told apart by color-blind eyes; black and yellow are lost on one ground.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
RED, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "cross", "star")
PATTERNS = ("", "/", ".", "x", "-", "|")
SEQUENTIAL, DIVERGING = "Viridis", "RdBu"

_AXIS = dict.fromkeys(("gridcolor", "linecolor", "zerolinecolor"), GRID)
_AXIS |= {"automargin": True, "exponentformat": "power"}
_AXIS |= {"title": {"standoff": 8, "font": {"size": 13}}}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"color": INK, "size": 12, "family": "system-ui, Helvetica, Arial, sans-serif"},
        "title": {"x": 0.01, "xanchor": "left", "yanchor": "top", "font": {"size": 16}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": COLORS,
        "colorscale": {"sequential": SEQUENTIAL, "diverging": DIVERGING},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"bgcolor": "rgba(0,0,0,0)", "itemsizing": "constant"},
        "hoverlabel": {"font": {"size": 12}},
        "uirevision": "keep",
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
    }
)


def name_of(key: str) -> str:
    """Return what a method is called, with what stands behind it: `lgq seed 1` is LGQ seed 1."""
    method, _, rest = key.partition(" ")
    label = METHODS[method].label if method in METHODS else method
    return f"{label} {rest}".strip()


def color_of(key: str) -> str:
    """Return a method's color, whatever stands behind its name; an unknown method is grey."""
    method = key.partition(" ")[0]
    return METHODS[method].color if method in METHODS else INK


def dash_of(key: str) -> str:
    """Return a method's dash, which says its color a second time; LGQ's line is solid."""
    method = key.partition(" ")[0]
    names = [name for name in METHODS if name != "lgq"]
    return DASHES[names.index(method) % len(DASHES)] if method in names else "solid"


class Panel:
    """One subplot: marks are added by what they are, axes are named in one call."""

    def __init__(self, fig: go.Figure, row: int = 1, col: int = 1):
        self.fig, self.at = fig, {"row": row, "col": col}
        self.own_legend: str | None = None

    def legend(self, x: float = 0.99, y: float = 0.98) -> "Panel":
        """Give the panel a legend of its own, at a share of its width and height."""
        subplot = self.fig.get_subplot(**self.at)
        (x0, x1), (y0, y1) = subplot.xaxis.domain, subplot.yaxis.domain
        self.own_legend = f"legend{(self.at['row'] - 1) * 8 + self.at['col'] + 1}"
        anchors = {"xanchor": "right" if x > 0.5 else "left"}
        anchors |= {"yanchor": "top" if y > 0.5 else "bottom"}
        place = {"x": x0 + x * (x1 - x0), "y": y0 + y * (y1 - y0), **anchors}
        look = {"bgcolor": HAZE, "font": {"size": 11}}
        self.fig.update_layout({self.own_legend: place | look})
        return self

    def line(self, x, y, name: str = "", color: str = INK, *, dash: str = "solid", **more) -> None:
        """Add a line; `more` goes to the trace (`mode`, `customdata`, `hovertemplate`, ...)."""
        line = {"color": color, "dash": dash, "width": more.pop("width", 2)}
        self._scatter(x, y, name, {"mode": "lines", "line": line} | more)

    def dots(self, x, y, name: str = "", color=INK, *, size=6, symbol="circle", **more) -> None:
        """Add points; `error_x` and `error_y` are pairs (low, high) of absolute ends."""
        marker = {"color": color, "size": size, "symbol": symbol, **more.pop("marker", {})}
        for axis, values in (("error_x", x), ("error_y", y)):
            if axis in more:
                more[axis] = _whiskers(values, *more[axis], color=color)
        self._scatter(x, y, name, {"mode": "markers", "marker": marker} | more)

    def bars(self, x, y, name: str = "", color=INK, **more) -> None:
        marker = {"color": color, **more.pop("marker", {})}
        self._add(go.Bar(x=x, y=y, marker=marker, **self._named(name), **more))

    def band(self, x, low, high, color: str) -> None:
        """Shade what lies between two curves."""
        x = np.asarray(x)
        outline = {"x": np.concatenate([x, x[::-1]]), "y": np.concatenate([high, low[::-1]])}
        fill = {"fill": "toself", "fillcolor": f"rgba{(*hex_to_rgb(color), 0.2)}"}
        still = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        self._add(go.Scatter(**outline, **fill, **still))

    def rule(self, *, x: float | None = None, y: float | None = None, **more) -> None:
        """Add a straight line across the panel, at x or at y."""
        line = {"color": more.pop("color", INK), "dash": more.pop("dash", "dot"), "width": 1}
        if more.get("name"):
            more |= self._named(more["name"])
        draw = self.fig.add_vline if x is not None else self.fig.add_hline
        draw(y if x is None else x, line=line, **more, **self.at)

    def picture(self, source: str, *, values=None, said: str = "", **more) -> None:
        """Show an image by its data URI, without axes; `said` of the `values` of its pixels."""
        hover = {"hoverinfo": "skip"}
        if values is not None:
            template = f"row %{{y}}, column %{{x}}<br>{said}<extra></extra>"
            hover = {"customdata": values[..., None], "hovertemplate": template}
        self._add(go.Image(source=source, **(hover | more)))
        self.square()
        self.axes(bare=True)

    def square(self) -> None:
        """Give the panel square pixels, the first row on top."""
        subplot = self.fig.get_subplot(**self.at)
        anchor = subplot.yaxis.anchor or "x"
        subplot.yaxis.update(autorange="reversed", scaleanchor=anchor, constrain="domain")
        subplot.xaxis.update(constrain="domain")

    def axes(self, x: str = "", y: str = "", *, log: str = "", bare: bool = False, **more) -> None:
        """Name the axes; `log` lists logarithmic ones, `x_...` and `y_...` go to the one axis."""
        still = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
        for axis, title in (("x", x), ("y", y)):
            changes = {k[2:]: v for k, v in more.items() if k.startswith(f"{axis}_")}
            changes |= {"title_text": title} if title else {}
            changes |= {"type": "log"} if axis in log else {}
            update = self.fig.update_xaxes if axis == "x" else self.fig.update_yaxes
            update(**changes, **(still if bare else {}), **self.at)

    def _scatter(self, x, y, name: str, trace: dict) -> None:
        self._add(go.Scatter(x=x, y=y, **self._named(name), **trace))

    def _named(self, name: str) -> dict:
        shown = {"legend": self.own_legend} if self.own_legend else {}
        return {"name": name, **shown} if name else {"showlegend": False}

    def _add(self, trace) -> None:
        self.fig.add_trace(trace, **self.at)


def _whiskers(values, low, high, *, color) -> dict:
    values, low, high = (np.asarray(v, dtype=float) for v in (values, low, high))
    known = np.isfinite(low) & np.isfinite(high)
    above, below = np.where(known, high - values, 0), np.where(known, values - low, 0)
    look = {"thickness": 1.5, "width": 3, "color": color if isinstance(color, str) else FAINT}
    return {"type": "data", "array": above, "arrayminus": below, **look}


def panels(
    *, rows: int = 1, cols: int = 1, titles: Sequence[str] | None = None, height: int = 420, **grid
) -> tuple[go.Figure, list[Panel]]:
    """Return an empty figure and its panels, row by row; `grid` goes to `make_subplots`."""
    fig = make_subplots(rows=rows, cols=cols, subplot_titles=titles, **grid)
    fig.update_layout(template=TEMPLATE, height=height, width=WIDTH)
    fig.update_annotations(font_size=12)
    return fig, [Panel(fig, row + 1, col + 1) for row in range(rows) for col in range(cols)]


def titled(fig: go.Figure, finding: str, look_for: str = "") -> go.Figure:
    """Title a figure with its finding and, below it, what to look for, in a margin that fits."""
    head = textwrap.wrap(finding, int(WIDTH / 9))
    lines = textwrap.wrap(look_for, int(WIDTH / 6.4))
    title = {"text": "<br>".join(head), "subtitle_text": "<br>".join(lines)}
    title |= {"subtitle_font_size": 12, "y": 1 - 12 / fig.layout.height}
    fig.update_layout({f"title_{name}": value for name, value in title.items()})
    has_labels = any(a.yref == "paper" for a in fig.layout.annotations)
    fig.update_layout(margin_t=26 + 21 * len(head) + 17 * len(lines) + 22 * has_labels)
    return fig


class RunStyle(NamedTuple):
    """How a run is drawn: its method's color, and marks that tell runs of one method apart."""

    key: str
    label: str
    color: str
    number: int  # of runs of the same method before it

    @property
    def symbol(self) -> str:
        """Return the symbol of its points."""
        return SYMBOLS[self.number % len(SYMBOLS)]

    @property
    def mark(self) -> dict:
        """Return what makes a line one of points in its symbol."""
        return {"mode": "lines+markers", "marker": {"symbol": self.symbol}}

    @property
    def bar(self) -> dict:
        """Return the pattern of its bars."""
        return {"pattern": {"shape": PATTERNS[self.number % len(PATTERNS)]}}


def runs_of(values: Mapping[str, Any]) -> Iterator[tuple[RunStyle, Any]]:
    """Yield how each run is drawn, and its value; keys are `lgq`, or with more, `lgq seed 1`."""
    before: Counter[str] = Counter()
    for key, value in values.items():
        method = key.partition(" ")[0]
        yield RunStyle(key, name_of(key), color_of(key), before[method]), value
        before[method] += 1


def each(values: Mapping[str, Any], text: Callable[[Any], str]) -> str:
    """Write something of each run: `LGQ 1; VQ 2`."""
    return "; ".join(f"{name_of(key)} {text(value)}" for key, value in values.items())


def show(fig: go.Figure) -> None:
    """Display a figure as plotly's own data: JupyterLab and the report's pages draw it."""
    bundle = pio.renderers["plotly_mimetype"].to_mimebundle(fig.to_dict())
    bundle["text/plain"] = (fig.layout.title.text or "figure").replace("<br>", " ")
    display(bundle, raw=True)
