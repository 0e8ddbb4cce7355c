"""Exact nearest neighbors, in any dimension and without an [N, N] array."""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

Array = np.ndarray | Tensor


def nearest_others(
    points: Float[Array, "N D"], num_neighbors: int = 1
) -> tuple[Float[np.ndarray, "N k"], Int[np.ndarray, "N k"]]:
    """Return each point's distances to its nearest other points, ascending, and which they are.

    Raises ValueError where there are no more points than neighbors asked for.
    """
    from sklearn.neighbors import NearestNeighbors

    x = np.asarray(points)
    found = NearestNeighbors(n_neighbors=num_neighbors).fit(x).kneighbors(return_distance=False)
    # In many channels the search expands the square, which loses digits between close points.
    distances = np.linalg.norm(x[:, None] - x[found], axis=2)
    order = distances.argsort(axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(found, order, 1)
