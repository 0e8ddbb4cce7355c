"""What a codebook looks like: use of codes, dimension, spacing, drift, and all of it in numbers.

Arrays in, small frozen dataclasses out. Latents [N, D] and codes [K, D] live in the space where the
nearest code is chosen; `indices` [N] say which code each latent takes. Distances and squared errors
are summed over channels; entropies are in nats.
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
from lgqlib.measure.distortion import (
    CellShape,
    PartialDistortion,
    cell_shape,
    log_volumes,
    partial_distortion,
    squared_errors,
)
from lgqlib.measure.neighbors import Array, as_tensor, nearest
from lgqlib.measure.theory import geometry_efficiency, mass_law_perplexity, participation_ratio
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
    entropy_corrected: float
    """Entropy of the usage with the Miller-Madow correction (active - 1) / 2N, at most log K."""
    perplexity: float
    """exp of the plug-in entropy: the number of evenly used codes of the same entropy."""
    gini: float
    """Gini coefficient of the counts: 0 when even, 1 - 1/K when one code has all."""


def occupancy(counts: Int[np.ndarray, " K"]) -> Occupancy:
    """Summarize how often each code is used. Raises ValueError without a token."""
    counts = np.array(counts, dtype=np.int64)
    usage = code_usage(torch.from_numpy(counts))
    corrected = min(usage["entropy_miller_madow"] * math.log(2), math.log(len(counts)))
    numbers = {name: usage[name] for name in ("num_tokens", "active", "perplexity", "gini")}
    return Occupancy(counts=counts, entropy_corrected=corrected, **numbers)


def count_codes(indices: Int[np.ndarray, "..."], num_codes: int) -> Int[np.ndarray, " K"]:
    """Count how often each code occurs. Raises ValueError for an index that is no code."""
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


def dominant_class(
    indices: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"], num_codes: int
) -> Int[np.ndarray, " K"]:
    """Return each code's most frequent label, the lower of equals; -1 without tokens."""
    pairs, counts = np.unique(np.stack([indices, labels], 1), axis=0, return_counts=True)
    order = np.lexsort((-pairs[:, 1], counts))  # ascending, so that the last write wins
    label = np.full(num_codes, -1)
    label[pairs[order, 0]] = pairs[order, 1]
    return label


@dataclass(frozen=True)
class Spectrum:
    """Covariance eigenvalues of points, largest first, with their axes and center."""

    eigenvalues: Float[np.ndarray, " D"]
    """Variances along the principal axes."""
    axes: Float[np.ndarray, "D D"]
    """The principal axes, one a column, each with its largest entry positive."""
    mean: Float[np.ndarray, " D"]
    """The center of the points."""

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
        return (as_tensor(points).double().numpy() - self.mean) @ self.axes


def spectrum(points: Float[Array, "N D"]) -> Spectrum:
    """Return the covariance spectrum of points."""
    x = as_tensor(points).double().numpy()
    centered = x - x.mean(0)
    values, axes = np.linalg.eigh(centered.T @ centered / len(x))
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(len(axes))])
    return Spectrum(np.clip(values[::-1], 0, None), axes[:, ::-1], x.mean(0))


def two_nn(points: Float[Array, "N D"], *, limit: int = 20000, seed: int = 0) -> float:
    """Estimate the intrinsic dimension from ratios of second to first neighbor distances.

    TwoNN (Facco et al. 2017): -log(1 - F(mu)) = d log mu, fitted through the origin without the top
    tenth. At most `limit` points, drawn at random. nan when fewer than 10 points differ.
    """
    x = np.unique(as_tensor(points).numpy(), axis=0)
    if len(x) < 10:
        return math.nan
    if len(x) > limit:
        x = x[np.random.default_rng(seed).choice(len(x), limit, replace=False)]
    distances, _ = nearest(x, x, 2, exclude=np.arange(len(x)))
    kept = int(0.9 * len(x))
    log_ratio = np.sort(np.log(distances[:, 1].astype(np.float64) / distances[:, 0]))[:kept]
    survival = -np.log1p(-np.arange(1, kept + 1) / len(x))
    return float((log_ratio @ survival) / (log_ratio @ log_ratio))


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
    """Find each code's nearest other codes; K - 1 of them where K is small, and K at least 2."""
    from scipy.stats import skew

    num_codes = len(codebook)
    if num_codes < 2:
        raise ValueError(f"spacing needs at least 2 codes, got {num_codes}")
    k = min(num_neighbors, num_codes - 1)
    distances, neighbors = nearest(codebook, codebook, k, exclude=np.arange(num_codes))
    occurrences = np.bincount(neighbors.ravel(), minlength=num_codes)
    hubness = float(skew(occurrences)) if np.ptp(occurrences) else 0.0
    return Spacing(distances[:, 0], neighbors, hubness, int((distances[:, 0] == 0).sum()))


@dataclass(frozen=True)
class Drift:
    """What happened between consecutive snapshots; S snapshots, S - 1 intervals."""

    steps: Int[np.ndarray, " S"]
    """Training step of each snapshot."""
    displacement: Float[np.ndarray, "S1 K"]
    """Distance each code moved."""
    births: Int[np.ndarray, " S1"]
    """Codes without tokens before, and with some after."""
    deaths: Int[np.ndarray, " S1"]
    """Codes with tokens before, and without after."""
    churn: Float[np.ndarray, " S1"]
    """Share of the fixed probe's tokens whose code changed."""
    active: Int[np.ndarray, " S"]
    """Codes with tokens at each snapshot."""


