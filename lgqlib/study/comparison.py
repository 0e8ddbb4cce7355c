"""Methods against each other, at equal K and at an equal rate, in tables of `results.finished`.

Differences are between runs of one seed; a cohort is the runs of one setting, by seed.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas
from jaxtyping import Float
from pandas import DataFrame
from scipy import stats

from lgqlib.figures.style import name_of
from lgqlib.measure import METRICS, metric


def mean_interval(values: Float[np.ndarray, " S"]) -> tuple[float, float, float]:
    """Return a mean over seeds with Student's 95 % interval; of one seed it is the whole line."""
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
    """Return a curve's value at a rate, linear in (log) rate, equal rates averaged; nan outside."""
    if log and min(rates.min(), rate) <= 0:
        raise ValueError(f"the lowest rate is {min(rates.min(), rate)}; a log rate needs more")
    distinct, group = np.unique(rates, return_inverse=True)
    averaged = np.bincount(group, weights=values) / np.bincount(group)
    if log:
        distinct, rate = np.log(distinct), np.log(rate)
    return float(np.interp(rate, distinct, averaged, left=math.nan, right=math.nan))


def cohorts(runs: DataFrame) -> list[DataFrame]:
    """Split runs into cohorts, each with its seeds as the index."""
    return [part.set_index("seed") for _, part in runs.groupby("cohort")]


def find(runs: DataFrame, method: str, num_codes, variant: str | None = None) -> DataFrame:
    """Give a method's cohort at K: without a variant, or the first, unless one is named."""
    own = runs[(runs["method"] == method) & (runs["num_codes"] == num_codes)]
    if variant is not None or (own["variant"] == "").any():
        own = own[own["variant"] == (variant or "")]
    return own[own["cohort"] == own["cohort"].min()].set_index("seed")


def plain(runs: DataFrame) -> DataFrame:
    """Give a run of each method, at the (largest) size of codebook that most methods have."""
    order = runs.assign(named=runs["variant"] != "").sort_values(["named", "cohort", "seed"])
    firsts = order.drop_duplicates(["method", "num_codes"])
    sizes = firsts["num_codes"].value_counts()
    size = max(sizes[sizes == sizes.max()].index)
    return firsts[firsts["num_codes"] == size].sort_values("cohort")


class Difference(NamedTuple):
    """A metric of one cohort less that of another, over the seeds that both have."""

    at: str  # `K = 1,024`, or an equal rate
    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    seeds: int
    verdict: str  # `better`, `worse`, `higher`, `lower` or `undecided`, of a against b

    def __str__(self) -> str:
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        return f"{self.difference:+.4g} [{self.low:+.4g}, {self.high:+.4g}] ({seeds})"


def _judged(at: str, a: str, b: str, key: str, values: Float[np.ndarray, " S"]) -> Difference:
    mean, low, high = mean_interval(values)
    direction = side(low, high)
    words = {1: "higher", 0: "undecided", -1: "lower"}
    improves = {1: "better", -1: "worse"}.get(direction * metric(key).better, words[direction])
    return Difference(at, a, b, key, mean, low, high, len(values), improves)


def difference(a: DataFrame, b: DataFrame, key: str, *, log: bool = False) -> Difference | None:
    """Give a cohort's metric less another's, paired by seed; None where there is no such number."""
    if key not in a:
        return None
    pair = pandas.concat([a[key], b[key]], axis=1, join="inner").astype(float)
    if pair.empty or pair.isna().any(axis=None):
        return None
    x, y = (np.log(pair) if log else pair).to_numpy().T
    names = a["name"].iloc[0], b["name"].iloc[0]
    return _judged(f"K = {a['num_codes'].iloc[0]:,}", *names, key, x - y)


def at_equal_rate(runs: DataFrame, a: str, b: str, key: str, rate: str) -> Difference | None:
    """Give method a's metric less b's at a's own rates, b interpolated over its sizes of codebook.

    By seed, where a's points lie within b's curve, averaged. None where they overlap for no seed.
    """
    pairs = []
    for _, part in runs[~runs["ablation"]].groupby("seed"):
        numbers = part.reindex(columns=[rate, key]).astype(float).replace(0, np.nan)
        mine, other = (numbers[part["method"] == method].to_numpy() for method in (a, b))
        if len(other) > 1 and np.isfinite(other).all():
            there = [interpolate_at_rate(*other.T, x, log=rate == "active") for x in mine[:, 0]]
            both = np.column_stack([mine[:, 1], there])
            both = both[np.isfinite(both).all(1)]
            pairs += [both.mean(0)] if len(both) else []
    if not pairs:
        return None
    x, y = np.transpose(pairs)
    return _judged(f"equal rate ({METRICS[rate].title})", a, b, key, x - y)


