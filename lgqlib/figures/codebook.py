"""The map of a codebook: codes and latents in the plane, and what is known about each code."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8

from lgqlib.figures.ground import codes_picture, extent, latents_picture
from lgqlib.figures.pictures import data_uri
from lgqlib.figures.quantity import Quantity
from lgqlib.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    RED,
    SKY,
    Panel,
    figure,
    titled,
)
from lgqlib.measure.projection import Projection

CLICKABLE = 6000
"""Codes that a map draws as points: a browser looks at each of them again at every change."""


def codebook_map(
    projection: Projection,
    quantity: Quantity,
    counts: Int[np.ndarray, " K"],
    *,
    image: UInt8[np.ndarray, "S S 3"],
    grid: tuple[int, int],
    drawn: Int[np.ndarray, " n"],
    frame: str = "",
) -> go.Figure:
    """Draw the map, an image with its grid of tokens, and one token's shares; the explorer's base.

    `drawn`: codes that are points to click (`clickable`); the others are dots in the picture below.
    `frame`: what the map's axes are, above it.

    Traces that change: `moved`, `trails`, `neighbors`, `tokens`, `shares`, `selected`, `chosen` on
    the map, `image`, `hits`, `token` beside it, `bars` below. `codes` has those drawn, in order;
    `rest` is the picture of the others, if there are any, which changes with the quantity only.
    """
    fig = figure(
        rows=2,
        cols=2,
        specs=[[{"rowspan": 2}, {}], [None, {}]],
        column_widths=[0.66, 0.34],
        row_heights=[0.62, 0.38],
        horizontal_spacing=0.13,
        vertical_spacing=0.16,
        titles=(frame or frame_label(projection), "Image: click a token", "Codes of the token"),
        height=600,
    )
    rest = rest_of(drawn, len(counts))
    _ground(fig, projection, quantity, rest, row=1, col=1)
    fig.add_scattergl(
        x=projection.codes[drawn, 0],
        y=projection.codes[drawn, 1],
        mode="markers",
        marker={"size": sizes(counts)[drawn], "line": {"width": 0}},
        # A selection must not fade the others: highlights are traces of their own.
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
        customdata=np.stack([drawn, counts[drawn]], 1).astype("int32"),
        name="codes",
        row=1,
        col=1,
    )
    fig.data[-1].update(marked(quantity, drawn))
    for name, marker in OVERLAYS.items():
        lines = name == "trails"
        fig.add_scattergl(
            x=[],
            y=[],
            mode="lines" if lines else "markers",
            **({"line": marker} if lines else {"marker": marker}),
            hoverinfo="skip",
            name=name,
            row=1,
            col=1,
        )
    fig.add_image(source=data_uri(image), name="image", hoverinfo="skip", row=1, col=2)
    _grid(fig, image.shape[0], grid)
    fig.add_bar(x=[], y=[], marker_color=ORANGE, name="bars", row=2, col=2)
    fig.update_layout(showlegend=False, hovermode="closest", dragmode="pan")
    _map_axes(fig, projection, 1, 1)
    fig.update_xaxes(title_text="code k", type="category", row=2, col=2)
    fig.update_yaxes(title_text="probability", range=[0, 1], row=2, col=2)
    return titled(fig, " ", _drawn_how(projection, len(drawn)) + LOOK_MAP)


LOOK_MAP = (
    "Size is usage; grey is unknown or unused. Hover or click a code, "
    "lasso "
    "several, click a token in the image: orange shows its soft assignment, blue the image's "
    "tokens."
)

OVERLAYS = {
    "moved": {"size": 5, "color": SKY, "symbol": "circle-open"},
    "trails": {"color": SKY, "width": 2},
    "tokens": {"size": 6, "color": BLUE, "symbol": "x"},
    "shares": {"size": 14, "color": ORANGE, "opacity": 0.8},
    "neighbors": {"size": 13, "color": GREEN, "symbol": "circle-open", "line": {"width": 2}},
    "selected": {"size": 11, "color": RED, "symbol": "diamond-open", "line": {"width": 2}},
    "chosen": {"size": 18, "color": RED, "symbol": "circle-open", "line": {"width": 3}},
}
"""Marks laid over the map, by what they show."""


def marked(quantity: Quantity, drawn: Int[np.ndarray, " n"]) -> dict:
    """Give what of the trace `codes` follows the quantity: its colors, its bar, what hover says."""
    coloring = quantity.coloring(drawn)
    coloring["colorbar"] |= {"x": 0.575, "len": 0.7, "y": 0.5}
    names = quantity.hover(drawn)
    lines = ["code %{customdata[0]}", "%{customdata[1]} tokens", *["%{hovertext}"] * bool(names)]
    return {
        "marker": coloring,
        "hovertext": names,
        "hovertemplate": "<br>".join(lines) + "<extra></extra>",
    }


def frame_label(projection: Projection) -> str:
    """Say what a map's axes are."""
    if projection.method == "umap":
        return "UMAP"
    share = 100 * projection.basis.explained
    kind = "the plane itself" if projection.method == "plane" else "principal plane"
    return f"{kind}, {share[0]:.0f} + {share[1]:.0f} % of the variance"


