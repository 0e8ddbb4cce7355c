"""Measured geometry of codebooks, each number beside its prediction, several runs on one axis.

Runs are keyed by method name, `lgq`, or with something behind it, `lgq seed 1`. The color says the
method; symbol, pattern or dash tell runs of one method apart.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from lgqlib.figures.style import INK, SYMBOLS, color_of, name_of, panels, titled
from lgqlib.measure import METRICS
from lgqlib.measure.geometry import Drift, Geometry
from lgqlib.measure.theory import water_filling

PATTERNS = ("", "/", ".", "x", "-", "|")
MAX_CELLS = 1500
"""Cells that a scatter draws for each run."""


class RunStyle(NamedTuple):
    """How a run is drawn."""

    label: str
    color: str
    number: int
    """How many runs of the same method stand before it."""

    @property
    def symbol(self) -> str:
        """Return the symbol of its points."""
        return SYMBOLS[self.number % len(SYMBOLS)]

    @property
    def bar(self) -> dict:
        """Return the pattern of its bars."""
        return {"pattern": {"shape": PATTERNS[self.number % len(PATTERNS)]}}


def partial_distortion(geometries: Mapping[str, Geometry]) -> go.Figure:
    """Draw each cell's error against its occupancy: slope -1 when all cells share the error."""
    fig, (panel,) = panels(height=460)
    for run, geometry in _runs(geometries):
        p = geometry.partial
        cells = _some(np.flatnonzero(p.counts >= p.min_count))
        panel.dots(
            p.counts[cells],
            p.mse[cells].astype("float32"),
            f"{run.label}, {p.num_cells} cells",
            run.color,
            size=5,
            symbol=run.symbol,
            marker={"opacity": 0.5},
            customdata=cells.astype("int32"),
            hovertemplate="code %{customdata}: %{x} tokens, mse %{y:.3g}<extra></extra>",
        )
        if len(cells) > 2 and math.isfinite(p.slope):
            x = np.array([p.counts[cells].min(), p.counts[cells].max()], dtype=float)
            middle = np.exp(np.log([p.counts[cells], p.mse[cells]]).mean(1))
            mark = {"mode": "lines+markers", "marker": {"symbol": run.symbol, "size": 9}}
            for slope, dash, name in (
                (p.slope, "solid", f"slope {_slope(geometry)}"),
                (-1.0, "dot", "slope −1: equal shares"),
            ):
                y = middle[1] * (x / middle[0]) ** slope
                panel.line(x, y, name, run.color, dash=dash, **mark)
    panel.axes("tokens in the cell", "mean squared error of the cell", log="xy")
    least = next(iter(geometries.values())).partial.min_count
    return titled(
        fig,
        f"Slope of error on occupancy: {_each(geometries, _slope)}",
        "An optimal quantizer gives every cell the same share of the error: slope −1. A uniform "
        "grid has slope 0. Brackets: 95 % intervals, bootstrap over images; cells with "
        f"{least} tokens or more.",
    )


def bounds(geometries: Mapping[str, Geometry]) -> go.Figure:
    """Hold distortion against the water-filling bound, and perplexity against the mass law."""
    titles = ("Rate and distortion", "Perplexity")
    fig, (error, use) = panels(cols=2, titles=titles, height=440)
    error.legend(x=0.01, y=0.02)
    use.legend()
    for run, g in _runs(geometries):
        total, num_codes = g.latents.total, len(g.occupancy.counts)
        rates = np.linspace(0, max(1.15 * math.log(num_codes), 0.1), 60)
        error.line(
            rates / math.log(2),
            water_filling(g.latents.eigenvalues, rates) / total,
            f"bound for {run.label}'s latents",
            run.color,
            dash=f"{6 + 4 * run.number}px,{3 + 3 * run.number}px",
        )
        error.dots(
            [g.occupancy.entropy_corrected / math.log(2)],
            [g.distortion / total],
            f"{run.label}: efficiency {_efficiency(g)}",
            run.color,
            size=12,
            symbol=run.symbol,
        )
        share = g.occupancy.perplexity / num_codes
        use.bars([run.label], [share], "measured", run.color, marker=run.bar, showlegend=False)
    use.dots(
        [name_of(key) for key in geometries],
        [g.mass_law / len(g.occupancy.counts) for g in geometries.values()],
        "mass law, optimal for a Gaussian",
        size=60,
        symbol="line-ew",
        marker={"line": {"width": 3, "color": INK}},
    )
    error.axes("entropy of code use, bits a token", METRICS["latent_error"].title, log="y")
    use.axes(y=METRICS["perplexity_share"].title, y_range=[0, 1.15])
    return titled(
        fig,
        "Geometry efficiency, the bound's error over the codebook's: "
        + _each(geometries, _efficiency),
        "1 would be the least error that a Gaussian with the same covariance can have at this "
        "rate; clustered latents can exceed it. Right: far below the mark, codes are wasted.",
    )