def drift(
    steps: Sequence[int] | Int[np.ndarray, " S"],
    codebooks: Sequence[Float[Array, "K D"]],
    indices: Sequence[Int[np.ndarray, " P"]],
    counts: Sequence[Int[np.ndarray, " K"]],
) -> Drift:
    """Compare each snapshot with the one before.

    One codebook, the fixed probe's indices and the usage counts for each step. The frame is that of
    the latents as they were at each step: what moves is what the model moved.
    """
    steps = np.asarray(steps, dtype=np.int64)
    if not (np.diff(steps) > 0).all():
        raise ValueError(f"steps must increase, got {steps}")
    codes = np.stack([as_tensor(c).numpy() for c in codebooks])
    used = np.stack([np.asarray(c) > 0 for c in counts])
    return Drift(
        steps=steps,
        displacement=np.linalg.norm(np.diff(codes, axis=0), axis=2),
        births=(~used[:-1] & used[1:]).sum(1),
        deaths=(used[:-1] & ~used[1:]).sum(1),
        churn=np.array([np.mean(a != b) for a, b in pairwise(indices)], dtype=np.float64),
        active=used.sum(1),
    )


@dataclass(frozen=True)
class Geometry:
    """The geometry of one codebook on one set of latents."""

    occupancy: Occupancy
    partial: PartialDistortion
    spacing: Spacing
    shape: CellShape
    log_volume: Float[np.ndarray, " K"]
    """Log volume of each cell, from its mean squared error; nan without error."""
    latents: Spectrum
    codes: Spectrum
    """Spectrum of the codes, each weighing the same."""
    intrinsic_dim: float
    """TwoNN estimate of the latents' dimension."""
    distortion: float
    """Mean squared error of the hard code, summed over channels."""
    efficiency: float
    """Water-filling distortion at the entropy of code use, over `distortion`; nan without error."""

    @property
    def mass_law(self) -> float:
        """Return the perplexity of an optimal Gaussian quantizer with as many codes."""
        return len(self.occupancy.counts) * mass_law_perplexity(max(1, self.latents.participation))

    @property
    def numbers(self) -> dict[str, float]:
        """Return every number, by its key in METRICS."""
        use, partial, total = self.occupancy, self.partial, self.latents.total
        return {
            "num_codes": len(use.counts),
            "num_tokens": use.num_tokens,
            "active": use.active,
            "perplexity": use.perplexity,
            "mass_law_perplexity": self.mass_law,
            "perplexity_of_mass_law": use.perplexity / self.mass_law,
            "gini": use.gini,
            "latent_error": self.distortion / total if total else math.nan,
            "geometry_efficiency": self.efficiency,
            "partial_slope": partial.slope,
            "partial_slope_low": partial.low,
            "partial_slope_high": partial.high,
            "partial_evenness": partial.evenness,
            "spacing": float(np.median(self.spacing.distance[partial.counts > 0])),
            "twins": self.spacing.twins,
            "hubness": self.spacing.hubness,
            "long_cells": self.shape.share_long,
            "channels": len(self.latents.eigenvalues),
            "effective_dim": self.latents.participation,
            "effective_dim_codes": self.codes.participation,
            "intrinsic_dim": self.intrinsic_dim,
        }


def measure_geometry(
    codebook: Float[Array, "K D"],
    latents: Float[Array, "N D"],
    indices: Int[np.ndarray, " N"],
    *,
    counts: Int[np.ndarray, " K"] | None = None,
    groups: Int[np.ndarray, " N"] | None = None,
    seed: int = 0,
) -> Geometry:
    """Measure a codebook on latents and the codes they take.

    `counts`: usage over a larger set than these latents, if there is one; `groups`: the image of
    each token, so that intervals are over images. Cells are judged in the leading directions, as
    many as the effective dimension, at least 2.
    """
    num_codes, dim = codebook.shape
    own = count_codes(indices, num_codes)
    use = occupancy(own if counts is None else counts)
    errors = squared_errors(latents, codebook, indices)
    partial = partial_distortion(errors, indices, num_codes, groups=groups, seed=seed)
    basis, distortion = spectrum(latents), float(errors.mean())
    leading = int(np.clip(round(basis.participation), min(2, dim), dim))
    efficiency = math.nan
    if distortion > 0:
        efficiency = geometry_efficiency(basis.eigenvalues, use.entropy_corrected, distortion)
    return Geometry(
        occupancy=use,
        partial=partial,
        spacing=spacing(codebook),
        shape=cell_shape(basis.coordinates(latents), indices, num_codes, dim=leading),
        log_volume=log_volumes(partial.mse, max(1.0, basis.participation)),
        latents=basis,
        codes=spectrum(codebook),
        intrinsic_dim=two_nn(latents, seed=seed),
        distortion=distortion,
        efficiency=efficiency,
    )


def geometry_table(geometries: Mapping[str, Geometry]) -> pandas.DataFrame:
    """Return a column for each named codebook and a row for each number, as METRICS write it."""
    return pandas.DataFrame(
        {
            name: {metric(key).title: metric(key).text(value) for key, value in g.numbers.items()}
            for name, g in geometries.items()
        }
    )
