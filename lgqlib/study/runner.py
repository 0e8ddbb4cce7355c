"""Run a study: a grid of papermill executions on a Dask cluster, resumable at any time.

    python -m lgqlib.study notebooks/studies/quick.yaml

What is done is skipped; what fails is recorded in its run's folder (failure.json, and the notebook
as far as it came), and the rest goes on. Ctrl-C or SIGTERM stops: kernels save a checkpoint, and
the same command goes on from there; it tries again what had failed. Results: results.parquet and
results.csv in runs/<study>/, one row a run, and the page report/index.html.

Where it runs: by default as many workers of this machine as fit, one a GPU where there are any. Any
Dask cluster whose machines share these folders serves with --scheduler. On SLURM:

    from dask_jobqueue import SLURMCluster               # pip install dask-jobqueue
    cluster = SLURMCluster(
        cores=1, processes=1, memory="16GB", walltime="04:00:00",
        job_cpu=8, job_extra_directives=["--gres=gpu:1"])
    cluster.scale(jobs=8)
    print(cluster.scheduler_address)                     # keep this Python alive

    python -m lgqlib.study notebooks/studies/full.yaml --scheduler tcp://10.0.0.1:41234 --threads 8
"""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from lgqlib.files import locked, write_json
from lgqlib.run import Run
from lgqlib.study.crew import Crew, StopSignals, cluster, fitting_workers
from lgqlib.study.execute import (
    PATIENCE,
    Job,
    Outcome,
    parameters_of,
    require_parameters,
    was_executed,
)
from lgqlib.study.grid import Cell, Study
from lgqlib.study.progress import Display, duration
from lgqlib.study.report import build_report
from lgqlib.study.results import FAILURE_FILE, STUDY_FILE, collect, failure_of, is_done


@dataclasses.dataclass(frozen=True)
class Places:
    """Folders of a study, all absolute."""

    notebooks: Path
    runs: Path
    cache: Path
    study: Path
    """runs/<name of the study>"""


@dataclasses.dataclass
class Result:
    """What a command did."""

    done: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    stopped: bool = False


def state_of(cell: Cell, study: Study, places: Places) -> str:
    """Give `done` (trained, evaluated, all notebooks executed), `failed`, `partial` or `new`."""
    path = places.study / cell.name
    if not (path / "config.json").exists():
        return "new"
    run = Run.open(path)
    if is_done(run) and all(was_executed(run.notebooks / f"{n}.ipynb") for n in study.notebooks):
        return "done"
    return "failed" if failure_of(run) is not None else "partial" if run.step else "new"


def check_notebooks(study: Study, places: Places) -> None:
    """Raise ValueError when a notebook is missing or lacks a parameter that it will be given."""
    first, *others = study.notebooks
    require_parameters(_source(first, places), [*study.cells[0].parameters, "runs", "cache"])
    for name in others:
        require_parameters(_source(name, places), ["run"])
    for name in study.summary:
        require_parameters(_source(name, places), ["study"])


def _source(name: str, places: Places) -> Path:
    return places.notebooks / f"{name}.ipynb"


def jobs_of(cell: Cell, study: Study, places: Places) -> list[Job]:
    """Give the notebooks that a run still needs."""
    run = Run.create(places.study, cell.config)
    first, *others = study.notebooks
    jobs = []
    if not (run.is_complete and was_executed(run.notebooks / f"{first}.ipynb")):
        folders = {"runs": str(places.study), "cache": str(places.cache)}
        jobs.append(_job(first, places, run.notebooks, {**cell.parameters, **folders}))
    for name in others:
        if is_done(run) and was_executed(run.notebooks / f"{name}.ipynb"):
            continue
        values = {"run": str(run.path), "cache": str(places.cache)}
        known = parameters_of(_source(name, places))
        jobs.append(
            _job(name, places, run.notebooks, {k: v for k, v in values.items() if k in known})
        )
    return jobs


def _job(name: str, places: Places, folder: Path, parameters: Mapping) -> Job:
    return Job(str(_source(name, places)), str(folder / f"{name}.ipynb"), parameters)


