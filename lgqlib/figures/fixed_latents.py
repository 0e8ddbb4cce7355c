"""The quantizer laboratory's figures: fits on fixed latents, side by side and against the bound."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from lgqlib.figures.style import COLORS, INK, RED, color_of, figure, legend_in, titled
from lgqlib.measure.theory import water_filling

SYMBOLS = ("circle", "x", "diamond", "square", "triangle-up", "star")
REFERENCE = "k-means"


def ladder(trials: pd.DataFrame, bound: float, *, what: str) -> go.Figure:
    """Draw every fit's distortion: a row a variant, a dot a seed, a color a start.

    `bound`: the least distortion at log K nats. `what`: what was quantized, for the title.
    """
    shown = trials[trials["variant"] != REFERENCE]
    names = list(dict.fromkeys(shown["variant"]))
    fig = figure(height=170 + 26 * len(names))
    for i, (start, rows) in enumerate(shown.groupby("start", sort=False)):
        fig.add_scatter(
            x=rows["distortion"],
            y=rows["variant"],
            mode="markers",
            marker={"color": COLORS[i], "symbol": SYMBOLS[i], "size": 9, "opacity": 0.75},
            name=f"start: {start}",
            customdata=np.stack([rows["seed"], rows["active_share"], rows["efficiency"]], axis=1),
            hovertemplate="seed %{customdata[0]}: %{x:.4f}, active %{customdata[1]:.1%}, "
            "efficiency %{customdata[2]:.2f}<extra></extra>",
        )
    reference = trials.loc[trials["variant"] == REFERENCE, "distortion"].mean()
    for value, dash, name in ((reference, "dash", "k-means"), (bound, "dot", "bound at log K")):
        fig.add_scatter(
            x=[value, value],
            y=[names[0], names[-1]],
            mode="lines",
            line={"color": INK, "dash": dash},
            name=name,
        )
    fig.update_xaxes(title_text="held-out squared error / variance", type="log")
    fig.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    means = shown.groupby("variant", sort=False)["distortion"].mean()
    best, worst = means.idxmin(), means.idxmax()
    return titled(
        fig,
        f"{what}: {best} errs least, {means[best] / reference - 1:+.1%} against k-means; {worst} "
        f"most, {means[worst] / reference - 1:+.1%}",
        f"Means over starts and {shown['seed'].nunique()} seeds; a dot is one fit. Dots of one row "
        "far apart: what comes out depends on where the codes began.",
    )


def starts(trials: pd.DataFrame, names: list[str]) -> go.Figure:
    """Draw distortion and active share of some variants against where the codes began."""
    fig = figure(cols=2, titles=("Error", "Codes in use"), height=400, horizontal_spacing=0.12)
    ratio = {}
    for i, name in enumerate(names):
        rows = trials[trials["variant"] == name]
        groups = rows.groupby("start", sort=False)
        for col, measure in ((1, "distortion"), (2, "active_share")):
            mean, spread = groups[measure].mean(), groups[measure].std()
            fig.add_scatter(
                x=list(mean.index),
                y=mean,
                error_y={"array": spread.fillna(0)},
                mode="lines+markers",
                marker={"color": COLORS[i], "symbol": SYMBOLS[i], "size": 8},
                name=name,
                showlegend=col == 1,
                legend=legend_in(fig, 1, 1, x=0.01),
                row=1,
                col=col,
            )
            if col == 1:
                ratio[name] = mean.max() / mean.min()
    fig.update_yaxes(title_text="squared error / variance", type="log", row=1, col=1)
    fig.update_yaxes(title_text="share of codes in use", rangemode="tozero", row=1, col=2)
    fig.update_xaxes(title_text="where the codes began")
    parts = "; ".join(f"{name} {100 * (r - 1):.1f} %" for name, r in ratio.items())
    return titled(
        fig,
        f"Worst start over best, in error: {parts}",
        f"Means and standard deviations over {trials['seed'].nunique()} seeds. A level line is a "
        "result that does not depend on luck.",
    )


def effects(table: pd.DataFrame, *, what: str) -> go.Figure:
    """Draw each hypothesis' effect with its interval; the verdict is whether it crosses zero."""
    rows = table.iloc[::-1]
    labels = [f"{r.hypothesis}, {r.context}, {r.start}" for r in rows.itertuples()]
    fig = figure(height=150 + 26 * len(rows))
    colors = {"better": COLORS[2], "worse": COLORS[1], "undecided": INK}
    for verdict, color in colors.items():
        here = (rows["verdict"] == verdict).to_numpy()
        if here.any():
            some = rows[here]
            fig.add_scatter(
                x=some["change"],
                y=[label for label, keep in zip(labels, here, strict=True) if keep],
                error_x={
                    "array": some["high"] - some["change"],
                    "arrayminus": some["change"] - some["low"],
                },
                mode="markers",
                marker={"color": color, "size": 9},
                name=verdict,
            )
    fig.add_vline(x=0, line={"color": INK, "dash": "dot"})
    measure = table["measure"].iloc[0].replace("_", " ")
    fig.update_xaxes(title_text=f"change of {measure}, %")
    fig.update_yaxes(categoryorder="array", categoryarray=labels)
    counts = table["verdict"].value_counts()
    found = ", ".join(f"{counts.get(name, 0)} {name}" for name in colors)
    return titled(
        fig,
        f"{what}: of {len(table)} questions, {found}",
        f"95 % intervals, Student's t over {table['num_seeds'].iloc[0]} paired seeds. Undecided is "
        "what crosses zero; of 20 questions about nothing, one would seem decided.",
    )


