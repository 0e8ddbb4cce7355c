"""What the laboratory's fits say about each hypothesis: paired intervals, and verdicts from them.

Effects are of one setting against another at the same start and seed: the same latents, codes to
start from, and batches. A verdict is `better` or `worse` where the 95 % interval excludes zero, and
`undecided` where it does not; nobody types one.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from lgqlib.measure.intervals import Interval, paired_difference

SIGN = {
    "distortion": -1,
    "spread": -1,
    "efficiency": 1,
    "perplexity": 1,
    "active_share": 1,
    "against_kmeans": 1,
}
"""Measures, with 1 where more is better. `spread` is of the distortion over starts."""
ALONE, LAST, WHOLE = "added to the authors'", "added to all the others", "all together"


def verdict(interval: Interval, *, sign: int) -> str:
    """Say `better`, `worse` or `undecided`; `sign` is 1 where more is better, -1 where less is."""
    if sign not in (-1, 1):
        raise ValueError(f"sign = {sign}: it must be 1 (more is better) or -1 (less is better)")
    return {1: "better", -1: "worse", 0: "undecided"}[sign * interval.direction]


def relative_difference(
    trials: pd.DataFrame, variant: str, against: str, measure: str = "distortion", start: str = ""
) -> Interval:
    """Return Student's interval of log(variant / against) over seeds, at one start.

    Raises ValueError for an unknown measure, and where the two have not the same two or more seeds.
    """
    if measure not in SIGN:
        raise ValueError(f"measure = {measure!r}: it must be one of {', '.join(SIGN)}")
    values = []
    for name in (variant, against):
        rows = trials[(trials["variant"] == name) & (trials["start"] == start)]
        values.append(rows.set_index("seed")[measure].sort_index())
    a, b = values
    if len(a) < 2 or not a.index.equals(b.index):
        raise ValueError(
            f"{variant!r} has seeds {list(a.index)} from start {start!r} and {against!r} has "
            f"{list(b.index)}: they must be the same, and at least 2"
        )
    return paired_difference(np.log(a.to_numpy()), np.log(b.to_numpy()), method="t")


def spreads(trials: pd.DataFrame) -> pd.DataFrame:
    """Return max / min of the distortion over starts, for each variant with several, and seed."""
    groups = trials.groupby(["variant", "seed"], sort=False)
    several = groups.filter(lambda rows: rows["start"].nunique() > 1)
    ratio = several.groupby(["variant", "seed"], sort=False)["distortion"].agg(
        lambda d: d.max() / d.min()
    )
    return ratio.rename("spread").reset_index().assign(start="any")


def effect(
    trials: pd.DataFrame, variant: str, against: str, *, measure: str = "distortion", start: str
) -> dict:
    """Return a row of the table of effects: change in percent, its interval, n, the verdict."""
    interval = relative_difference(trials, variant, against, measure, start)
    mean, low, high = (100 * np.expm1(x) for x in (interval.mean, interval.low, interval.high))
    return {
        "variant": variant,
        "against": against,
        "start": start,
        "measure": measure,
        "change": float(mean),
        "low": float(low),
        "high": float(high),
        "num_seeds": interval.num_seeds,
        "verdict": verdict(interval, sign=SIGN[measure]),
    }


def effects(
    trials: pd.DataFrame, names: Iterable[str], measures: Iterable[str] = ("distortion",)
) -> pd.DataFrame:
    """Judge each hypothesis twice, and all together: one row a question, start and measure.

    `names`: hypotheses, as in `laboratory.CHANGES`. Each is added to the authors' setting alone,
    and is the last to be added to the others. Questions without fits are left out.
    """
    pairs = [(WHOLE, ALONE, WHOLE, "authors")]
    for name in names:
        pairs.append((name, ALONE, f"+ {name}", "authors"))
        pairs.append((name, LAST, WHOLE, f"all but {name}"))
    rows = []
    for measure in measures:
        table = spreads(trials) if measure == "spread" else trials
        for hypothesis, context, variant, against in pairs:
            for start in table["start"].unique():
                there = set(table.loc[table["start"] == start, "variant"])
                if {variant, against} <= there:
                    row = effect(table, variant, against, measure=measure, start=start)
                    rows.append({"hypothesis": hypothesis, "context": context} | row)
    return pd.DataFrame(rows)


def against(
    trials: pd.DataFrame, reference: str, measures: Iterable[str] = ("distortion",)
) -> pd.DataFrame:
    """Judge every variant against one of them, at every start that both have."""
    starts = trials.loc[trials["variant"] == reference, "start"].unique()
    if len(starts) == 0:
        known = ", ".join(trials["variant"].unique())
        raise ValueError(f"reference = {reference!r}: it must be one of {known}")
    rows = []
    for measure in measures:
        for start in starts:
            there = trials.loc[trials["start"] == start, "variant"].unique()
            others = [name for name in there if name != reference]
            rows += [effect(trials, n, reference, measure=measure, start=start) for n in others]
    return pd.DataFrame(rows)


def summary(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of every number over seeds, by variant and start, and how much seeds differ.

    `deviation` is the standard deviation of the distortion over seeds.
    """
    numbers = ["distortion", "bits", "perplexity", "active_share", "efficiency", "against_kmeans"]
    groups = trials.groupby(["variant", "start"], sort=False)
    table = groups[["lr", *numbers]].mean()
    table.insert(2, "deviation", groups["distortion"].std())
    return table.reset_index()


def sentences(table: pd.DataFrame) -> list[str]:
    """Say every effect in words."""
    return [
        f"{row.hypothesis}, {row.context}, start {row.start}: "
        f"{row.measure.replace('_', ' ')} {row.change:+.1f} % "
        f"[{row.low:+.1f}, {row.high:+.1f}], {row.verdict}."
        for row in table.itertuples()
    ]
