"""The results of a study as one tidy table, rebuilt from its run folders at any time."""

from pathlib import Path
from typing import Any

import pandas

from lgqlib.files import read_json, replacing
from lgqlib.run import Run

STUDY_FILE = "study.json"  # a study's `name`, and `runs`, pairs of a run's name and its variant
FAILURE_FILE = "failure.json"  # of a run that failed: what, where and when
SHORT = {"quantizer.method": "method", "quantizer.num_codes": "num_codes"}  # names of columns


def metrics_of(run: Run) -> pandas.DataFrame:
    """Give a run's metrics; nothing when they are damaged, at which its own notebook will stop."""
    try:
        return run.metrics()
    except ValueError:
        return pandas.DataFrame()


def state_of(folder: Path) -> str:
    """Give `done` (trained, and evaluated at the last step), `failed`, `partial` or `new`."""
    if not (folder / "config.json").exists():
        return "new"
    if (folder / FAILURE_FILE).exists():
        return "failed"
    run = Run(folder)
    try:
        if not run.is_complete:
            return "partial" if run.step else "new"
        return "done" if run.is_evaluated else "partial"
    except ValueError:  # damaged
        return "partial"


def study_runs(study: Path | str) -> dict[str, str]:
    """Give the names of a study's runs, each with its variant: of its file, or all folders."""
    study = Path(study)
    if not study.is_dir():
        raise ValueError(f"{study} is not a folder of a study; `python -m lgqlib.study` makes one.")
    if (study / STUDY_FILE).exists():
        return dict(read_json(study / STUDY_FILE)["runs"])
    return {path.parent.name: "" for path in sorted(study.glob("*/config.json"))}


def newest_study(runs: Path | str, study: str = "") -> Path:
    """Give the folder of a study: the one named, else the newest below `runs`, else `runs`."""
    made = sorted(Path(runs).glob(f"*/{STUDY_FILE}"), key=lambda file: -file.stat().st_mtime)
    places = [Path(runs) / study, Path(study)] if study else [*(f.parent for f in made), Path(runs)]
    chosen = next((place for place in places if place.is_dir()), places[-1])
    study_runs(chosen)
    return chosen


def collect(study: Path | str) -> pandas.DataFrame:
    """Tabulate a study, one row a run: `run`, `state`, `variant`, the config, and the evaluation.

    Fields have dotted names. ValueError when `study` is no folder, or a run's config is damaged.
    """
    runs = {Path(study) / name: variant for name, variant in study_runs(study).items()}
    rows = [_row(Run(f), v) for f, v in runs.items() if (f / "config.json").exists()]
    return pandas.DataFrame(rows, columns=None if rows else ["run", "state", "variant"])


def _row(run: Run, variant: str) -> dict[str, Any]:
    row = {"run": run.name, "state": state_of(run.path), "variant": variant}
    for name, value in pandas.json_normalize(run.config.to_dict()).iloc[0].items():
        is_list = isinstance(value, tuple)
        row[SHORT.get(name, name)] = ",".join(map(str, value)) if is_list else value
    if row["state"] == "done":
        row |= {k: v for k, v in run.evaluation().items() if not isinstance(v, dict | list)}
    metrics = metrics_of(run)
    if "images_per_second" in metrics:
        row["images_per_second"] = float(metrics["images_per_second"].median())
    return row


def write_results(study: Path | str) -> pandas.DataFrame:
    """Write the table of a study as results.parquet and results.csv (also in report/); give it."""
    table = collect(study)
    for name in ("results.parquet", "results.csv", "report/results.csv"):
        write = table.to_parquet if name.endswith("parquet") else table.to_csv
        with replacing(Path(study) / name) as temporary:
            write(temporary, index=False)
    return table


def finished(study: Path | str) -> pandas.DataFrame:
    """Give the finished runs of a study (or of a folder of runs), one row a run.

    Beside the columns of `collect`: `cohort`, a number for all that differ in nothing but their
    seed; `name`, method and variant; `ablation`, whether the method stands plain beside it.
    """
    table = collect(study)
    found = table[table["state"] == "done"].copy()
    if not len(found):
        how = (
            "run `python -m lgqlib.study` on a study's file, or notebooks 01_train and 02_evaluate"
        )
        raise ValueError(f"{study} has no finished run: {how}.")
    size, fields = ["method", "num_codes"], [name for name in found if "." in name]
    place = found["data.root"].where(found["data.content"] == "", "")  # content says more
    alike = found.assign(**{"data.root": place})
    groups = alike.groupby([*size, *fields], sort=False, dropna=False)
    found["cohort"], found["variant"] = groups.ngroup(), groups["variant"].transform("first")
    found["name"] = (found["method"] + " " + found["variant"]).str.strip()
    has_plain = (found["variant"] == "").groupby([found[key] for key in size]).transform("any")
    found["ablation"] = has_plain & (found["variant"] != "")
    return found.sort_values(["cohort", "seed"])
