"""The map of a codebook: codes and latents in the plane, colored by what is known about each code.

Once to hold (the explorer's base), once for each quantity, and once for each step of training.
Latents, and codes beyond the first thousands, are a picture below the points: a picture costs a
browser the same however much is in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8
from plotly.colors import get_colorscale, hex_to_rgb

from lgqlib.figures.pictures import colored, data_uri, picture_grid
from lgqlib.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    RED,
    SEQUENTIAL,
    SKY,
    Panel,
    figure,
    panels,
    titled,
)
from lgqlib.measure.geometry import dominant_class
from lgqlib.measure.projection import Projection

# Paul Tol's ten "muted" colors: the nearest two are a CIE76 distance of 15 apart for eyes that lack
# one kind of cone, and 22 for others.
CLASS_COLORS = ("#332288", "#DDCC77", "#CC6677", "#117733", "#88CCEE")
CLASS_COLORS += ("#882255", "#44AA99", "#999933", "#AA4499", "#661100")
LONGEST_NAME = 16
"""Letters of a class's name beside the color bar; the whole name is on hover."""
CLICKABLE, SMALL = 6000, 1500
"""Codes that a map draws as points, for a browser looks at each at every change; a small map."""
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


@dataclass(frozen=True)
class CodeValues:
    """A number for each code, NaN where it cannot be known, and how to color it."""

    values: Float[np.ndarray, " K"]
    unit: str
    log: bool = False
    """Show it by its logarithm."""
    names: Sequence[str] | None = None
    """What the classes are called, where values are numbers of classes: each has its color."""

    @property
    def shown(self) -> Float[np.ndarray, " K"]:
        """Return what is drawn: the values, or their decimal logarithm with zero as NaN."""
        if not self.log:
            return self.values.astype("float32")
        with np.errstate(divide="ignore"):
            return np.where(self.values > 0, np.log10(self.values), np.nan).astype("float32")

    @property
    def ends(self) -> tuple[float, float]:
        """Return the least and the largest number shown."""
        known = self.shown[np.isfinite(self.shown)]
        return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)

    @property
    def classes(self) -> tuple[Int[np.ndarray, " K"], list[str], list[str]]:
        """Return the place of each code's class among the colors, their names, and the colors.

        The ten classes of most codes have a color each, all others share one; -1 without a class.
        """
        known = np.isfinite(self.values)
        kinds, kind, counts = np.unique(
            self.values[known].astype(int), return_inverse=True, return_counts=True
        )
        leading = np.sort(np.argsort(-counts, kind="stable")[: len(CLASS_COLORS)])
        place = np.full(len(kinds), len(leading))
        place[leading] = np.arange(len(leading))
        places = np.full(len(self.values), -1)
        places[known] = place[kind]
        names = [self.names[k] for k in kinds[leading]]
        colors, others = list(CLASS_COLORS[: len(leading)]), len(kinds) - len(leading)
        return places, names + [f"{others} others"] * (others > 0), colors + [INK] * (others > 0)

    def coloring(self, codes: Int[np.ndarray, " n"] | slice = slice(None)) -> dict:
        """Return the marker's color, scale and bar of some codes; without a value they are grey."""
        bar = {"title": {"text": self.unit, "side": "right"}, "thickness": 12}
        if self.names is not None:
            places, names, colors = self.classes
            edges = np.linspace(0, 1, len(colors) + 2)
            scale = [[edges[i + j], c] for i, c in enumerate([FAINT, *colors]) for j in (0, 1)]
            labels = [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + "…" for n in names]
            if colors[-1:] == [INK]:
                bar["title"]["text"] += f": {len(colors) - 1} classes have a color"
            shown, low, high = places, -1.5, len(colors) - 0.5
            bar |= {"tickmode": "array", "tickvals": [*range(len(labels))], "ticktext": labels}
        else:
            low, high = self.ends
            unknown = low - max(high - low, 1e-6) / 50
            shown = np.where(np.isfinite(self.shown), self.shown, unknown)
            start = 0.015  # of the scale: what is unknown is grey, and below all else
            viridis = [[start + (1 - start) * at, c] for at, c in get_colorscale(SEQUENTIAL)]
            scale = [[0, FAINT], [start, FAINT], *viridis]
            low, high = unknown, max(high, low + 1e-6)
            bar |= {"tickmode": "auto"}
            if self.log:
                bar["title"]["text"] += ", log<sub>10</sub>"
        color = shown[codes].astype("float32")
        return {"color": color, "colorscale": scale, "cmin": low, "cmax": high, "colorbar": bar}

    def hover(self, codes: Int[np.ndarray, " n"]) -> list[str] | None:
        """Name the class of some codes; None where values are no classes."""
        if self.names is None:
            return None
        found = self.values[codes]
        return [f"{self.unit} {self.names[int(k)]}" if np.isfinite(k) else "" for k in found]


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
    coloring, names = values.coloring(drawn), values.hover(drawn)
    coloring["colorbar"] |= {"x": 0.575, "len": 0.7, "y": 0.5}
    lines = ["code %{customdata[0]}", "%{customdata[1]} tokens", *["%{hovertext}"] * bool(names)]
    hover = "<br>".join(lines) + "<extra></extra>"
    return {"marker": coloring, "hovertext": names, "hovertemplate": hover}


