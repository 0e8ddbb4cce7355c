"""Methods against each other: paired by seed (and image), at equal K and at an equal rate.

Every difference is between runs of the same seed, so that data, order and initial backbone cancel,
and has two 95 % intervals: Student's over the seeds, which decides, and the two-way bootstrap over
seeds and images beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
from jaxtyping import Float

from lgqlib.figures.style import name_of
from lgqlib.measure import METRICS
from lgqlib.measure import metric as metric_of
from lgqlib.measure.intervals import Interval, interpolate_at_rate, mean_interval, paired_difference
from lgqlib.study.results import Cohort


def find(
    found: Sequence[Cohort], method: str, num_codes: int, variant: str | None = None
) -> Cohort | None:
    """Give a method's cohort at K: the one without a variant, or the first, unless one is named."""
    fitting = [c for c in found if c.method == method and c.num_codes == num_codes]
    named = [c for c in fitting if c.variant == (variant or "")]
    return next(iter(named or (fitting if variant is None else [])), None)


def is_ablation(cohort: Cohort, found: Sequence[Cohort]) -> bool:
    """Say whether a plain cohort of the same method and size stands beside this variant."""
    return bool(cohort.variant and find(found, cohort.method, cohort.num_codes, ""))


def plain(found: Sequence[Cohort]) -> list[Cohort]:
    """Give one cohort a method, at the (largest) size of codebook that most methods have."""
    methods: dict[int, list[str]] = {}
    for cohort in found:
        at = methods.setdefault(cohort.num_codes, [])
        at += [] if cohort.method in at else [cohort.method]
    size = max(methods, key=lambda k: (len(methods[k]), k))
    return [find(found, method, size) for method in methods[size]]


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
        """1 or -1 where Student's interval excludes zero; 0 where it does not, or with one seed."""
        return self.t.direction if self.t is not None else 0

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `higher`, `lower` or `undecided`, of a against b."""
        words = {1: "higher", 0: "undecided", -1: "lower"}
        improves = self.direction * metric_of(self.metric).better
        return {1: "better", -1: "worse"}.get(improves, words[self.direction])

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
    x, y = (c.per_image(metric, shared) for c in (a, b))
    if x is None or y is None or x.shape != y.shape:  # images of one only, or other images
        x, y = (c.values(metric, shared) for c in (a, b))
    if x is None or y is None:
        return None
    if log:
        x, y = np.log(x), np.log(y)
    return _paired(a.name, b.name, metric, f"K = {a.num_codes:,}", x, y)


def _paired(
    a: str, b: str, metric: str, at: str, x: Float[np.ndarray, "S *N"], y: Float[np.ndarray, "S *N"]
) -> Difference:
    """Give x - y, rows of one seed and (where there are) columns of one image, with intervals."""
    t = paired_difference(x, y, method="t") if len(x) > 1 else None
    return Difference(a, b, metric, at, t, paired_difference(x, y))


def at_equal_rate(
    found: Sequence[Cohort], a: str, b: str, metric: str, rate: str
) -> Difference | None:
    """Give a's metric less b's at a's own rates, b interpolated over its sizes of codebook.

    For each seed, b's curve through its K is read where a's points lie within it, on a logarithmic
    axis where rate counts codes; differences are averaged over those points. None when fewer than
    two sizes of b share a seed with a, or the curves do not overlap for every shared seed.
    """
    x, y = [], []
    for seed in sorted({seed for cohort in found for seed in cohort.seeds}):
        mine, other = (_curve(found, method, seed, rate, metric) for method in (a, b))
        if len(other) < 2 or not np.isfinite(other).all():
            continue
        at_rate = [
            (value, interpolate_at_rate(*other.T, here, log=rate == "active"))
            for here, value in mine
        ]
        inside = [pair for pair in at_rate if np.isfinite(pair).all()]
        if inside:
            x.append(np.mean([p for p, _ in inside]))
            y.append(np.mean([q for _, q in inside]))
    if not x:
        return None
    where = f"equal rate ({METRICS[rate].title})"
    return _paired(a, b, metric, where, np.array(x), np.array(y))


def _curve(
    found: Sequence[Cohort], method: str, seed: int, rate: str, metric: str
) -> Float[np.ndarray, "P 2"]:
    """Give rate and metric of a method's runs of a seed, a row a size of codebook."""
    rows = [
        c.rows[seed]
        for c in found
        if c.method == method and seed in c.rows and not is_ablation(c, found)
    ]
    pairs = [[row.get(key) or np.nan for key in (rate, metric)] for row in rows]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def against(
    found: Sequence[Cohort], metrics: Sequence[str], *, method: str = "lgq"
) -> list[Difference]:
    """Give every difference of a method to a peer at equal K."""
    pairs = [
        (find(found, method, b.num_codes), b)
        for b in found
        if b.method != method and not is_ablation(b, found)
    ]
    answers = [difference(a, b, metric) for metric in metrics for a, b in pairs if a is not None]
    return [d for d in answers if d is not None]


