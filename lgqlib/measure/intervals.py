"""Student's 95 % intervals over seeds, and values at equal rates."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its two-sided 95 % confidence interval."""

    mean: float
    low: float
    high: float
    num_seeds: int

    def above(self, bound: float = 0.0) -> int:
        """Give 1 or -1 where the interval lies above or below a bound; 0 where it holds it."""
        return int(self.low > bound) - int(self.high < bound)


def mean_interval(values: Float[np.ndarray, " S"]) -> Interval:
    """Return Student's interval for the mean of one value, or paired difference, a seed.

    Exact for normal seeds however few: 12.7 standard errors for two, 4.3 for three. One seed says
    nothing of others: its interval is the whole line.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"values = {values}: they must be finite numbers, one a seed.")
    mean, half = float(values.mean()), math.inf
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))  # both sides: 95 %
    return Interval(mean, mean - half, mean + half, len(values))


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
