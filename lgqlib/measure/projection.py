"""Codes and latents in the plane: PCA, UMAP or the plane itself, and how far to trust it.

UMAP is imported when it is first asked for: in a fresh installation it compiles for a minute.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgqlib.files import replacing
from lgqlib.measure.geometry import Spectrum, spectrum
from lgqlib.measure.neighbors import Array, as_tensor

METHODS = ("plane", "pca", "umap")
MAX_LATENTS = 20000


@dataclass(frozen=True)
class Projection:
    """Codes and latents in one picture."""

    codes: Float[np.ndarray, "K 2"]
    latents: Float[np.ndarray, "N 2"]
    method: str
    """What made them: plane, pca or umap."""
    basis: Spectrum
    """Principal axes of the latents; under `plane`, the channels themselves."""

    @property
    def explained(self) -> Float[np.ndarray, " n"]:
        """Return the share of the variance along each of the leading axes, at most two."""
        return self.basis.eigenvalues[:2] / max(self.basis.total, np.finfo(float).tiny)


def in_plane(basis: Spectrum, points: Float[Array, "N D"]) -> Float[np.ndarray, "N 2"]:
    """Return the coordinates of points on the two leading axes; a missing axis is zero."""
    leading = basis.coordinates(points)[:, :2].astype(np.float32)
    return np.pad(leading, ((0, 0), (0, 2 - leading.shape[1])))


def project(
    codebook: Float[Array, "K D"],
    latents: Float[Array, "N D"],
    *,
    method: str = "pca",
    seed: int = 0,
    cache: Path | None = None,
) -> Projection:
    """Bring codes and latents jointly to the plane, as `project_snapshots` does for one."""
    return project_snapshots([codebook], [latents], method=method, seed=seed, cache=cache)[0]


def project_snapshots(
    codebooks: Sequence[Float[Array, "K D"]],
    latents: Sequence[Float[Array, "N D"]],
    *,
    method: str = "pca",
    seed: int = 0,
    cache: Path | None = None,
) -> list[Projection]:
    """Project checkpoints of one run into one frame, so that nothing jumps by itself.

    Row i of each codebook is the same code, and row i of the latents the same token. PCA uses the
    plane of the last checkpoint's latents for all; UMAP starts each fit at the result before it and
    registers the outcome by a similarity (shift, turn, scale). At most 20000 latents for UMAP: see
    `stratified_sample`. `cache`: a folder where UMAP's results are kept, keyed by vectors,
    parameters and versions. Raises ValueError for an unknown method, and for `plane` in other than
    two channels.
    """
    dim, count = codebooks[-1].shape[1], len(latents[-1])
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, expected one of {', '.join(METHODS)}")
    if method == "plane" and dim != 2:
        raise ValueError(f"the plane itself needs 2 channels, got {dim}: use pca or umap")
    if method == "umap" and count > MAX_LATENTS:
        raise ValueError(
            f"UMAP takes at most {MAX_LATENTS} latents, got {count}: use stratified_sample"
        )
    basis = spectrum(latents[-1])
    if method == "plane":
        basis = Spectrum(as_tensor(latents[-1]).double().numpy().var(0), np.eye(2), np.zeros(2))
    pairs = zip(codebooks, latents, strict=True)
    if method != "umap":
        planes = ([in_plane(basis, points) for points in pair] for pair in pairs)
        return [Projection(*pair, method, basis) for pair in planes]
    points = [np.concatenate([as_tensor(x).float().numpy() for x in pair]) for pair in pairs]
    return [
        Projection(*np.split(placed, [len(codebooks[0])]), method, basis)
        for placed in _umap_chain(points, seed, cache)
    ]


def register(
    moved: Float[np.ndarray, "N 2"], fixed: Float[np.ndarray, "N 2"]
) -> Float[np.ndarray, "N 2"]:
    """Shift, turn or mirror, and scale points onto others, row by row (Umeyama 1991)."""
    center, target = moved.mean(0), fixed.mean(0)
    a, b = moved - center, fixed - target
    left, values, right = np.linalg.svd(a.T @ b)
    norm = np.square(a).sum()
    scale = values.sum() / norm if norm > 0 else 1.0
    return (scale * a @ left @ right + target).astype(moved.dtype)


def stratified_sample(
    indices: Int[np.ndarray, " N"], limit: int = MAX_LATENTS, *, seed: int = 0
) -> Int[np.ndarray, " n"]:
    """Choose at most `limit` tokens, ascending: one of every used code, the rest at random.

    Rare codes stay, and the density of the others stays nearly true. With more used codes than
    `limit`, a random choice of codes has one token each.
    """
    order = np.random.default_rng(seed).permutation(len(indices))
    _, first = np.unique(indices[order], return_index=True)
    rank = np.arange(len(order))
    rank[first] -= len(order)  # one of each code comes before everything else
    return np.sort(order[np.argsort(rank, kind="stable")[:limit]])


def _umap_chain(
    snapshots: list[np.ndarray], seed: int, cache: Path | None
) -> list[Float[np.ndarray, "M 2"]]:
    """Fit each snapshot's points from the result before; the first from PCA."""
    placed: list[np.ndarray] = []
    for i, points in enumerate(snapshots, start=1):
        before = placed[-1] if placed else None
        path = None if cache is None else Path(cache) / f"{_key(points, before, seed)}.npy"
        if path is not None and path.exists():
            placed.append(np.load(path, allow_pickle=False))
            continue
        found = _fit_umap(points, before, seed, label=f"UMAP {i} of {len(snapshots)}")
        placed.append(found if before is None else register(found, before))
        if path is not None:
            with replacing(path) as temporary:
                np.save(temporary, placed[-1])
    return placed


