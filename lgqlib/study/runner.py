"""Run a study: a grid of papermill executions on a Dask cluster, resumable at any time.

    python -m lgqlib.study notebooks/studies/quick.yaml

What is done is skipped; what fails is recorded in its run's folder (failure.json, and the notebook
as far as it came), and the rest goes on. Ctrl-C, SIGTERM, or a file `stop` in the study's folder
stops: kernels save a checkpoint, and the same command goes on from there; it tries again what had
failed. Results: results.parquet and results.csv in runs/<study>/, one row a run, and the page
report/index.html.

Where it runs: by default as many workers of this machine as fit, one a GPU where there are any. Any
Dask cluster of one-thread workers that share these folders serves with --scheduler. On SLURM:

    from dask_jobqueue import SLURMCluster               # pip install dask-jobqueue
    cluster = SLURMCluster(
        cores=1, processes=1, memory="16GB", walltime="04:00:00",
        job_cpu=8, job_extra_directives=["--gres=gpu:1"])
    cluster.scale(jobs=8)
    print(cluster.scheduler_address)                     # keep this Python alive

    python -m lgqlib.study notebooks/studies/full.yaml --scheduler tcp://10.0.0.1:41234 --threads 8
"""

import contextlib
import fnmatch
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
import pandas
import torch
from dask.distributed import Client, LocalCluster
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from lgqlib.files import locked, write_json
from lgqlib.run import Run
from lgqlib.study.engine import (
    Job,
    execute,
    failure,
    ignore_interrupt,
    parameters_of,
    require_parameters,
)
from lgqlib.study.grid import PlannedRun, Study
from lgqlib.study.report import build_report
from lgqlib.study.results import FAILURE_FILE, STUDY_FILE, is_done, metrics_of, state_of

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
BYTES_A_RUN = 2 * 2**30
"""Memory that a kernel may take, when workers are counted."""
DASK = {
    "distributed.comm.timeouts.connect": "300s",
    "distributed.comm.timeouts.tcp": "300s",
    "distributed.scheduler.worker-ttl": None,
}
"""A machine that sleeps, or is short of memory or cores, is slow, not gone."""
LINE_EVERY = 20
"""Seconds between lines of progress."""


@dataclass(frozen=True)
class Places:
    """Folders of a study, all absolute."""

    notebooks: Path
    study: Path
    """Below the folder of all runs, with the study's name."""
    cache: Path


def check_notebooks(study: Study, places: Places) -> None:
    """Raise ValueError when a notebook is missing or lacks a parameter that it will be given."""
    first, *others = study.notebooks
    needed = {first: [*study.runs[0].parameters, "runs", "cache"]}
    needed |= {name: ["run"] for name in others} | {name: ["study"] for name in study.summary}
    for name, parameters in needed.items():
        require_parameters(places.notebooks / f"{name}.ipynb", parameters)


def chosen(study: Study, only: Sequence[str]) -> list[PlannedRun]:
    """Give the runs whose name or variant holds one of the patterns; all without patterns."""
    fits = [
        planned
        for planned in study.runs
        if any(
            fnmatch.fnmatch(text, f"*{pattern}*")
            for pattern in only or [""]
            for text in (planned.name, planned.variant)
        )
    ]
    if not fits:
        names = ", ".join(planned.name for planned in study.runs)
        raise ValueError(f"--only {' '.join(only)} fits none of {names}.")
    return fits


def jobs_of(planned: PlannedRun, study: Study, places: Places) -> list[Job]:
    """Give the notebooks that a run still needs."""
    first, *others = study.notebooks
    folder = places.study / planned.name
    run = Run(folder) if (folder / "config.json").exists() else None
    cache = {"cache": str(places.cache)}
    train = _job(first, places, folder, **planned.parameters, runs=str(places.study), **cache)
    rest = [_job(name, places, folder, run=str(folder), **cache) for name in others]
    trained = run is not None and run.is_complete and train.output.exists()
    done = run is not None and is_done(run)
    needed = [] if trained else [train]
    return needed + [job for job in rest if not (done and job.output.exists())]


def _job(name: str, places: Places, folder: Path, **values: str | int) -> Job:
    notebook = places.notebooks / f"{name}.ipynb"
    known = parameters_of(notebook)  # not every one takes a cache
    given = {key: value for key, value in values.items() if key in known}
    return Job(notebook, folder / "notebooks" / notebook.name, given)


def planned_state(planned: PlannedRun, study: Study, places: Places) -> str:
    """Give `done` (trained, evaluated, all notebooks executed), `failed`, `partial` or `new`."""
    folder = places.study / planned.name
    state = state_of(Run(folder)) if (folder / "config.json").exists() else "new"
    return "partial" if state == "done" and jobs_of(planned, study, places) else state


