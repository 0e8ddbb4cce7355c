"""Run a study: a grid of papermill executions on a Dask cluster, resumable at any time.

    python -m lgqlib.study notebooks/studies/quick.yaml

What is done is skipped; what fails is recorded in its run's folder (failure.json, and the notebook
as far as it came), and the rest goes on. Ctrl-C, SIGTERM, or a file `stop` in the study's folder
stops: kernels save a checkpoint, and the same command goes on, trying again what had failed.
Results in runs/<study>/: results.parquet and results.csv, a row a run, and report/index.html.

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

import argparse
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
from dask.distributed import Client
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from lgqlib.files import locked, read_json, write_json
from lgqlib.run import Run
from lgqlib.study.comparison import comparison_table
from lgqlib.study.engine import Job, execute, failure, parameters_of
from lgqlib.study.grid import PlannedRun, Study, read_study
from lgqlib.study.report import build_report
from lgqlib.study.results import FAILURE_FILE, STUDY_FILE, finished, metrics_of, state_of
from lgqlib.train import stop_signals

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
KEPT = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**30))
"""Have glibc keep freed memory: giving it back after each operation costs a fifth of the time."""
BYTES_A_RUN = 2 * 2**30  # memory that a kernel may take, when workers are counted
DASK = {  # a machine that sleeps, or is short of memory or cores, is slow, not gone
    "distributed.comm.timeouts": {"connect": "300s", "tcp": "300s"},
    "distributed.scheduler.worker-ttl": None,
}


@dataclass(frozen=True)
class Work:
    """A study, and the folders of its notebooks, its runs and decoded images; all absolute."""

    study: Study
    notebooks: Path
    folder: Path
    cache: Path

    def check(self) -> None:
        """Raise ValueError for a notebook that is missing, or lacks a parameter it will get."""
        of_runs = (*self.study.notebooks, *self.study.looks["notebooks"])
        needed = {name: {"run"} for name in of_runs} | {name: set() for name in self.study.summary}
        needed[self.study.notebooks[0]] = {*self.study.runs[0].parameters, "runs", "cache"}
        for name, parameters in needed.items():
            if not (file := self.notebooks / f"{name}.ipynb").exists():
                raise ValueError(f"{file} is missing: give the folder of notebooks, --notebooks.")
            missing = parameters - parameters_of(file)
            if missing:
                raise ValueError(f"{file} has no parameter {', '.join(sorted(missing))}.")

    def chosen(self, only: Sequence[str]) -> list[PlannedRun]:
        """Give the runs whose name or variant holds one of the patterns; all without patterns."""
        patterns, runs = [f"*{pattern}*" for pattern in only] or ["*"], self.study.runs
        fits = [r for r in runs if any(fnmatch.filter([r.name, r.variant], p) for p in patterns)]
        if not fits:
            known = ", ".join(planned.name for planned in runs)
            raise ValueError(f"--only {' '.join(only)} fits none of {known}.")
        return fits

    def jobs_of(self, planned: PlannedRun) -> list[Job]:
        """Give the notebooks that a run still needs."""
        first, *others = self.study.notebooks
        folder = self.folder / planned.name
        state = state_of(folder)
        train = self.job(first, folder, **planned.parameters, runs=str(self.folder))
        rest = [self.job(name, folder, run=str(folder)) for name in others]
        trained = state != "new" and Run(folder).is_complete and train.output.exists()
        needed = [] if trained else [train]
        return needed + [job for job in rest if state != "done" or not job.output.exists()]

    def looks(self) -> dict[str, list[Job]]:
        """Give the missing notebooks that look at the best finished run of each method, by run."""
        methods, names, jobs = self.study.looks["methods"], self.study.looks["notebooks"], {}
        with contextlib.suppress(ValueError):  # no run is finished
            runs = finished(self.folder).sort_values("psnr", ascending=False)
            best = runs[runs["method"].isin(methods)].drop_duplicates("method")["run"]
            for folder in [self.folder / run for run in best]:
                looks = [self.job(name, folder, run=str(folder)) for name in names]
                jobs[folder.name] = [job for job in looks if not job.output.exists()]
        return {name: missing for name, missing in jobs.items() if missing}

    def note(self) -> None:
        """Write the study's file where its runs are others than it says, and say what changes."""
        file, known = self.folder / STUDY_FILE, {}
        names = {planned.name: planned.variant for planned in self.study.runs}
        with contextlib.suppress(ValueError):  # none yet, or damaged
            known = dict(read_json(file)["runs"])
            gone, new = (len(a.items() - b.items()) for a, b in ((known, names), (names, known)))
            if gone or new:
                _say(f"{file} changes: {new} runs are new, {gone} leave it; their folders stay")
        if names != known:
            write_json(file, {"name": self.study.name, "runs": [*names.items()]})

    def summary(self) -> dict[str, list[Job]]:
        """Give the notebooks over all runs that are missing, or older than what they are of."""
        place = {"study": str(self.folder), "out": str(self.folder)}
        jobs = [self.job(name, self.folder, **place) for name in self.study.summary]
        files = [self.folder / STUDY_FILE, *self.folder.glob("*/evaluation.json")]
        newest = max((file.stat().st_mtime for file in files if file.exists()), default=0)
        done = [j.output.exists() and j.output.stat().st_mtime >= newest for j in jobs]
        return {j.notebook.stem: [j] for j, d in zip(jobs, done, strict=True) if not d}

    def job(self, name: str, folder: Path, **values: str | int) -> Job:
        """Give a notebook of a run's folder, or of the study's, with its parameters."""
        notebook = self.notebooks / f"{name}.ipynb"
        values["cache"] = str(self.cache)
        known = parameters_of(notebook)  # not every one takes a cache
        given = {key: value for key, value in values.items() if key in known}
        return Job(notebook, folder / "notebooks" / notebook.name, given)

    def run(
        self, todo: Sequence[PlannedRun], workers: int, threads: int, scheduler: str
    ) -> tuple[list[str], bool]:
        """Execute what runs still need, then the summaries; give what failed, and if stopped."""
        folder, stop = self.folder, self.folder / "stop"
        with locked(folder / "lock", wait=False) as held, stop_signals() as received:
            if held is False:
                raise RuntimeError(f"{folder} is being run by another process.")
            stop.unlink(missing_ok=True)
            self.note()
            for planned in todo:
                Run.create(folder, planned.config)
            tasks = {p.name: jobs for p in todo if (jobs := self.jobs_of(p))}
            if skipped := len(todo) - len(tasks):
                _say(f"{skipped} of {len(todo)} runs are done already")
            gpus = [] if scheduler else _gpus()
            most = max(len(tasks), len(self.looks() | self.summary()))
            workers = workers or fitting_workers(most, len(gpus), CPU_COUNT, MEMORY_LIMIT)
            count = str(threads or max(1, CPU_COUNT // workers))
            environment = KEPT | dict.fromkeys(THREADS, count)
            how = {"cell_limit": self.study.cell_limit, "environment": environment}
            how, failed = {**how, "gpus": gpus, "stop": stop}, []
            if tasks or self.summary() or self.looks():
                with cluster(workers, scheduler) as client:
                    failed += _execute(client, tasks, folder, received, how)
                    if any(state_of(folder / planned.name) == "done" for planned in todo):
                        last = self.summary() | self.looks()
                        failed += _execute(client, last, folder, received, how)
            build_report(folder, story=not stop.exists(), cache=self.cache)
            return failed, stop.exists()


def _execute(
    client: Client, tasks: Mapping[str, list[Job]], study: Path, received: list[int], how: Mapping
) -> list[str]:
    """Execute tasks, as many at a time as there are workers; give the names of the failed."""
    stop, waiting, running, failed, spoke = how["stop"], [*tasks.items()], {}, [], time.monotonic()
    while running or waiting:
        if received and not stop.exists():
            stop.touch()
            _say("stopping: runs save a checkpoint (once more: stop at once)")
        if stop.exists():
            waiting.clear()
        while waiting and len(running) < sum(client.nthreads().values()):
            name, jobs = waiting.pop(0)
            running[client.submit(execute, jobs, **how, pure=False)] = name
        for future in [future for future in running if future.done()]:
            name, status = running.pop(future), future.status
            lost = future.exception() or RuntimeError(f"the cluster has {status} it.")
            problem = future.result() if status == "finished" else failure(lost)
            if problem and stop.exists():  # whoever stops a run does not call it a failure
                said = "stopped"
            elif problem := _record(study / name, problem):
                said = problem["error"].partition("\n")[0]
                failed.append(name)
            else:
                said = "done"
            _say(f"{name}: {said} ({len(waiting) + len(running)} to go)")
            build_report(study)  # to be read while the rest goes on
        if time.monotonic() - spoke > 20:  # seconds between lines of progress
            spoke = time.monotonic()
            for name in running.values():
                _say(f"{name}: {progress_of(study / name)}")
        time.sleep(0.5)
    return failed


def _record(folder: Path, problem: dict) -> dict:
    """Keep the failure of a run, or remove that of an earlier try; a summary has no folder."""
    if folder.is_dir():
        (folder / FAILURE_FILE).unlink(missing_ok=True)
        if not problem and state_of(folder) != "done":
            said = "the notebooks ran to their ends, but the run is not trained and evaluated."
            problem = failure(RuntimeError(said))
        if problem:
            write_json(folder / FAILURE_FILE, problem)
    return problem


def fitting_workers(num_runs: int, num_gpus: int, cores: int, memory: int) -> int:
    """Give how many runs at a time fit a machine: one a GPU, or one a core with its memory."""
    return max(1, min(num_runs, num_gpus or min(cores, memory // BYTES_A_RUN)))


def _gpus() -> list[str]:
    """Give the names of this machine's GPUs, as CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return given.split(",")[:count]


@contextlib.contextmanager
def cluster(workers: int, scheduler: str = "") -> Iterator[Client]:
    """Connect to a scheduler, or start a local cluster of single-threaded workers."""
    local = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",  # any free port: two studies may run at a time
        "memory_limit": 0,  # the kernels need the memory, not the workers
        "silence_logs": logging.CRITICAL,
    }
    how = {"address": scheduler, "timeout": 30} if scheduler else local
    with dask.config.set(DASK), Client(**how) as client:
        if not scheduler:
            # A terminal sends Ctrl-C to the workers too, which leave it to this process.
            client.run(lambda: bool(signal.signal(signal.SIGINT, signal.SIG_IGN)))
        yield client


def progress_of(folder: Path) -> str:
    """Say how far a running task is: its notebook; of training, step, images/s and time left."""
    is_run = (folder / "config.json").exists()  # or a notebook over all runs
    metrics = metrics_of(Run(folder)) if is_run else ()
    if "loss" not in metrics:
        return "running"
    train = Run(folder).config.train
    step = int(metrics["step"][metrics["split"] == "train"].iloc[-1])
    if step >= train.num_steps:
        parts = [part.name.split(".")[0] for part in folder.glob("notebooks/*.part.ipynb")]
        return ", ".join(parts) or "running"
    speeds = metrics.get("images_per_second", pandas.Series()).dropna()
    if not len(speeds):
        return f"step {step}/{train.num_steps}"
    left = (train.num_steps - step) * train.batch_size / speeds.iloc[-1]
    written = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
    return f"step {step}/{train.num_steps}, {speeds.iloc[-1]:.0f} images/s, {written} left"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; give its exit code: 0, 1 (a run failed), 2 (a mistake), 130 (stopped)."""
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("python -m lgqlib.study", **how)
    add = parser.add_argument
    add("study", type=Path, help="the YAML file (keys: lgqlib/study/grid.py)")
    add("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    add("--cache", type=Path, default=Path("data/cache"), help="decoded images")
    add("--notebooks", type=Path, help="their folder; by default the one above the file's")
    add("--scheduler", default="", help="address of a Dask scheduler that shares the folders")
    add("--workers", type=int, default=0, help="runs at a time; 0: what fits")
    add("--threads", type=int, default=0, help="threads a run; 0: an equal share")
    add("--only", nargs="+", default=[], help="runs whose name or variant fits")
    add("--dry-run", action="store_true", help="list the runs and their state")
    options = parser.parse_args(arguments)
    try:
        study = read_study(options.study)
        notebooks = options.notebooks or options.study.resolve().parent.parent
        folder = options.runs.resolve() / study.name
        work = Work(study, notebooks.resolve(), folder, options.cache.resolve())
        work.check()
        todo = work.chosen(options.only)
        if options.dry_run:
            for planned in todo:
                state = state_of(folder / planned.name)
                config = Run(folder / planned.name).config if state == "done" else planned.config
                changed = config.evaluated != planned.config.evaluated
                if state == "done" and (changed or work.jobs_of(planned)):
                    state = "partial"
                print(f"{state:8} {planned.name} {planned.variant}".rstrip())
            return 0
        failed, stopped = work.run(todo, options.workers, options.threads, options.scheduler)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        stopped, failed = True, []
    if stopped:
        print("stopped; the same command goes on from the last checkpoints.", file=sys.stderr)
        return 130
    with contextlib.suppress(ValueError):  # there is none to compare
        print(f"\n{comparison_table(finished(folder)).to_string(index=False)}\n")
    print(f"report: {folder / 'report' / 'index.html'}")
    if failed:
        print(f"failed: {', '.join(failed)} (the report says why)", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
