"""What a codebook looks like: use of codes, dimension, spacing, drift, and all of it in numbers.

Latents [N, D] and codes [K, D] live in the space where the nearest code is chosen; `indices` [N]
say which code a latent takes. Errors are summed over channels. `rate` is in nats, `usage` in bits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas
import torch
from jaxtyping import Float, Int

from lgqlib.measure import metric
from lgqlib.measure.distances import Array, Codebook, Indices, Latents, nearest_others
from lgqlib.measure.theory import geometry_efficiency, mass_law_perplexity, participation_ratio
from lgqlib.measure.usage import code_usage


@dataclass(frozen=True)
class Spectrum:
    """Covariance eigenvalues of points, largest first, with their axes and center."""

    eigenvalues: Float[np.ndarray, " D"]  # variances along the principal axes
    axes: Float[np.ndarray, "D D"]  # one a column, each with its largest entry positive
    mean: Float[np.ndarray, " D"]

    @property
    def participation(self) -> float:
        """Return the participation ratio, the number of directions that share the variance."""
        return participation_ratio(self.eigenvalues)

    @property
    def total(self) -> float:
        """Return the variance summed over channels."""
        return float(self.eigenvalues.sum())

    def coordinates(self, points: Float[Array, "N D"]) -> Float[np.ndarray, "N D"]:
        """Return where points lie along the principal axes, from the center."""
        return (np.asarray(points, dtype=np.float64) - self.mean) @ self.axes


def spectrum(points: Float[Array, "N D"]) -> Spectrum:
    """Return the covariance spectrum of points."""
    x = np.asarray(points, dtype=np.float64)
    centered = x - x.mean(0)
    values, axes = np.linalg.eigh(centered.T @ centered / len(x))
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(len(axes))])
    return Spectrum(np.clip(values[::-1], 0, None), axes[:, ::-1], x.mean(0))


def two_nn(points: Float[Array, "N D"], *, limit: int = 20000, seed: int = 0) -> float:
    """Estimate the intrinsic dimension by TwoNN (Facco et al. 2017); nan for fewer than 10 points.

    -log(1 - F(mu)) = d log mu of second to first neighbors' distances, without the top tenth.
    """
    x = np.unique(np.asarray(points), axis=0)
    if len(x) < 10:
        return math.nan
    if len(x) > limit:
        x = x[np.random.default_rng(seed).choice(len(x), limit, replace=False)]
    first, second = nearest_others(x, 2)[0].astype(np.float64).T
    kept = int(0.9 * len(x))
    log_ratio = np.sort(np.log(second / first))[:kept]
    survival = -np.log1p(-np.arange(1, kept + 1) / len(x))
    return float((log_ratio @ survival) / (log_ratio @ log_ratio))


@dataclass(frozen=True)
class Spacing:
    """How far codes are from each other."""

    distance: Float[np.ndarray, " K"]  # to the nearest other code
    neighbors: Int[np.ndarray, "K k"]  # the nearest other codes, nearest first
    hubness: float  # skewness of how often a code is such a neighbor: near 0 without hubs
    twins: int  # codes that coincide with another one


def spacing(codebook: Codebook, *, num_neighbors: int = 10) -> Spacing:
    """Find each code's nearest other codes; K - 1 of them where K is small, a NaN away for one."""
    from scipy.stats import skew

    if len(codebook) == 1:
        return Spacing(np.full(1, np.nan), np.zeros((1, 0), dtype=np.int64), 0.0, 0)
    distances, neighbors = nearest_others(codebook, min(num_neighbors, len(codebook) - 1))
    occurrences = np.bincount(neighbors.ravel(), minlength=len(codebook))
    hubness = float(skew(occurrences)) if np.ptp(occurrences) else 0.0
    return Spacing(distances[:, 0], neighbors, hubness, int((distances[:, 0] == 0).sum()))


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
    """Fit the slope of log mse_k on log n_k over cells, with its interval, over `groups`.

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

    Cells need 10 tokens a dimension, of the first `dim` coordinates along the principal axes, at
    least 2. The statistic is Mauchly's, log det against the trace of the covariance; its null mean
    and variance are exact for Gaussian cells, its tail a gamma law: conservative for flatter ones.
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


@dataclass(frozen=True)
class Drift:
    """What happened between consecutive snapshots; S snapshots, S - 1 intervals."""

    steps: Int[np.ndarray, " S"]  # training step of each snapshot
    displacement: Float[np.ndarray, "S1 K"]  # distance each code moved
    births: Int[np.ndarray, " S1"]  # codes without tokens before, and with some after
    deaths: Int[np.ndarray, " S1"]  # codes with tokens before, and without after
    churn: Float[np.ndarray, " S1"]  # share of the fixed probe's tokens whose code changed
    active: Int[np.ndarray, " S"]  # codes with tokens at each snapshot


def drift(
    steps: Sequence[int] | Int[np.ndarray, " S"],
    codebooks: Sequence[Codebook],
    indices: Sequence[Int[np.ndarray, " P"]],
    counts: Sequence[Int[np.ndarray, " K"]],
) -> Drift:
    """Compare each snapshot with the one before, by codebook, the probe's indices and counts."""
    used = np.stack(counts) > 0
    return Drift(
        steps=np.asarray(steps, dtype=np.int64),
        displacement=np.linalg.norm(np.diff(np.stack(codebooks), axis=0), axis=2),
        births=(~used[:-1] & used[1:]).sum(1),
        deaths=(used[:-1] & ~used[1:]).sum(1),
        churn=np.array([np.mean(a != b) for a, b in pairwise(indices)], dtype=np.float64),
        active=used.sum(1),
    )


