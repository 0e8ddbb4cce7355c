"""Codes and latents in the plane: PCA, UMAP or the plane itself, aligned over checkpoints.

UMAP is imported when it is first asked for: in a fresh installation it compiles for a minute.
`faithfulness.py` says how far to trust the picture.
"""

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from lgqlib.measure.neighbors import Array, as_tensor

METHODS = ("plane", "pca", "umap")
MAX_LATENTS = 20000


@dataclass(frozen=True)
class Basis:
    """A frozen affine map to the plane: the two leading principal axes, signs fixed."""

    mean: Float[np.ndarray, " D"]
    """What is subtracted first."""
    axes: Float[np.ndarray, "D 2"]
    """The axes, one a column, each with its largest entry positive."""
    explained: Float[np.ndarray, " 2"]
    """Share of the variance along each."""

    def project(self, points: Float[Array, "N D"]) -> Float[np.ndarray, "N 2"]:
        """Return the coordinates of points on the two axes."""
        return ((as_tensor(points).numpy() - self.mean) @ self.axes).astype(np.float32)


@dataclass(frozen=True)
class Projection:
    """Codes and latents in one picture."""

    codes: Float[np.ndarray, "K 2"]
    """Coordinates of the codes."""
    latents: Float[np.ndarray, "N 2"]
    """Coordinates of the latents."""
    method: str
    """What made them: plane, pca or umap."""
    basis: Basis
    """Principal plane of the latents; under `plane`, the channels themselves."""


def pca_basis(points: Float[Array, "N D"]) -> Basis:
    """Return the principal plane of points, the same on every call; a missing axis is zero."""
    x = as_tensor(points).double().numpy()
    mean = x.mean(0)
    values, axes = np.linalg.eigh(np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1]))
    axes, leading = axes[:, ::-1][:, :2], np.clip(values[::-1][:2], 0, None)
    largest = axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]
    missing = 2 - axes.shape[1]
    return Basis(
        mean=mean,
        axes=np.pad(axes * np.sign(largest), ((0, 0), (0, missing))),
        explained=np.pad(leading / max(values.sum(), np.finfo(float).tiny), (0, missing)),
    )


def project(
    codebook: Float[Array, "K D"],
    latents: Float[Array, "N D"],
    *,
    method: str = "pca",
    seed: int = 0,
    cache: Path | None = None,
) -> Projection:
    """Bring codes and latents jointly to the plane. The cheap first view is PCA; UMAP takes
    seconds.

    `cache`: a folder where UMAP's results are kept, keyed by vectors, parameters and versions.
    """
    return project_snapshots([codebook], [latents], method=method, seed=seed, cache=cache)[0]


def project_snapshots(
    codebooks: Sequence[Float[Array, "K D"]],
    latents: Sequence[Float[Array, "N D"]],
    *,
    method: str = "pca",
    seed: int = 0,
    cache: Path | None = None,
    report: Callable[[float], None] | None = None,
) -> list[Projection]:
    """Project checkpoints of one run into one frame, so that nothing jumps by itself.

    Row i of each codebook is the same code, and row i of the latents the same token. PCA uses the
    plane of the last checkpoint's latents for all; UMAP starts each fit at the result before it and
    registers the outcome by a similarity (shift, turn, scale). At most 20000 latents: see
    `stratified_sample`. `report` is told the share of UMAP's work that is done. Raises ValueError
    for an unknown method, and for `plane` in other than two channels.
    """
    if not len(codebooks) == len(latents) > 0:
        raise ValueError(
            f"one set of latents for each codebook, got {len(codebooks)} and {len(latents)}"
        )
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, expected one of {', '.join(METHODS)}")
    dim = codebooks[-1].shape[1]
    if method == "plane" and dim != 2:
        raise ValueError(f"the plane itself needs 2 channels, got {dim}: use pca or umap")
    if method == "plane":
        basis = Basis(np.zeros(2), np.eye(2), _variance_shares(latents[-1]))
    else:
        basis = pca_basis(latents[-1])
    if method != "umap":
        return [
            Projection(basis.project(c), basis.project(z), method, basis)
            for c, z in zip(codebooks, latents, strict=True)
        ]
    if len(latents[-1]) > MAX_LATENTS:
        raise ValueError(
            f"UMAP takes at most {MAX_LATENTS} latents, got {len(latents[-1])}: "
            "use stratified_sample"
        )
    clouds = [
        np.concatenate([as_tensor(c).float().numpy(), as_tensor(z).float().numpy()])
        for c, z in zip(codebooks, latents, strict=True)
    ]
    results = []
    for codes_and_latents in _umap_chain(clouds, seed, cache, report):
        codes, tokens = np.split(codes_and_latents, [len(codebooks[0])])
        results.append(Projection(codes, tokens, method, basis))
    return results