def sizes(counts: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Give each code's diameter in pixels: its area follows its usage."""
    counts = np.asarray(counts, dtype=np.float64)
    return (4 + 12 * np.sqrt(counts / max(counts.max(), 1))).astype("float32")


def clickable(counts: Int[np.ndarray, " K"], *, limit: int = CLICKABLE) -> Int[np.ndarray, " n"]:
    """Choose the codes that are drawn as points: the most used, and a spread of the others."""
    if len(counts) <= limit:
        return np.arange(len(counts))
    busiest = np.argsort(-counts, kind="stable")
    spread = np.linspace(limit // 2, len(counts) - 1, limit - limit // 2).astype(int)
    return np.unique(np.concatenate([busiest[: limit // 2], busiest[spread]]))


def rest_of(drawn: Int[np.ndarray, " n"], num_codes: int) -> Int[np.ndarray, " m"]:
    """Give the codes that are no points."""
    return np.setdiff1d(np.arange(num_codes), drawn)


def _ground(
    fig: go.Figure, projection: Projection, quantity: Quantity, rest: np.ndarray, **place: int
) -> None:
    """Lay latents, and codes that are no points, below: `latents` and `rest`."""
    low, step = extent(projection)
    layers = {"latents": latents_picture(projection)}
    if len(rest):
        layers["rest"] = codes_picture(projection, quantity, rest)
    for name, pixels in layers.items():
        fig.add_image(
            source=data_uri(pixels),
            x0=float(low[0]),
            dx=float(step[0]),
            y0=float(low[1]),
            dy=float(step[1]),
            name=name,
            hoverinfo="skip",
            **place,
        )


def _drawn_how(projection: Projection, num_points: int) -> str:
    """Say how many codes and latents are drawn, and as what."""
    rest = len(projection.codes) - num_points
    latents = f"{len(projection.latents)} latents are grey dots below. "
    if not rest:
        return f"All {num_points} codes are points; {latents}"
    return (
        f"{num_points} of {len(projection.codes)} codes are points, the other {rest} dots in a "
        f"picture below, of the same colors, the mean where several meet; {latents}"
    )


def _grid(fig: go.Figure, size: int, grid: tuple[int, int]) -> None:
    """Lay a grid of places to click over the image, one a token, and marks for some of them."""
    rows, cols = grid
    y, x = np.divmod(np.arange(rows * cols), cols)
    side = size / rows
    x, y = (x + 0.5) * side - 0.5, (y + 0.5) * side - 0.5
    pixels = max(6, 200 / rows)
    common = {"mode": "markers", "row": 1, "col": 2}
    fig.add_scatter(
        x=x,
        y=y,
        marker={"symbol": "square", "size": pixels, "color": "rgba(0,0,0,0)"},
        hovertemplate="token %{pointNumber}<extra></extra>",
        name="grid",
        **common,
    )
    mark = {"symbol": "square-open", "size": pixels * 0.8, "line": {"width": 2}}
    fig.add_scatter(
        x=[], y=[], marker={**mark, "color": RED}, hoverinfo="skip", name="hits", **common
    )
    fig.add_scatter(
        x=x[:1], y=y[:1], marker={**mark, "color": ORANGE}, hoverinfo="skip", name="token", **common
    )
    Panel(fig, 1, 2).square()
    axes = fig.get_subplot(1, 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.update(showticklabels=False, showgrid=False, zeroline=False, ticks="")


def _map_axes(fig: go.Figure, projection: Projection, row: int, col: int) -> None:
    share = 100 * projection.basis.explained
    names = {
        "pca": [f"principal axis {i + 1} ({share[i]:.0f} % of the variance)" for i in (0, 1)],
        "umap": ["UMAP 1", "UMAP 2"],
        "plane": ["channel 1", "channel 2"],
    }[projection.method]
    fig.update_xaxes(title_text=names[0], zeroline=False, row=row, col=col)
    fig.update_yaxes(title_text=names[1], zeroline=False, autorange=True, row=row, col=col)
    fig.update_xaxes(title_font_color=INK, row=row, col=col)
