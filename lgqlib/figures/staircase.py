"""The staircase of an annealing: where codes split, foretold and seen."""

import numpy as np
import plotly.graph_objects as go

from lgqlib.figures.style import BLUE, INK, ORANGE, SKY, figure, legend_in, titled
from lgqlib.measure.annealing import Annealing


def staircase(annealing: Annealing) -> go.Figure:
    """Draw the number of distinct codes against temperature, and each split where it was
    foretold.
    """
    fig = figure(cols=2, titles=("Distinct codes", "Splits, foretold and seen"), height=420)
    stairs(fig, annealing, row=1, col=1)
    splits = [s for s in annealing.splits if np.isfinite(s.predicted)]
    seen = np.array([np.sqrt(s.high * s.low) for s in splits])
    foretold = np.array([s.predicted for s in splits])
    legend = legend_in(fig, 1, 2, x=0.01)
    fig.add_scatter(
        x=foretold,
        y=seen,
        error_y={
            "type": "data",
            "array": [s.high - m for s, m in zip(splits, seen, strict=True)],
            "arrayminus": [m - s.low for s, m in zip(splits, seen, strict=True)],
            "thickness": 1,
        },
        mode="markers",
        marker={"color": BLUE, "size": 8},
        name="a split (bar: step of the schedule)",
        legend=legend,
        row=1,
        col=2,
    )
    ends = [annealing.taus[-1], annealing.taus[0]]
    fig.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": INK, "dash": "dash"},
        name="as foretold",
        legend=legend,
        row=1,
        col=2,
    )
    fig.update_xaxes(title_text="2 λ<sub>max</sub> of the cell's covariance", type="log", col=2)
    fig.update_yaxes(title_text="temperature of the split", type="log", col=2)
    off = round(100 * (annealing.observed / annealing.predicted - 1), 1) + 0.0  # never "-0.0"
    return titled(
        fig,
        f"First split at τ = {annealing.observed:.3f}; 2 λmax(Cov z) foretells "
        f"{annealing.predicted:.3f} ({off:+.1f} %)",
        "Each step of the staircase is a phase transition: a cell splits along its longest axis "
        "when "
        "τ passes twice its largest eigenvalue.",
    )


def stairs(fig: go.Figure, annealing: Annealing, *, row: int, col: int) -> None:
    """Add the number of distinct codes against temperature to a subplot."""
    legend = legend_in(fig, row, col)
    fig.add_scatter(
        x=annealing.taus,
        y=annealing.num_distinct,
        line={"color": BLUE, "shape": "hv"},
        name="distinct",
        legend=legend,
        row=row,
        col=col,
    )
    top = int(annealing.num_distinct.max())
    for tau, name, color, dash in (
        (annealing.predicted, "τ<sub>c</sub> = 2 λ<sub>max</sub>", ORANGE, "dash"),
        (annealing.observed, "first split seen", SKY, "dot"),
    ):
        fig.add_scatter(
            x=[tau, tau],
            y=[0, top],
            mode="lines",
            line={"color": color, "dash": dash, "width": 2},
            name=name,
            legend=legend,
            row=row,
            col=col,
        )
    fig.update_xaxes(title_text="τ, units of the energy", type="log", row=row, col=col)
    fig.update_yaxes(title_text="distinct codes", rangemode="tozero", row=row, col=col)
