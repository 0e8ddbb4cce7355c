"""Exact nearest neighbors among up to 65536 points, in any dimension, without an [N, N] array."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

Array = np.ndarray | Tensor

TREE_CHANNELS = 8  # above it, a k-d tree visits nearly every point
GROUP = 32
ROWS, COLUMNS = 256, 2048
"""A tile of distances: 2 MB: it stays in a core's cache, which makes the product twice as fast."""
LONG = 1 << 31
"""Distances from which on there is a progress bar."""


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
    own = torch.full((len(q),), -1) if exclude is None else torch.as_tensor(exclude)
    distances = q.new_empty(len(q), num_neighbors)
    indices = torch.empty(len(q), num_neighbors, dtype=torch.int64)
    small = len(q) * len(p) < LONG
    for start in tqdm(range(0, len(q), ROWS), desc="nearest", leave=False, disable=small):
        part = slice(start, start + ROWS)
        tile = torch.cat([q[part], torch.ones_like(q[part, :1])], 1)
        found = _smallest(tile, folded, own[part], num_neighbors)
        exact, order = (q[part, None] - p[found]).norm(dim=2).sort(dim=1, stable=True)
        distances[part] = exact
        indices[part] = found.gather(1, order)
    return distances.numpy(), indices.numpy()


def _smallest(tile: Tensor, folded: Tensor, own: Tensor, count: int) -> Tensor:
    """Return where each row's smallest distances are: they lie in the groups of smallest minimum.

    `own`: a column of each row that does not count, or -1.
    """
    minima = tile.new_empty(len(tile), len(folded) // GROUP)
    for start in range(0, len(folded), COLUMNS):
        values = tile @ folded[start : start + COLUMNS].T
        row = torch.nonzero((own >= start) & (own < start + COLUMNS))[:, 0]
        values[row, own[row] - start] = torch.inf
        grouped = rearrange(values, "n (g m) -> n g m", m=GROUP)
        minima[:, start // GROUP : start // GROUP + grouped.shape[1]] = grouped.amin(2)
    best = minima.topk(min(count, minima.shape[1]), largest=False).indices  # [n, groups]
    columns = (best[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)  # [n, groups * GROUP]
    near = rearrange(folded, "(g m) c -> g (m c)", m=GROUP).index_select(0, best.flatten())
    values = near.view(*columns.shape, -1).bmm(tile[:, :, None])[:, :, 0]  # once more, only there
    values[columns == own[:, None]] = torch.inf
    return columns.gather(1, values.topk(count, largest=False).indices)


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
