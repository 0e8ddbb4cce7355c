"""What the temperature does to a trained tokenizer, from one cloud to nearest neighbor."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, UInt8

from lgqlib.bounds import water_filling
from lgqlib.figures.entropy import map_trace
from lgqlib.figures.evaluation import square
from lgqlib.figures.pixels import data_uri
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
from lgqlib.theory import FreeEnergyCurve

PARTS = {"free energy F": BLUE, "energy ⟨d⟩": GREEN, "τ H": PURPLE}
"""The free energy and its two parts, and their colors."""


def laboratory(
    image: UInt8[np.ndarray, "S S 3"],
    curve: FreeEnergyCurve,
    spectrum: Float[np.ndarray, " D"],
    *,
    scale: float,
    grid: tuple[int, int],
) -> go.Figure:
    """Draw the temperature laboratory: images on top, one token, the curves and the marks on them.

    Traces that change: `soft`, `hard`, `map`, `place`, `bars`, `here F`, `here d`, `here H`,
    `here`, `original`.
    """
    titles = (
        "Original",
        "Decoded from soft codes",
        "Decoded from hard codes",
        "Entropy: click a token",
        "Codes of the token",
        "Free energy and its parts",
        "Rate and distortion",
    )
    fig = figure(
        rows=2,
        cols=12,
        specs=[
            [*_wide(3), *_wide(3), *_wide(3), *_wide(3)],
            [*_wide(4), *_wide(4), *_wide(4)],
        ],
        row_heights=[0.48, 0.52],
        vertical_spacing=0.13,
        horizontal_spacing=0.055,
        titles=titles,
        height=640,
    )
    for col, name in ((1, "original"), (4, "soft"), (7, "hard")):
        fig.add_image(source=data_uri(image), name=name, hoverinfo="skip", row=1, col=col)
    fig.add_heatmap(**map_trace(np.zeros(grid)), name="map", row=1, col=10)
    fig.add_scatter(
        x=[0],
        y=[0],
        mode="markers",
        marker={"symbol": "square-open", "size": 20, "color": RED, "line": {"width": 3}},
        hoverinfo="skip",
        name="place",
        row=1,
        col=10,
    )
    for col in (1, 4, 7, 10):
        square(fig, 1, col)
        axes = fig.get_subplot(1, col)
        for axis in (axes.xaxis, axes.yaxis):
            axis.update(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    fig.add_bar(x=[], y=[], marker_color=ORANGE, name="bars", row=2, col=1)
    fig.update_xaxes(title_text="code k", type="category", row=2, col=1)
    fig.update_yaxes(title_text="probability", range=[0, 1], row=2, col=1)
    _parts(fig, curve, scale, row=2, col=5)
    for name, color in zip(("here F", "here d", "here H"), PARTS.values(), strict=True):
        _mark(fig, name, color, row=2, col=5)
    _rate_distortion(fig, curve, spectrum, row=2, col=9)
    _mark(fig, "here", RED, row=2, col=9)
    fig.update_traces(showlegend=False, selector={"type": "bar"})
    fig.update_traces(showlegend=False, selector={"name": "place"})
    fig.update_layout(margin={"b": 40})
    return titled(fig, " ", LOOK_LABORATORY)


LOOK_LABORATORY = (
    "Hot, every token is the mean of all codes and the decoder sees nothing. Below the first "
    "critical "
    "temperature the picture comes back; the soft one meets the hard one when doubt is gone."
)


def laboratory_frames(
    original: UInt8[np.ndarray, "S S 3"],
    soft: Sequence[UInt8[np.ndarray, "S S 3"]],
    maps: Sequence[Float[np.ndarray, "h w"]],
    hard: UInt8[np.ndarray, "S S 3"],
    labels: Sequence[str],
) -> go.Figure:
    """Draw soft reconstructions and entropy maps at several temperatures: the slider, standing
    still.
    """
    cols = len(soft) + 2
    titles = ["original", *labels, "hard codes"]
    fig = figure(
        rows=2, cols=cols, titles=titles, height=340, horizontal_spacing=0.01, vertical_spacing=0.02
    )
    for col, image in enumerate([original, *soft, hard], start=1):
        fig.add_image(source=data_uri(image), hoverinfo="skip", row=1, col=col)
    for col, entropy in enumerate(maps, start=2):
        fig.add_heatmap(**map_trace(entropy), row=2, col=col)
    for row in (1, 2):
        for col in range(1, cols + 1):
            square(fig, row, col)
    fig.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    fig.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    fig.update_layout(margin={"l": 10, "r": 10, "b": 10})
    away = [float(np.abs(s.astype(float) - hard).mean() / 255) for s in soft]
    return titled(
        fig,
        f"Soft and hard pictures differ by {away[0]:.3f} of the range at {labels[0]}, by "
        f"{away[-1]:.3f} at {labels[-1]}",
        "Below each picture, the entropy of its tokens on a scale of its own. Where the picture "
        "comes back first, the codes are far apart.",
    )


def free_energy(curve: FreeEnergyCurve, *, scale: float, schedule: Sequence[float]) -> go.Figure:
    """Draw the free energy and its parts over temperature, with the run's own schedule marked."""
    fig = figure(height=440)
    _parts(fig, curve, scale, row=1, col=1)
    span = np.asarray(schedule, dtype=float)
    span = span[np.isfinite(span)] / scale
    low, high = fig.layout.yaxis.range
    marks = [(1.0, "τ<sub>c</sub>", INK, "dash")]
    if len(span):
        fig.add_vrect(span.min(), span.max(), fillcolor=ORANGE, opacity=0.12, line_width=0)
        marks += [
            (span[0], "training starts", ORANGE, "dot"),
            (span[-1], "training ends", ORANGE, "solid"),
        ]
    for value, name, color, dash in marks:
        fig.add_scatter(
            x=[value, value],
            y=[low, high],
            mode="lines",
            line={"color": color, "dash": dash},
            name=name,
            legend=fig.data[0].legend,
        )
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


