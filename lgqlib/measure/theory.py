"""What an ideal quantizer would do: laws of rate and distortion as closed formulas, in nats."""

import math

import numpy as np
from jaxtyping import Float

# fmt: off
GERSHO = {
    1: 1 / 12, 2: 5 / (36 * math.sqrt(3)), 3: 0.0785433, 4: 0.0766032, 5: 0.0756254, 6: 0.0742437,
    7: 0.0731165, 8: 0.0716821, 12: 0.0700956, 16: 0.0682983, 24: 0.0657709,
}
# fmt: on
"""Normalized second moment of the best quantizer known in d dimensions (Conway and Sloane, Sphere
Packings, Lattices and Groups, table 2.3)."""


def water_filling(
    spectrum: Float[np.ndarray, " D"], rate: float | Float[np.ndarray, " R"]
) -> float | Float[np.ndarray, " R"]:
    """Return the least total squared error of a Gaussian with these covariance eigenvalues.

    Reverse water-filling: D = sum min(lambda, theta) with R = sum max(0, log(lambda / theta)) / 2.
    `rate` R in nats a token; the distortion is summed over channels. Exact: the active channels at
    every rate are known in advance.
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
    """Return D_waterfilling(H(u)) / D_hard: at most 1 for Gaussian latents; nan without distortion.

    `usage_entropy` in nats a token, `hard_distortion` summed over channels. The Gaussian is the
    hardest source of its covariance: latents that lie in clusters can exceed 1.
    """
    bound = float(water_filling(spectrum, usage_entropy))
    return bound / hard_distortion if hard_distortion > 0 else math.nan


def gersho_constant(dim: float) -> float:
    """Return G_d, the normalized second moment of an optimal cell, for any dimension of at least 1.

    Tabulated for the dimensions with a good lattice. In between and beyond, the ratio to the ball's
    second moment, a lower bound for every cell, is interpolated linearly in 1/d to 1 in the limit.
    """
    inverse = [0.0, *(1 / d for d in reversed(GERSHO))]
    ratio = [1.0, *(GERSHO[d] / _ball_moment(d) for d in reversed(GERSHO))]
    return float(np.interp(1 / dim, inverse, ratio)) * _ball_moment(dim)


def _ball_moment(dim: float) -> float:
    return math.exp(2 / dim * math.lgamma(dim / 2 + 1)) / ((dim + 2) * math.pi)


def mass_law_perplexity(dim: float) -> float:
    """Return perplexity / K of an optimal fixed-rate quantizer of a Gaussian with many codes.

    Codes lie with density N(0, (1 + 2/d) Cov), so perplexity / K = exp(-KL(p || code density)).
    """
    return math.exp(dim / (dim + 2) - dim * math.log1p(2 / dim) / 2)


def participation_ratio(spectrum: Float[np.ndarray, " D"]) -> float:
    """Return (sum lambda)^2 / sum lambda^2, how many directions share the variance; 0 for none."""
    spectrum = np.clip(np.asarray(spectrum, dtype=np.float64), 0, None)
    squares = np.square(spectrum).sum()
    return float(spectrum.sum() ** 2 / squares) if squares > 0 else 0.0