def cooling(histories: dict[str, pd.DataFrame]) -> go.Figure:
    """Draw error and codes in use on the way, for a few fits from one bad start."""
    fig = figure(cols=2, titles=("Error", "Codes in use"), height=400, horizontal_spacing=0.12)
    for i, (name, history) in enumerate(histories.items()):
        for col, measure in ((1, "distortion"), (2, "active_share")):
            fig.add_scatter(
                x=history["step"],
                y=history[measure],
                mode="lines+markers",
                line={"color": COLORS[i]},
                marker={"symbol": SYMBOLS[i], "size": 7},
                name=name,
                showlegend=col == 1,
                legend=legend_in(fig, 1, 1),
                customdata=history["tau"],
                hovertemplate="tau %{customdata:.3g}: %{y:.3f}<extra></extra>",
                row=1,
                col=col,
            )
    fig.update_xaxes(title_text="step")
    fig.update_yaxes(title_text="squared error / variance", type="log", row=1, col=1)
    fig.update_yaxes(title_text="share of codes in use", rangemode="tozero", row=1, col=2)
    last = {name: h.iloc[-1] for name, h in histories.items()}
    parts = [f"{n} {r['distortion']:.3f} with {r['active_share']:.0%}" for n, r in last.items()]
    return titled(
        fig,
        "From one small cluster, error and codes in use at the end: " + "; ".join(parts),
        "While it is hot, annealed codes gather at the mean and part again as the cells split.",
    )


def rate_distortion(trials: pd.DataFrame, eigenvalues: Float[np.ndarray, " C"]) -> go.Figure:
    """Draw each variant's error at its own rate, against the least that a Gaussian needs."""
    fig = figure(height=440)
    top = float(trials["bits"].max())
    rates = np.linspace(max(0.0, float(trials["bits"].min()) - 0.7), top + 0.3, 80)
    fig.add_scatter(
        x=rates,
        y=water_filling(eigenvalues, rates * math.log(2)) / eigenvalues.sum(),
        mode="lines",
        line={"color": INK, "dash": "dash"},
        name="water-filling",
    )
    means = trials.groupby(["variant", "method"], sort=False)[["bits", "distortion", "efficiency"]]
    for i, ((name, method), row) in enumerate(means.mean().iterrows()):
        ours = method == "lgq"
        fig.add_scatter(
            x=[row["bits"]],
            y=[row["distortion"]],
            mode="markers",
            marker={
                "color": RED if ours else color_of(method),
                "symbol": SYMBOLS[i % len(SYMBOLS)] + ("-open" if ours else ""),
                "size": 11,
            },
            name=f"{name}: {row['efficiency']:.3f}",
        )
    fig.update_xaxes(title_text="entropy of code use, bits a token")
    fig.update_yaxes(title_text="squared error / variance", type="log")
    efficiency = trials.groupby("variant", sort=False)["efficiency"].mean()
    return titled(
        fig,
        f"Geometry efficiency from {efficiency.min():.2f} ({efficiency.idxmin()}) to "
        f"{efficiency.max():.2f} ({efficiency.idxmax()})",
        "The bound's error over the quantizer's, at the quantizer's own rate; means over starts "
        "and seeds. A code that nobody uses costs no rate: read it beside the error itself.",
    )