def ablations(
    found: Sequence[Cohort], metrics: Sequence[str], *, method: str = "lgq"
) -> list[Difference]:
    """Give every difference of a variant of a method to the method itself, at equal K."""
    variants = [c for c in found if c.method == method and is_ablation(c, found)]
    pairs = [(a, find(found, method, a.num_codes, "")) for a in variants]
    answers = [difference(a, b, metric) for metric in metrics for a, b in pairs]
    return [d for d in answers if d is not None]


def tabulated(differences: Sequence[Difference]) -> pandas.DataFrame:
    """Write differences as a table, a row each."""
    columns = {
        "at": lambda d: d.at,
        "a": lambda d: d.a,
        "b": lambda d: d.b,
        "metric": lambda d: d.metric,
        "difference": lambda d: d.interval.mean,
        "low": lambda d: d.interval.low,
        "high": lambda d: d.interval.high,
        "bootstrap low": lambda d: d.bootstrap.low,
        "bootstrap high": lambda d: d.bootstrap.high,
        "seeds": lambda d: d.interval.num_seeds,
        "images": lambda d: d.bootstrap.num_images,
        "verdict": lambda d: d.verdict,
    }
    return pandas.DataFrame({name: [get(d) for d in differences] for name, get in columns.items()})


def points(found: Sequence[Cohort], metrics: Sequence[str]) -> pandas.DataFrame:
    """Tabulate cohorts for drawing, with the mean of each metric and the ends of its interval.

    Columns: `name`, `method`, `variant`, `ablation`, `num_codes`, `seeds`, `runs`, and for each
    metric `<metric>`, `<metric>.low` and `<metric>.high`; the interval is Student's over seeds, and
    missing with one seed.
    """
    rows = []
    for cohort in found:
        row: dict[str, Any] = {key: getattr(cohort, key) for key in ("name", "method", "variant")}
        row |= {"ablation": is_ablation(cohort, found), "num_codes": cohort.num_codes}
        row |= {"seeds": len(cohort.seeds)}
        row |= {"runs": ", ".join(cohort.rows[seed]["run"] for seed in cohort.seeds)}
        for metric in metrics:
            values = cohort.values(metric)
            if values is not None:
                row[metric] = float(values.mean())
            if values is not None and len(values) > 1:
                interval = mean_interval(values, method="t")
                row |= {f"{metric}.low": interval.low, f"{metric}.high": interval.high}
        rows.append(row)
    return pandas.DataFrame(rows)


def comparison_table(found: Sequence[Cohort]) -> pandas.DataFrame:
    """Write cohorts side by side: `23.53 ± 0.02` is mean and standard deviation over seeds.

    Beside method and codes stand the fields in which cohorts of one method differ, then what of
    METRICS is compared, with an arrow to where better is.
    """
    fields = found[0].settings if found else {}
    varying = [
        field
        for field in fields  # what belongs to a method's recipe says nothing beside its name
        if len({(c.method, c.settings[field]) for c in found}) > len({c.method for c in found})
    ]
    rows = []
    for c in found:
        row = {"method": name_of(c.name), "codes": f"{c.num_codes:,}"}
        row |= {field: str(c.settings[field]) for field in varying}
        for m in METRICS.values():
            if m.compared and any(other.values(m.key) is not None for other in found):
                values = c.values(m.key)
                arrow = {1: " ↑", -1: " ↓", 0: ""}[m.better]
                row[m.title + arrow] = "–" if values is None else _spread(m.text, values)
        rows.append(row | {"seeds": len(c.seeds)})
    return pandas.DataFrame(rows)


def _spread(text, values: Float[np.ndarray, " S"]) -> str:
    several = len(values) > 1
    return text(values.mean()) + (f" ± {text(values.std(ddof=1))}" if several else "")


def comparison_note(found: Sequence[Cohort]) -> str:
    """Say what the comparison's numbers are of: seeds, images, tokens, features, direction."""
    rows = [row for c in found for row in c.rows.values()]
    known = [row for row in rows if pandas.notna(row.get("num_images"))]
    sizes = sorted({(int(row["num_images"]), int(row["num_tokens"])) for row in known})
    of = "; ".join(f"{images:,} held-out images, {tokens:,} tokens" for images, tokens in sizes)
    extractors = sorted({str(r["extractor"]) for r in rows if isinstance(r.get("extractor"), str)})
    features = (
        f" Perceptual and Fréchet distance and KID are on {', '.join(extractors)} features: they "
        "are neither LPIPS nor FID."
    )
    return (
        f"Mean ± standard deviation over seeds; every number through decode(encode(x)), on {of}."
        f"{features if extractors else ''} Arrows point where better is; active codes and "
        "perplexity grow with the tokens looked at."
    )