def against(runs: DataFrame, keys: Sequence[str]) -> list[Difference]:
    """Give every difference of LGQ to a peer at equal K."""
    peers = cohorts(runs[(runs["method"] != "lgq") & ~runs["ablation"]])
    pairs = [(find(runs, "lgq", c["num_codes"].iloc[0]), c) for c in peers]
    return [d for key in keys for pair in pairs if (d := difference(*pair, key))]


def ablations(runs: DataFrame, keys: Sequence[str]) -> list[Difference]:
    """Give every difference of a variant of LGQ to LGQ itself, at equal K."""
    variants = cohorts(runs[(runs["method"] == "lgq") & runs["ablation"]])
    pairs = [(c, find(runs, "lgq", c["num_codes"].iloc[0], "")) for c in variants]
    return [d for key in keys for pair in pairs if (d := difference(*pair, key))]


def tabulated(differences: Iterable[Difference]) -> DataFrame:
    """Write differences as a table, a row each."""
    return DataFrame(list(differences), columns=Difference._fields)


def points(runs: DataFrame, keys: Sequence[str]) -> DataFrame:
    """Tabulate cohorts for drawing: a metric's mean, and `.seeds`, its values."""
    rows = []
    for c in cohorts(runs):
        row = c.iloc[0][["name", "method", "variant", "ablation", "num_codes"]].to_dict()
        row |= {"runs": ", ".join(c["run"]), "num_codes.seeds": c["num_codes"].to_list()}
        for key in [key for key in keys if key in c and c[key].notna().all()]:
            values = c[key].astype(float)
            row |= {key: values.mean(), f"{key}.seeds": values.to_list()}
        rows.append(row)
    return DataFrame(rows)


def comparison_table(runs: DataFrame) -> DataFrame:
    """Write cohorts side by side, mean ± deviation; fields that vary in a method are columns."""
    # What belongs to a method's recipe says nothing beside its name.
    by_method, fields = runs.groupby("method"), [name for name in runs if "." in name]
    varying = [field for field in fields if (by_method[field].nunique() > 1).any()]
    known = [m for m in METRICS.values() if m.compared and m.key in runs]
    rows = []
    for c in cohorts(runs):
        row = {"method": name_of(c["name"].iloc[0]), "codes": f"{c['num_codes'].iloc[0]:,}"}
        row |= c.iloc[0][varying].astype(str).to_dict()
        for m in [m for m in known if runs[m.key].notna().any()]:
            values = c[m.key].astype(float)
            spread = f" ± {m.text(values.std())}" if len(c) > 1 else ""
            text = m.text(values.mean()) + spread if values.notna().all() else "–"
            row[m.title + {1: " ↑", -1: " ↓", 0: ""}[m.better]] = text
        rows.append(row | {"seeds": len(c)})
    return DataFrame(rows)


def comparison_note(runs: DataFrame) -> str:
    """Say what the comparison's numbers are of: seeds, images, tokens, features, direction."""
    sizes = runs.reindex(columns=["num_images", "num_tokens"]).dropna().drop_duplicates()
    said = [f"{n:,.0f} held-out images, {tokens:,.0f} tokens" for n, tokens in sizes.values]
    features = {*runs.get("extractor", pandas.Series(dtype=str)).dropna()} or {"no"}
    shipped = any(name.startswith("efficientnet-lite") for name in features)
    own = ": they are neither LPIPS nor FID" if shipped else ""
    devices = {*runs.get("device", pandas.Series(dtype=str)).dropna()}
    where = f" Computed on {', '.join(sorted(devices))}." if devices else ""
    return (
        "Mean ± standard deviation over seeds; every number through decode(encode(x)), on "
        f"{'; '.join(said)}. Arrows point where better is; active codes and perplexity grow with "
        "the tokens looked at. Perceptual and Fréchet distance and KID are on "
        f"{', '.join(sorted(features))} features{own}.{where}"
    )
