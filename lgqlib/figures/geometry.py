"""Measured geometry of codebooks, each number beside its prediction, several runs on one axis.

Runs are keyed by method name, `lgq`, or with something behind it, `lgq seed 1`.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import plotly.graph_objects as go

from lgqlib.figures.bands import band
from lgqlib.figures.style import INK, color_of, figure, legend_in, name_of, titled
from lgqlib.measure.drift import Drift
from lgqlib.measure.portrait import Portrait
from lgqlib.measure.theory import mass_law_perplexity, water_filling

SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "cross", "star")
PATTERNS = ("", "/", ".", "x", "-", "|")
"""What tells runs of one method apart, in turns: the color says the method."""

MAX_CELLS = 1500
"""Cells that a scatter draws for each run."""


def label_of(key: str) -> str:
    """Return what a run keyed by its method is called."""
    method, _, rest = key.partition(" ")
    return f"{name_of(method)} {rest}".strip()


def run_color(key: str) -> str:
    """Return the color of a run keyed by its method."""
    return color_of(key.partition(" ")[0])


def run_number(key: str, keys: Iterable[str]) -> int:
    """Return how many runs of the same method stand before this one: they share its color."""
    same = [other for other in keys if other.partition(" ")[0] == key.partition(" ")[0]]
    return same.index(key) % len(SYMBOLS)


def partial_distortion(portraits: Mapping[str, Portrait]) -> go.Figure:
    """Draw each cell's error against its occupancy: a slope of -1 when all cells share the
    error.
    """
    fig = figure(height=460)
    for key, portrait in portraits.items():
        p = portrait.partial
        cells = _some(np.flatnonzero(p.counts >= p.min_count))
        symbol = SYMBOLS[run_number(key, portraits)]
        fig.add_scatter(
            x=p.counts[cells],
            y=p.mse[cells].astype("float32"),
            mode="markers",
            marker={"color": run_color(key), "size": 5, "opacity": 0.5, "symbol": symbol},
            name=f"{label_of(key)}, {p.num_cells} cells",
            customdata=cells.astype("int32"),
            hovertemplate="code %{customdata}: %{x} tokens, mse %{y:.3g}<extra></extra>",
        )
        if len(cells) > 2 and math.isfinite(p.slope):
            x = np.array([p.counts[cells].min(), p.counts[cells].max()], dtype=float)
            middle = np.exp(np.log(p.counts[cells]).mean()), np.exp(np.log(p.mse[cells]).mean())
            for slope, dash, name in (
                (p.slope, "solid", f"slope {p.slope:.2f} [{p.low:.2f}, {p.high:.2f}]"),
                (-1.0, "dot", "slope −1: equal shares"),
            ):
                fig.add_scatter(
                    x=x,
                    y=middle[1] * (x / middle[0]) ** slope,
                    mode="lines+markers",
                    line={"color": run_color(key), "dash": dash},
                    marker={"symbol": symbol, "size": 9},
                    name=name,
                )
    fig.update_xaxes(title_text="tokens in the cell", type="log")
    fig.update_yaxes(title_text="mean squared error of the cell", type="log")
    parts = [
        f"{label_of(k)} {v.partial.slope:.2f} [{v.partial.low:.2f}, {v.partial.high:.2f}]"
        for k, v in portraits.items()
    ]
    return titled(
        fig,
        "Slope of error on occupancy: " + "; ".join(parts),
        "An optimal quantizer gives every cell the same share of the error: slope −1. A uniform "
        "grid "
        "has slope 0. Brackets: 95 % intervals, bootstrap over images; cells with "
        f"{next(iter(portraits.values())).partial.min_count} tokens or more.",
    )


def bounds(portraits: Mapping[str, Portrait]) -> go.Figure:
    """Hold distortion against the water-filling bound, and perplexity against the mass law."""
    fig = figure(cols=2, titles=("Rate and distortion", "Perplexity"), height=440)
    legend, right = legend_in(fig, 1, 1, x=0.01, y=0.02), legend_in(fig, 1, 2)
    for key, p in portraits.items():
        color, total = run_color(key), p.latents.total
        number = run_number(key, portraits)
        rate = p.occupancy.entropy_corrected
        rates = np.linspace(0, max(1.15 * math.log(len(p.occupancy.counts)), 0.1), 60)
        fig.add_scatter(
            x=rates / math.log(2),
            y=water_filling(p.latents.eigenvalues, rates) / total,
            mode="lines",
            line={"color": color, "dash": f"{6 + 4 * number}px,{3 + 3 * number}px"},
            name=f"bound for {label_of(key)}'s latents",
            legend=legend,
            row=1,
            col=1,
        )
        fig.add_scatter(
            x=[rate / math.log(2)],
            y=[p.distortion / total],
            mode="markers",
            marker={"color": color, "size": 12, "symbol": SYMBOLS[number]},
            name=f"{label_of(key)}: efficiency {p.efficiency:.2f}",
            legend=legend,
            row=1,
            col=1,
        )
        fig.add_bar(
            x=[label_of(key)],
            y=[p.occupancy.perplexity / len(p.occupancy.counts)],
            marker={"color": color, "pattern": {"shape": PATTERNS[number]}},
            name="measured",
            showlegend=False,
            row=1,
            col=2,
        )
    fig.add_scatter(
        x=[label_of(k) for k in portraits],
        y=[mass_law_perplexity(max(p.effective_dim, 1.0)) for p in portraits.values()],
        mode="markers",
        marker={"symbol": "line-ew", "size": 60, "line": {"width": 3, "color": INK}},
        name="mass law, optimal for a Gaussian",
        legend=right,
        row=1,
        col=2,
    )
    fig.update_xaxes(title_text="entropy of code use, bits a token", row=1, col=1)
    fig.update_yaxes(title_text="error / variance", type="log", row=1, col=1)
    fig.update_yaxes(title_text="perplexity / K", range=[0, 1.15], row=1, col=2)
    parts = [f"{label_of(k)} {p.efficiency:.2f}" for k, p in portraits.items()]
    return titled(
        fig,
        f"Geometry efficiency, the bound's error over the codebook's: {'; '.join(parts)}",
        "1 would be the least error that a Gaussian with the same covariance can have at this "
        "rate; "
        "clustered latents can exceed it. Right: far below the mark, codes are wasted.",
    )


def spacing_and_shape(portraits: Mapping[str, Portrait]) -> go.Figure:
    """Draw distances between codes, and how long cells are against what sampling alone shows."""
    fig = figure(cols=2, titles=("Distance to the nearest code", "Cell shape"), height=420)
    legend = legend_in(fig, 1, 1)
    for key, p in portraits.items():
        color, distance = run_color(key), p.spacing.distance
        spread = math.sqrt(p.latents.total) or 1.0
        number = run_number(key, portraits)
        fig.add_histogram(
            x=(distance / spread).astype("float32"),
            marker={"color": color, "pattern": {"shape": PATTERNS[number]}},
            opacity=0.6,
            nbinsx=50,
            histnorm="percent",
            name=f"{label_of(key)}, hubness {p.spacing.hubness:.2f}, {p.spacing.twins} twins",
            legend=legend,
            row=1,
            col=1,
        )
        cells = _some(np.flatnonzero(np.isfinite(p.shape.anisotropy)))
        fig.add_scatter(
            x=p.shape.expected[cells].astype("float32"),
            y=p.shape.anisotropy[cells].astype("float32"),
            mode="markers",
            marker={"color": color, "size": 5, "opacity": 0.6, "symbol": SYMBOLS[number]},
            name=f"{label_of(key)}, {len(cells)} cells",
            legend=legend_in(fig, 1, 2, x=0.01),
            row=1,
            col=2,
        )
    top = max((np.nanmax(p.shape.expected, initial=0.05) for p in portraits.values()), default=0.05)
    fig.add_scatter(
        x=[0, top],
        y=[0, top],
        mode="lines",
        line={"color": INK, "dash": "dash"},
        name="round cells",
        legend=legend_in(fig, 1, 2, x=0.01),
        row=1,
        col=2,
    )
    fig.update_layout(barmode="overlay")
    fig.update_xaxes(title_text="distance / spread of the latents", row=1, col=1)
    fig.update_yaxes(title_text="codes, %", row=1, col=1)
    fig.update_xaxes(title_text="elongation of a round cell with as few tokens", row=1, col=2)
    fig.update_yaxes(title_text="elongation seen", row=1, col=2)
    parts = [
        f"{label_of(k)} {100 * p.shape.share_long:.0f} %"
        if math.isfinite(p.shape.share_long)
        else f"{label_of(k)}: too few tokens"
        for k, p in portraits.items()
    ]
    return titled(
        fig,
        f"Cells longer than round at the 5 % level: {'; '.join(parts)}",
        "With few tokens every cell looks long; only what lies above the dashed line is real. "
        "Twins "
        "are codes at the same place: wasted.",
    )


def spectra(portraits: Mapping[str, Portrait]) -> go.Figure:
    """Draw the covariance spectra of latents and of codes, with their effective dimensions."""
    fig = figure(height=420)
    for key, p in portraits.items():
        for name, spectrum, dash in (("latents", p.latents, "solid"), ("codes", p.codes, "dot")):
            values = spectrum.eigenvalues / max(p.latents.total, 1e-30)
            fig.add_scatter(
                x=np.arange(1, len(values) + 1),
                y=np.maximum(values, 1e-9).astype("float32"),
                mode="lines+markers",
                line={"color": run_color(key), "dash": dash},
                marker={"symbol": SYMBOLS[run_number(key, portraits)]},
                name=f"{label_of(key)}, {name}: effective dimension {spectrum.participation:.1f}",
            )
    fig.update_layout(legend={"x": 0.01, "y": 0.02, "yanchor": "bottom"})
    channels = max(len(p.latents.eigenvalues) for p in portraits.values())
    fig.update_xaxes(title_text="principal direction", dtick=max(1, channels // 16))
    fig.update_yaxes(title_text="share of the latents' variance", type="log")
    parts = [
        f"{label_of(k)} {p.effective_dim:.1f} of {len(p.latents.eigenvalues)} (TwoNN "
        f"{p.intrinsic_dim:.1f})"
        for k, p in portraits.items()
    ]
    return titled(
        fig,
        f"Effective dimension of the latents: {'; '.join(parts)}",
        "A codebook that follows the data has its spectrum, a little wider (the mass law); a steep "
        "fall means that few directions carry the image.",
    )


def drifts(histories: Mapping[str, Drift]) -> go.Figure:
    """Draw how far codes moved between snapshots, births and deaths, and the churn of the probe."""
    titles = ("Displacement of a code", "Births and deaths", "Tokens that changed code")
    fig = figure(cols=3, titles=titles, height=380, horizontal_spacing=0.09)
    for key, d in histories.items():
        color, steps, label = run_color(key), d.steps[1:], label_of(key)
        legend = legend_in(fig, 1, 1, x=0.01)
        moved = np.quantile(d.displacement, [0.1, 0.5, 0.9], axis=1)
        marker = {"symbol": SYMBOLS[run_number(key, histories)]}
        line = {"mode": "lines+markers", "marker": marker, "name": label, "legend": legend}
        band(fig, steps, moved, color, row=1, col=1, **line)
        # Before the first step nothing was counted: its births would be all codes in use.
        for col, x, y, name, dash in (
            (2, steps[1:], d.births[1:], f"{label}, born", "solid"),
            (2, steps[1:], d.deaths[1:], f"{label}, died", "dot"),
            (3, steps, 100 * d.churn, f"{label}, churn", "solid"),
        ):
            fig.add_scatter(
                x=x,
                y=y,
                mode="lines+markers",
                line={"color": color, "dash": dash},
                marker=marker,
                name=name,
                legend=legend_in(fig, 1, 2),
                showlegend=col < 3,
                row=1,
                col=col,
            )
    fig.update_xaxes(title_text="training step", type="log")
    for col, title in ((1, "distance, median and 10–90 %"), (2, "codes"), (3, "tokens, %")):
        fig.update_yaxes(title_text=title, rangemode="tozero", row=1, col=col)
    parts = [f"{label_of(k)} {100 * d.churn[-1]:.0f} %" for k, d in histories.items()]
    return titled(
        fig,
        f"Tokens of the probe that still changed code in the last interval: {'; '.join(parts)}",
        "A codebook that settles moves less and less. Deaths late in training are codes that were "
        "lost.",
    )


def _some(cells: np.ndarray) -> np.ndarray:
    if len(cells) <= MAX_CELLS:
        return cells
    return cells[np.linspace(0, len(cells) - 1, MAX_CELLS).astype(int)]