@dataclass(frozen=True)
class Geometry:
    """The geometry of one codebook on one set of latents."""

    usage: dict[str, float | int]  # `code_usage`
    rate: float  # Miller-Madow entropy of code use in nats, at most log K
    partial: PartialDistortion
    spacing: Spacing
    long_cells: float  # share of the judged cells longer than round at the 5 % level
    latents: Spectrum
    codes: Spectrum  # each code weighs the same
    intrinsic_dim: float  # TwoNN estimate of the latents' dimension
    distortion: float  # mean squared error of the hard code, summed over channels
    efficiency: float  # water-filling distortion at `rate` over `distortion`; nan without error

    @property
    def numbers(self) -> dict[str, float]:
        """Return every number, by its key in METRICS."""
        partial, total = self.partial, self.latents.total
        share = mass_law_perplexity(max(1, self.latents.participation))
        names = ("num_codes", "num_tokens", "active", "perplexity")
        return {name: self.usage[name] for name in names} | {
            "mass_law_perplexity": self.usage["num_codes"] * share,
            "perplexity_of_mass_law": self.usage["perplexity_share"] / share,
            "gini": self.usage["gini"],
            "latent_error": self.distortion / total if total else math.nan,
            "geometry_efficiency": self.efficiency,
            "partial_slope": partial.slope,
            "partial_slope_low": partial.low,
            "partial_slope_high": partial.high,
            "partial_evenness": partial.evenness,
            "spacing": float(np.median(self.spacing.distance[partial.counts > 0])),
            "twins": self.spacing.twins,
            "hubness": self.spacing.hubness,
            "long_cells": self.long_cells,
            "channels": len(self.latents.eigenvalues),
            "effective_dim": self.latents.participation,
            "effective_dim_codes": self.codes.participation,
            "intrinsic_dim": self.intrinsic_dim,
        }


def measure_geometry(
    codebook: Codebook,
    latents: Latents,
    indices: Indices,
    *,
    counts: Int[np.ndarray, " K"] | None = None,
    groups: Indices | None = None,
    seed: int = 0,
) -> Geometry:
    """Measure a codebook on latents and the codes they take.

    `counts`: usage over a larger set, if there is one; `groups`: the image of each token, so that
    intervals are over images. Cells are judged in the leading directions, at least 2.
    """
    num_codes, dim = codebook.shape
    errors = squared_errors(latents, codebook, indices)
    partial = partial_distortion(errors, indices, num_codes, groups=groups, seed=seed)
    usage = code_usage(torch.tensor(partial.counts if counts is None else counts))
    rate = min(usage["entropy_miller_madow"], math.log2(num_codes)) * math.log(2)
    basis, distortion = spectrum(latents), float(errors.mean())
    leading = int(np.clip(round(basis.participation), min(2, dim), dim))
    round_ = roundness(basis.coordinates(latents), indices, num_codes, dim=leading)
    judged = round_[~np.isnan(round_)]
    return Geometry(
        usage=usage,
        rate=rate,
        partial=partial,
        spacing=spacing(codebook),
        long_cells=float((judged < 0.05).mean()) if len(judged) else math.nan,
        latents=basis,
        codes=spectrum(codebook),
        intrinsic_dim=two_nn(latents, seed=seed),
        distortion=distortion,
        efficiency=geometry_efficiency(basis.eigenvalues, rate, distortion),
    )


def geometry_table(geometries: Mapping[str, Geometry]) -> pandas.DataFrame:
    """Return a column for each named codebook and a row for each number, as METRICS write it."""
    rows = {name: [(metric(k), v) for k, v in g.numbers.items()] for name, g in geometries.items()}
    return pandas.DataFrame({name: {m.title: m.text(v) for m, v in rows[name]} for name in rows})
