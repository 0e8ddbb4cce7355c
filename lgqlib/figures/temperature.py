"""What the temperature does to a trained tokenizer, from one blend of all codes to the nearest."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from lgqlib.figures.entropy import UNIT, counted_over
from lgqlib.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, RED, Panel, panels, titled
from lgqlib.measure.temperature import FreeEnergyCurve
from lgqlib.measure.theory import water_filling

PARTS = {"free energy F": BLUE, "energy ⟨d⟩": GREEN, "τ H": PURPLE}  # of the free energy


def energy_and_rate(
    curve: FreeEnergyCurve,
    spectrum: Float[np.ndarray, " D"],
    *,
    unit: float,
    tau_c: float = float("nan"),
    schedule: Sequence[float] = (),
) -> go.Figure:
    """Draw the free energy with its parts over temperature, and the rate-distortion curve.

    `unit`: of temperatures, 2 D / C; `tau_c` and the run's `schedule` are marked, both in units of
    the energy. Traces that change (`here`): `temperature`, `rate and distortion`.
    """
    titles = ("Free energy F = ⟨d⟩ − τ H", "Rate and distortion")
    fig, (energy, rate) = panels(cols=2, titles=titles, height=440, horizontal_spacing=0.1)
    energy.legend(x=0.01, y=0.02)
    values = (curve.free_energy, curve.mean_energy, curve.taus * curve.entropy)
    for (name, color), y in zip(PARTS.items(), values, strict=True):
        energy.line(curve.taus / unit, y, name, color)
    # Far above the critical temperature tau H outgrows everything that is to be seen.
    top = 1.3 * float(curve.mean_energy.max())
    energy.axes(UNIT, "mean over tokens", log="x", y_range=[-1.5 * top, top])
    if np.isfinite(tau_c):
        energy.rule(x=tau_c / unit, dash="dash", name="τ<sub>c</sub>", showlegend=True)
    span = _mark_schedule(energy, schedule, unit)
    rates = np.linspace(0, max(float(curve.mutual_information.max()) * 1.1, 0.1), 60)
    rate.legend()
    rate.line(curve.mutual_information / np.log(2), curve.mean_energy, "soft assignment", BLUE)
    bound = water_filling(spectrum, rates)
    rate.line(rates / np.log(2), bound, "bound for a Gaussian", INK, dash="dash")
    rate.axes("rate I, bits a token", "distortion ⟨d⟩", log="y")
    for panel, (name, at) in zip((energy, rate), here(curve, 1, unit=unit).items(), strict=True):
        panel.dots(at["x"], at["y"], name, RED, size=11, showlegend=False)
    at = int(np.abs(np.log(curve.taus / unit)).argmin())
    bits, distortion = curve.mutual_information[at] / np.log(2), curve.mean_energy[at]
    needs = float(water_filling(spectrum, curve.mutual_information[at]))
    ends = f" Training went from {span[0]:.3g} to {span[-1]:.3g}." if len(span) else ""
    counts = counted_over(rate, {"": (curve.num_tokens, curve.num_codes)}, axis="x")
    return titled(
        fig,
        f"At τ = 2 D / C: {bits:.2f} bits a token, distortion {distortion:.3g}; a Gaussian of this "
        f"covariance needs {needs:.3g}",
        "Red: the explorer's temperature. Left: where ⟨d⟩ rises steeply assignments melt."
        f"{ends} Right: each point is a temperature, the vertical end nearest neighbor. {counts}",
    )


def here(curve: FreeEnergyCurve, tau: float, *, unit: float) -> dict[str, dict]:
    """Give where a temperature, in units of `unit`, is in the two panels of `energy_and_rate`."""
    rising, at = curve.taus.argsort(), np.log(tau * unit)
    values = (curve.free_energy, curve.mutual_information / np.log(2), curve.mean_energy)
    free, rate, mean = ([np.interp(at, np.log(curve.taus)[rising], v[rising])] for v in values)
    return {"temperature": {"x": [tau], "y": free}, "rate and distortion": {"x": rate, "y": mean}}


def entropy_slope(curve: FreeEnergyCurve, *, unit: float, schedule=()) -> go.Figure:
    """Draw the slope of entropy in temperature, as measured and as Var(d) / tau^3 predicts it."""
    fig, (panel,) = panels(height=400)
    x, predicted = curve.taus / unit, curve.entropy_slope * curve.taus
    measured = np.gradient(curve.entropy, np.log(curve.taus))
    panel.line(x, predicted, "Var(d) / τ²", BLUE)
    panel.dots(x, measured, "dH / d log τ, measured", RED)
    panel.axes(UNIT, "nats for each e-fold of τ", log="x", y_rangemode="tozero")
    _mark_schedule(panel, schedule, unit)
    error = np.abs(measured - predicted)[2:-2].max() / predicted.max()
    return titled(
        fig,
        f"Entropy melts fastest at τ = {x[predicted.argmax()]:.2g} × 2 D / C; its slope is "
        f"Var(d)/τ³ to {100 * error:.1f} % of the peak",
        "The heat capacity of an assignment: at a bump many tokens change between sure and unsure. "
        "It is never negative: at fixed codes entropy only grows with τ.",
    )


def _mark_schedule(panel: Panel, schedule, unit: float) -> np.ndarray:
    """Shade where a run's temperature went, line its two ends, and return it in that unit."""
    span = np.asarray(schedule, dtype=float) / unit
    span = span[np.isfinite(span)]  # before the first step there is none
    if len(span):
        shade = {"fillcolor": ORANGE, "opacity": 0.12, "line_width": 0, "name": "schedule"}
        panel.fig.add_vrect(span.min(), span.max(), **shade, **panel.at)
        for x, name, dash in ((span[0], "starts", "dot"), (span[-1], "ends", "solid")):
            panel.rule(x=x, name=f"training {name}", color=ORANGE, dash=dash, showlegend=True)
    return span
