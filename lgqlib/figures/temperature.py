"""What the temperature does to a trained tokenizer, from one blend of all codes to the nearest."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8

from lgqlib.figures.entropy import counted_over, entropy_picture
from lgqlib.figures.pictures import data_uri, picture_grid
from lgqlib.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, RED, Panel, panels, titled
from lgqlib.measure.temperature import FreeEnergyCurve
from lgqlib.measure.theory import water_filling

Pixels = UInt8[np.ndarray, "S S 3"]

PARTS = {"free energy F": BLUE, "energy ⟨d⟩": GREEN, "τ H": PURPLE}
"""The free energy and its two parts, and their colors."""
REDUCED = "τ / τ<sub>c</sub>"


def decoded_frames(
    original: Pixels,
    soft: Mapping[str, Pixels],
    maps: Sequence[Float[np.ndarray, "h w"]],
    hard: Pixels,
) -> go.Figure:
    """Draw pictures decoded from soft codes, by the temperature, above the entropy of their tokens.

    The picture decoded from `hard` codes and the `original` follow.
    """
    entropies = [entropy_picture(entropy, len(original)) for entropy in maps]
    hover = [f"{label}: at most {e.max():.3g} nats" for label, e in zip(soft, maps, strict=True)]
    rows = {"decoded": [*soft.values(), hard, original], "entropy": entropies}
    away = [float(np.abs(pixels.astype(float) - hard).mean() / 255) for pixels in soft.values()]
    (hot, *_, cold), columns = soft, [*soft, "hard codes", "original"]
    return titled(
        picture_grid(rows, columns=columns, hover=[[], hover]),
        f"Soft and hard pictures differ by {away[0]:.3f} of the range at {hot}, by {away[-1]:.3f} "
        f"at {cold}",
        "Below each picture, the entropy of its tokens on a scale of its own, dark is sure. Where "
        "the picture comes back first, the codes are far apart.",
    )


def one_token(
    image: Pixels,
    place: tuple[int, int],
    shares: Mapping[str, tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]],
    *,
    grid: tuple[int, int],
) -> go.Figure:
    """Draw one token's place in its image, and the codes that it is assigned to most.

    `place`: its row and column in a `grid` of tokens; `shares`: codes, the likeliest first, and
    their probabilities, by the temperature.
    """
    titles, options = ("Image, and the token", *shares), {"horizontal_spacing": 0.07}
    fig, (picture, *rest) = panels(cols=len(titles), titles=titles, height=340, **options)
    picture.picture(data_uri(image))
    (row, col), high, wide = place, image.shape[0] / grid[0], image.shape[1] / grid[1]
    x = wide * (col + np.array([0, 1, 1, 0, 0])) - 0.5
    y = high * (row + np.array([0, 0, 1, 1, 0])) - 0.5
    picture.line(x, y, color=RED, width=3, hoverinfo="skip")
    for panel, (codes, weights) in zip(rest, shares.values(), strict=True):
        hover = "%{x}: %{y:.3g}<extra></extra>"
        panel.bars([f"k{k}" for k in codes], weights, color=ORANGE, hovertemplate=hover)
        panel.axes("code k", "probability", x_type="category", y_rangemode="tozero")
    most = [f"{float(weights[0]):.3g} at {label}" for label, (_, weights) in shares.items()]
    number = max(len(codes) for codes, _ in shares.values())
    return titled(
        fig,
        f"The token at row {row}, column {col} gives its likeliest code {'; '.join(most)}",
        f"The {number} likeliest codes at each temperature, on scales of their own. Hot, many "
        "codes share a token evenly; cold, one has it all unless two are equally near.",
    )


def free_energy(curve: FreeEnergyCurve, *, scale: float, schedule: Sequence[float]) -> go.Figure:
    """Draw the free energy and its parts over temperature, with the run's own schedule marked."""
    fig, (panel,) = panels(height=440)
    free_energy_parts(panel, curve, scale)
    panel.rule(x=1.0, dash="dash", name="τ<sub>c</sub>", showlegend=True)
    span = _mark_schedule(panel, schedule, scale)
    ends = f"{span[0]:.3g} to {span[-1]:.3g} τc" if len(span) else "no temperature"
    # From the thermodynamic identity dF/dtau = -H, by the differences of the curve itself.
    slope = np.gradient(curve.free_energy, curve.taus)
    error = np.abs(slope + curve.entropy)[2:-2].max() / max(curve.entropy.max(), 1e-12)
    return titled(
        fig,
        f"The run's own schedule: {ends}. dF/dτ = −H holds to {100 * error:.1f} % on this grid",
        "Where ⟨d⟩ rises steeply assignments melt. A schedule that starts left of τc never lets "
        "all codes be one.",
    )


def entropy_slope(
    curve: FreeEnergyCurve, *, scale: float, schedule: Sequence[float] = ()
) -> go.Figure:
    """Draw the slope of entropy in temperature, as measured and as Var(d) / tau^3 predicts it."""
    fig, (panel,) = panels(height=400)
    x, predicted = curve.taus / scale, curve.entropy_slope * curve.taus
    measured = np.gradient(curve.entropy, np.log(curve.taus))
    panel.line(x, predicted, "Var(d) / τ²", BLUE)
    panel.dots(x, measured, "dH / d log τ, measured", RED)
    panel.axes(REDUCED, "nats for each e-fold of τ", log="x", y_rangemode="tozero")
    _mark_schedule(panel, schedule, scale)
    error = np.abs(measured - predicted)[2:-2].max() / predicted.max()
    return titled(
        fig,
        f"Entropy melts fastest at {x[predicted.argmax()]:.2g} τc; its slope is Var(d)/τ³ to "
        f"{100 * error:.1f} % of the peak",
        "The heat capacity of an assignment: at a bump many tokens change between sure and unsure. "
        "It is never negative: at fixed codes entropy only grows with τ.",
    )


