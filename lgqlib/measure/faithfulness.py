"""How far to trust a projection: trustworthiness, continuity and neighbor recall, from sampled
queries.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lgqlib.measure.neighbors import Array, as_tensor


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
    num_points: int
    """Points that they were asked about."""


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
    num_points = len(points)
    if not 1 <= num_neighbors < num_points / 2:
        raise ValueError(
            f"num_neighbors must be positive and below half of {num_points} points, got"
            f" {num_neighbors}"
        )
    high, low = as_tensor(points), as_tensor(plane)
    count = min(num_queries, num_points)
    queries = torch.from_numpy(np.random.default_rng(seed).permutation(num_points)[:count])
    intruding = missing = shared = 0
    for rows in queries.split(max(1, (1 << 22) // num_points)):
        true, shown = _distances(high, rows), _distances(low, rows)  # [q, N]
        true_near = true.topk(num_neighbors, largest=False).indices
        shown_near = shown.topk(num_neighbors, largest=False).indices
        intruding += _excess_rank(true, true_near, shown_near)
        missing += _excess_rank(shown, shown_near, true_near)
        shared += (true_near[:, :, None] == shown_near[:, None, :]).sum().item()
    worst = count * num_neighbors * (2 * num_points - 3 * num_neighbors - 1) / 2
    return Faithfulness(
        trustworthiness=1 - intruding / worst,
        continuity=1 - missing / worst,
        recall=shared / (count * num_neighbors),
        num_neighbors=num_neighbors,
        num_queries=count,
        num_points=num_points,
    )


def _distances(points: Tensor, rows: Tensor) -> Tensor:
    """Return distances from some points to all, each infinitely far from itself."""
    distances = torch.cdist(points[rows], points)
    return distances.scatter_(1, rows[:, None], torch.inf)


def _excess_rank(distances: Tensor, near: Tensor, other: Tensor) -> int:
    """Sum how far beyond the k-th place the other space's neighbors rank here."""
    count, k = near.shape
    thresholds, order = distances.gather(1, other).sort(1)  # [q, k]
    bins = torch.searchsorted(thresholds, distances, right=True, out_int32=True)
    bins += (k + 1) * torch.arange(count, dtype=torch.int32)[:, None]
    closer = torch.bincount(bins.flatten(), minlength=count * (k + 1)).view(count, k + 1)
    rank = closer.cumsum(1)[:, :k] + 1  # one more than the points strictly closer
    outside = (near[:, :, None] != other.gather(1, order)[:, None, :]).all(1)
    return ((rank - k).clamp(min=0) * outside).sum().item()
