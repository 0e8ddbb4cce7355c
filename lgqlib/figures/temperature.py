"""What the temperature does to a trained tokenizer, from one cloud to nearest neighbor."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from lgqlib.figures.information import counted, is_capped
from lgqlib.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    figure,
    legend_in,
    titled,
)
from lgqlib.measure.temperature import FreeEnergyCurve
from lgqlib.measure.theory import water_filling

PARTS = {"free energy F": BLUE, "energy ⟨d⟩": GREEN, "τ H": PURPLE}
"""The free energy and its two parts, and their colors."""
SCHEDULE, ENDS = "schedule", ("training starts", "training ends")
"""Names of the marks of a run's own temperatures."""


def free_energy(curve: FreeEnergyCurve, *, scale: float, schedule: Sequence[float]) -> go.Figure:
    """Draw the free energy and its parts over temperature, with the run's own schedule marked."""
    fig = figure(height=440)
    parts(fig, curve, scale, row=1, col=1)
    fig.add_vline(
        1.0,
        line={"color": INK, "dash": "dash"},
        name="τ<sub>c</sub>",
        showlegend=True,
        legend=fig.data[0].legend,
    )
    span = mark_schedule(fig, schedule, scale, legend=fig.data[0].legend)
    ends = f"{span[0]:.3g} to {span[-1]:.3g} τc" if len(span) else "no temperature"
    # From the thermodynamic identity dF/dtau = -H, by the differences of the curve itself.
    slope = np.gradient(curve.free_energy, curve.taus)
    error = np.abs(slope + curve.entropy)[2:-2].max() / max(curve.entropy.max(), 1e-12)
    return titled(
        fig,
        f"The run's own schedule: {ends}. dF/dτ = −H holds to {100 * error:.1f} % on this grid",
        "F = ⟨d⟩ − τH falls as τ grows. Where ⟨d⟩ rises steeply assignments melt; a schedule that "
        "starts left of τc never lets the codebook be one cloud.",
    )


def entropy_slope(
    curve: FreeEnergyCurve, *, scale: float, schedule: Sequence[float] = ()
) -> go.Figure:
    """Hold the measured slope of entropy in temperature against Var(d) / tau^3, with the run's own
    schedule marked.
    """
    fig = figure(height=400)
    x = curve.taus / scale
    order = np.argsort(curve.taus)
    log_taus = np.log(curve.taus[order])
    seen = np.empty(len(order))
    seen[order] = np.gradient(curve.entropy[order], log_taus)
    foretold = curve.entropy_slope * curve.taus
    fig.add_scatter(x=x, y=foretold, mode="lines", line={"color": BLUE}, name="Var(d) / τ²")
    fig.add_scatter(
        x=x, y=seen, mode="markers", marker={"color": RED, "size": 6}, name="dH / d log τ, measured"
    )
    fig.update_xaxes(title_text="τ / τ<sub>c</sub>", type="log")
    fig.update_yaxes(title_text="nats for each e-fold of τ", rangemode="tozero")
    mark_schedule(fig, schedule, scale, legend="legend")
    inner = slice(2, -2)
    error = np.abs(seen - foretold)[inner].max() / foretold.max()
    top = x[int(foretold.argmax())]
    return titled(
        fig,
        f"Entropy melts fastest at {top:.2g} τc; its slope is Var(d)/τ³ to {100 * error:.1f} % of "
        "the peak",
        "The heat capacity of an assignment: a bump is a temperature at which many tokens change "
        "between sure and unsure. Never negative: at fixed codes entropy only grows with τ.",
    )


def rate_distortion(
    curve: FreeEnergyCurve,
    spectrum: Float[np.ndarray, " D"],
    *,
    index: int,
    num_codes: int,
    schedule: Sequence[float] = (),
) -> go.Figure:
    """Draw the soft assignment's rate and distortion over temperature, against the Gaussian
    bound.

    A dashed line is log2 of the number of tokens, where that bounds the rate that is measured. The
    run's `schedule`, in units of the energy, is marked at the rates that its temperatures have.
    """
    fig = figure(height=420)
    rate_distortion_curve(fig, curve, spectrum, row=1, col=1)
    mark(fig, "the run's temperature", RED, row=1, col=1)
    rate, distortion = curve.mutual_information[index] / np.log(2), curve.mean_energy[index]
    fig.data[-1].update(x=[rate], y=[distortion], showlegend=True, legend=fig.data[0].legend)
    bound = water_filling(spectrum, curve.mutual_information[index])
    order = np.argsort(curve.taus)
    rates = (np.log(curve.taus[order]), curve.mutual_information[order] / np.log(2))
    own = np.asarray(schedule, dtype=float)
    mark_schedule(fig, np.interp(np.log(own), *rates), 1.0, legend=fig.data[0].legend)
    if is_capped(curve.num_tokens, num_codes):
        line = {"color": INK, "dash": "dash", "width": 1}
        fig.add_vline(np.log2(curve.num_tokens), line=line, name="log2 N")
    return titled(
        fig,
        f"At its temperature: {rate:.2f} bits a token, distortion {distortion:.3g}; a Gaussian of "
        f"this covariance needs {bound:.3g}",
        "Each point of the curve is a temperature, its slope −1/τ. Left of the curve's knee codes "
        "are shared by many tokens; the vertical end is nearest neighbor. Counted over "
        f"{counted(curve.num_tokens, num_codes)}.",
    )


