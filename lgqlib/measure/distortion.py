"""The error inside each cell of a codebook, its share of the whole, and the cell's shape.

Arrays are those of `geometry`; squared errors are summed over channels.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lgqlib.measure.distances import Codebook, Indices, Latents


def squared_errors(
    latents: Latents, codebook: Codebook, indices: Indices
) -> Float[np.ndarray, " N"]:
    """Return |z - e_index|^2 of each token, summed over channels."""
    difference = np.asarray(latents) - np.asarray(codebook)[indices]
    return np.einsum("nd,nd->n", difference, difference, dtype=np.float64)


@dataclass(frozen=True)
class PartialDistortion:
    """Whether every cell contributes the same error, as in an optimal quantizer (Gersho 1979)."""

    counts: Int[np.ndarray, " K"]  # tokens in each cell
    mse: Float[np.ndarray, " K"]  # mean squared error of each cell; nan without tokens
    slope: float  # of log mse on log count: -1 when optimal, 0 for a grid; nan for too few cells
    low: float  # ends of the 95 % bootstrap interval of the slope
    high: float
    evenness: float  # exp(entropy) of the cells' shares of the error, over the cells used
    num_cells: int  # cells that enter the slope, of at least `min_count` tokens
    min_count: int


def partial_distortion(
    errors: Float[np.ndarray, " N"],
    indices: Indices,
    num_codes: int,
    *,
    groups: Indices | None = None,
    min_count: int = 16,
    seed: int = 0,
) -> PartialDistortion:
    """Fit the slope of log mse_k on log n_k over cells, with an interval.

    The bootstrap draws whole images, which `groups` names for each token; without it, tokens.
    Noise in the counts would pull a plain regression toward 0: the slope is that of one half of the
    tokens with the other half as instrument. At least 3 cells need `min_count` tokens.
    """
    counts = np.bincount(indices, minlength=num_codes)
    sums = np.bincount(indices, errors, num_codes)
    mse = np.divide(sums, counts, out=np.full(num_codes, np.nan), where=counts > 0)
    shares = sums[sums > 0] / max(sums.sum(), np.finfo(float).tiny)
    evenness = float(np.exp(-(shares * np.log(shares)).sum()) / max(1, (counts > 0).sum()))
    used = (counts >= min_count) & (sums > 0)
    slope = low = high = math.nan
    if used.sum() >= 3:
        groups = np.arange(len(indices)) if groups is None else groups
        groups = np.unique(groups, return_inverse=True)[1]
        num_groups, rng = int(groups.max()) + 1, np.random.default_rng(seed)
        half = rng.permutation(num_groups) % 2 == 0
        keep = used[indices]
        cells = (np.cumsum(used) - 1)[indices[keep]]  # those that count, renumbered from 0
        data = half, groups[keep], cells, errors[keep]
        slope = _slope(np.ones(num_groups), *data)
        even = np.full(num_groups, 1 / num_groups)
        draws = [_slope(rng.multinomial(num_groups, even), *data) for _ in range(200)]
        draws = [draw for draw in draws if math.isfinite(draw)] or [math.nan]
        low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    return PartialDistortion(counts, mse, slope, low, high, evenness, int(used.sum()), min_count)


@np.errstate(divide="ignore", invalid="ignore")
def _slope(weights, half, groups, cells, errors) -> float:
    """Return the instrumental-variable slope with these weights on the groups; nan without one."""
    first = np.bincount(cells, (weights * half)[groups])
    second = np.bincount(cells, (weights * ~half)[groups])
    total = np.bincount(cells, weights[groups] * errors)
    ok = (first > 0) & (second > 0) & (total > 0)
    if ok.sum() < 2:
        return math.nan
    first, second, total = first[ok], second[ok], total[ok]
    covariance = np.cov(np.log([first, second, total / (first + second)]))
    return float((covariance[0, 2] + covariance[1, 2]) / 2 / covariance[0, 1])


def roundness(
    latents: Latents, indices: Indices, num_codes: int, *, dim: int
) -> Float[np.ndarray, " K"]:
    """Return each cell's chance to look as long as it does if it were round; nan for few tokens.

    Cells need 10 tokens a dimension; looked at are the first `dim` coordinates of the latents along
    their principal axes, at least 2. The statistic is Mauchly's, log det against the trace of the
    covariance around the cell's own mean. Its null mean and variance are exact for Gaussian cells,
    its tail a gamma law of those moments; an optimal quantizer's cells are flatter, so it is
    conservative.
    """
    from scipy.special import polygamma, psi
    from scipy.stats import gamma

    counts = np.bincount(indices, minlength=num_codes)
    cells, p_value = np.flatnonzero(counts >= 10 * dim), np.full(num_codes, np.nan)
    if len(cells) and dim > 1:  # in one direction every cell is round
        x = np.asarray(latents, dtype=np.float64)[np.argsort(indices, kind="stable"), :dim]
        parts = np.split(x, np.cumsum(counts)[:-1])
        values = np.linalg.eigvalsh(np.stack([np.cov(parts[k], rowvar=False) for k in cells]))
        values = np.maximum(values, 1e-12 * values[:, -1:].clip(1e-300))
        u = dim * np.log(values.mean(1)) - np.log(values).sum(1)
        freedom = counts[cells] - 1
        steps = (freedom[:, None] - np.arange(dim)) / 2  # log det W = sum of log chi^2
        mean = dim * (psi(dim * freedom / 2) - np.log(dim)) - psi(steps).sum(1)
        # the trace is independent of u when round, so the variances of log det and trace subtract
        variance = polygamma(1, steps).sum(1) - dim**2 * polygamma(1, dim * freedom / 2)
        p_value[cells] = gamma.sf(u, mean**2 / variance, scale=variance / mean)
    return p_value
