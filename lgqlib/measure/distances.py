"""Distances: of points to their nearest, and of two sets of features, by KID and by Fréchet's."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Array = np.ndarray | Tensor
Latents, Codebook = Float[Array, "N D"], Float[Array, "K D"]
Indices = Int[np.ndarray, " N"]


def nearest_others(
    points: Float[Array, "N D"], num_neighbors: int = 1
) -> tuple[Float[np.ndarray, "N k"], Int[np.ndarray, "N k"]]:
    """Return each point's distances to its nearest other points, ascending, and which they are."""
    from sklearn.neighbors import NearestNeighbors

    x = np.asarray(points)
    found = NearestNeighbors(n_neighbors=num_neighbors).fit(x).kneighbors(return_distance=False)
    # In many channels the search expands the square, which loses digits between close points.
    distances = np.linalg.norm(x[:, None] - x[found], axis=2)
    order = distances.argsort(axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(found, order, 1)


def frechet_distance(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> float:
    """Return |mu_x - mu_y|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)) (Dowson and Landau 1982).

    Singular covariances do no harm. Biased upwards by the number of vectors, which must far exceed
    the dimension: compare at equal numbers. ValueError for fewer than two vectors.
    """
    if min(len(x), len(y)) < 2:
        least = min(len(x), len(y))
        raise ValueError(f"{least} feature vectors have no covariance; give at least 2")
    x, y = (features.detach().double().cpu() for features in (x, y))
    a, b = (torch.cov(features.T).reshape(x.shape[1], -1) for features in (x, y))
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ b @ root)
    traces = a.trace() + b.trace() - 2 * product.clamp(min=0).sqrt().sum()
    return (traces + (x.mean(0) - y.mean(0)).square().sum()).item()


class KernelDistance(NamedTuple):
    """An unbiased squared distance, which may be negative, and its jackknife standard error."""

    value: float
    standard_error: float


def kernel_distance(
    x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], *, paired: bool = False, block: int = 1024
) -> KernelDistance:
    """Return the unbiased squared MMD with kernel (x.y / D + 1)^3: KID (Binkowski et al. 2018).

    Over all pairs rather than random subsets. With `paired`, row n of y is the reconstruction of
    row n of x: pairs (n, n) would bias the cross term and are left out (the U-statistic of Gretton
    et al. 2012, equation 4, exactly 0 for y = x). At least three rows each.
    """
    n, m = len(x), len(y)
    if min(n, m) < 3 or (paired and n != m):
        raise ValueError(f"x has {n} rows and y {m}; take at least 3, and equally many when paired")
    x, y = x.detach().double().cpu(), y.detach().double().cpu()
    xx, _ = _kernel_sums(x, x, block=block, off_diagonal=True)
    yy, _ = _kernel_sums(y, y, block=block, off_diagonal=True)
    xy, yx = _kernel_sums(x, y, block=block, off_diagonal=paired)
    if paired:
        pull = xx + yy - xy - yx
        value = pull.sum() / (n * (n - 1))
        without = (pull.sum() - 2 * pull) / ((n - 1) * (n - 2))
        return KernelDistance(value.item(), _jackknife_variance(without).sqrt().item())

    within_x, within_y = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1))
    cross = xy.sum()
    without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (cross - xy) / ((n - 1) * m)
    without_y = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (cross - yx) / (n * (m - 1))
    variance = _jackknife_variance(without_x) + _jackknife_variance(without_y)
    value = within_x + within_y - 2 * cross / (n * m)
    return KernelDistance(value.item(), variance.sqrt().item())


def _kernel_sums(x: Tensor, y: Tensor, *, block: int, off_diagonal: bool) -> tuple[Tensor, Tensor]:
    """Return row and column sums of the kernel matrix, a block of rows at a time."""
    rows, columns = [], torch.zeros(len(y), dtype=torch.float64)
    for start in range(0, len(x), block):
        kernel = (x[start : start + block] @ y.T / x.shape[1] + 1) ** 3
        if off_diagonal:
            kernel.diagonal(start).zero_()
        rows.append(kernel.sum(1))
        columns += kernel.sum(0)
    return torch.cat(rows), columns


def _jackknife_variance(values: Tensor) -> Tensor:
    """Return the variance of a statistic from its values with one example left out."""
    return (len(values) - 1) / len(values) * (values - values.mean()).square().sum()
