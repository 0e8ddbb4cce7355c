"""95 % intervals over seeds and images for means and paired differences; values at equal rates."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95
RESAMPLE_VALUES = 2_000_000  # values held at a time while resampling


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided 95 % confidence interval, and of how much it is."""

    mean: float
    low: float
    high: float
    num_seeds: int
    num_images: int
    """1 when each seed came with one number."""

    @property
    def direction(self) -> int:
        """The sign of the effect: 1 or -1 where the interval excludes zero, 0 where it does not."""
        return int(self.low > 0) - int(self.high < 0)


def mean_interval(
    values: Float[np.ndarray, " S"] | Float[np.ndarray, "S N"],
    *,
    method: str = "bootstrap",
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return an interval for the mean of one value a seed, or one a seed and image.

    `bootstrap`: percentile interval (Efron 1979), deterministic given `seed`. Every seed is
    evaluated on the same images, so seeds and images are drawn anew independently of each other,
    and an image is drawn for all seeds at once (the two-way bootstrap of Owen 2007). With one seed
    it speaks of images only. **With one value a seed it never leaves their range**: for two or
    three seeds it is that range, which covers the median over all seeds with a probability of only
    50 % or 75 % (1 - 2^(1-S) for S seeds).

    `t`: Student's interval over the seeds' means, exact for normal seeds however few, therefore
    wide for two (12.7 standard errors) or three (4.3). It needs two seeds and takes the images as
    fixed.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = bool(np.isfinite(values).all())
    if values.ndim not in (1, 2) or values.size == 0 or not finite:
        right = "finite numbers [seeds] or [seeds, images]"
        raise ValueError(f"values has shape {values.shape}, finite: {finite}; give {right}")
    table = values.reshape(len(values), -1)
    if method == "bootstrap":
        means = _two_way_means(table, resamples=resamples, seed=seed)
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    elif method == "t":
        if len(table) < 2:
            raise ValueError("the t interval needs 2 seeds, there is 1; use method='bootstrap'")
        half = stats.t.ppf((1 + LEVEL) / 2, len(table) - 1) * stats.sem(table.mean(1))
        low, high = table.mean() - half, table.mean() + half
    else:
        raise ValueError(f"method is {method!r}; choose 'bootstrap' or 't'")
    return Interval(float(table.mean()), float(low), float(high), *table.shape)


def paired_difference(
    a: Float[np.ndarray, " _S"] | Float[np.ndarray, "_S _N"],
    b: Float[np.ndarray, " _S"] | Float[np.ndarray, "_S _N"],
    *,
    method: str = "bootstrap",
) -> Interval:
    """Return the `mean_interval` of a - b, where row s of both has the same seed and images."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}; pair them by seed (and image)")
    return mean_interval(a - b, method=method)


def interpolate_at_rate(
    rates: Float[np.ndarray, " _P"],
    values: Float[np.ndarray, " _P"],
    rate: float,
    *,
    log: bool = False,
) -> float:
    """Return the value of a rate-distortion curve at a rate, piecewise linear in (log) rate.

    Points may come in any order; points of equal rate are averaged. Outside the measured rates the
    answer is nan: a curve says nothing there.
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


def _two_way_means(table: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Return the means of resampled tables [S, N] with rows and columns drawn independently."""
    generator = np.random.default_rng(seed)
    means, step = [], max(1, RESAMPLE_VALUES // table.shape[1])
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        rows, columns = (generator.multinomial(n, np.full(n, 1 / n), size) for n in table.shape)
        means.append(((rows @ table) * columns).sum(1) / table.size)
    return np.concatenate(means)
