"""Measured geometry of codebooks, each number beside its prediction, several runs on one axis."""

import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from lgqlib.figures.style import INK, each, panels, runs_of, titled
from lgqlib.measure import METRICS
from lgqlib.measure.geometry import Drift, Geometry
from lgqlib.measure.theory import mass_law_perplexity, water_filling

MAX_CELLS = 1500  # cells that a scatter draws for each run
EVEN = "slope −1: equal shares"


def partial_distortion(geometries: Mapping[str, Geometry]) -> go.Figure:
    """Draw each cell's error against its occupancy: slope -1 when all cells share the error."""
    fig, (panel,) = panels(height=460)
    for run, geometry in runs_of(geometries):
        p = geometry.partial
        cells = np.flatnonzero(p.counts >= p.min_count)
        some = np.linspace(0, len(cells) - 1, min(MAX_CELLS, len(cells)))
        cells = cells[some.astype(int)]
        x, y = p.counts[cells], p.mse[cells]
        panel.dots(
            *(x, y.astype("float32"), f"{run.label}, {p.num_cells} cells", run.color),
            size=5,
            symbol=run.symbol,
            marker={"opacity": 0.5},
            customdata=cells.astype("int32"),
            hovertemplate="code %{customdata}: %{x} tokens, mse %{y:.3g}<extra></extra>",
        )
        if len(cells) > 2 and math.isfinite(p.slope):
            ends, middle = np.array([x.min(), x.max()], dtype=float), np.exp(np.log([x, y]).mean(1))
            kinds = (p.slope, "solid", f"slope {_slope(geometry)}"), (-1.0, "dot", EVEN)
            for slope, dash, name in kinds:
                fitted = middle[1] * (ends / middle[0]) ** slope
                panel.line(ends, fitted, name, run.color, dash=dash, **run.mark)
    panel.axes("tokens in the cell", "mean squared error of the cell", log="xy")
    least = next(iter(geometries.values())).partial.min_count
    return titled(
        fig,
        f"Slope of error on occupancy: {each(geometries, _slope)}",
        "An optimal quantizer gives every cell the same share of the error: slope −1. A uniform "
        f"grid has slope 0. Brackets: 95 %, bootstrap over crops; cells of {least} tokens or up.",
    )


def bounds(geometries: Mapping[str, Geometry]) -> go.Figure:
    """Hold distortion against the water-filling bound, and perplexity against the mass law."""
    titles = ("Rate and distortion", "Perplexity")
    fig, (error, use) = panels(cols=2, titles=titles, height=440)
    error.legend(x=0.01, y=0.02)
    use.legend()
    for run, g in runs_of(geometries):
        total, spaces = g.latents.total, f"{6 + 4 * run.number}px,{3 + 3 * run.number}px"
        rates = np.linspace(0, max(1.15 * math.log(g.usage["num_codes"]), 0.1), 60)
        bound = water_filling(g.latents.eigenvalues, rates) / total
        name = f"bound for {run.label}'s latents"
        error.line(rates / math.log(2), bound, name, run.color, dash=spaces)
        at, name = [g.rate / math.log(2)], f"{run.label}: efficiency {_efficiency(g)}"
        error.dots(at, [g.distortion / total], name, run.color, size=12, symbol=run.symbol)
        share = [g.usage["perplexity_share"]]
        use.bars([run.label], share, "measured", run.color, marker=run.bar, showlegend=False)
    labels = [run.label for run, _ in runs_of(geometries)]
    laws = [mass_law_perplexity(max(1, g.latents.participation)) for g in geometries.values()]
    wide = {"size": 60, "symbol": "line-ew", "marker": {"line": {"width": 3, "color": INK}}}
    use.dots(labels, laws, "mass law, optimal for a Gaussian", **wide)
    error.axes("entropy of code use, bits a token", METRICS["latent_error"].title, log="y")
    use.axes(y=METRICS["perplexity_share"].title, y_range=[0, 1.15])
    return titled(
        fig,
        "Geometry efficiency, the bound's error over the codebook's: "
        + each(geometries, _efficiency),
        "1 would be the least error that a Gaussian with the same covariance can have at this "
        "rate; clustered latents can exceed it. Right: far below the mark, codes are wasted.",
    )


def drifts(histories: Mapping[str, Drift]) -> go.Figure:
    """Draw how far codes moved between snapshots, births and deaths, and the churn of the probe."""
    titles = ("Displacement of a code", "Births and deaths", "Tokens that changed code")
    fig, (moved, lives, churn) = panels(cols=3, titles=titles, height=380, horizontal_spacing=0.09)
    moved.legend(x=0.01)
    lives.legend()
    for run, d in runs_of(histories):
        steps = d.steps[1:]
        low, middle, high = np.quantile(d.displacement, [0.1, 0.5, 0.9], axis=1)
        moved.band(steps, low, high, run.color)
        moved.line(steps, middle, run.label, run.color, **run.mark)
        # Before the first step nothing was counted: its births would be all codes in use.
        lives.line(steps[1:], d.births[1:], f"{run.label}, born", run.color, **run.mark)
        lives.line(steps[1:], d.deaths[1:], f"{run.label}, died", run.color, dash="dot", **run.mark)
        churn.line(steps, 100 * d.churn, run.label, run.color, **run.mark, showlegend=False)
    names = {moved: "distance, median and 10–90 %", lives: "codes", churn: "tokens, %"}
    for panel, title in names.items():
        panel.axes("training step", title, log="x", y_rangemode="tozero")
    last = each(histories, lambda d: f"{100 * d.churn[-1]:.0f} %")
    return titled(
        fig,
        f"Tokens of the probe that still changed code in the last interval: {last}",
        "A codebook that settles moves less and less. Late deaths are codes that were lost.",
    )


def _slope(g: Geometry) -> str:
    return f"{g.partial.slope:.2f} [{g.partial.low:.2f}, {g.partial.high:.2f}]"


def _efficiency(g: Geometry) -> str:
    return METRICS["geometry_efficiency"].text(g.efficiency)
