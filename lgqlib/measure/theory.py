"""What an ideal quantizer would do: laws of rate and distortion as closed formulas, in nats."""

import math

import numpy as np
from jaxtyping import Float


def water_filling(
    spectrum: Float[np.ndarray, " D"], rate: float | Float[np.ndarray, " R"]
) -> float | Float[np.ndarray, " R"]:
    """Return the least total squared error of a Gaussian with these covariance eigenvalues.

    Reverse water-filling: D = sum min(lambda, theta) with R = sum max(0, log(lambda / theta)) / 2,
    R in nats a token. Exact: the active channels at every rate are known in advance.
    """
    spectrum, rates = np.asarray(spectrum, dtype=np.float64), np.asarray(rate, dtype=np.float64)
    values = np.sort(spectrum[spectrum > 1e-12 * spectrum.max(initial=0)])[::-1]
    if len(values) == 0:
        return 0.0 * rates
    logs = np.cumsum(np.log(values))
    onset = (logs - np.arange(1, len(values) + 1) * np.log(values)) / 2  # each channel's first rate
    active = np.maximum(np.searchsorted(onset, rates, side="right"), 1)
    level = np.exp((logs[active - 1] - 2 * rates) / active)
    rest = np.append(np.cumsum(values[::-1])[::-1], 0.0)  # the variance of the channels left out
    return active * level + rest[active]


def geometry_efficiency(
    spectrum: Float[np.ndarray, " D"], usage_entropy: float, hard_distortion: float
) -> float:
    """Return D_waterfilling(H(u)) / D_hard, `usage_entropy` in nats; nan without distortion.

    At most 1 for a Gaussian, the hardest source of its covariance; clusters can exceed it.
    """
    bound = float(water_filling(spectrum, usage_entropy))
    return bound / hard_distortion if hard_distortion > 0 else math.nan


def mass_law_perplexity(dim: float) -> float:
    """Return perplexity / K of a Gaussian's best quantizer, with codes as N(0, (1 + 2/d) Cov)."""
    return math.exp(dim / (dim + 2) - dim * math.log1p(2 / dim) / 2)


def participation_ratio(spectrum: Float[np.ndarray, " D"]) -> float:
    """Return (sum lambda)^2 / sum lambda^2, how many directions share the variance; 0 for none."""
    spectrum = np.clip(np.asarray(spectrum, dtype=np.float64), 0, None)
    squares = np.square(spectrum).sum()
    return float(spectrum.sum() ** 2 / squares) if squares > 0 else 0.0
