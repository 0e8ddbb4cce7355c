"""Distances of feature sets against torchmetrics, scipy and their definitions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lgqlib.measure.distances import frechet_distance, kernel_distance
from lgqlib.study.comparison import mean_interval, side


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


def test_intervals_equal_scipys():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    theirs = stats.ttest_rel(a, b).confidence_interval()
    expected = a.mean() - b.mean(), theirs.low, theirs.high
    assert mean_interval(a - b) == pytest.approx(expected, rel=1e-9)


def test_a_side_is_where_the_whole_interval_lies_and_one_seed_decides_nothing():
    _, *ends = mean_interval(np.array([0.1, 0.11, 0.12]))
    assert (side(*ends), side(*ends, 0.2), side(*ends, 0.1), side(0, 0)) == (1, -1, 0, 0)
    assert mean_interval(np.array([3.0])) == (3, -math.inf, math.inf)
    assert side(-math.inf, math.inf, -99) == 0
    with pytest.raises(ValueError, match="must be finite numbers"):
        mean_interval(np.array([1.0, math.nan]))