def run_study(
    study: Study,
    places: Places,
    *,
    workers: int = 0,
    threads: int = 0,
    scheduler: str = "",
    only: tuple[str, ...] = (),
    patience: float = PATIENCE,
) -> Result:
    """Execute what a study still needs, and write its results and its report.

    `workers`: runs at a time, 0 for what fits. `threads`: CPU threads a run, 0 for an equal share.
    `scheduler`: address of a Dask cluster that shares the folders. `only`: patterns of runs' names.
    Raises ValueError before anything starts when a notebook or a pattern does not fit, RuntimeError
    when another process runs the same study.
    """
    check_notebooks(study, places)
    cells = chosen(study, only)
    places.study.mkdir(parents=True, exist_ok=True)
    with locked(places.study / "lock", wait=False) as held, StopSignals() as signals:
        if not held:
            raise RuntimeError(f"{places.study} is being run by another process.")
        names = [[cell.name, cell.variant] for cell in study.cells]
        write_json(places.study / STUDY_FILE, {"name": study.name, "runs": names})
        result = Result()
        result.skipped = [cell.name for cell in cells if state_of(cell, study, places) == "done"]
        todo = [cell for cell in cells if cell.name not in result.skipped]
        summaries = _summaries_to_do(study, places, bool(todo))
        if todo or summaries:
            gpus = 0 if scheduler else torch.cuda.device_count()
            workers = workers or fitting_workers(
                len(todo), num_gpus=gpus, cores=CPU_COUNT, memory=MEMORY_LIMIT
            )
            with cluster(workers, scheduler) as client:
                crew = Crew(
                    client,
                    signals,
                    threads=threads or max(1, CPU_COUNT // workers),
                    gpus=gpus,
                    cell_limit=study.cell_limit,
                    patience=patience,
                )
                loop = _Loop(study, places, crew, result)
                loop.runs(todo)
                if not result.stopped:
                    loop.summaries(summaries)
        build_report(places.study)
    return result


def chosen(study: Study, only: tuple[str, ...]) -> list[Cell]:
    """Give the runs whose name or variant holds one of the patterns; all without patterns."""
    cells = [
        cell
        for cell in study.cells
        if not only
        or any(
            fnmatch.fnmatch(text, f"*{pattern}*")
            for pattern in only
            for text in (cell.name, cell.variant)
        )
    ]
    if not cells:
        names = ", ".join(cell.name for cell in study.cells)
        raise ValueError(f"--only {' '.join(only)} fits none of {names}.")
    return cells


def _summaries_to_do(study: Study, places: Places, changed: bool) -> list[str]:
    outputs = {name: places.study / "notebooks" / f"{name}.ipynb" for name in study.summary}
    return [name for name, output in outputs.items() if changed or not was_executed(output)]


class _Loop:
    """Execute runs and then summaries, and record how each ended."""

    def __init__(self, study: Study, places: Places, crew: Crew, result: Result):
        self.study, self.places, self.crew, self.result = study, places, crew, result
        self.display = Display()
        self.told = False

    def runs(self, cells: list[Cell]) -> None:
        """Execute the notebooks of runs."""
        total = len(cells) + len(self.result.skipped)
        if self.result.skipped:
            self.display.say(f"{len(self.result.skipped)} of {total} runs are done already")
        tasks = {cell.name: jobs_of(cell, self.study, self.places) for cell in cells}
        for name, outcome in self.crew.outcomes(tasks, self._watch_runs):
            self.display.forget(name)
            path = self.places.study / name / FAILURE_FILE
            if outcome.status == "done":
                path.unlink(missing_ok=True)
                outcome = self._verified(name, outcome)
            if outcome.status == "failed":
                write_json(path, dict(outcome.failure))
            self._record(name, outcome)
            done = len(self.result.done + self.result.skipped)
            self._say(f"[{done}/{total}] {name}", outcome)
            build_report(self.places.study)  # to be read while the rest goes on
        self.result.stopped = self.crew.stopped

    def summaries(self, names: list[str]) -> None:
        """Execute the notebooks about all runs, when there is a run to speak of."""
        table = collect(self.places.study)
        if not names or not len(table) or not (table["state"] == "done").any():
            return
        build_report(self.places.study)  # the tables that they read
        folder = self.places.study / "notebooks"
        values = {"study": str(self.places.study), "cache": str(self.places.cache)}
        tasks = {}
        for name in names:
            known = parameters_of(_source(name, self.places))
            given = {key: value for key, value in values.items() if key in known}
            tasks[name] = [_job(name, self.places, folder, given)]
        for name, outcome in self.crew.outcomes(tasks, self._watch_summaries):
            self._record(name, outcome)
            self._say(name, outcome)
        self.result.stopped = self.crew.stopped

    def _watch_runs(self, names: Sequence[str]) -> None:
        self._tell_stop()
        self.display.update({name: self.places.study / name for name in names})

    def _watch_summaries(self, _names: Sequence[str]) -> None:
        self._tell_stop()

    def _tell_stop(self) -> None:
        if self.crew.stopped and not self.told:
            self.told = True
            self.display.say(
                "stopping: runs save a checkpoint from which the same command goes on "
                "(once more: stop at once)"
            )

    def _verified(self, name: str, outcome: Outcome) -> Outcome:
        if is_done(Run.open(self.places.study / name)):
            return outcome
        said = "the notebooks ran to their ends, but the run is not trained and evaluated."
        return Outcome.failed(said, seconds=outcome.seconds)

    def _record(self, name: str, outcome: Outcome) -> None:
        if outcome.status == "done":
            self.result.done.append(name)
        elif outcome.status == "failed":
            self.result.failed.append(name)

    def _say(self, name: str, outcome: Outcome) -> None:
        text = f"{name}: {outcome.status} after {duration(outcome.seconds)}"
        if outcome.status == "failed":
            said = outcome.failure["error"].splitlines() or [""]
            text += f", {outcome.failure['notebook']} {said[0]}"
        self.display.say(text)
