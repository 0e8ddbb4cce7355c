"""Methods against each other: paired by seed (and image), at equal K and at an equal rate.

Runs that differ in nothing but their seed are a cohort. Every difference is between runs of the
same seed, so that data, order and initial backbone cancel, and has two 95 % intervals: Student's
over the seeds, which decides, and the two-way bootstrap over seeds and images beside it.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from jaxtyping import Float

from lgqlib.measure.intervals import Interval, interpolate_at_rate, mean_interval, paired_difference
from lgqlib.run import Run
from lgqlib.study.results import NUMBERS, collect

RATES = {
    "active": "active codes",
    "bits_per_token_entropy": "entropy of the codes, bits a token",
    "bits_per_token_coded": "coded bits a token",
}
"""The three meanings of rate; the paper's is the first."""
BETTER = {n.key: {"higher": 1, "lower": -1}.get(n.better, 0) for n in NUMBERS}
"""The sign of an improvement."""
LABELS = {n.key: f"{n.label}, {n.unit}" if n.unit else n.label for n in NUMBERS}

TABULATED = (
    *("at", "a", "b", "metric", "difference", "low", "high"),
    *("bootstrap low", "bootstrap high", "seeds", "images", "verdict"),
)
"""Columns of a table of differences."""


@dataclass(frozen=True)
class Cohort:
    """Finished runs that differ in nothing but their seed."""

    method: str
    variant: str
    num_codes: int
    rows: Mapping[int, Mapping[str, Any]]
    """By seed: the run's row of the table of results."""
    folder: Path

    @property
    def name(self) -> str:
        """The method, and the variant where there is one."""
        return f"{self.method} {self.variant}".strip()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, ascending."""
        return tuple(sorted(self.rows))

    def run(self, seed: int) -> Run:
        """Open the run of a seed."""
        return Run.open(self.folder / self.rows[seed]["run"])

    @functools.cached_property
    def _arrays(self) -> dict[int, dict[str, np.ndarray]]:
        return {seed: self.run(seed).arrays() for seed in self.rows}

    def values(
        self, metric: str, seeds: Sequence[int] | None = None, *, per_image: bool = True
    ) -> Float[np.ndarray, "S N"] | None:
        """Give a metric of runs, a row a seed, with a column an image where images have one.

        None where a run has no such number.
        """
        seeds = self.seeds if seeds is None else seeds
        if per_image and all(f"per_image.{metric}" in self._arrays[s] for s in seeds):
            return np.stack([self._arrays[s][f"per_image.{metric}"] for s in seeds]).astype(float)
        found = [self.rows[s].get(metric) for s in seeds]
        if any(value is None or pandas.isna(value) for value in found):
            return None
        return np.asarray(found, dtype=np.float64)[:, None]


def cohorts(study: Path | str) -> list[Cohort]:
    """Group the finished runs of a study (or of a folder of runs), in the order of its table.

    Raises ValueError when there is no finished run, with what to do.
    """
    study = Path(study)
    table = collect(study)
    done = table[table["state"] == "done"] if len(table) else table
    if not len(done):
        raise ValueError(
            f"{study} has no finished run: run `python -m lgqlib.study` on a study's file, "
            "or notebooks 01_train and 02_evaluate."
        )
    config = [c for c in done.columns if "." in c and not c.startswith("per_image")]
    found = []
    for _, part in done.groupby(["method", "num_codes", *config], sort=False, dropna=False):
        rows = {int(row["seed"]): row for row in part.to_dict("records")}
        first = part.iloc[0]
        found.append(
            Cohort(first["method"], first["variant"], int(first["num_codes"]), rows, study)
        )
    return found


def find(
    found: Sequence[Cohort], method: str, num_codes: int, variant: str | None = None
) -> Cohort | None:
    """Give a method's cohort at K: the one without a variant, or the first, unless one is named."""
    fitting = [c for c in found if c.method == method and c.num_codes == num_codes]
    if variant is not None:
        return next((c for c in fitting if c.variant == variant), None)
    return next((c for c in fitting if not c.variant), fitting[0] if fitting else None)