def entropy_slope(curve: FreeEnergyCurve, *, scale: float) -> go.Figure:
    """Hold the measured slope of entropy in temperature against Var(d) / tau^3."""
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
    curve: FreeEnergyCurve, spectrum: Float[np.ndarray, " D"], *, index: int
) -> go.Figure:
    """Draw the soft assignment's rate and distortion over temperature, against the Gaussian
    bound.
    """
    fig = figure(height=420)
    _rate_distortion(fig, curve, spectrum, row=1, col=1)
    _mark(fig, "the run's temperature", RED, row=1, col=1)
    rate, distortion = curve.mutual_information[index] / np.log(2), curve.mean_energy[index]
    fig.data[-1].update(x=[rate], y=[distortion], showlegend=True, legend=fig.data[0].legend)
    bound = water_filling(spectrum, curve.mutual_information[index])
    return titled(
        fig,
        f"At its temperature: {rate:.2f} bits a token, distortion {distortion:.3g}; a Gaussian of "
        f"this covariance needs {bound:.3g}",
        "Each point of the curve is a temperature, its slope −1/τ. Left of the curve's knee codes "
        "are "
        "shared by many tokens; the vertical end is nearest neighbor.",
    )


def soft_to_hard(
    curve: FreeEnergyCurve,
    away: Float[np.ndarray, " T"],
    tied: Float[np.ndarray, " T"],
    *,
    scale: float,
) -> go.Figure:
    """Draw how the soft code comes to the hard one as tau falls, and a tie that never resolves."""
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


def _wide(columns: int) -> list:
    return [{"colspan": columns}] + [None] * (columns - 1)


def _parts(fig: go.Figure, curve: FreeEnergyCurve, scale: float, *, row: int, col: int) -> None:
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


def _rate_distortion(fig: go.Figure, curve, spectrum, *, row: int, col: int) -> None:
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


def _mark(fig: go.Figure, name: str, color: str, *, row: int, col: int) -> None:
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
