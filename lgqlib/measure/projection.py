"""Codes and latents in the plane: PCA, UMAP or the plane itself, and how far to trust it."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from lgqlib.files import replacing, writable
from lgqlib.measure.distances import Array, Codebook, Latents, nearest_others
from lgqlib.measure.geometry import Spectrum, spectrum


@dataclass(frozen=True)
class Projection:
    """Codes and latents in one picture."""

    codes: Float[np.ndarray, "K 2"]
    latents: Float[np.ndarray, "N 2"]
    method: str  # what made them: plane, pca or umap
    basis: Spectrum  # principal axes of the latents; under `plane`, the channels themselves

    @property
    def explained(self) -> Float[np.ndarray, " n"]:
        """Return the share of the variance along each of the leading axes, at most two."""
        return self.basis.eigenvalues[:2] / max(self.basis.total, np.finfo(float).tiny)


def in_plane(basis: Spectrum, points: Latents) -> Float[np.ndarray, "N 2"]:
    """Return the coordinates of points on the two leading axes; a missing axis is zero."""
    leading = basis.coordinates(points)[:, :2].astype(np.float32)
    return np.pad(leading, ((0, 0), (0, 2 - leading.shape[1])))


def project(
    codebooks: Sequence[Codebook],
    latents: Sequence[Latents],
    *,
    method: str = "pca",
    seed: int = 0,
    cache: Path | None = None,
) -> list[Projection]:
    """Bring codes and latents of a run's checkpoints jointly to one plane; nothing jumps by itself.

    Row i is the same code, or token, in all. PCA's plane is that of the last latents; UMAP starts
    each fit at the result before it, registered by a similarity, kept in the folder `cache`.
    ValueError for an unknown method, and `plane` unless in 2 channels.
    """
    dim = codebooks[-1].shape[1]
    if method not in ("pca", "umap") and (method, dim) != ("plane", 2):
        raise ValueError(f"{method!r} of {dim} channels: give pca, umap, or plane for 2 channels")
    basis, pairs = spectrum(latents[-1]), list(zip(codebooks, latents, strict=True))
    if method == "plane":
        channels = np.asarray(latents[-1], dtype=np.float64).var(0)
        basis = Spectrum(channels, np.eye(2), np.zeros(2))
    if method != "umap":
        planes = [[in_plane(basis, points) for points in pair] for pair in pairs]
    else:
        points = np.stack([np.concatenate(pair) for pair in pairs]).astype(np.float32)
        planes = [np.split(p, [len(codebooks[0])]) for p in _umap_chain(points, seed, cache)]
    return [Projection(*pair, method, basis) for pair in planes]


def register(
    moved: Float[np.ndarray, "N 2"], fixed: Float[np.ndarray, "N 2"]
) -> Float[np.ndarray, "N 2"]:
    """Shift, turn or mirror, and scale points onto others, row by row (Umeyama 1991)."""
    from scipy.linalg import orthogonal_procrustes

    centered, center = moved - moved.mean(0), fixed.mean(0)
    turn, match = orthogonal_procrustes(centered, fixed - center)
    scale = match / max(np.square(centered).sum(), np.finfo(float).tiny)
    return (scale * centered @ turn + center).astype(moved.dtype)


def _umap_chain(
    snapshots: Float[np.ndarray, "S M D"], seed: int, cache: Path | None
) -> Float[np.ndarray, "S M 2"]:
    """Fit each snapshot's points from the result before; the first from PCA."""
    made_of = f"{seed} {snapshots.shape} {version('umap-learn')}".encode() + snapshots.tobytes()
    path = cache and Path(cache) / f"{hashlib.sha256(made_of).hexdigest()[:32]}.npy"
    if path and path.exists():
        return np.load(path, allow_pickle=False)
    placed = [_fit_umap(snapshots[0], "pca", seed, f"UMAP 1 of {len(snapshots)}")]
    for i, points in enumerate(snapshots[1:], start=2):
        found = _fit_umap(points, placed[-1], seed, f"UMAP {i} of {len(snapshots)}")
        placed.append(register(found, placed[-1]))
    if path:
        with replacing(writable(path.parent) / path.name) as temporary:
            np.save(temporary, np.stack(placed))
    return np.stack(placed)


def _fit_umap(points: np.ndarray, init: np.ndarray | str, seed: int, label: str) -> np.ndarray:
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional packages and about the seed's one thread
        import umap

        reducer = umap.UMAP(
            n_neighbors=min(15, len(points) - 1),
            init=init,
            random_state=seed,
            n_jobs=1,
            tqdm_kwds={"disable": False, "desc": label, "leave": False},
        )
        found = reducer.fit_transform(points)
    torch.set_num_threads(threads)  # numba changes the count that OpenMP keeps for both
    return np.ascontiguousarray(found, dtype=np.float32)


@dataclass(frozen=True)
class Faithfulness:
    """What a projection keeps of the neighborhoods; each share is 1 when it keeps all."""

    trustworthiness: float  # falls when neighbors in the picture are far in truth
    continuity: float  # falls when true neighbors are far in the picture
    recall: float  # share of the true nearest neighbors that are nearest in the picture
    num_neighbors: int  # that each point looks at
    num_points: int  # among which they are looked for


def faithfulness(
    points: Latents,
    plane: Float[Array, "N 2"],
    *,
    num_neighbors: int = 15,
    limit: int = 2000,
    seed: int = 0,
) -> Faithfulness:
    """Compare neighborhoods in truth and in the picture, among at most `limit` points.

    Without neighbors the shares are nan; ValueError unless points are over twice as many.
    """
    if not num_neighbors:
        return Faithfulness(*[math.nan] * 3, 0, len(points))
    from sklearn.manifold import trustworthiness

    k, chosen = num_neighbors, np.random.default_rng(seed).permutation(len(points))[:limit]
    high, low = (np.asarray(x)[chosen] for x in (points, plane))
    pairs = (high, low), (low, high)
    trust, continuity = (float(trustworthiness(a, b, n_neighbors=k)) for a, b in pairs)
    true, shown = (nearest_others(x, k)[1] for x in (high, low))
    recall = float((true[:, :, None] == shown[:, None]).sum() / true.size)
    return Faithfulness(trust, continuity, recall, k, len(chosen))