def soft_to_hard(
    curve: FreeEnergyCurve,
    away: Float[np.ndarray, " T"],
    tied: Float[np.ndarray, " T"],
    *,
    scale: float,
    schedule: Sequence[float] = (),
) -> go.Figure:
    """Draw how the soft code comes to the hard one as tau falls, and a tie that never resolves,
    with the run's own schedule marked.
    """
    fig = figure(cols=2, titles=("Soft to hard code", "Largest share"), height=400)
    x = curve.taus / scale
    fig.add_scatter(x=x, y=away, mode="lines", line={"color": GREEN}, name="distance", row=1, col=1)
    legend = legend_in(fig, 1, 2, x=0.01, y=0.05)
    for values, name, color in (
        (1 - curve.doubt, "mean over tokens", BLUE),
        (tied, "a point between two codes", RED),
    ):
        fig.add_scatter(
            x=x,
            y=values,
            mode="lines",
            line={"color": color},
            name=name,
            legend=legend,
            row=1,
            col=2,
        )
    fig.data[0].showlegend = False
    mark_schedule(fig, schedule, scale, row=1, col=1)
    mark_schedule(fig, schedule, scale, row=1, col=2, legend=legend)
    fig.update_xaxes(title_text="τ / τ<sub>c</sub>", type="log")
    fig.update_yaxes(title_text="root mean square distance", row=1, col=1)
    fig.update_yaxes(title_text="max p", range=[0, 1.02], row=1, col=2)
    return titled(
        fig,
        f"At the coldest τ the soft code is {away[-1]:.2g} from the hard one; a point between two "
        f"codes still gives each {tied[-1]:.2f}",
        "In the cold limit an assignment is one-hot only where the nearest code is unique: "
        "distinct "
        "codes are not enough.",
    )


def parts(fig: go.Figure, curve: FreeEnergyCurve, scale: float, *, row: int, col: int) -> None:
    """Add the free energy and its two parts over temperature to a subplot."""
    legend = legend_in(fig, row, col, x=0.01, y=0.02)
    values = (curve.free_energy, curve.mean_energy, curve.taus * curve.entropy)
    for (name, color), y in zip(PARTS.items(), values, strict=True):
        fig.add_scatter(
            x=curve.taus / scale,
            y=y,
            mode="lines",
            line={"color": color},
            name=name,
            legend=legend,
            row=row,
            col=col,
        )
    fig.update_xaxes(title_text="τ / τ<sub>c</sub>", type="log", row=row, col=col)
    fig.update_yaxes(title_text="mean over tokens", row=row, col=col)
    # Far above the critical temperature tau H outgrows everything that is to be seen.
    top = 1.3 * float(curve.mean_energy.max())
    fig.update_yaxes(range=[-1.5 * top, top], row=row, col=col)


def rate_distortion_curve(fig: go.Figure, curve, spectrum, *, row: int, col: int) -> None:
    """Add the soft assignment's rate and distortion, and the Gaussian bound, to a subplot."""
    rates = np.linspace(0, max(float(curve.mutual_information.max()) * 1.1, 0.1), 60)
    for x, y, name, color, dash in (
        (curve.mutual_information, curve.mean_energy, "soft assignment", BLUE, "solid"),
        (rates, water_filling(spectrum, rates), "bound for a Gaussian", INK, "dash"),
    ):
        fig.add_scatter(
            x=x / np.log(2),
            y=y,
            mode="lines",
            line={"color": color, "dash": dash},
            name=name,
            legend=legend_in(fig, row, col),
            row=row,
            col=col,
        )
    fig.update_xaxes(title_text="rate I, bits a token", row=row, col=col)
    fig.update_yaxes(title_text="distortion ⟨d⟩", type="log", row=row, col=col)


def mark_schedule(
    fig: go.Figure,
    schedule: Sequence[float] | Float[np.ndarray, " S"],
    unit: float,
    *,
    legend: str | None = None,
    row: int = 1,
    col: int = 1,
) -> Float[np.ndarray, " n"]:
    """Shade where a run's temperature went and line its two ends; give the schedule in that unit.

    Values that are not finite, such as before the first step, are left out. Without a `legend` the
    lines are not named in one.
    """
    span = np.asarray(schedule, dtype=float)
    span = span[np.isfinite(span)] / unit
    if not len(span):
        return span
    place = {"row": row, "col": col}
    fig.add_vrect(
        span.min(), span.max(), fillcolor=ORANGE, opacity=0.12, line_width=0, name=SCHEDULE, **place
    )
    named = {} if legend is None else {"showlegend": True, "legend": legend}
    for value, name, dash in zip(span[[0, -1]], ENDS, ("dot", "solid"), strict=True):
        fig.add_vline(value, line={"color": ORANGE, "dash": dash}, name=name, **named, **place)
    return span


def mark(fig: go.Figure, name: str, color: str, *, row: int, col: int) -> None:
    """Add a mark that waits for its place to a subplot."""
    fig.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"size": 11, "color": color, "line": {"color": "white", "width": 1}},
        name=name,
        showlegend=False,
        row=row,
        col=col,
    )
