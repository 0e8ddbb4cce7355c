"""Distances of feature sets against torchmetrics, scipy and their definitions."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lgqlib.measure.distances import frechet_distance, kernel_distance


def features(num, dim, *, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5
    return torch.randn(num, dim, generator=generator) @ mixing + shift


def updated(reference, x, y):
    """Give torchmetrics a pair of sets, as images [n, D, 1, 1] that are their own features."""
    reference.update(x[:, :, None, None], real=True)
    reference.update(y[:, :, None, None], real=False)
    return reference.compute()


def test_frechet_distance_equals_torchmetrics_also_of_few_far_from_zero():
    x, y = features(200, 12, seed=0), features(150, 12, seed=1, shift=0.3)
    reference = FrechetInceptionDistance(nn.Flatten(), input_img_size=(12, 1, 1), normalize=True)
    reference.set_dtype(torch.float64)
    assert frechet_distance(x, y) == pytest.approx(updated(reference, x, y).item(), rel=1e-4)

    x, y = (features(10, 40, seed=seed).double() + 1e3 for seed in (0, 1))
    # tr (A^(1/2) B A^(1/2))^(1/2) is the nuclear norm of X Y' for A = X'X and B = Y'Y.
    p, q = (x - x.mean(0)) / 3, (y - y.mean(0)) / 3
    nuclear = np.linalg.svd((p @ q.T).numpy(), compute_uv=False).sum()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    expected = (shift + p.square().sum() + q.square().sum()).item() - 2 * nuclear
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def mmd(x, y, *, paired):
    """KID by its definition, with whole kernel matrices."""

    def kernel(u, v, *, off_diagonal):
        k = (u @ v.T / u.shape[1] + 1) ** 3
        return k[~torch.eye(len(u)).bool()].mean() if off_diagonal else k.mean()

    within = kernel(x, x, off_diagonal=True) + kernel(y, y, off_diagonal=True)
    return (within - 2 * kernel(x, y, off_diagonal=paired)).item()


def leave_one_out(x, y, *, paired):
    def spread(pairs):
        values = np.array([mmd(*pair, paired=paired) for pair in pairs])
        return (len(values) - 1) * values.var()

    def dropped(z):
        return [torch.cat([z[:i], z[i + 1 :]]) for i in range(len(z))]

    if paired:
        return spread(zip(dropped(x), dropped(y), strict=True)) ** 0.5
    return (spread((d, y) for d in dropped(x)) + spread((x, d) for d in dropped(y))) ** 0.5


@pytest.mark.parametrize("paired, num_y", [(False, 11), (True, 8)])
def test_kernel_distance_is_its_definition_and_its_error_the_jackknife(paired, num_y):
    x, y = features(8, 6, seed=0).double(), features(num_y, 6, seed=1, shift=0.5).double()
    value, error = mmd(x, y, paired=paired), leave_one_out(x, y, paired=paired)
    for block in (1, 3, 1024):
        result = kernel_distance(x, y, paired=paired, block=block)
        assert (result.value, result.standard_error) == pytest.approx((value, error), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_torchmetrics_and_pairs_do_not_bias_it():
    x, y = features(40, 12, seed=0), features(40, 12, seed=1, shift=0.3)
    reference = KernelInceptionDistance(nn.Flatten(), subsets=1, subset_size=40, normalize=True)
    expected = updated(reference, x, y)[0].item()
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-4)
    assert kernel_distance(x, x, paired=True) == pytest.approx((0, 0), abs=1e-12)


def test_kernel_distance_is_unbiased_and_its_standard_error_honest():
    generator = torch.Generator().manual_seed(0)
    pairs = (torch.randn(2, 30, 4, generator=generator) for _ in range(400))
    draws = [kernel_distance(x, y + 0.5) for x, y in pairs]
    values = np.array([d.value for d in draws])
    x, y = torch.randn(2, 4000, 4, generator=generator)
    truth = kernel_distance(x, y + 0.5).value
    assert abs(values.mean() - truth) < 4 * values.std() / len(values) ** 0.5 + 0.02 * truth
    errors = np.array([d.standard_error for d in draws])
    assert (errors**2).mean() ** 0.5 == pytest.approx(values.std(), rel=0.25)
