"""What a codebook looks like: occupancy, spacing, partial distortion, dimension.

Arrays in, small frozen dataclasses out. Latents [N, D] and codes [K, D] live in the space where the
nearest code is chosen; `indices` [N] say which code each latent takes. Distances and squared errors
are summed over channels; entropies are in nats. `cells.py` looks inside the cells, `drift.py` at
training.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from lgqlib.measure.neighbors import Array, as_tensor, nearest
from lgqlib.measure.theory import participation_ratio
from lgqlib.measure.usage import code_usage


@dataclass(frozen=True)
class Occupancy:
    """How evenly codes are used."""

    counts: Int[np.ndarray, " K"]
    """Tokens of each code."""
    num_tokens: int
    """Tokens counted; every number here depends on it."""
    active: int
    """Codes with at least one token."""
    entropy: float
    """Plug-in entropy of the usage, in nats: low by about (active - 1) / 2N."""
    entropy_corrected: float
    """The same with the Miller-Madow correction, at most log K."""
    perplexity: float
    """exp(entropy), the number of evenly used codes of the same entropy."""
    gini: float
    """Gini coefficient of the counts: 0 when even, 1 - 1/K when one code has all."""

    @property
    def dead(self) -> int:
        """Count the codes without a token."""
        return len(self.counts) - self.active


def occupancy(counts: Int[np.ndarray, " K"]) -> Occupancy:
    """Summarize how often each code is used. Raises ValueError without a token."""
    counts = np.asarray(counts, dtype=np.int64)
    usage = code_usage(torch.from_numpy(counts.copy()))
    corrected = min(usage["entropy_miller_madow"] * math.log(2), math.log(len(counts)))
    return Occupancy(
        counts=counts,
        num_tokens=usage["num_tokens"],
        active=usage["active"],
        entropy=usage["entropy"] * math.log(2),
        entropy_corrected=corrected,
        perplexity=usage["perplexity"],
        gini=usage["gini"],
    )


def count_codes(indices: Int[np.ndarray, "..."], num_codes: int) -> Int[np.ndarray, " K"]:
    """Count how often each of `num_codes` codes occurs."""
    indices = np.asarray(indices).ravel()
    if indices.size and not 0 <= indices.min() <= indices.max() < num_codes:
        raise ValueError(
            f"indices must lie in 0..{num_codes - 1}, got {indices.min()}..{indices.max()}"
        )
    return np.bincount(indices, minlength=num_codes)


def lorenz(
    counts: Int[np.ndarray, " K"],
) -> tuple[Float[np.ndarray, " K1"], Float[np.ndarray, " K1"]]:
    """Return the Lorenz curve: share of codes, rarest first, and share of tokens they have."""
    mass = np.concatenate([[0.0], np.cumsum(np.sort(counts), dtype=np.float64)])
    return np.linspace(0, 1, len(mass)), mass / mass[-1]


def squared_errors(
    latents: Float[Array, "N D"], codebook: Float[Array, "K D"], indices: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Return |z - e_index|^2 of each token, summed over channels."""
    difference = as_tensor(latents).numpy() - as_tensor(codebook).numpy()[indices]
    return np.einsum("nd,nd->n", difference, difference, dtype=np.float64)


@dataclass(frozen=True)
class PartialDistortion:
    """Whether every cell contributes the same error, as in an optimal quantizer (Gersho 1979)."""

    counts: Int[np.ndarray, " K"]
    """Tokens in each cell."""
    mse: Float[np.ndarray, " K"]
    """Mean squared error of each cell; nan without tokens."""
    slope: float
    """Slope of log mse on log count: -1 when optimal, 0 for a grid, 2/d when cells only differ in
    size.
    """
    low: float
    """Lower end of the 95 % bootstrap interval of the slope."""
    high: float
    """Upper end."""
    evenness: float
    """exp(entropy) of the cells' shares of the whole error, over the cells used: 1 when equal."""
    num_cells: int
    """Cells with enough tokens to enter the slope."""
    min_count: int
    """Tokens that a cell needs for that."""


def partial_distortion(
    errors: Float[np.ndarray, " N"],
    indices: Int[np.ndarray, " N"],
    num_codes: int,
    *,
    groups: Int[np.ndarray, " N"] | None = None,
    min_count: int = 16,
    num_bootstrap: int = 200,
    seed: int = 0,
) -> PartialDistortion:
    """Fit the slope of log mse_k on log n_k over cells, with an interval.

    `errors` from `squared_errors`; `groups` names each token's image, and the bootstrap draws whole
    images (tokens, when absent). Counts of few tokens are noisy, which would pull a plain
    regression toward 0: the slope is that of one half of the tokens with the other half as
    instrument. Where log counts hardly differ, the interval is wide. nan when fewer than 3 cells
    have `min_count` tokens.
    """
    if min_count < 4:
        raise ValueError(f"min_count must be at least 4, got {min_count}")
    counts = count_codes(indices, num_codes)
    sums = np.bincount(indices, errors, num_codes)
    mse = np.divide(sums, counts, out=np.full(num_codes, np.nan), where=counts > 0)
    groups = (
        np.arange(len(indices)) if groups is None else np.unique(groups, return_inverse=True)[1]
    )
    used = (counts >= min_count) & (sums > 0)
    shares = sums[sums > 0] / max(sums.sum(), np.finfo(float).tiny)
    evenness = float(np.exp(-(shares * np.log(shares)).sum()) / max(1, (counts > 0).sum()))
    slope, low, high = np.nan, np.nan, np.nan
    if used.sum() >= 3:
        keep = used[indices]
        cells = (np.cumsum(used) - 1)[indices[keep]]  # cells that count, renumbered from 0
        members, cell_errors = groups[keep], errors[keep]
        rng = np.random.default_rng(seed)
        num_groups = int(groups.max()) + 1
        half = rng.permutation(num_groups) % 2 == 0
        slope = _slope(np.ones(num_groups), half, members, cells, cell_errors)
        draws = [
            _slope(
                rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups)),
                half,
                members,
                cells,
                cell_errors,
            )
            for _ in range(num_bootstrap)
        ]
        low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    return PartialDistortion(counts, mse, slope, low, high, evenness, int(used.sum()), min_count)


