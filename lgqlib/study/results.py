"""The results of a study as one tidy table, rebuilt from its run folders at any time."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from jaxtyping import Float

from lgqlib.files import read_json, replacing
from lgqlib.run import Run

STUDY_FILE = "study.json"
"""In a study's folder: `name`, and `runs`, pairs of a run's name and its variant."""
FAILURE_FILE = "failure.json"
"""In a run's folder, after it failed: what, where and when."""
SHORT = {"quantizer.method": "method", "quantizer.num_codes": "num_codes"}
"""Fields of the config whose columns have a short name."""


def is_done(run: Run) -> bool:
    """Say whether a run is trained to its last step, evaluated there, and did not fail after."""
    try:
        evaluated = run.evaluation()["step"] == run.config.train.num_steps
        return evaluated and run.is_complete and failure_of(run) is None
    except (ValueError, KeyError):
        return False


def failure_of(run: Run) -> dict[str, Any] | None:
    """Give what is on record about a run's failure; None when it did not fail."""
    path = run.path / FAILURE_FILE
    return read_json(path) if path.exists() else None


def metrics_of(run: Run) -> pandas.DataFrame:
    """Give a run's metrics; nothing when they are damaged, at which its own notebook will stop."""
    try:
        return run.metrics()
    except ValueError:
        return pandas.DataFrame()


def state_of(run: Run) -> str:
    """Give `done`, `failed`, `partial` (begun) or `new`."""
    if is_done(run):
        return "done"
    if failure_of(run) is not None:
        return "failed"
    return "partial" if len(metrics_of(run)) else "new"


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
    files = sorted(Path(runs).glob(f"*/{STUDY_FILE}"), key=lambda path: path.stat().st_mtime)
    newest = files[-1].parent if files else Path(runs)
    inside = Path(runs) / study
    chosen = newest if not study else inside if inside.is_dir() else Path(study)
    study_runs(chosen)
    return chosen


def collect(study: Path | str) -> pandas.DataFrame:
    """Tabulate a study, one row a run: `run`, `state`, `variant`, the config, and the evaluation.

    Fields of the config have their dotted names (`method`, `num_codes` and `seed` are short),
    numbers of the evaluation their own, and `images_per_second` is the median speed of training.
    What a run does not have is missing.
    Raises ValueError when `study` is no folder, or a run's config is damaged.
    """
    study = Path(study)
    folders = {study / name: variant for name, variant in study_runs(study).items()}
    rows = [_row(Run(f), v) for f, v in folders.items() if (f / "config.json").exists()]
    return pandas.DataFrame(rows, columns=None if rows else ["run", "state", "variant"])


def _row(run: Run, variant: str) -> dict[str, Any]:
    row = {"run": run.name, "state": state_of(run), "variant": variant}
    row |= {SHORT.get(name, name): value for name, value in _flat(run.config).items()}
    if row["state"] == "done":
        row |= {k: v for k, v in run.evaluation().items() if not isinstance(v, dict | list)}
    metrics = metrics_of(run)
    if "images_per_second" in metrics:
        row["images_per_second"] = float(metrics["images_per_second"].median())
    return row


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    fields = {}
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            fields |= _flat(value, f"{prefix}{name}.")
        else:
            is_tuple = isinstance(value, tuple)
            fields[prefix + name] = ",".join(map(str, value)) if is_tuple else value
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

    @property
    def settings(self) -> dict[str, Any]:
        """The config's fields by their dotted names."""
        return {k: v for k, v in self.rows[self.seeds[0]].items() if "." in k}

    def run(self, seed: int) -> Run:
        """Open the run of a seed."""
        return Run(self.folder / self.rows[seed]["run"])

    @functools.cached_property
    def _arrays(self) -> dict[int, dict[str, np.ndarray]]:
        return {seed: self.run(seed).arrays() for seed in self.rows}

    def values(self, metric: str, seeds: Sequence[int] = ()) -> Float[np.ndarray, " S"] | None:
        """Give a metric of each run, by default of all seeds; None where one has no such number."""
        found = [self.rows[seed].get(metric) for seed in seeds or self.seeds]
        missing = any(value is None or pandas.isna(value) for value in found)
        return None if missing else np.asarray(found, dtype=np.float64)

    def per_image(self, metric: str, seeds: Sequence[int]) -> Float[np.ndarray, "S N"] | None:
        """Give a metric of each run and image; None where one has no such numbers."""
        found = [self._arrays[seed].get(f"per_image.{metric}") for seed in seeds]
        return None if any(v is None for v in found) else np.stack(found).astype(np.float64)


def cohorts(study: Path | str) -> list[Cohort]:
    """Group the finished runs of a study (or of a folder of runs), in the order of its table.

    Raises ValueError when there is no finished run, with what to do.
    """
    table = collect(study)
    done = table[table["state"] == "done"]
    if not len(done):
        raise ValueError(
            f"{study} has no finished run: run `python -m lgqlib.study` on a study's file, "
            "or notebooks 01_train and 02_evaluate."
        )
    keys = ["method", "num_codes", *(name for name in done.columns if "." in name)]
    found = []
    for _, part in done.groupby(keys, sort=False, dropna=False):
        rows = {int(row["seed"]): row for row in part.to_dict("records")}
        first = part.iloc[0]
        identity = first["method"], first["variant"], int(first["num_codes"])
        found.append(Cohort(*identity, rows, Path(study)))
    return found
