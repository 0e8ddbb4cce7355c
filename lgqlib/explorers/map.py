"""The map of a codebook to hold: codes over latents, an image and its tokens, marks laid over.

Latents, and codes beyond the first thousands, are a picture below the points: a picture costs a
browser the same however much is in it.
"""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8
from plotly.colors import hex_to_rgb

from lgqlib.explorers.quantities import (
    CLASS_COLORS,
    CodeValues,
    dominant_class,
    frame_label,
    sizes,
)
from lgqlib.figures.pictures import colored, data_uri
from lgqlib.figures.style import BLUE, GREEN, INK, ORANGE, RED, SKY, Panel, figure, titled
from lgqlib.measure.projection import Projection

LONGEST_NAME = 16
"""Letters of a class's name beside the color bar; the whole name is on hover."""
RASTER = 360
"""Places along a side of a picture below."""
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


def codebook_map(
    projection: Projection,
    values: CodeValues,
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

    Traces that change: those of OVERLAYS on the map, `image`, `hits`, `token` beside it, `bars`
    below. `codes` has those drawn, in order; `rest` is the picture of the others, if there are any.
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
    here, rest = {"row": 1, "col": 1}, rest_of(drawn, len(counts))
    low, step = _extent(projection)
    layers = {"latents": latents_picture(projection)}
    layers |= {"rest": codes_picture(projection, values, rest)} if len(rest) else {}
    for name, pixels in layers.items():
        place = {"x0": low[0], "dx": step[0], "y0": low[1], "dy": step[1]}
        fig.add_image(source=data_uri(pixels), name=name, hoverinfo="skip", **place, **here)
    at = projection.codes[drawn]
    fig.add_scattergl(
        x=at[:, 0],
        y=at[:, 1],
        mode="markers",
        marker={"size": sizes(counts)[drawn], "line": {"width": 0}},
        # A selection must not fade the others: highlights are traces of their own.
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
        customdata=np.stack([drawn, counts[drawn]], 1).astype("int32"),
        name="codes",
        **here,
    )
    fig.data[-1].update(colored_by(values, drawn))
    for name, mark in OVERLAYS.items():
        drawing = {"mode": "markers", "marker": mark}
        drawing = {"mode": "lines", "line": mark} if name == "trails" else drawing
        fig.add_scattergl(x=[], y=[], name=name, hoverinfo="skip", **drawing, **here)
    _image_with_tokens(Panel(fig, 1, 2), image, grid)
    Panel(fig, 2, 2).bars([], [], "bars", ORANGE)
    names = ["UMAP 1", "UMAP 2"] if projection.method == "umap" else ["channel 1", "channel 2"]
    if projection.method == "pca":
        shares = enumerate(100 * projection.explained, start=1)
        names = [f"principal axis {i} ({share:.0f} % of the variance)" for i, share in shares]
    still = {"x_zeroline": False, "y_zeroline": False, "y_autorange": True}
    Panel(fig, 1, 1).axes(*names, **still)
    Panel(fig, 2, 2).axes("code k", "probability", x_type="category", y_range=[0, 1])
    fig.update_layout(showlegend=False, hovermode="closest", dragmode="pan")
    what = f"All {len(drawn)} codes are points; "
    if len(rest):
        what = (
            f"{len(drawn)} of {len(counts)} codes are points, the other {len(rest)} dots in a "
            "picture below, of the same colors, the mean where several meet; "
        )
    return titled(
        fig,
        " ",
        f"{what}{len(projection.latents)} latents are grey dots below. Size is usage; grey is "
        "unknown or unused. Hover or click a code, lasso several, click a token in the image: "
        "orange shows its soft assignment, blue the image's tokens.",
    )


def colored_by(values: CodeValues, drawn: Int[np.ndarray, " n"]) -> dict:
    """Return what of the trace `codes` follows the values: colors, color bar, what hover says."""
    names = values.hover(drawn)
    lines = ["code %{customdata[0]}", "%{customdata[1]} tokens", *["%{hovertext}"] * bool(names)]
    hover = "<br>".join(lines) + "<extra></extra>"
    marker = values.marker(drawn) | {"colorbar": color_bar(values)}
    return {"marker": marker, "hovertext": names, "hovertemplate": hover}


def color_bar(values: CodeValues) -> dict:
    """Return the bar beside the map: ticks of a scale, or the names of classes."""
    place = {"thickness": 12, "x": 0.575, "len": 0.7, "y": 0.5}
    title = values.unit + ", log<sub>10</sub>" * values.log
    if values.names is None:
        return {"title": {"text": title, "side": "right"}, "tickmode": "auto", **place}
    _, names, others = values.classes
    labels = [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + "…" for n in names]
    if others:
        labels.append(f"{others} others")
        title += f": {len(names)} of {len(names) + others} have a color"
    ticks = {"tickmode": "array", "tickvals": [*range(len(labels))], "ticktext": labels}
    return {"title": {"text": title, "side": "right"}, **ticks, **place}


def rest_of(drawn: Int[np.ndarray, " n"], num_codes: int) -> Int[np.ndarray, " m"]:
    """Return the codes that are no points."""
    return np.setdiff1d(np.arange(num_codes), drawn)


def latents_picture(projection: Projection) -> UInt8[np.ndarray, "H W 4"]:
    """Draw latents as grey dots, the denser the more opaque."""
    hits = np.bincount(_pixels(projection, projection.latents).ravel(), minlength=RASTER**2)
    picture = np.full((RASTER**2, 4), 128, dtype=np.uint8)
    picture[:, 3] = np.where(hits > 0, np.clip(50 + 40 * np.log2(1 + hits), 0, 255), 0)
    return picture.reshape(RASTER, RASTER, 4)


def codes_picture(
    projection: Projection, values: CodeValues, codes: Int[np.ndarray, " n"]
) -> UInt8[np.ndarray, "H W 4"]:
    """Draw some codes as dots, in the colors that points have.

    Where several codes share a pixel it shows the mean of what is drawn of them, or the class that
    most of them have; grey where none of them has a value.
    """
    picture = np.zeros((RASTER**2, 4), dtype=np.uint8)
    at = _pixels(projection, projection.codes[codes])
    picture[at.ravel()] = (128, 128, 128, 110)
    value = values.shown[codes]
    known = np.isfinite(value)
    if known.any():
        places, number = np.unique(at[:, known].ravel(), return_inverse=True)
        if values.names is None:
            value = np.tile(value[known], len(at))
            low, high = values.ends
            rgb = colored(np.bincount(number, value) / np.bincount(number), low=low, high=high)
        else:
            of_code, names, _ = values.classes
            most = dominant_class(number, np.tile(of_code[codes][known], len(at)), len(places))
            rgb = np.array([hex_to_rgb(c) for c in (*CLASS_COLORS[: len(names)], INK)])[most]
        picture[places] = np.column_stack([rgb, np.full(len(places), 255)])
    return picture.reshape(RASTER, RASTER, 4)


def _extent(projection: Projection) -> tuple[list[float], list[float]]:
    """Return the map's place of the first pixel, and the size of a pixel, along x and y."""
    low = np.minimum(projection.latents.min(0), projection.codes.min(0))
    high = np.maximum(projection.latents.max(0), projection.codes.max(0))
    return low.tolist(), (np.maximum(high - low, 1e-6) / (RASTER - 1)).tolist()


def _pixels(projection: Projection, points: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, "4 n"]:
    """Return the numbers of the four pixels that each point covers: a dot is two places wide."""
    low, step = _extent(projection)
    x, y = np.round((points - np.float32(low)) / np.float32(step)).astype(int).T
    top = RASTER - 1
    return np.stack(
        [RASTER * (y + j).clip(max=top) + (x + i).clip(max=top) for j in (0, 1) for i in (0, 1)]
    )


def _image_with_tokens(panel: Panel, image: np.ndarray, grid: tuple[int, int]) -> None:
    """Show an image under a grid of places to click, one a token, and marks for some of them."""
    rows, cols = grid
    y, x = np.divmod(np.arange(rows * cols), cols)
    side, pixels = image.shape[0] / rows, max(6, 200 / rows)
    x, y = (x + 0.5) * side - 0.5, (y + 0.5) * side - 0.5
    panel.picture(data_uri(image), name="image")
    clear, square = "rgba(0,0,0,0)", {"symbol": "square-open", "size": 0.8 * pixels}
    hover = "token %{pointNumber}<extra></extra>"
    panel.dots(x, y, "grid", clear, size=pixels, symbol="square", hovertemplate=hover)
    for name, at, color in (("hits", slice(0), RED), ("token", slice(1), ORANGE)):
        border = {"line": {"width": 2}}
        panel.dots(x[at], y[at], name, color, **square, marker=border, hoverinfo="skip")