def plain(found: Sequence[Cohort]) -> list[Cohort]:
    """Give one cohort a method, at the (largest) size of codebook that most methods have."""
    sizes: dict[int, set[str]] = {}
    for cohort in found:
        sizes.setdefault(cohort.num_codes, set()).add(cohort.method)
    size = max(sizes, key=lambda k: (len(sizes[k]), k))
    methods = dict.fromkeys(c.method for c in found if c.num_codes == size)
    return [find(found, method, size) for method in methods]


@dataclass(frozen=True)
class Difference:
    """A metric of one cohort less that of another, over the seeds that both have."""

    a: str
    b: str
    metric: str
    at: str
    """Where: `K = 1024`, or an equal rate."""
    t: Interval | None
    """Student's interval over seeds; None with one seed."""
    bootstrap: Interval
    """Over seeds, and over images where the metric is one of images."""

    @property
    def interval(self) -> Interval:
        """The interval that decides: Student's, where there are two seeds."""
        return self.t if self.t is not None else self.bootstrap

    @property
    def direction(self) -> int:
        """1 or -1 where the interval that decides excludes zero; 0 with one seed, or else."""
        return self.t.direction if self.t is not None else 0

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `higher`, `lower` or `undecided`, of a against b."""
        if self.direction == 0:
            return "undecided"
        sign = BETTER.get(self.metric, 0)
        if sign == 0:
            return "higher" if self.direction > 0 else "lower"
        return "better" if self.direction == sign else "worse"

    def __str__(self) -> str:
        i = self.interval
        seeds = f"{i.num_seeds} seed{'s' if i.num_seeds > 1 else ''}"
        return f"{i.mean:+.4g} [{i.low:+.4g}, {i.high:+.4g}] ({seeds})"


def difference(a: Cohort, b: Cohort, metric: str, *, log: bool = False) -> Difference | None:
    """Give a - b of a metric (of its logarithm with `log`), paired by seed and image.

    None when they share no seed, or a run has no such number.
    """
    shared = sorted(set(a.seeds) & set(b.seeds))
    if not shared:
        return None
    x, y = a.values(metric, shared), b.values(metric, shared)
    if x is None or y is None or x.shape != y.shape:  # images of one only, or other images
        x, y = (c.values(metric, shared, per_image=False) for c in (a, b))
    if x is None or y is None:
        return None
    if log:
        x, y = np.log(x), np.log(y)
    return paired(a.name, b.name, metric, f"K = {a.num_codes:,}", x, y)


def paired(
    a: str, b: str, metric: str, at: str, x: Float[np.ndarray, "S *N"], y: Float[np.ndarray, "S *N"]
) -> Difference:
    """Give x - y, rows of one seed and (where there are) columns of one image, with intervals."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    return Difference(
        a,
        b,
        metric,
        at,
        paired_difference(x.mean(1), y.mean(1), method="t") if len(x) > 1 else None,
        paired_difference(x, y),
    )


def at_equal_rate(
    found: Sequence[Cohort], a: str, b: str, metric: str, rate: str
) -> Difference | None:
    """Give a's metric less b's at a's own rates, b interpolated over its sizes of codebook.

    For each seed, b's curve through its K is read where a's points lie within it, on a logarithmic
    axis where rate counts codes; differences are averaged over those points. None when fewer than
    two sizes of b share a seed with a, or the curves do not overlap for every shared seed.
    """
    of_a = [c for c in found if c.method == a and not _is_ablation(c, found)]
    of_b = [c for c in found if c.method == b and not _is_ablation(c, found)]
    seeds = sorted({s for c in of_a for s in c.seeds} & {s for c in of_b for s in c.seeds})
    x, y = [], []
    for seed in seeds:
        mine = [_point(c, seed, rate, metric) for c in of_a if seed in c.rows]
        other = np.array([_point(c, seed, rate, metric) for c in of_b if seed in c.rows])
        if len(other) < 2 or not np.isfinite(other).all():
            continue
        pairs = [
            (value, interpolate_at_rate(*other.T, here, log=rate == "active"))
            for here, value in mine
        ]
        inside = [(p, q) for p, q in pairs if np.isfinite(p) and np.isfinite(q)]
        if inside:
            x.append(np.mean([p for p, _ in inside]))
            y.append(np.mean([q for _, q in inside]))
    if not x:
        return None
    where = f"equal rate ({RATES[rate]})"
    return paired(a, b, metric, where, np.array(x), np.array(y))