def frame_label(projection: Projection) -> str:
    """Say what a map's axes are."""
    if projection.method == "umap":
        return "UMAP"
    kind = "the plane itself" if projection.method == "plane" else "principal plane"
    shares = " + ".join(f"{100 * share:.0f}" for share in projection.explained)
    return f"{kind}, {shares} % of the variance"


def sizes(counts: Int[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Return each code's diameter in pixels: its area follows its usage."""
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
            kinds, _, colors = values.classes
            most = dominant_class(number, np.tile(kinds[codes][known], len(at)), len(places))
            rgb = np.array([hex_to_rgb(c) for c in colors])[most]
        picture[places] = np.column_stack([rgb, np.full(len(places), 255)])
    return picture.reshape(RASTER, RASTER, 4)


def small_multiples(
    projection: Projection,
    values: Mapping[str, CodeValues],
    counts: Int[np.ndarray, " K"],
    *,
    name: str = "",
    frame: str = "",
) -> go.Figure:
    """Draw the map once for each quantity: the drop-down list, standing still.

    `name`: what the run is called; `frame`: what the map's axes are.
    """
    rows, drawn = -(-len(values) // 4), clickable(counts, limit=SMALL)
    spaces = {"horizontal_spacing": 0.02, "vertical_spacing": 0.09}
    fig, all_panels = panels(
        rows=rows, cols=4, titles=list(values), height=90 + 250 * rows, **spaces
    )
    x, y = projection.codes[drawn].T
    for panel, each in zip(all_panels, values.values(), strict=False):
        marker = each.coloring(drawn)
        marker.pop("colorbar")
        said = "%{hovertext}" if each.names else f"%{{customdata[1]:.3g}} {each.unit}"
        panel.dots(
            x,
            y,
            size=sizes(counts)[drawn] * 0.6,
            marker=marker,
            customdata=np.stack([drawn, each.values[drawn]], 1).astype("float32"),
            hovertext=each.hover(drawn),
            hovertemplate=f"code %{{customdata[0]}}<br>{said}<extra></extra>",
        )
    fig.update_layout(showlegend=False, margin={"l": 10, "r": 10, "b": 10})
    fig.update_xaxes(showticklabels=False, zeroline=False)
    fig.update_yaxes(showticklabels=False, zeroline=False)
    shown = "all" if len(drawn) == len(counts) else f"{len(drawn)} of {len(counts)}"
    use = f"{(counts > 0).sum()} of {len(counts)} codes used; {frame or frame_label(projection)}"
    return titled(
        fig,
        f"{name}: {use}".lstrip(": "),
        "Each map has its own scale, dark low and bright high; grey is unknown. Drawn: "
        f"{shown} codes. Look for quantities that follow the density: rare codes with large cells, "
        "or edges that err.",
    )


def timeline(
    places: Sequence[Float[np.ndarray, "n 2"]],
    steps: Sequence[int],
    active: Sequence[int],
    *,
    births: int,
    deaths: int,
    drawn: str = "",
) -> go.Figure:
    """Draw where codes were at several steps of training in one frame: the slider, standing still.

    `drawn` says which codes these are.
    """
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).round().astype(int))
    titles = [f"step {steps[i]}: {active[i]} active" for i in chosen]
    fig, all_panels = panels(cols=len(chosen), titles=titles, height=300, horizontal_spacing=0.015)
    everything = np.concatenate([places[i] for i in chosen])
    low, high = everything.min(0), everything.max(0)
    room = 0.05 * (high - low) + 1e-6
    ends = {f"{axis}_range": [low[i] - room[i], high[i] + room[i]] for i, axis in enumerate("xy")}
    for panel, i in zip(all_panels, chosen, strict=True):
        panel.dots(*places[i].T, f"step {steps[i]}", BLUE, size=3, marker={"opacity": 0.6})
        panel.axes(**ends, x_showticklabels=False, y_showticklabels=False)
    fig.update_layout(showlegend=False, margin={"l": 10, "r": 10, "b": 10})
    return titled(
        fig,
        f"From step {steps[0]} to {steps[-1]}: {births} codes were born, {deaths} died",
        "One frame for all steps: what moves is what training moved. A born code had no tokens "
        f"between the snapshots before, and some after. {drawn}",
    )


def code_examples(
    rows: Sequence[Sequence[UInt8[np.ndarray, "P P 3"]]],
    codes: Sequence[int],
    counts: Sequence[int],
    *,
    total: int,
) -> go.Figure:
    """Draw, for some codes, the decoder's patch and then real patches: a click, standing still."""
    labels = [f"code {k}: {n}" for k, n in zip(codes, counts, strict=True)]
    share = 100 * max(counts) / max(total, 1)
    return titled(
        picture_grid(dict(zip(labels, rows, strict=True)), tile=44, gap=3, axis="code: tokens"),
        f"The most used code has {share:.1f} % of {total} tokens; of these codes, the rarest has "
        f"{min(counts)}",
        "First in each row, what the decoder makes of the code inside real images; then real "
        "patches assigned to it, nearest first. Patches of a row should agree.",
    )


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