def run_study(
    study: Study,
    places: Places,
    *,
    workers: int = 0,
    threads: int = 0,
    scheduler: str = "",
    only: Sequence[str] = (),
) -> tuple[list[str], bool]:
    """Execute what a study still needs, write its results and its report; say how that went.

    `workers`: runs at a time, 0 for what fits. `threads`: CPU threads a run, 0 for an equal share.
    `scheduler`: address of a Dask cluster that shares the folders. `only`: patterns of runs' names.
    Returns what failed, runs and summaries by their names, and whether somebody stopped it.
    Raises ValueError before anything starts when a notebook or a pattern does not fit, RuntimeError
    when another process runs the same study.
    """
    check_notebooks(study, places)
    todo, folder = chosen(study, only), places.study
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", wait=False) as held:
        if held is False:
            raise RuntimeError(f"{folder} is being run by another process.")
        names = [[planned.name, planned.variant] for planned in study.runs]
        write_json(folder / STUDY_FILE, {"name": study.name, "runs": names})
        tasks = {p.name: jobs for p in todo if (jobs := jobs_of(p, study, places))}
        for planned in todo:
            Run.create(folder, planned.config)
        about = {"study": str(folder), "cache": str(places.cache)}
        summaries = {name: [_job(name, places, folder, **about)] for name in study.summary}
        if not tasks:
            summaries = {k: jobs for k, jobs in summaries.items() if not jobs[0].output.exists()}
        gpus = [] if scheduler else _gpus()
        workers = workers or fitting_workers(
            len(tasks), num_gpus=len(gpus), cores=CPU_COUNT, memory=MEMORY_LIMIT
        )
        environment = dict.fromkeys(THREADS, str(threads or max(1, CPU_COUNT // workers)))
        how = {"cell_limit": study.cell_limit, "environment": environment, "gpus": gpus}
        if skipped := len(todo) - len(tasks):
            _say(f"{skipped} of {len(todo)} runs are done already")
        with _stopped_by_signals(folder / "stop") as stop:
            failed = []
            if tasks or summaries:
                with cluster(workers, scheduler) as client:
                    failed += _execute(client, tasks, folder, {"stop": stop, **how})
                    if any(is_done(Run(folder / planned.name)) for planned in todo):
                        failed += _execute(client, summaries, folder, {"stop": stop, **how})
            build_report(folder)
            return failed, stop.exists()


def _execute(client: Client, tasks: Mapping[str, list[Job]], study: Path, how: Mapping) -> list:
    """Execute the jobs of each task, as many tasks at a time as there are workers.

    Records how each ended, builds the report anew, and gives the names of those that failed.
    """
    stop, waiting, running, failed, spoke = how["stop"], [*tasks.items()], {}, [], time.monotonic()
    while running or waiting:
        if stop.exists():
            waiting.clear()
        while waiting and len(running) < sum(client.nthreads().values()):
            name, jobs = waiting.pop(0)
            running[client.submit(execute, jobs, **how, pure=False)] = name
        for future in [future for future in running if future.done()]:
            name, error = running.pop(future), future.exception()
            if future.status == "finished":
                problem = future.result()
            else:
                problem = failure(error or RuntimeError(f"the cluster has {future.status} it."))
            if problem and stop.exists():  # whoever stops a run does not call it a failure
                said = "stopped"
            elif problem := _record(study / name, problem):
                said = problem["error"].partition("\n")[0]
                failed.append(name)
            else:
                said = "done"
            _say(f"{name}: {said} ({len(waiting) + len(running)} to go)")
            build_report(study)  # to be read while the rest goes on
        if time.monotonic() - spoke > LINE_EVERY:
            spoke = time.monotonic()
            for name in running.values():
                _say(f"{name}: {progress_of(study / name)}")
        time.sleep(0.5)
    return failed


def _record(folder: Path, problem: dict) -> dict:
    """Keep the failure of a run, or remove that of an earlier try; a summary has no folder."""
    path = folder / FAILURE_FILE
    if not folder.is_dir():
        return problem
    path.unlink(missing_ok=True)
    if not problem and not is_done(Run(folder)):
        said = "the notebooks ran to their ends, but the run is not trained and evaluated."
        problem = failure(RuntimeError(said))
    if problem:
        write_json(path, problem)
    return problem


def fitting_workers(num_runs: int, *, num_gpus: int, cores: int, memory: int) -> int:
    """Give how many runs at a time fit a machine: one a GPU, or one a core with its memory."""
    fitting = num_gpus or min(cores, memory // BYTES_A_RUN)
    return max(1, min(num_runs, fitting))


def _gpus() -> list[str]:
    """Give the names of this machine's GPUs, as CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return given.split(",")[:count]


@contextlib.contextmanager
def cluster(workers: int, scheduler: str = "") -> Iterator[Client]:
    """Connect to a scheduler, or start a local cluster of single-threaded workers."""
    if scheduler:
        with Client(scheduler, timeout=30) as client:
            yield client
        return
    with (
        dask.config.set(DASK),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port: two studies may run at a time
            memory_limit=0,  # the kernels need the memory, not the workers
            silence_logs=logging.CRITICAL,
        ) as local,
        Client(local) as client,
    ):
        client.run(ignore_interrupt)
        yield client


@contextlib.contextmanager
def _stopped_by_signals(stop: Path) -> Iterator[Path]:
    """Make the file `stop` at the first SIGINT or SIGTERM; the second one acts at once."""

    def note(*_) -> None:
        if stop.exists():
            raise KeyboardInterrupt
        stop.touch()
        # Not print, which may be what the signal came into.
        os.write(2, b"\nstopping: runs save a checkpoint (once more: stop at once)\n")

    stop.unlink(missing_ok=True)
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def progress_of(folder: Path) -> str:
    """Say how far a running task is: a run's step, images/s and time left."""
    if not (folder / "config.json").exists():
        return "running"  # a notebook over all runs
    run = Run(folder)
    metrics, steps = metrics_of(run), run.config.train.num_steps
    train = metrics[metrics["split"] == "train"] if len(metrics) else metrics
    if not len(train):
        return "starting"
    step = int(train["step"].iloc[-1])
    if step >= steps:
        return "trained, evaluating"
    speeds = metrics.get("images_per_second", pandas.Series()).dropna()
    if not len(speeds):
        return f"step {step}/{steps}"
    left = (steps - step) * run.config.train.batch_size / speeds.iloc[-1]
    written = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
    return f"step {step}/{steps}, {speeds.iloc[-1]:.0f} images/s, {written} left"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