def _fit_umap(points: np.ndarray, before: np.ndarray | None, seed: int, label: str) -> np.ndarray:
    """Return UMAP's plane for points, started from PCA or from a plane before."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional packages and about the seed's one thread
        import umap

        reducer = umap.UMAP(
            n_neighbors=min(15, len(points) - 1),
            init="pca" if before is None else before.astype(np.float32),
            random_state=seed,
            n_jobs=1,
            tqdm_kwds={"disable": False, "desc": label, "leave": False},
        )
        found = reducer.fit_transform(points)
    torch.set_num_threads(threads)  # numba changes the count that OpenMP keeps for both
    return np.ascontiguousarray(found, dtype=np.float32)


def _key(points: np.ndarray, before: np.ndarray | None, seed: int) -> str:
    names = ("umap-learn", "pynndescent", "numba", "numpy")
    digest = hashlib.sha256(repr([seed, points.shape, *map(version, names)]).encode())
    for array in (points, before):
        if array is not None:
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Faithfulness:
    """What a projection keeps of the neighborhoods; each is 1 when it keeps all."""

    trustworthiness: float
    """Falls when neighbors in the picture are far in truth (Venna and Kaski 2001)."""
    continuity: float
    """Falls when true neighbors are far in the picture."""
    recall: float
    """Share of the true nearest neighbors that are nearest in the picture."""
    num_neighbors: int
    """Neighbors that each query looks at."""
    num_queries: int
    """Points that were asked."""


@torch.no_grad()
def faithfulness(
    points: Float[Array, "N D"],
    plane: Float[Array, "N 2"],
    *,
    num_neighbors: int = 15,
    num_queries: int = 1000,
    seed: int = 0,
) -> Faithfulness:
    """Compare neighborhoods in truth and in the picture, for queries drawn at random.

    With as many queries as points the result is exact. Raises ValueError unless there are more than
    twice as many points as neighbors.
    """
    total, k = len(points), num_neighbors
    if not 1 <= k < total / 2:
        raise ValueError(
            f"num_neighbors must be positive and below half of {total} points, got {k}"
        )
    high, low = as_tensor(points), as_tensor(plane)
    queries = torch.from_numpy(np.random.default_rng(seed).permutation(total)[:num_queries])
    intruding = missing = shared = 0
    for rows in queries.split(max(1, (1 << 22) // total)):
        spaces = [
            torch.cdist(x[rows], x).scatter_(1, rows[:, None], torch.inf) for x in (high, low)
        ]
        true, shown = (distances.topk(k, largest=False).indices for distances in spaces)
        intruding += _excess_rank(spaces[0], shown)
        missing += _excess_rank(spaces[1], true)
        shared += (true[:, :, None] == shown[:, None, :]).sum().item()
    asked = len(queries) * k
    worst = asked * (2 * total - 3 * k - 1) / 2
    return Faithfulness(
        trustworthiness=1 - intruding / worst,
        continuity=1 - missing / worst,
        recall=shared / asked,
        num_neighbors=k,
        num_queries=len(queries),
    )


def _excess_rank(distances: Tensor, neighbors: Tensor) -> int:
    """Sum how far beyond the k-th place the other space's k neighbors rank here."""
    k, excess = neighbors.shape[1], 0
    for distance in distances.gather(1, neighbors).T:
        closer = (distances < distance[:, None]).sum(1)
        excess += (closer + 1 - k).clamp(min=0).sum().item()
    return excess