def _point(cohort: Cohort, seed: int, rate: str, metric: str) -> tuple[float, float]:
    row = cohort.rows[seed]
    return float(row.get(rate) or np.nan), float(row.get(metric) or np.nan)


def _is_ablation(cohort: Cohort, found: Sequence[Cohort]) -> bool:
    """Say whether a plain cohort of the same method and size stands beside this variant."""
    plain = find(found, cohort.method, cohort.num_codes, "")
    return bool(cohort.variant) and plain is not None


def points(found: Sequence[Cohort], metrics: Sequence[str]) -> pandas.DataFrame:
    """Tabulate cohorts for drawing: `name`, `method`, `variant`, `num_codes`, `seeds`, `runs`, and
    for each metric its mean and the ends of its interval, `<metric>.low` and `<metric>.high`.

    The interval is Student's over seeds; missing with one seed.
    """
    rows = []
    for cohort in found:
        row: dict[str, Any] = {
            "name": cohort.name,
            "method": cohort.method,
            "variant": cohort.variant,
            "ablation": _is_ablation(cohort, found),
            "num_codes": cohort.num_codes,
            "seeds": len(cohort.seeds),
            "runs": ", ".join(str(cohort.rows[s]["run"]) for s in cohort.seeds),
        }
        for metric in metrics:
            values = cohort.values(metric, per_image=False)
            if values is not None:
                row[metric] = float(values.mean())
                if len(values) > 1:
                    interval = mean_interval(values[:, 0], method="t")
                    row[f"{metric}.low"], row[f"{metric}.high"] = interval.low, interval.high
        rows.append(row)
    return pandas.DataFrame(rows)


def against(
    found: Sequence[Cohort], metrics: Sequence[str], *, method: str = "lgq"
) -> list[Difference]:
    """Give every difference of a method to a peer at equal K."""
    answers = []
    for metric in metrics:
        for b in found:
            a = find(found, method, b.num_codes)
            if a is not None and b.method != method and not _is_ablation(b, found):
                answers.append(difference(a, b, metric))
    return [d for d in answers if d is not None]


def ablations(
    found: Sequence[Cohort], metrics: Sequence[str], *, method: str = "lgq"
) -> list[Difference]:
    """Give every difference of a variant of a method to the method itself, at equal K."""
    answers = []
    for metric in metrics:
        for a in found:
            plain = find(found, method, a.num_codes, "")
            if a.method == method and a.variant and plain is not None:
                answers.append(difference(a, plain, metric))
    return [d for d in answers if d is not None]


def tabulated(differences: Sequence[Difference]) -> pandas.DataFrame:
    """Write differences as a table, a row each."""
    rows = [
        {
            "at": d.at,
            "a": d.a,
            "b": d.b,
            "metric": d.metric,
            "difference": d.interval.mean,
            "low": d.interval.low,
            "high": d.interval.high,
            "bootstrap low": d.bootstrap.low,
            "bootstrap high": d.bootstrap.high,
            "seeds": d.interval.num_seeds,
            "images": d.bootstrap.num_images,
            "verdict": d.verdict,
        }
        for d in differences
    ]
    return pandas.DataFrame(rows, columns=TABULATED)
