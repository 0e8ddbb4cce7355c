"""Exact nearest neighbors among up to 65536 points, in any dimension, without an [N, N] array."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

Array = np.ndarray | Tensor

TREE_CHANNELS = 8  # above it, a k-d tree visits nearly every point
ROWS = 256
"""Queries whose distances to all points are in memory at once."""
LONG = 1 << 31
"""Distances from which on there is a progress bar."""


def as_tensor(x: np.ndarray | Tensor) -> Tensor:
    """View an array as a detached float32 or float64 tensor on the CPU."""
    if not isinstance(x, Tensor):
        x = torch.from_numpy(np.require(x, requirements=["C", "W"]))  # torch refuses read-only
    return x.detach().to("cpu", torch.promote_types(x.dtype, torch.float32))


def nearest(
    queries: Float[Array, "Q D"],
    points: Float[Array, "M D"],
    num_neighbors: int = 1,
    *,
    exclude: Int[np.ndarray, " Q"] | None = None,
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Return the distances to the nearest points, ascending, and their indices.

    `exclude` names one point for each query that must not be its neighbor (itself, when the queries
    are among the points). Raises ValueError when there are fewer points than neighbors asked for.
    """
    available = len(points) - (exclude is not None)
    if not 1 <= num_neighbors <= available:
        raise ValueError(f"num_neighbors must be between 1 and {available}, got {num_neighbors}")
    p = as_tensor(points)
    q = as_tensor(queries).to(p)
    find = _by_tree if q.shape[1] <= TREE_CHANNELS else _by_product
    distances, indices = find(q, p, num_neighbors + (exclude is not None))
    if exclude is not None:
        kept = indices != exclude[:, None]
        kept[:, -1] &= ~kept.all(1)  # more twins than neighbors: any one of them may go
        distances, indices = (x[kept].reshape(-1, num_neighbors) for x in (distances, indices))
    return distances, indices


def _by_tree(q: Tensor, p: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import KDTree

    distances, indices = KDTree(p.numpy()).query(q.numpy(), k=np.arange(1, count + 1))
    return distances.astype(q.numpy().dtype), indices.astype(np.int64)


def _by_product(q: Tensor, p: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    center = p.mean(0)  # the expanded square loses fewer digits near the origin
    q, p = q - center, p - center
    half = p.square().sum(1) / 2
    found = []
    bar = tqdm(q.split(ROWS), desc="nearest", leave=False, disable=len(q) * len(p) < LONG)
    for rows in bar:
        near = torch.addmm(half, rows, p.T, alpha=-1).topk(count, largest=False).indices
        exact, order = (rows[:, None] - p[near]).norm(dim=2).sort(dim=1, stable=True)
        found.append((exact, near.gather(1, order)))
    distances, indices = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return distances, indices
