"""What a codebook looks like: use of codes, dimension, spacing, drift, and all of it in numbers.

Latents [N, D] and codes [K, D] live in the space where the nearest code is chosen; `indices` [N]
say which code a latent takes. Errors are summed over channels; entropies are in nats.
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
from lgqlib.measure.distortion import (
    PartialDistortion,
    partial_distortion,
    roundness,
    squared_errors,
)
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
    intervals are over images. Cells are judged in at least 2 leading directions, or the effective
    dimension.
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
    named = {name: {metric(k): v for k, v in g.numbers.items()} for name, g in geometries.items()}
    return pandas.DataFrame(
        {name: {m.title: m.text(v) for m, v in numbers.items()} for name, numbers in named.items()}
    )
