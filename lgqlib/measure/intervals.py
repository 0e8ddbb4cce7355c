"""Intervals over seeds and images for means and paired differences; values at an equal rate."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLE_VALUES = 2_000_000  # values held at a time while resampling


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval and what it was computed from."""

    mean: float
    low: float
    high: float
    level: float
    num_seeds: int
    num_images: int
    """1 when each seed came with one number."""
    method: str

    @property
    def direction(self) -> int:
        """The sign of the effect: 1 or -1 where the interval excludes zero, 0 where it does not."""
        return int(self.low > 0) - int(self.high < 0)


def mean_interval(
    values: Float[np.ndarray, " S"] | Float[np.ndarray, "S N"],
    *,
    method: str = "bootstrap",
    level: float = 0.95,
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
    if values.ndim not in (1, 2) or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"values has shape {values.shape}, finite: {bool(np.isfinite(values).all())};"
            " give finite numbers [seeds] or [seeds, images]"
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it is a probability such as 0.95")
    table = values.reshape(len(values), -1)
    if method == "bootstrap":
        means = _two_way_means(table, resamples=resamples, seed=seed)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    elif method == "t":
        if len(table) < 2:
            raise ValueError("the t interval needs 2 seeds, there is 1; use method='bootstrap'")
        seed_means = table.mean(1)
        half = stats.t.ppf((1 + level) / 2, len(table) - 1) * stats.sem(seed_means)
        low, high = table.mean() - half, table.mean() + half
    else:
        raise ValueError(f"method is {method!r}; choose 'bootstrap' or 't'")
    return Interval(
        float(table.mean()), float(low), float(high), level, *map(int, table.shape), method
    )


def paired_difference(
    a: Float[np.ndarray, " _S"] | Float[np.ndarray, "_S _N"],
    b: Float[np.ndarray, " _S"] | Float[np.ndarray, "_S _N"],
    *,
    method: str = "bootstrap",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return an interval for the mean of a - b, where row s of both has the same seed and images.

    See `mean_interval` for what the interval means with few seeds.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"a has shape {a.shape} and b {b.shape}; pair them by seed (and image) first"
        )
    return mean_interval(a - b, method=method, level=level, resamples=resamples, seed=seed)


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
    if rates.ndim != 1 or rates.shape != values.shape or rates.size == 0:
        raise ValueError(
            f"rates has shape {rates.shape} and values {values.shape}; give one value a rate"
        )
    if not (np.isfinite(rates).all() and np.isfinite(values).all()):
        raise ValueError("rates and values must be finite; drop the runs that have no number")
    if log and (rates.min() <= 0 or rate <= 0):
        raise ValueError(
            f"the lowest rate is {min(rates.min(), rate)}; a log rate needs positive ones"
        )
    distinct, group = np.unique(rates, return_inverse=True)
    averaged = np.bincount(group, weights=values) / np.bincount(group)
    if not distinct[0] <= rate <= distinct[-1]:
        return math.nan
    if log:
        return float(np.interp(math.log(rate), np.log(distinct), averaged))
    return float(np.interp(rate, distinct, averaged))


def _two_way_means(table: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Return the means of resampled tables [S, N] with rows and columns drawn independently."""
    generator = np.random.default_rng(seed)
    num_seeds, num_images = table.shape
    means = []
    step = max(1, RESAMPLE_VALUES // num_images)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        rows = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=size)
        columns = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=size)
        means.append(((rows @ table) * columns).sum(1) / table.size)
    return np.concatenate(means)
