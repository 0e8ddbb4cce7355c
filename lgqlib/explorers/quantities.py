"""What a map can show of each code, in color; and the map once for each, standing still."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.colors import get_colorscale

from lgqlib.figures.style import FAINT, INK, SEQUENTIAL, panels, titled
from lgqlib.measure.projection import Projection

# Paul Tol's ten "muted" colors: the nearest two are a CIE76 distance of 15 apart for eyes that lack
# one kind of cone, and 22 for others.
CLASS_COLORS = ("#332288", "#DDCC77", "#CC6677", "#117733", "#88CCEE")
CLASS_COLORS += ("#882255", "#44AA99", "#999933", "#AA4499", "#661100")
CLICKABLE, SMALL = 6000, 1500
"""Codes that a map draws as points, for a browser looks at each at every change; a small map."""


@dataclass(frozen=True)
class CodeValues:
    """A number for each code, NaN where it cannot be known, and how to color it."""

    values: Float[np.ndarray, " K"]
    unit: str
    log: bool = False  # show it by its logarithm
    names: Sequence[str] | None = None  # of classes, where values are their numbers

    @property
    def shown(self) -> Float[np.ndarray, " K"]:
        """Return what is drawn: the values, or their decimal logarithm with zero as NaN."""
        with np.errstate(divide="ignore", invalid="ignore"):
            shown = np.log10(self.values) if self.log else self.values
        return np.where(np.isfinite(shown), shown, np.nan).astype("float32")

    @property
    def ends(self) -> tuple[float, float]:
        """Return the least and the largest number shown."""
        known = self.shown[np.isfinite(self.shown)]
        return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)

    @property
    def classes(self) -> tuple[Int[np.ndarray, " K"], list[str], int]:
        """Return each code's place among the colors, -1 without a class; names; number of others.

        The ten classes of most codes have a color and a name each, all others share one.
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

    def marker(self, codes: Int[np.ndarray, " n"] | slice = slice(None)) -> dict:
        """Return the colors of some codes and their scale; without a value they are grey."""
        if self.names is not None:
            shown, names, others = self.classes
            colors = [FAINT, *CLASS_COLORS[: len(names)], *[INK] * (others > 0)]
            edges = np.linspace(0, 1, len(colors) + 1)
            scale = [[edges[i + j], color] for i, color in enumerate(colors) for j in (0, 1)]
            low, high = -1.5, len(colors) - 1.5
        else:
            least, high = self.ends
            low, start = least - max(high - least, 1e-6) / 50, 0.015
            shown = np.where(np.isfinite(self.shown), self.shown, low)
            # The least share of the scale is grey, and no known value is as low.
            viridis = [[start + (1 - start) * at, c] for at, c in get_colorscale(SEQUENTIAL)]
            scale, high = [[0, FAINT], [start, FAINT], *viridis], max(high, low + 1e-6)
        color = shown[codes].astype("float32")
        return {"color": color, "colorscale": scale, "cmin": low, "cmax": high}

    def hover(self, codes: Int[np.ndarray, " n"]) -> list[str] | None:
        """Name the class of some codes; None where values are no classes."""
        if self.names is None:
            return None
        found = self.values[codes]
        return [f"{self.unit} {self.names[int(k)]}" if np.isfinite(k) else "" for k in found]


def dominant_class(
    indices: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"], num_codes: int
) -> Int[np.ndarray, " K"]:
    """Return each code's most frequent label, the lower of equals; -1 without tokens."""
    pairs, counts = np.unique(np.stack([indices, labels], 1), axis=0, return_counts=True)
    order = np.lexsort((-pairs[:, 1], counts))  # ascending, so that the last write wins
    label = np.full(num_codes, -1)
    label[pairs[order, 0]] = pairs[order, 1]
    return label


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
    titles, height = list(values), 90 + 250 * rows
    fig, all_panels = panels(rows=rows, cols=4, titles=titles, height=height, **spaces)
    for panel, of_codes in zip(all_panels, values.values(), strict=False):
        said = "%{hovertext}" if of_codes.names else f"%{{customdata[1]:.3g}} {of_codes.unit}"
        panel.dots(
            *projection.codes[drawn].T,
            size=sizes(counts)[drawn] * 0.6,
            marker=of_codes.marker(drawn),
            customdata=np.stack([drawn, of_codes.values[drawn]], 1).astype("float32"),
            hovertext=of_codes.hover(drawn),
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
        f"Each map has its own scale, dark low and bright high; grey is unknown. Drawn: {shown} "
        "codes. Look for what follows the density: rare codes with large cells, edges that err.",
    )