def _slope(
    weights: np.ndarray, half: np.ndarray, groups: np.ndarray, cells: np.ndarray, errors: np.ndarray
) -> float:
    """Return the instrumental-variable slope with these weights on the groups."""
    num_cells = cells.max() + 1
    first = np.bincount(cells, (weights * half)[groups], num_cells)
    second = np.bincount(cells, (weights * ~half)[groups], num_cells)
    total = np.bincount(cells, weights[groups] * errors, num_cells)
    ok = (first > 0) & (second > 0) & (total > 0)
    a, b = np.log(first[ok]), np.log(second[ok])
    log_mse = np.log(total[ok] / (first + second)[ok])
    covariance = np.cov(np.stack([a, b, log_mse]))
    return float((covariance[0, 2] + covariance[1, 2]) / 2 / covariance[0, 1])


@dataclass(frozen=True)
class Spacing:
    """How far codes are from each other."""

    distance: Float[np.ndarray, " K"]
    """Distance to the nearest other code."""
    neighbors: Int[np.ndarray, "K k"]
    """The nearest other codes, nearest first."""
    hubness: float
    """Skewness of how often a code is among the k nearest of others: near 0 without hubs."""
    twins: int
    """Codes that coincide with another one."""


def spacing(codebook: Float[Array, "K D"], *, num_neighbors: int = 10) -> Spacing:
    """Find each code's nearest other codes. Fewer neighbors are returned when K is small."""
    num_codes = len(codebook)
    if num_codes < 2:
        raise ValueError(f"spacing needs at least 2 codes, got {num_codes}")
    k = min(num_neighbors, num_codes - 1)
    distances, neighbors = nearest(codebook, codebook, k, exclude=np.arange(num_codes))
    occurrences = np.bincount(neighbors.ravel(), minlength=num_codes).astype(np.float64)
    centered = occurrences - occurrences.mean()
    spread = centered.std()
    hubness = float((centered**3).mean() / spread**3) if spread > 0 else 0.0
    return Spacing(distances[:, 0], neighbors, hubness, int((distances[:, 0] == 0).sum()))


@dataclass(frozen=True)
class Spectrum:
    """Covariance eigenvalues of a cloud, largest first, and the dimensions they imply."""

    eigenvalues: Float[np.ndarray, " D"]
    """Variances along the principal axes."""
    axes: Float[np.ndarray, "D D"]
    """The principal axes, one a column."""
    mean: Float[np.ndarray, " D"]
    """The center of the cloud."""

    @property
    def participation(self) -> float:
        """Return the participation ratio, the number of directions that share the variance."""
        return participation_ratio(self.eigenvalues)

    @property
    def total(self) -> float:
        """Return the variance summed over channels."""
        return float(self.eigenvalues.sum())


def spectrum(
    points: Float[Array, "N D"], *, weights: Float[np.ndarray, " N"] | None = None
) -> Spectrum:
    """Return the covariance spectrum of points, optionally weighted (codes by their usage)."""
    x = as_tensor(points).double().numpy()
    w = np.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
    mean = w @ x
    centered = (x - mean) * np.sqrt(w)[:, None]
    values, axes = np.linalg.eigh(centered.T @ centered)
    return Spectrum(np.clip(values[::-1], 0, None), axes[:, ::-1], mean)


def two_nn(
    points: Float[Array, "N D"], *, limit: int = 20000, discard: float = 0.1, seed: int = 0
) -> float:
    """Estimate the intrinsic dimension from ratios of second to first neighbor distances.

    TwoNN (Facco et al. 2017): -log(1 - F(mu)) = d log mu, fitted through the origin without the top
    `discard` share. At most `limit` points, drawn at random. nan when fewer than 10 points differ.
    """
    x = as_tensor(points).numpy()
    x = np.unique(x, axis=0)
    if len(x) < 10:
        return float("nan")
    if len(x) > limit:
        x = x[np.random.default_rng(seed).choice(len(x), limit, replace=False)]
    distances, _ = nearest(x, x, 2, exclude=np.arange(len(x)))
    log_ratio = np.sort(np.log(distances[:, 1].astype(np.float64) / distances[:, 0]))
    kept = int(len(x) * (1 - discard))
    log_ratio, rank = log_ratio[:kept], np.arange(1, kept + 1)
    survival = -np.log1p(-rank / len(x))
    return float((log_ratio @ survival) / (log_ratio @ log_ratio))
