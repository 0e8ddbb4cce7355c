"""Student's 95 % intervals over seeds, and values at equal rates."""

import math

import numpy as np
from jaxtyping import Float
from scipy import stats


def mean_interval(values: Float[np.ndarray, " S"]) -> tuple[float, float, float]:
    """Return the mean of one value, or paired difference, a seed with Student's 95 % interval.

    Exact for normal seeds however few. One seed says nothing: its interval is the whole line.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"values = {values}: they must be finite numbers, one a seed.")
    mean, half = float(values.mean()), math.inf
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))  # both sides: 95 %
    return mean, mean - half, mean + half


def side(low: float, high: float, bound: float = 0.0) -> int:
    """Give 1 or -1 where an interval lies above or below a bound; 0 where it holds it."""
    return int(low > bound) - int(high < bound)


def interpolate_at_rate(
    rates: Float[np.ndarray, " _P"], values: Float[np.ndarray, " _P"], rate: float, *, log: bool
) -> float:
    """Return a curve's value at a rate, piecewise linear in (log) rate; nan outside its rates.

    Points may come in any order; points of equal rate are averaged.
    """
    if log and min(rates.min(), rate) <= 0:
        raise ValueError(f"the lowest rate is {min(rates.min(), rate)}; a log rate needs more")
    distinct, group = np.unique(rates, return_inverse=True)
    averaged = np.bincount(group, weights=values) / np.bincount(group)
    if log:
        distinct, rate = np.log(distinct), np.log(rate)
    return float(np.interp(rate, distinct, averaged, left=math.nan, right=math.nan))
