"""The map of a codebook, standing still: once for each quantity, and once for each step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8
from plotly.colors import get_colorscale

from lgqlib.figures.pictures import picture_grid
from lgqlib.figures.style import BLUE, FAINT, INK, SEQUENTIAL, panels, titled
from lgqlib.measure.projection import Projection

# Paul Tol's ten "muted" colors: the nearest two are a CIE76 distance of 15 apart for eyes that lack
# one kind of cone, and 22 for others.
CLASS_COLORS = ("#332288", "#DDCC77", "#CC6677", "#117733", "#88CCEE")
CLASS_COLORS += ("#882255", "#44AA99", "#999933", "#AA4499", "#661100")
LONGEST_NAME = 16
"""Letters of a class's name beside the color bar; the whole name is on hover."""
CLICKABLE, SMALL = 6000, 1500
"""Codes that a map draws as points, for a browser looks at each at every change; a small map."""


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
    def classes(self) -> tuple[Int[np.ndarray, " K"], list[str], int]:
        """Return the place of each code's class among the colors, -1 without a class.

        The ten classes of most codes have a color and a name each, all others share one. The second
        result are the names, the third is the number of others.
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
        return places, [self.names[k] for k in kinds[leading]], len(kinds) - len(leading)

    def coloring(self, codes: Int[np.ndarray, " n"] | slice = slice(None)) -> dict:
        """Return the marker's color, scale and bar of some codes; without a value they are grey."""
        bar = {"title": {"text": self.unit, "side": "right"}, "thickness": 12}
        if self.names is not None:
            shown, names, others = self.classes
            colors = [FAINT, *CLASS_COLORS[: len(names)], *[INK] * (others > 0)]
            edges = np.linspace(0, 1, len(colors) + 1)
            scale = [[edges[i + j], color] for i, color in enumerate(colors) for j in (0, 1)]
            low, high = -1.5, len(colors) - 1.5
            labels = [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + "…" for n in names]
            if others:
                labels.append(f"{others} others")
                total = len(names) + others
                bar["title"]["text"] += f": {len(names)} of {total} have a color"
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
