"""Where each code stands on the map: similar ones side by side, one to a cell of a square grid."""

import numpy as np
from jaxtyping import Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import uniform_filter
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

WHOLE = 1100
"""Codes that are assigned at once; of more, `SUBSET` cells at a time."""
SUBSET = 256
SHRINK = 0.82


def arrange(
    features: Float[np.ndarray, "K F"], *, start: Int[np.ndarray, " K"] | None = None, seed: int = 0
) -> Int[np.ndarray, " K"]:
    """Give each code's cell, row by row, by linear assignment sorting (Barthel et al. 2023).

    The features on the grid are smoothed, the codes assigned again to the cells they are most
    like, and the radius of smoothing shrinks. From `start` only the small radii are left, so that
    an arrangement that is already there keeps its orientation.
    """
    num = len(features)
    side = int(np.ceil(num**0.5))
    x = np.zeros((side * side, features.shape[1]))
    spread = features - features.mean(0)
    x[:num] = spread / max(np.sqrt((spread**2).sum(1).mean()), 1e-12)
    filled = np.arange(side * side) < num  # the rest are holes, which like every cell as much
    random = np.random.default_rng(seed)
    item = _start(x, filled, start, side)  # which code, or hole, is in each cell
    radius = side / 2 if start is None else max(2.0, side / 12)
    while radius > 0.75:
        target = _smooth(x, filled, item, side, radius)
        for cells in _groups(side, radius, random):
            inside = item[cells]
            cost = cdist(x[inside], target[cells], "sqeuclidean") * filled[inside, None]
            rows, columns = linear_sum_assignment(cost)
            item[cells[columns]] = inside[rows]
        radius *= SHRINK
    cell = np.empty(side * side, dtype=np.int64)
    cell[item] = np.arange(side * side)
    return cell[:num]


def _start(x, filled, start, side) -> np.ndarray:
    if start is not None:
        item = np.full(side * side, -1)
        item[start] = np.arange(len(start))
        item[item < 0] = np.arange(len(start), side * side)
        return item
    _, _, axes = np.linalg.svd(x[filled][:20_000], full_matrices=False)
    plane = x @ np.pad(axes, ((0, max(0, 2 - len(axes))), (0, 0)))[:2].T
    plane[~filled] = plane[filled].max(0) + 1  # holes begin in the last corner
    columns = np.argsort(plane[:, 0], kind="stable").reshape(side, side)
    down = np.argsort(plane[columns, 1], axis=1, kind="stable")
    return np.take_along_axis(columns, down, axis=1).T.flatten()


def _smooth(x, filled, item, side, radius) -> np.ndarray:
    """Average features over a square of cells around each, holes left out."""
    width = 2 * round(radius) + 1
    weight = filled[item].astype(float).reshape(side, side, 1)
    values = x[item].reshape(side, side, -1) * weight
    size = (width, width, 1)
    total = uniform_filter(weight, size=size, mode="nearest")
    smooth = uniform_filter(values, size=size, mode="nearest") / np.maximum(total, 1e-9)
    return smooth.reshape(side * side, -1)


def _groups(side: int, radius: float, random: np.random.Generator):
    """Yield the cells that are assigned together: all, or random subsets, then blocks."""
    every = np.arange(side * side)
    if side * side <= WHOLE:
        yield every
        return
    if radius > 4:
        yield from np.array_split(random.permutation(every), -(-side * side // SUBSET))
    rows, columns = np.divmod(every, side) + random.integers(16, size=(2, 1))
    key = rows // 16 * side + columns // 16
    order = np.argsort(key, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(key[order])) + 1)


def settle(
    features: Float[np.ndarray, "K F"],
    others: Float[np.ndarray, "M F"],
    cells: Int[np.ndarray, " M"],
) -> Int[np.ndarray, " K"]:
    """Give cells for codes where those of another map, laid over it, look most like them."""
    num, side, there = len(features), int(np.ceil(len(features) ** 0.5)), int(cells.max()) + 1
    old = int(np.ceil(there**0.5))
    at = np.zeros((old * old, others.shape[1]))
    at[cells] = others
    scaled = np.arange(side) * old // side
    target = at.reshape(old, old, -1)[scaled][:, scaled].reshape(side * side, -1)
    # Too many to assign at once are sorted along their first principal axis, in slices.
    slices = 1 if side * side <= WHOLE else -(-num // 1024)
    axis = np.linalg.svd(target - target.mean(0), full_matrices=False)[2][0]
    parts = (np.array_split(np.argsort(x @ axis), slices) for x in (features, target))
    cell = np.empty(num, dtype=np.int64)
    for codes, free in zip(*parts, strict=True):
        cost = cdist(features[codes], target[free], "sqeuclidean")
        cell[codes] = free[linear_sum_assignment(cost)[1]]
    return cell


def trust(
    cells: Int[np.ndarray, " K"], near: Int[np.ndarray, "K n"]
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Count each code's neighbors on the map, and those that are among its `near` nearest codes."""
    side = int(np.ceil(len(cells) ** 0.5))
    grid = np.full(side * side, -1)
    grid[cells] = np.arange(len(cells))
    squares = sliding_window_view(np.pad(grid.reshape(side, side), 1, constant_values=-1), (3, 3))
    others = np.delete(squares.reshape(-1, 9), 4, axis=1)[cells]  # [K, 8]
    kept = (near[:, None] == others[:, :, None]).any(2)
    return kept.sum(1), (others >= 0).sum(1)
