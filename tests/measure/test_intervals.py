"""Intervals: deterministic, of the coverage they claim, and honest about few seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from lgqlib.measure.intervals import interpolate_at_rate, mean_interval, paired_difference


def two_way(num_seeds, num_images, *, effect=0, seed=0, by_seed=1.0, by_image=1.0):
    """Give differences with a part of each seed, a part of each image, and a rest."""
    random = np.random.default_rng(seed)
    shapes = (num_seeds, 1), (1, num_images), (num_seeds, num_images)
    parts = [random.standard_normal(shape) for shape in shapes]
    return effect + by_seed * parts[0] + by_image * parts[1] + parts[2]


def width(values, **how):
    interval = mean_interval(values, **how)
    return interval.high - interval.low


def test_bootstrap_equals_scipy_for_one_value_a_seed():
    values = np.random.default_rng(0).normal(1, 2, size=40)
    ours = mean_interval(values, resamples=20_000)
    how = {"method": "percentile", "n_resamples": 20_000, "rng": 1}
    theirs = stats.bootstrap((values,), np.mean, **how).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.03)
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.num_seeds, ours.num_images) == (40, 1)


def test_t_interval_equals_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    ours = paired_difference(a, b, method="t")
    theirs = stats.ttest_rel(a, b).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    table = two_way(4, 10, effect=1)
    assert mean_interval(table, method="t").low == mean_interval(table.mean(1), method="t").low


def test_same_seed_same_interval():
    values = two_way(3, 50)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_bootstrap_over_seeds_and_images_covers_as_claimed():
    found = [mean_interval(two_way(20, 20, effect=2, seed=i), resamples=400) for i in range(300)]
    # The two-way bootstrap errs on the wide side, the percentile on the narrow one.
    assert 0.90 <= np.mean([i.low < 2 < i.high for i in found]) <= 1.0


def test_interval_counts_the_spread_of_seeds_and_of_images():
    noise = width(two_way(12, 200, by_seed=0, by_image=0), resamples=2000)
    assert width(two_way(12, 200, by_seed=1, by_image=0), resamples=2000) > 3 * noise
    assert width(two_way(12, 200, by_seed=0, by_image=2), resamples=2000) > 2 * noise


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_two_or_three_seeds_give_their_range(num_seeds):
    values = np.random.default_rng(0).normal(size=num_seeds)
    interval = mean_interval(values)
    assert (interval.low, interval.high) == (values.min(), values.max())


def test_one_seed_speaks_of_images_only():
    values = two_way(1, 300, effect=1)
    assert width(values, resamples=4000) == pytest.approx(2 * 1.96 * stats.sem(values[0]), rel=0.1)
    with pytest.raises(ValueError, match="needs 2 seeds, there is 1"):
        mean_interval(values, method="t")


def test_direction_is_the_sign_that_the_interval_is_sure_of_and_pairing_removes_what_is_shared():
    shared = two_way(5, 100, by_image=10)
    better = shared + 0.1 + 0.01 * np.random.default_rng(1).normal(size=shared.shape)
    assert paired_difference(better, shared).direction == 1
    assert paired_difference(shared, better).direction == -1
    assert mean_interval(better).direction == paired_difference(shared, shared).direction == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: paired_difference(np.zeros(3), np.zeros(2)), r"shape \(3,\) and b \(2,\)"),
        (lambda: mean_interval(np.array([1.0, math.nan])), "finite: False"),
        (lambda: mean_interval(np.ones(3), method="jackknife"), "'jackknife'"),
        (lambda: interpolate_at_rate(np.array([1, math.nan]), np.ones(2), 1.0), "finite rate"),
        (lambda: interpolate_at_rate(np.arange(2.0), np.ones(2), 0.5, log=True), r"rate is 0\.0"),
        (lambda: interpolate_at_rate(np.ones(3), np.ones(2), 1.0), "one finite value"),
    ],
)
def test_what_was_given_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_interpolation_is_linear_between_points_in_any_order_and_silent_outside():
    rates, values = np.array([4.0, 1.0, 2.0]), np.array([30.0, 10.0, 20.0])
    for rate, value in [(1, 10), (1.5, 15), (2, 20), (3, 25), (4, 30)]:
        assert interpolate_at_rate(rates, values, rate) == value
    assert interpolate_at_rate(rates, values, math.sqrt(8), log=True) == pytest.approx(25)
    equal = np.array([1.0, 1.0, 2.0]), np.array([10.0, 20.0, 25.0])
    assert [interpolate_at_rate(*equal, rate) for rate in (1.0, 1.5)] == [15, 20], "averaged"
    for log in (False, True):
        for outside in (1 - 1e-6, 4 + 1e-6):
            assert math.isnan(interpolate_at_rate(rates, values, outside, log=log))
        random = np.random.default_rng(0).random(8) + 0.1
        assert [interpolate_at_rate(random, random, rate, log=log) for rate in random] == list(random)
