"""Fits of quantizers on fixed latents, side by side and against the bound."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from lgqlib.figures.style import (
    COLORS,
    GREEN,
    INK,
    RED,
    SYMBOLS,
    color_of,
    panels,
    titled,
)
from lgqlib.measure.theory import water_filling

REFERENCE = "k-means"
VERDICTS = {"better": GREEN, "worse": RED, "undecided": INK}
ERROR, USE = "held-out squared error / variance", "share of codes in use"


def ladder(trials: pd.DataFrame, bound: float, *, what: str) -> go.Figure:
    """Draw every fit's distortion: a row a variant, a dot a seed, a color a start.

    `bound`: the least distortion at log K nats. `what`: what was quantized, for the title.
    """
    shown = trials[trials["variant"] != REFERENCE]
    names = list(dict.fromkeys(shown["variant"]))
    fig, (panel,) = panels(height=170 + 26 * len(names))
    for i, (start, rows) in enumerate(shown.groupby("start", sort=False)):
        panel.dots(
            *(rows["distortion"], rows["variant"], f"start: {start}", COLORS[i]),
            **{"symbol": SYMBOLS[i], "size": 9, "opacity": 0.75},
            customdata=rows[["seed", "active_share", "efficiency"]].to_numpy(),
            hovertemplate="seed %{customdata[0]}: %{x:.4f}, active %{customdata[1]:.1%}, "
            "efficiency %{customdata[2]:.2f}<extra></extra>",
        )
    reference = trials.loc[trials["variant"] == REFERENCE, "distortion"].mean()
    panel.line([reference] * 2, [names[0], names[-1]], REFERENCE, dash="dash")
    panel.line([bound] * 2, [names[0], names[-1]], "bound at log K", dash="dot")
    panel.axes(ERROR, log="x", y_categoryorder="array", y_categoryarray=names[::-1])
    means = shown.groupby("variant", sort=False)["distortion"].mean()
    best, worst = means.idxmin(), means.idxmax()
    return titled(
        fig,
        f"{what}: {best} errs least, {means[best] / reference - 1:+.1%} against k-means; {worst} "
        f"most, {means[worst] / reference - 1:+.1%}",
        f"Means over starts and {shown['seed'].nunique()} seeds; a dot is one fit. Dots of one row "
        "far apart: what comes out depends on where the codes began.",
    )


def starts(trials: pd.DataFrame, names: Sequence[str]) -> go.Figure:
    """Draw distortion and active share of some variants against where the codes began."""
    fig, (error, use) = _error_and_use()
    error.legend(x=0.01)
    ratio = {}
    for i, name in enumerate(names):
        groups = trials[trials["variant"] == name].groupby("start", sort=False)
        for panel, measure, legend in ((error, "distortion", name), (use, "active_share", "")):
            mean, spread = groups[measure].mean(), groups[measure].std()
            panel.dots(
                *(list(mean.index), mean, legend, COLORS[i]),
                **{"symbol": SYMBOLS[i], "size": 8, "mode": "lines+markers"},
                error_y=(mean - spread, mean + spread),
            )
        distortion = groups["distortion"].mean()
        ratio[name] = distortion.max() / distortion.min()
    fig.update_xaxes(title_text="where the codes began")
    parts = "; ".join(f"{name} {100 * (r - 1):.1f} %" for name, r in ratio.items())
    return titled(
        fig,
        f"Worst start over best, in error: {parts}",
        f"Means and standard deviations over {trials['seed'].nunique()} seeds. A level line is a "
        "result that does not depend on luck.",
    )


def cooling(histories: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draw error and codes in use on the way, for a few fits from one bad start."""
    fig, (error, use) = _error_and_use()
    error.legend()
    for i, (name, history) in enumerate(histories.items()):
        for panel, measure, legend in ((error, "distortion", name), (use, "active_share", "")):
            panel.dots(
                *(history["step"], history[measure], legend, COLORS[i]),
                **{"symbol": SYMBOLS[i], "size": 7, "mode": "lines+markers"},
                customdata=history["tau"],
                hovertemplate="tau %{customdata:.3g}: %{y:.3f}<extra></extra>",
            )
    fig.update_xaxes(title_text="step")
    last = {name: h.iloc[-1] for name, h in histories.items()}
    parts = [f"{n} {r['distortion']:.3f} with {r['active_share']:.0%}" for n, r in last.items()]
    return titled(
        fig,
        "From one small cluster, error and codes in use at the end: " + "; ".join(parts),
        "While it is hot, annealed codes gather at the mean and part again as it cools.",
    )


def _error_and_use():
    titles = ("Error", "Codes in use")
    fig, (error, use) = panels(cols=2, titles=titles, height=400, horizontal_spacing=0.12)
    error.axes(y=ERROR, log="y")
    use.axes(y=USE, y_rangemode="tozero")
    return fig, (error, use)


def effects(table: pd.DataFrame, *, what: str) -> go.Figure:
    """Draw each hypothesis' effect with its interval; the verdict is whether it crosses zero."""
    labels = table["hypothesis"] + ", " + table["context"] + ", " + table["start"]
    fig, (panel,) = panels(height=150 + 26 * len(table))
    for verdict, color in VERDICTS.items():
        here = table["verdict"] == verdict
        rows = table[here]
        if len(rows):
            ends = (rows["low"], rows["high"])
            panel.dots(rows["change"], labels[here], verdict, color, size=9, error_x=ends)
    panel.rule(x=0)
    measure = table["measure"].iloc[0].replace("_", " ")
    order = {"y_categoryorder": "array", "y_categoryarray": labels[::-1].tolist()}
    panel.axes(f"change of {measure}, %", **order)
    counts = table["verdict"].value_counts()
    found = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS)
    return titled(
        fig,
        f"{what}: of {len(table)} questions, {found}",
        f"95 % intervals, Student's t over {table['num_seeds'].iloc[0]} paired seeds. Undecided is "
        "what crosses zero; of 20 questions about nothing, one would seem decided.",
    )


def rate_distortion(trials: pd.DataFrame, eigenvalues: Float[np.ndarray, " C"]) -> go.Figure:
    """Draw each variant's error at its own rate, against the least that a Gaussian needs."""
    fig, (panel,) = panels(height=440)
    bits = trials["bits"]
    rates = np.linspace(max(0.0, float(bits.min()) - 0.7), float(bits.max()) + 0.3, 80)
    least = water_filling(eigenvalues, rates * math.log(2)) / eigenvalues.sum()
    panel.line(rates, least, "water-filling", dash="dash")
    means = trials.groupby(["variant", "method"], sort=False)[["bits", "distortion", "efficiency"]]
    for i, ((name, method), row) in enumerate(means.mean().iterrows()):
        hollow = "-open" if method == "lgq" else ""
        symbol = SYMBOLS[i % len(SYMBOLS)].removesuffix("-open") + hollow
        label = f"{name}: {row['efficiency']:.3f}"
        at = [row["bits"]], [row["distortion"]]
        panel.dots(*at, label, color_of(method), size=11, symbol=symbol)
    panel.axes("entropy of code use, bits a token", ERROR, log="y")
    efficiency = trials.groupby("variant", sort=False)["efficiency"].mean()
    return titled(
        fig,
        f"Geometry efficiency from {efficiency.min():.2f} ({efficiency.idxmin()}) to "
        f"{efficiency.max():.2f} ({efficiency.idxmax()})",
        "The bound's error over the quantizer's, at the quantizer's own rate; means over starts "
        "and seeds. A code that nobody uses costs no rate: read it beside the error itself.",
    )
