"""A number for each code, and the color that stands for it on a map."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from plotly.colors import get_colorscale

from lgqlib.figures.style import FAINT, INK, SEQUENTIAL

CLASS_COLORS = (
    "#332288",
    "#DDCC77",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#661100",
)
"""Paul Tol's ten "muted" colors: the nearest two are a CIE76 distance of 15 apart for eyes that
lack one kind of cone, and 22 for others.
"""
LONGEST_NAME = 16
"""Letters of a class's name beside the bar; the whole name is on hover."""


@dataclass(frozen=True)
class Quantity:
    """A number for each code, NaN where it cannot be known."""

    values: Float[np.ndarray, " K"]
    unit: str
    log: bool = False
    """Show it by its logarithm."""
    names: Sequence[str] | None = None
    """What the classes are called, where values are numbers of classes: each has its color."""

    @property
    def shown(self) -> Float[np.ndarray, " K"]:
        """What is drawn: the values, or their decimal logarithm with zero as NaN."""
        if not self.log:
            return self.values.astype("float32")
        with np.errstate(divide="ignore"):
            return np.where(self.values > 0, np.log10(self.values), np.nan).astype("float32")

    def coloring(self, codes: Int[np.ndarray, " n"] | slice = slice(None)) -> dict:
        """Give the marker's color, scale and bar of some codes; those without a value are grey."""
        bar = {"title": {"text": self.unit, "side": "right"}, "thickness": 12}
        if self.names is not None:
            return self._class_coloring(codes, bar)
        shown = self.shown
        known = shown[np.isfinite(shown)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        room = max(high - low, 1e-6) / 50
        scale = [[0, FAINT], [0.015, FAINT], *_scale(0.015)]
        if self.log:
            bar["title"]["text"] += ", log<sub>10</sub>"
        return {
            "color": np.where(np.isfinite(shown), shown, low - room)[codes].astype("float32"),
            "colorscale": scale,
            "cmin": float(low - room),
            "cmax": float(max(high, low + 1e-6)),
            "colorbar": bar | {"tickmode": "auto"},
        }

    def hover(self, codes: Int[np.ndarray, " n"]) -> list[str] | None:
        """Name the class of some codes; None where values are no classes."""
        if self.names is None:
            return None
        found = self.values[codes]
        return [f"{self.unit} {self.names[int(k)]}" if np.isfinite(k) else "" for k in found]

    @property
    def ranks(self) -> Int[np.ndarray, " K"]:
        """Give the place of each code's class among the colors: -1 without a class, 10 for all
        classes beyond the ten that most codes have.
        """
        known = np.isfinite(self.values)
        ranks = np.full(len(self.values), -1)
        ranks[known] = len(CLASS_COLORS)
        for rank, kind in enumerate(self._leading()):
            ranks[self.values == kind] = rank
        return ranks

    def _leading(self) -> Int[np.ndarray, " n"]:
        """Classes with a color of their own, in order: those of most codes."""
        kinds, counts = np.unique(self.values[np.isfinite(self.values)], return_counts=True)
        most = np.argsort(-counts, kind="stable")[: len(CLASS_COLORS)]
        return np.sort(kinds[most]).astype(int)

    def _class_coloring(self, codes: Int[np.ndarray, " n"] | slice, bar: dict) -> dict:
        leading, ranks = self._leading(), self.ranks
        labels = [_short(self.names[kind]) for kind in leading]
        colors = [FAINT, *CLASS_COLORS[: len(leading)]]
        others = len(np.unique(self.values[ranks == len(CLASS_COLORS)]))
        if others:
            labels.append(f"{others} others")
            colors.append(INK)
            bar["title"]["text"] += f": {len(leading)} of {len(leading) + others} have a color"
        edges = np.linspace(0, 1, len(colors) + 1)
        scale = [[edges[i + j], color] for i, color in enumerate(colors) for j in (0, 1)]
        ticks = {"tickmode": "array", "tickvals": list(range(len(labels))), "ticktext": labels}
        return {
            "color": ranks[codes].astype("float32"),
            "colorscale": scale,
            "cmin": -1.5,
            "cmax": len(labels) - 0.5,
            "colorbar": bar | ticks,
        }


def _scale(start: float) -> list:
    return [[start + (1 - start) * place, color] for place, color in get_colorscale(SEQUENTIAL)]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
