"""Intervals are Student's, honest about few seeds; curves are read between their points."""

import math

import numpy as np
import pytest
from scipy import stats

from lgqlib.measure.intervals import interpolate_at_rate, mean_interval, side


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


def test_interpolation_is_linear_between_points_in_any_order_and_silent_outside():
    curve = np.array([4.0, 1.0, 2.0]), np.array([30.0, 10.0, 20.0])
    read = [interpolate_at_rate(*curve, rate, log=False) for rate in (1, 1.5, 2, 3, 4)]
    assert read == [10, 15, 20, 25, 30]
    assert interpolate_at_rate(*curve, math.sqrt(8), log=True) == pytest.approx(25)
    for log in (False, True):
        assert np.isnan([interpolate_at_rate(*curve, x, log=log) for x in (0.999, 4.001)]).all()
