"""Student's 95 % intervals over seeds, for means and paired differences; values at equal rates."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95


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
    """Return Student's interval for the mean of one value a seed.

    Exact for normal seeds however few, therefore wide for two (12.7 standard errors) or three
    (4.3). One seed says nothing of others: its interval is the whole line.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"values = {values}: they must be finite numbers, one a seed.")
    mean, half = float(values.mean()), math.inf
    if len(values) > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half, len(values))


def paired_difference(a: Float[np.ndarray, " _S"], b: Float[np.ndarray, " _S"]) -> Interval:
    """Return the interval for the mean of a - b, which belong to the same seeds, one by one."""
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} seeds and b {len(b)}: they must be the same seeds.")
    return mean_interval(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))


def interpolate_at_rate(
    rates: Float[np.ndarray, " _P"], values: Float[np.ndarray, " _P"], rate: float, *, log: bool
) -> float:
    """Return a curve's value at a rate, piecewise linear in (log) rate; nan outside its rates.

    Points may come in any order; points of equal rate are averaged.
    """
    rates, values = np.asarray(rates, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if rates.shape != values.shape or not (np.isfinite(rates) & np.isfinite(values)).all():
        raise ValueError(f"rates {rates} and values {values}: give one finite value a finite rate")
    if log and min(rates.min(), rate) <= 0:
        raise ValueError(f"the lowest rate is {min(rates.min(), rate)}; a log rate needs more")
    distinct, group = np.unique(rates, return_inverse=True)
    averaged = np.bincount(group, weights=values) / np.bincount(group)
    if log:
        distinct, rate = np.log(distinct), np.log(rate)
    return float(np.interp(rate, distinct, averaged, left=math.nan, right=math.nan))
