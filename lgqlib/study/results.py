"""The results of a study as one tidy table, rebuilt from its run folders at any time."""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas

from lgqlib.files import read_json, replacing
from lgqlib.run import Run

STUDY_FILE = "study.json"
"""In a study's folder: `name`, and `runs`, pairs of a run's name and its variant."""
FAILURE_FILE = "failure.json"
"""In a run's folder, after it failed: what, where and when."""
OTHER = ("quantizer.method", "quantizer.num_codes", "seed")
"""Fields of the config whose columns are `method`, `num_codes` and `seed`."""


def is_done(run: Run) -> bool:
    """Say whether a run is trained to its last step, evaluated there, and did not fail after."""
    try:
        evaluated = run.evaluation()["step"] == run.config.train.num_steps
    except (ValueError, KeyError):
        return False
    return evaluated and run.is_complete and not (run.path / FAILURE_FILE).exists()


def failure_of(run: Run) -> dict[str, Any] | None:
    """Give what is on record about a run's failure; None when it did not fail."""
    path = run.path / FAILURE_FILE
    return read_json(path) if path.exists() else None


def study_runs(study: Path | str) -> dict[str, str]:
    """Give the runs of a study by the names of their folders, each with its variant.

    Those that the study's file names; all folders with a config where there is no such file.
    Raises ValueError when `study` is no folder.
    """
    study = Path(study)
    if not study.is_dir():
        raise ValueError(f"{study} is not a folder of a study; `python -m lgqlib.study` makes one.")
    if (study / STUDY_FILE).exists():
        return dict(read_json(study / STUDY_FILE)["runs"])
    return {path.parent.name: "" for path in sorted(study.glob("*/config.json"))}


def newest_study(runs: Path | str, study: str = "") -> Path:
    """Give the folder of a study: the one named, else the newest below `runs`, else `runs` itself.

    Raises ValueError when there is no such folder.
    """
    if study:
        inside = Path(runs) / study
        chosen = inside if inside.is_dir() else Path(study)
    else:
        files = sorted(Path(runs).glob(f"*/{STUDY_FILE}"), key=lambda path: path.stat().st_mtime)
        chosen = files[-1].parent if files else Path(runs)
    if not chosen.is_dir():
        raise ValueError(
            f"{chosen} is not a folder of a study; `python -m lgqlib.study` makes one."
        )
    return chosen


def collect(study: Path | str) -> pandas.DataFrame:
    """Tabulate a study, one row a run: `run`, `state`, `variant`, the config, and the evaluation.

    `state` is `done`, `failed`, `partial` (begun) or `new`. Fields of the config have their dotted
    names (`method`, `num_codes` and `seed` are short), numbers of the evaluation their own, and
    `images_per_second` is the median speed of training. What a run does not have is missing.
    Raises ValueError when `study` is no folder, or a run's config is damaged.
    """
    study = Path(study)
    rows = []
    for name, variant in study_runs(study).items():
        if (study / name / "config.json").exists():
            rows.append(_row(Run.open(study / name), variant))
    return pandas.DataFrame(rows, columns=None if rows else ["run", "state", "variant"])


def _row(run: Run, variant: str) -> dict[str, Any]:
    try:
        metrics = run.metrics()
    except ValueError:  # damaged: training will say so
        metrics = pandas.DataFrame()
    if is_done(run):
        state = "done"
    elif failure_of(run) is not None:
        state = "failed"
    else:
        state = "partial" if len(metrics) else "new"
    config = run.config
    row = {
        "run": run.name,
        "state": state,
        "variant": variant,
        "method": config.quantizer.method,
        "num_codes": config.quantizer.num_codes,
        "seed": config.seed,
        **{k: v for k, v in _flat(config).items() if k not in OTHER},
    }
    if state == "done":
        row |= {k: v for k, v in run.evaluation().items() if not isinstance(v, dict | list)}
    if len(metrics) and "images_per_second" in metrics:
        row["images_per_second"] = float(metrics["images_per_second"].median())
    return row


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    fields = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            fields |= _flat(value, f"{prefix}{item.name}.")
        else:
            is_tuple = isinstance(value, tuple)
            fields[prefix + item.name] = ",".join(map(str, value)) if is_tuple else value
    return fields


def write_results(study: Path | str) -> pandas.DataFrame:
    """Write the table of a study as results.parquet and results.csv (also in report/); give it."""
    table = collect(study)
    with replacing(Path(study) / "results.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    for path in (Path(study) / "results.csv", Path(study) / "report" / "results.csv"):
        with replacing(path) as temporary:
            table.to_csv(temporary, index=False)
    return table


@dataclasses.dataclass(frozen=True)
class Number:
    """A column of the comparison: how a number is named and written."""

    key: str
    label: str
    digits: int
    unit: str = ""
    better: str = ""
    """`higher`, `lower`, or nothing where it depends."""


NUMBERS = (
    Number("psnr", "PSNR", 2, "dB", "higher"),
    Number("ssim", "SSIM", 4, "", "higher"),
    Number("perceptual", "perceptual", 4, "", "lower"),
    Number("kid", "KID", 5, "", "lower"),
    Number("fd", "FD", 1, "", "lower"),
    Number("active", "active", 0, "codes"),
    Number("perplexity", "perplexity", 0, "codes"),
    Number("bits_per_token_entropy", "entropy", 2, "bits/token"),
    Number("bits_per_token_coded", "coded", 2, "bits/token"),
    Number("images_per_second", "speed", 0, "images/s", "higher"),
)
"""What the comparison shows, in this order."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    method: str
    variant: str
    num_codes: int
    settings: Mapping[str, Any]
    """Fields in which the groups of a study differ, beside method, codes and variant."""
    seeds: tuple[int, ...]
    mean: Mapping[str, float]
    spread: Mapping[str, float]
    """Standard deviation over seeds (n - 1); none with one seed."""
    about: Mapping[str, Any]
    """`num_images`, `num_tokens`, `extractor`, where evaluated."""


def compare(table: pandas.DataFrame) -> list[Group]:
    """Average the finished runs of a study over their seeds, in the order of the table."""
    done = table[table["state"] == "done"] if len(table) else table
    if not len(done):
        return []
    config = [c for c in done.columns if "." in c]
    keys = ["method", "variant", "num_codes", *config]
    # What belongs to a method's recipe says nothing beside its name.
    varying = [
        c for c in config if any(len(set(part[c])) > 1 for _, part in done.groupby("method"))
    ]
    groups = []
    for _, part in done.groupby(keys, sort=False, dropna=False):
        first = part.iloc[0]
        numbers = {n.key: part[n.key].dropna().tolist() for n in NUMBERS if n.key in part}
        numbers = {key: values for key, values in numbers.items() if values}
        groups.append(
            Group(
                first["method"],
                first["variant"],
                int(first["num_codes"]),
                {c: first[c] for c in varying},
                tuple(sorted(int(s) for s in part["seed"])),
                {key: statistics.fmean(values) for key, values in numbers.items()},
                {k: statistics.stdev(v) for k, v in numbers.items() if len(v) > 1},
                {
                    key: first[key]
                    for key in ("num_images", "num_tokens", "extractor")
                    if key in part and not pandas.isna(first[key])
                },
            )
        )
    return groups


def written(group: Group, number: Number) -> str:
    """Write a number with its spread, `23.53 ± 0.02`; a dash where it is missing."""
    if number.key not in group.mean:
        return "–"
    text = f"{group.mean[number.key]:,.{number.digits}f}"
    if number.key in group.spread:
        text += f" ± {group.spread[number.key]:,.{number.digits}f}"
    return text