def register(
    moving: Float[np.ndarray, "N 2"], fixed: Float[np.ndarray, "N 2"]
) -> Float[np.ndarray, "N 2"]:
    """Shift, turn (or mirror) and scale points onto others, row by row, by least squares (Umeyama
    1991).
    """
    center, target = moving.mean(0), fixed.mean(0)
    a, b = moving - center, fixed - target
    left, values, right = np.linalg.svd(a.T @ b)
    norm = np.square(a).sum()
    scale = values.sum() / norm if norm > 0 else 1.0
    return (scale * a @ left @ right + target).astype(moving.dtype)


def stratified_sample(
    indices: Int[np.ndarray, " N"], limit: int = MAX_LATENTS, *, seed: int = 0
) -> Int[np.ndarray, " n"]:
    """Choose at most `limit` tokens, ascending, one of every used code first and the rest at
    random.

    Rare codes stay, and the density of the others stays nearly true. With more used codes than
    `limit`, a random choice of codes has one token each.
    """
    indices = np.asarray(indices)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if len(indices) <= limit:
        return np.arange(len(indices))
    order = np.random.default_rng(seed).permutation(len(indices))
    _, first = np.unique(indices[order], return_index=True)
    rank = np.arange(len(order))
    rank[first] -= len(order)  # one of each code comes before everything else
    return np.sort(order[np.argsort(rank, kind="stable")[:limit]])


def _variance_shares(points: Array) -> np.ndarray:
    variances = as_tensor(points).double().numpy().var(0)
    return variances / max(variances.sum(), np.finfo(float).tiny)


def _umap_chain(
    clouds: list[np.ndarray],
    seed: int,
    cache: Path | None,
    report: Callable[[float], None] | None,
) -> list[np.ndarray]:
    """Fit each cloud from the result before it; the first from PCA."""
    placed: list[np.ndarray] = []
    bar = tqdm(total=100, desc="UMAP", unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}")

    def at(share: float) -> None:
        """Note how much of the fit in hand is done."""
        done = (len(placed) + share) / len(clouds)
        bar.update(round(100 * done, 1) - bar.n)
        if report is not None:
            report(done)

    with bar:
        for cloud in clouds:
            previous = placed[-1] if placed else None
            path = None if cache is None else Path(cache) / f"{_key(cloud, previous, seed)}.npz"
            if path is not None and path.exists():
                with np.load(path, allow_pickle=False) as stored:
                    placed.append(stored["points"])
            else:
                points = _fit_umap(cloud, previous, seed, at)
                placed.append(points if previous is None else register(points, previous))
                if path is not None:
                    _store(path, placed[-1])
            at(0.0)
    return placed


class _Epochs(io.StringIO):
    """Where UMAP writes its own progress, "epoch of epochs": handed on as a share."""

    def __init__(self, at: Callable[[float], None]):
        super().__init__()
        self.at = at

    def write(self, text: str) -> int:
        done, _, total = text.strip().partition(" of ")
        if done.isdigit() and total.isdigit():
            self.at(int(done) / int(total))
        return len(text)


def _fit_umap(
    cloud: np.ndarray, previous: np.ndarray | None, seed: int, at: Callable[[float], None]
) -> np.ndarray:
    """Return UMAP's plane for a cloud, started from PCA or from a previous plane."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional packages and about the seed's one thread
        import umap

        reducer = umap.UMAP(
            n_neighbors=min(15, len(cloud) - 1),
            init="pca" if previous is None else previous.astype(np.float32),
            random_state=seed,
            n_jobs=1,
            tqdm_kwds={
                "disable": False,
                "file": _Epochs(at),
                "bar_format": "{n_fmt} of {total_fmt}",
                "mininterval": 0.3,
            },
        )
        points = reducer.fit_transform(cloud)
    torch.set_num_threads(threads)  # numba changes the count that OpenMP keeps for both
    return np.ascontiguousarray(points, dtype=np.float32)


def _key(cloud: np.ndarray, previous: np.ndarray | None, seed: int) -> str:
    names = ("umap-learn", "pynndescent", "numba", "numpy")
    digest = hashlib.sha256(repr([seed, *map(version, names)]).encode())
    for array in (cloud, previous):
        if array is not None:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _store(path: Path, points: np.ndarray) -> None:
    """Write so that a reader finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.savez(file, points=points)
    os.replace(file.name, path)
