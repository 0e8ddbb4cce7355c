"""How every figure looks and how it is shown: one template, one color per method, one `show`."""

import queue
import textwrap
import threading
import warnings
from collections.abc import Sequence

import kaleido
import plotly.graph_objects as go
import plotly.io as pio
from choreographer.browsers.chromium import Chromium
from IPython.display import display
from plotly.subplots import make_subplots

DRAWING_LIMIT = 120
"""Seconds to wait for the browser that draws a picture."""

WIDTH = 960
"""Width of a figure in pixels; fixed, so that the picture in a report is the figure that was
seen.
"""

INK = "#7a7a7a"
"""Text and axes: readable on white and on JupyterLab's dark background."""
GRID = "rgba(128, 128, 128, 0.22)"
HAZE = "rgba(128, 128, 128, 0.12)"
FAINT = "rgba(128, 128, 128, 0.35)"

# Okabe and Ito's colors, told apart by color-blind eyes; black and yellow are left out, for one is
# lost on a dark page and the other on a white one.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
RED, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
SEQUENTIAL = "Viridis"
DIVERGING = "RdBu"

NAMES = {
    "lgq": "LGQ",
    "fsq": "FSQ",
    "vq": "VQ",
    "vq_ema": "VQ-EMA",
    "rotation": "rotation trick",
    "simvq": "SimVQ",
    "lfq": "LFQ",
    "bsq": "BSQ",
    "ibq": "IBQ",
    "ifsq": "iFSQ",
}
"""What a method is called in a figure."""

METHOD_COLORS = {
    "lgq": RED,
    "fsq": BLUE,
    "vq": GREEN,
    "vq_ema": ORANGE,
    "rotation": PURPLE,
    "simvq": SKY,
    "lfq": "#8c8c8c",
    "bsq": "#a6761d",
    "ibq": "#7570b3",
    "ifsq": "#1b9e9e",
}
"""One color for each method, the same in every figure; `METHOD_DASHES` says it a second time."""

METHOD_DASHES = {
    name: "solid" if name == "lgq" else dash
    for name, dash in zip(NAMES, ("solid", "dash", "dot", "dashdot", "longdash") * 2, strict=True)
}

_AXIS = {
    "gridcolor": GRID,
    "linecolor": GRID,
    "zerolinecolor": GRID,
    "automargin": True,
    "exponentformat": "power",
    "title": {"standoff": 8, "font": {"size": 13}},
}

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


def name_of(method: str) -> str:
    """Return what a method is called in a figure; an unknown name is its own."""
    return NAMES.get(method, method)


def color_of(method: str) -> str:
    """Return a method's color; an unknown method is grey."""
    return METHOD_COLORS.get(method, INK)


def figure(
    *,
    rows: int = 1,
    cols: int = 1,
    titles: Sequence[str] | None = None,
    height: int = 420,
    width: int = WIDTH,
    **grid,
) -> go.Figure:
    """Return an empty figure in the template, with a grid of subplots; `grid` goes to
    `make_subplots`.
    """
    fig = make_subplots(rows=rows, cols=cols, subplot_titles=titles, **grid)
    fig.update_layout(template=TEMPLATE, height=height, width=width)
    fig.update_annotations(font_size=12)
    return fig


def legend_in(fig: go.Figure, row: int, col: int, *, x: float = 0.99, y: float = 0.98) -> str:
    """Place a legend of its own inside a subplot, at a share of its width and height; return the
    legend's name.
    """
    subplot = fig.get_subplot(row, col)
    (x0, x1), (y0, y1) = subplot.xaxis.domain, subplot.yaxis.domain
    name = f"legend{(row - 1) * 8 + col + 1}"
    place = {"x": x0 + x * (x1 - x0), "y": y0 + y * (y1 - y0)}
    anchors = {"xanchor": "right" if x > 0.5 else "left", "yanchor": "top" if y > 0.5 else "bottom"}
    fig.update_layout({name: {**place, **anchors, "bgcolor": HAZE, "font": {"size": 11}}})
    return name


def titled(fig: go.Figure, finding: str, look_for: str = "") -> go.Figure:
    """Title a figure with what it shows and, below it, what to look for; return the figure.

    The margin grows with the text, so that it never covers a plot.
    """
    width = fig.layout.width or WIDTH
    head = textwrap.wrap(finding, int(width / 8.4))
    lines = textwrap.wrap(look_for, int(width / 6.4))
    fig.update_layout(
        title_text="<br>".join(head),
        title_subtitle_text="<br>".join(lines),
        title_subtitle_font_size=12,
        title_y=1 - 12 / fig.layout.height,
    )
    has_labels = any(a.yref == "paper" for a in fig.layout.annotations)
    fig.update_layout(margin_t=26 + 21 * len(head) + 17 * len(lines) + 22 * has_labels)
    return fig


def show(fig: go.Figure) -> None:
    """Display a figure so that it answers in JupyterLab and is still there without a kernel or a
    network.

    The output holds the figure itself, which JupyterLab draws interactively, and a PNG of it,
    which an HTML export and any other reader shows. The PNG needs Chromium; without one there is a
    warning, and the figure alone.
    """
    bundle = pio.renderers["plotly_mimetype"].to_mimebundle(fig.to_dict())
    bundle["text/plain"] = (fig.layout.title.text or "figure").replace("<br>", " ")
    picture = png(fig)
    if picture is not None:
        bundle["image/png"] = picture
    display(bundle, raw=True)


def png(fig: go.Figure) -> bytes | None:
    """Draw a figure as PNG; None, and a warning, where no browser can do it."""
    try:
        return _BROWSER.draw(fig)
    except Exception as error:  # of many kinds, from a missing browser to one that lacks a library
        lines = str(error).strip().splitlines()
        warnings.warn(
            f"no picture of this figure for exports: {lines[0] if lines else type(error).__name__} "
            "Install Chromium or Chrome to have one.",
            stacklevel=3,
        )
        return None


class _Browser:
    """One browser for all figures of a process: 5 s for the first, 1 s for each after it."""

    def __init__(self) -> None:
        self.silent = False

    def draw(self, fig: go.Figure) -> bytes:
        if self.silent or Chromium.find_browser(skip_local=False) is None:
            raise RuntimeError("there is no Chromium or Chrome that answers.")
        # MathJax would be fetched from a network; our texts have none.
        kaleido.start_sync_server(silence_warnings=True, mathjax=False)
        answers: queue.Queue = queue.Queue()
        # A browser that dies while it starts leaves kaleido waiting forever: wait for it elsewhere,
        # not so long, and only once.
        threading.Thread(target=self._draw, args=(fig, answers), daemon=True).start()
        try:
            answer = answers.get(timeout=DRAWING_LIMIT)
        except queue.Empty:
            self.silent = True
            raise RuntimeError(f"the browser did not answer in {DRAWING_LIMIT} s.") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _draw(self, fig: go.Figure, answers: queue.Queue) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # plotly warns that a server ignores its options
                answers.put(fig.to_image(format="png", scale=1))
        except Exception as error:
            answers.put(error)


_BROWSER = _Browser()
