"""Intervals are Student's, honest about few seeds; curves are read between their points."""

import math

import numpy as np
import pytest
from scipy import stats

from lgqlib.measure.intervals import interpolate_at_rate, mean_interval


def test_intervals_equal_scipys():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    ours, theirs = mean_interval(a - b), stats.ttest_rel(a, b).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert (ours.mean, ours.num_seeds) == (pytest.approx(a.mean() - b.mean()), 5)


def test_pairing_removes_what_both_share_and_a_side_is_where_the_whole_interval_lies():
    shared = np.array([0.0, 5.0, -5.0])
    better = mean_interval(shared + np.array([0.1, 0.11, 0.12]) - shared)
    assert (better.above(), better.above(0.2), better.above(0.1)) == (1, -1, 0)
    assert mean_interval(shared + 0.1).above() == 0
    assert mean_interval(shared - shared).above() == 0, "no difference is on no side"


def test_one_seed_decides_nothing():
    one = mean_interval(np.array([3.0]))
    assert (one.mean, one.low, one.high, one.above(-99)) == (3, -math.inf, math.inf, 0)
    with pytest.raises(ValueError, match="must be finite numbers"):
        mean_interval(np.array([1.0, math.nan]))


def test_interpolation_is_linear_between_points_in_any_order_and_silent_outside():
    curve = np.array([4.0, 1.0, 2.0]), np.array([30.0, 10.0, 20.0])
    read = [interpolate_at_rate(*curve, rate, log=False) for rate in (1, 1.5, 2, 3, 4)]
    assert read == [10, 15, 20, 25, 30]
    assert interpolate_at_rate(*curve, math.sqrt(8), log=True) == pytest.approx(25)
    equal = np.array([1.0, 1.0, 2.0]), np.array([10.0, 20.0, 25.0])
    assert [interpolate_at_rate(*equal, x, log=False) for x in (1.0, 1.5)] == [15, 20], "averaged"
    for log in (False, True):
        assert np.isnan([interpolate_at_rate(*curve, x, log=log) for x in (0.999, 4.001)]).all()
        own = np.random.default_rng(0).random(8) + 0.1
        assert [interpolate_at_rate(own, own, x, log=log) for x in own] == list(own), "no rounding"
    with pytest.raises(ValueError, match=r"rate is 0\.0"):
        interpolate_at_rate(np.arange(2.0), np.ones(2), 0.5, log=True)
