"""Fits of quantizers on fixed latents, side by side and against the bound."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from lgqlib.figures.style import COLORS, GREEN, INK, RED, SYMBOLS, color_of, panels, titled
from lgqlib.measure.theory import water_filling

REFERENCE = "k-means"
VERDICTS = {"better": GREEN, "worse": RED, "undecided": INK}
ERROR, USE = "held-out squared error / variance", "share of codes in use"


def ladder(trials: pd.DataFrame, bound: float, *, what: str) -> go.Figure:
    """Draw every fit's distortion, a row a setting, a dot a seed; `bound` is that at log K nats."""
    shown = trials[trials["setting"] != REFERENCE]
    means = shown.groupby("setting", sort=False)["distortion"].mean()
    fig, (panel,) = panels(height=170 + 26 * len(means))
    for i, (start, rows) in enumerate(shown.groupby("start", sort=False)):
        panel.dots(
            *(rows["distortion"], rows["setting"], f"start: {start}", COLORS[i]),
            **{"symbol": SYMBOLS[i], "size": 9, "opacity": 0.75},
            customdata=rows[["seed", "active_share", "efficiency"]].to_numpy(),
            hovertemplate="seed %{customdata[0]}: %{x:.4f}, active %{customdata[1]:.1%}, "
            "efficiency %{customdata[2]:.2f}<extra></extra>",
        )
    reference = trials.loc[trials["setting"] == REFERENCE, "distortion"].mean()
    panel.line([reference] * 2, means.index[[0, -1]], REFERENCE, dash="dash")
    panel.line([bound] * 2, means.index[[0, -1]], "bound at log K", dash="dot")
    panel.axes(ERROR, log="x", y_categoryorder="array", y_categoryarray=list(means.index[::-1]))
    best, worst = means.idxmin(), means.idxmax()
    return titled(
        fig,
        f"{what}: {best} errs least, {means[best] / reference - 1:+.1%} against k-means; {worst} "
        f"most, {means[worst] / reference - 1:+.1%}",
        f"Means over starts and {shown['seed'].nunique()} seeds; a dot is one fit. Dots of one row "
        "far apart: what comes out depends on where the codes began.",
    )


def starts(trials: pd.DataFrame, names: Sequence[str]) -> go.Figure:
    """Draw distortion and active share of some settings against where the codes began."""
    titles = ("Error", "Codes in use")
    fig, (error, use) = panels(cols=2, titles=titles, height=400, horizontal_spacing=0.12)
    error.legend(x=0.01).axes("where the codes began", ERROR, log="y")
    use.axes("where the codes began", USE, y_rangemode="tozero")
    said = []
    for i, name in enumerate(names):
        groups = trials[trials["setting"] == name].groupby("start", sort=False)
        for panel, key, legend in ((error, "distortion", name), (use, "active_share", "")):
            mean, spread = groups[key].mean(), groups[key].std()
            panel.dots(
                *(list(mean.index), mean, legend, COLORS[i]),
                **{"symbol": SYMBOLS[i], "size": 8, "mode": "lines+markers"},
                error_y=(mean - spread, mean + spread),
            )
        errors = groups["distortion"].mean()
        said.append(f"{name} {errors.max() / errors.min() - 1:.1%}")
    return titled(
        fig,
        f"Worst start over best, in error: {'; '.join(said)}",
        f"Means and standard deviations over {trials['seed'].nunique()} seeds. A level line is a "
        "result that does not depend on luck.",
    )


def effects(table: pd.DataFrame, *, what: str) -> go.Figure:
    """Draw each question's effect with its interval; the verdict is whether it crosses zero."""
    labels = table["question"] + ", " + table["start"]
    fig, (panel,) = panels(height=150 + 26 * len(table))
    for verdict, color in VERDICTS.items():
        here = table["verdict"] == verdict
        ends = table["low"][here], table["high"][here]
        panel.dots(table["change"][here], labels[here], verdict, color, size=9, error_x=ends)
    panel.rule(x=0)
    order = {"y_categoryorder": "array", "y_categoryarray": labels[::-1].tolist()}
    panel.axes("change of the error, %", **order)
    counts = table["verdict"].value_counts()
    found = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS)
    return titled(
        fig,
        f"{what}: of {len(table)} questions, {found}",
        f"95 % intervals, Student's t over {table['num_seeds'].iloc[0]} paired seeds. Undecided is "
        "what crosses zero; of 20 questions about nothing, one would seem decided.",
    )


def rate_distortion(trials: pd.DataFrame, eigenvalues: Float[np.ndarray, " C"]) -> go.Figure:
    """Draw each setting's error at its own rate, against the least that a Gaussian needs."""
    fig, (panel,) = panels(height=440)
    bits = trials["bits"]
    rates = np.linspace(max(0.0, float(bits.min()) - 0.7), float(bits.max()) + 0.3, 80)
    least = water_filling(eigenvalues, rates * math.log(2)) / eigenvalues.sum()
    panel.line(rates, least, "water-filling", dash="dash")
    groups = trials.groupby(["setting", "method"], sort=False)
    means = groups[["bits", "distortion", "efficiency"]].mean()
    for i, ((name, method), row) in enumerate(means.iterrows()):
        at, label = ([row["bits"]], [row["distortion"]]), f"{name}: {row['efficiency']:.3f}"
        panel.dots(*at, label, color_of(method), size=11, symbol=SYMBOLS[i % len(SYMBOLS)])
    panel.axes("entropy of code use, bits a token", ERROR, log="y")
    efficiency = means["efficiency"].droplevel("method")
    return titled(
        fig,
        f"Geometry efficiency from {efficiency.min():.2f} ({efficiency.idxmin()}) to "
        f"{efficiency.max():.2f} ({efficiency.idxmax()})",
        "The bound's error over the quantizer's, at the quantizer's own rate; means over starts "
        "and seeds. A code that nobody uses costs no rate: read it beside the error itself.",
    )