def rate_distortion(
    curve: FreeEnergyCurve,
    spectrum: Float[np.ndarray, " D"],
    *,
    index: int,
    schedule: Sequence[float] = (),
) -> go.Figure:
    """Draw the soft assignment's rate and distortion over temperature, and the Gaussian bound.

    `index`: the run's own temperature on the curve. Its `schedule`, in units of the energy, is
    marked at the rates that its temperatures have.
    """
    fig, (panel,) = panels(height=420)
    rate_distortion_curve(panel, curve, spectrum)
    rates, distortion = curve.mutual_information / np.log(2), curve.mean_energy[index]
    mark = {"size": 11, "marker": {"line": {"color": "white", "width": 1}}}
    panel.dots([rates[index]], [distortion], "the run's temperature", RED, **mark)
    bound = water_filling(spectrum, curve.mutual_information[index])
    rising, own = curve.taus.argsort(), np.log(np.asarray(schedule, dtype=float))
    _mark_schedule(panel, np.interp(own, np.log(curve.taus[rising]), rates[rising]))
    counts = counted_over(panel, {"": (curve.num_tokens, curve.num_codes)}, axis="x")
    return titled(
        fig,
        f"At its temperature: {rates[index]:.2f} bits a token, distortion {distortion:.3g}; a "
        f"Gaussian of this covariance needs {bound:.3g}",
        "Each point of the curve is a temperature, its slope −1/τ. Left of the knee codes are "
        f"shared by many tokens; the vertical end is nearest neighbor. {counts}",
    )


def soft_to_hard(
    curve: FreeEnergyCurve,
    between: Float[np.ndarray, " T"],
    *,
    scale: float,
    schedule: Sequence[float] = (),
) -> go.Figure:
    """Draw how the soft code comes to the hard one as tau falls, except between two codes.

    `between`: the largest share of a point at equal energy from two codes, at each temperature.
    """
    titles, x = ("Soft to hard code", "Largest share"), curve.taus / scale
    fig, (distance, share) = panels(cols=2, titles=titles, height=400)
    distance.line(x, curve.soft_to_hard, color=GREEN)
    _mark_schedule(distance, schedule, scale, named=False)
    share.legend(x=0.01, y=0.05)
    share.line(x, 1 - curve.doubt, "mean over tokens", BLUE)
    share.line(x, between, "a point between two codes", RED)
    _mark_schedule(share, schedule, scale)
    distance.axes(REDUCED, "root mean square distance", log="x")
    share.axes(REDUCED, "max p", log="x", y_range=[0, 1.02])
    return titled(
        fig,
        f"At the coldest τ the soft code is {curve.soft_to_hard[-1]:.2g} from the hard one; a "
        f"point between two codes still gives each {between[-1]:.2f}",
        "In the cold limit an assignment is one-hot only where the nearest code is unique: "
        "distinct codes are not enough.",
    )


def free_energy_parts(panel: Panel, curve: FreeEnergyCurve, scale: float) -> None:
    """Draw the free energy and its two parts over temperature."""
    panel.legend(x=0.01, y=0.02)
    values = (curve.free_energy, curve.mean_energy, curve.taus * curve.entropy)
    for (name, color), y in zip(PARTS.items(), values, strict=True):
        panel.line(curve.taus / scale, y, name, color)
    # Far above the critical temperature tau H outgrows everything that is to be seen.
    top = 1.3 * float(curve.mean_energy.max())
    panel.axes(REDUCED, "mean over tokens", log="x", y_range=[-1.5 * top, top])


def rate_distortion_curve(
    panel: Panel, curve: FreeEnergyCurve, spectrum: Float[np.ndarray, " D"]
) -> None:
    """Draw the soft assignment's rate and distortion, and the bound for a Gaussian."""
    rates = np.linspace(0, max(float(curve.mutual_information.max()) * 1.1, 0.1), 60)
    bound = water_filling(spectrum, rates)
    panel.legend()
    panel.line(curve.mutual_information / np.log(2), curve.mean_energy, "soft assignment", BLUE)
    panel.line(rates / np.log(2), bound, "bound for a Gaussian", INK, dash="dash")
    panel.axes("rate I, bits a token", "distortion ⟨d⟩", log="y")


def _mark_schedule(panel: Panel, schedule, unit: float = 1.0, *, named: bool = True) -> np.ndarray:
    """Shade where a run's temperature went, line its two ends, and return it in that unit."""
    span = np.asarray(schedule, dtype=float) / unit
    span = span[np.isfinite(span)]  # before the first step there is none
    if len(span):
        shade = {"fillcolor": ORANGE, "opacity": 0.12, "line_width": 0, "name": "schedule"}
        panel.fig.add_vrect(span.min(), span.max(), **shade, **panel.at)
        for x, name, dash in ((span[0], "starts", "dot"), (span[-1], "ends", "solid")):
            panel.rule(x=x, name=f"training {name}", color=ORANGE, dash=dash, showlegend=named)
    return span