def spacing_and_shape(geometries: Mapping[str, Geometry]) -> go.Figure:
    """Draw distances between codes, and how long cells are against what sampling alone shows."""
    titles = ("Distance to the nearest code", "Cell shape")
    fig, (distances, shapes) = panels(cols=2, titles=titles, height=420)
    distances.legend()
    shapes.legend(x=0.01)
    for run, g in _runs(geometries):
        spread = math.sqrt(g.latents.total) or 1.0
        heights, edges = np.histogram(g.spacing.distance / spread, bins=50)
        distances.bars(
            (edges[:-1] + edges[1:]) / 2,
            100 * heights / heights.sum(),
            f"{run.label}, hubness {g.spacing.hubness:.2f}, {g.spacing.twins} twins",
            run.color,
            width=np.diff(edges),
            opacity=0.6,
            marker=run.bar,
        )
        cells = _some(np.flatnonzero(np.isfinite(g.shape.anisotropy)))
        shapes.dots(
            g.shape.expected[cells].astype("float32"),
            g.shape.anisotropy[cells].astype("float32"),
            f"{run.label}, {len(cells)} cells",
            run.color,
            size=5,
            symbol=run.symbol,
            marker={"opacity": 0.6},
        )
    top = max(np.nanmax(g.shape.expected, initial=0.05) for g in geometries.values())
    shapes.line([0, top], [0, top], "round cells", dash="dash")
    fig.update_layout(barmode="overlay")
    distances.axes("distance / spread of the latents", "codes, %")
    shapes.axes("elongation of a round cell with as few tokens", "elongation seen")
    return titled(
        fig,
        f"Cells longer than round at the 5 % level: {_each(geometries, _long)}",
        "With few tokens every cell looks long; only what lies above the dashed line is real. "
        "Twins are codes at the same place: wasted.",
    )


def spectra(geometries: Mapping[str, Geometry]) -> go.Figure:
    """Draw the covariance spectra of latents and of codes, with their effective dimensions."""
    fig, (panel,) = panels(height=420)
    panel.legend(x=0.01, y=0.02)
    for run, g in _runs(geometries):
        for name, spectrum, dash in (("latents", g.latents, "solid"), ("codes", g.codes, "dot")):
            values = spectrum.eigenvalues / max(g.latents.total, 1e-30)
            panel.line(
                np.arange(1, len(values) + 1),
                np.maximum(values, 1e-9).astype("float32"),
                f"{run.label}, {name}: effective dimension {spectrum.participation:.1f}",
                run.color,
                dash=dash,
                mode="lines+markers",
                marker={"symbol": run.symbol},
            )
    channels = max(len(g.latents.eigenvalues) for g in geometries.values())
    step = max(1, channels // 16)
    panel.axes("principal direction", "share of the latents' variance", log="y", x_dtick=step)
    return titled(
        fig,
        f"Effective dimension of the latents: {_each(geometries, _dimension)}",
        "A codebook that follows the data has its spectrum, a little wider (the mass law); a steep "
        "fall means that few directions carry the image.",
    )


def drifts(histories: Mapping[str, Drift]) -> go.Figure:
    """Draw how far codes moved between snapshots, births and deaths, and the churn of the probe."""
    titles = ("Displacement of a code", "Births and deaths", "Tokens that changed code")
    fig, (moved, lives, churn) = panels(cols=3, titles=titles, height=380, horizontal_spacing=0.09)
    moved.legend(x=0.01)
    lives.legend()
    for run, d in _runs(histories):
        steps, mark = d.steps[1:], {"mode": "lines+markers", "marker": {"symbol": run.symbol}}
        low, middle, high = np.quantile(d.displacement, [0.1, 0.5, 0.9], axis=1)
        moved.band(steps, low, high, run.color)
        moved.line(steps, middle, run.label, run.color, **mark)
        # Before the first step nothing was counted: its births would be all codes in use.
        lives.line(steps[1:], d.births[1:], f"{run.label}, born", run.color, **mark)
        lives.line(steps[1:], d.deaths[1:], f"{run.label}, died", run.color, dash="dot", **mark)
        churn.line(steps, 100 * d.churn, run.label, run.color, **mark, showlegend=False)
    for panel, title in (
        (moved, "distance, median and 10–90 %"),
        (lives, "codes"),
        (churn, "tokens, %"),
    ):
        panel.axes("training step", title, log="x", y_rangemode="tozero")
    last = _each(histories, lambda d: f"{100 * d.churn[-1]:.0f} %")
    return titled(
        fig,
        f"Tokens of the probe that still changed code in the last interval: {last}",
        "A codebook that settles moves less and less. Deaths late in training are codes that were "
        "lost.",
    )


def _runs(values: Mapping[str, Any]) -> Iterator[tuple[RunStyle, Any]]:
    """Yield each run's value with how the run is drawn."""
    before: Counter[str] = Counter()
    for key, value in values.items():
        method = key.partition(" ")[0]
        yield RunStyle(name_of(key), color_of(key), before[method]), value
        before[method] += 1


def _each(values: Mapping[str, Any], text: Callable[[Any], str]) -> str:
    return "; ".join(f"{name_of(key)} {text(value)}" for key, value in values.items())


def _slope(g: Geometry) -> str:
    return f"{g.partial.slope:.2f} [{g.partial.low:.2f}, {g.partial.high:.2f}]"


def _efficiency(g: Geometry) -> str:
    return METRICS["geometry_efficiency"].text(g.efficiency)


def _long(g: Geometry) -> str:
    share = 100 * g.shape.share_long
    return f"{share:.0f} %" if math.isfinite(share) else "(too few tokens)"


def _dimension(g: Geometry) -> str:
    size = len(g.latents.eigenvalues)
    return f"{g.latents.participation:.1f} of {size} (TwoNN {g.intrinsic_dim:.1f})"


def _some(cells: np.ndarray) -> np.ndarray:
    if len(cells) <= MAX_CELLS:
        return cells
    return cells[np.linspace(0, len(cells) - 1, MAX_CELLS).astype(int)]
