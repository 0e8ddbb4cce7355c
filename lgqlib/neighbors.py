"""Exact nearest neighbors among up to 65536 points, in any dimension, without an [N, N] array."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

Array = np.ndarray | Tensor

TREE_CHANNELS = 8  # above it, a k-d tree visits nearly every point
GROUP = 32


def as_tensor(x: np.ndarray | Tensor) -> Tensor:
    """View an array as a detached float32 or float64 tensor on the CPU."""
    if not isinstance(x, Tensor):
        x = torch.from_numpy(np.require(x, requirements=["C", "W"]))  # torch refuses read-only
    return x.detach().to("cpu", torch.promote_types(x.dtype, torch.float32))


def nearest(
    queries: Float[np.ndarray | Tensor, "Q D"],
    points: Float[np.ndarray | Tensor, "M D"],
    num_neighbors: int = 1,
    *,
    exclude: Int[np.ndarray, " Q"] | None = None,
    tile_elements: int = 1 << 22,
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
    if q.shape[1] <= TREE_CHANNELS:
        return _tree(q.numpy(), p.numpy(), num_neighbors, exclude)
    center = p.mean(0)  # the expanded square loses fewer digits near the origin
    q, p = q - center.to(q), p - center
    groups = -(-len(p) // GROUP)
    folded = q.new_zeros(groups * GROUP, p.shape[1] + 1)  # [q, 1] . folded = |p|^2 - 2 q.p
    folded[:, -1] = torch.inf  # padding is far from everything
    folded[: len(p), :-1] = -2 * p
    folded[: len(p), -1] = p.square().sum(1)
    rows = max(1, tile_elements // len(folded))
    distances = q.new_empty(len(q), num_neighbors)
    indices = torch.empty(len(q), num_neighbors, dtype=torch.int64)
    # one buffer for all tiles: small results between large frees would fragment the heap
    buffer = q.new_empty(min(rows, len(q)), len(folded))
    for start in range(0, len(q), rows):
        tile = q[start : start + rows]
        ones = torch.ones_like(tile[:, :1])
        relative = torch.mm(torch.cat([tile, ones], 1), folded.T, out=buffer[: len(tile)])
        if exclude is not None:
            own = torch.as_tensor(exclude[start : start + rows])
            relative.scatter_(1, own[:, None], torch.inf)
        found = _smallest(relative, num_neighbors, groups)
        exact, order = (tile[:, None] - p[found]).norm(dim=2).sort(dim=1, stable=True)
        distances[start : start + rows] = exact
        indices[start : start + rows] = found.gather(1, order)
    return distances.numpy(), indices.numpy()


def _smallest(values: Tensor, count: int, groups: int) -> Tensor:
    """Return where each row's smallest values are: they lie in the groups of smallest minimum."""
    if groups <= count:
        return values.topk(count, largest=False).indices
    grouped = rearrange(values, "n (g m) -> n g m", m=GROUP)
    best = grouped.amin(2).topk(count, largest=False).indices  # [n, count]
    columns = (best[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)  # [n, count * GROUP]
    return columns.gather(1, values.gather(1, columns).topk(count, largest=False).indices)


def _tree(
    queries: np.ndarray, points: np.ndarray, num_neighbors: int, exclude: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import KDTree

    wanted = np.arange(1, num_neighbors + 1 + (exclude is not None))
    distances, indices = KDTree(points).query(queries, k=wanted)
    if exclude is not None:
        banned = indices == exclude[:, None]
        banned[:, -1] |= ~banned.any(1)  # more twins than neighbors: any one of them may go
        keep = np.argsort(banned, axis=1, kind="stable")[:, :-1]
        distances = np.take_along_axis(distances, keep, 1)
        indices = np.take_along_axis(indices, keep, 1)
    return distances.astype(queries.dtype), indices.astype(np.int64)
