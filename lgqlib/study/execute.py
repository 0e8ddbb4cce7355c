"""Execute notebooks as papermill runs, in bounded time, until done, failed or asked to stop.

Nothing here knows what a run is, and nothing heavy is imported: a cluster's workers load only this.
"""

import ast
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from dask.distributed import Event, get_client
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config as Traits

ENGINE = "stoppable"
START_LIMIT = 300
"""Seconds for a kernel to start."""
PATIENCE = 30
"""Seconds between asking a kernel to stop, asking it again (SIGTERM), and killing it."""
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Job:
    """One notebook to execute."""

    notebook: str
    """Path of the notebook; its kernel works in its folder."""
    output: str
    """Path of the executed copy, written after each cell."""
    parameters: Mapping[str, Any]
    """Values for the cell tagged `parameters`; each name must be there."""


@dataclass(frozen=True)
class Outcome:
    """How a sequence of jobs ended."""

    status: str
    """`done`, `failed` or `stopped`."""
    seconds: float
    failure: Mapping[str, Any] = field(default_factory=dict)
    """`notebook`, `error`, `traceback`, `host`, `time`; empty unless failed."""

    @classmethod
    def failed(cls, error: str, *, notebook: str = "", trace: str = "", seconds: float = 0.0):
        """Give a failure, as plain text that JSON can hold, with this host and the time."""
        failure = {
            "notebook": notebook,
            "error": error.strip(),
            "traceback": trace,
            "host": socket.gethostname(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        return cls("failed", seconds, failure)


class Stopped(Exception):
    """Leave a notebook because somebody asked for it."""


def parameters_of(notebook: Path) -> set[str]:
    """Give the names that a notebook's `parameters` cell assigns.

    Raises ValueError when the file is no notebook or has no such cell.
    """
    if not notebook.is_file():
        raise ValueError(f"{notebook} is missing.")
    # papermill's own reading of the cell leaves out lines whose comment has an equals sign.
    try:
        node = nbformat.read(notebook, as_version=4)
        tagged = [c for c in node.cells if "parameters" in c.metadata.get("tags", [])]
        trees = [ast.parse(cell.source) for cell in tagged]
    except Exception as error:  # nbformat raises many kinds
        raise ValueError(f"{notebook} is not a notebook ({error}).") from None
    if not trees:
        raise ValueError(f"{notebook} has no cell tagged `parameters`.")
    lines = [line for line in trees[0].body if isinstance(line, ast.Assign)]
    return {t.id for line in lines for t in line.targets if isinstance(t, ast.Name)}


def require_parameters(notebook: Path, names: Sequence[str]) -> None:
    """Raise ValueError when a notebook does not take one of these parameters."""
    known = parameters_of(notebook)
    for name in names:
        if name not in known:
            raise ValueError(
                f"{notebook} has no parameter {name!r}; it has {', '.join(sorted(known))}."
            )


def was_executed(output: Path) -> bool:
    """Say whether an executed copy is there, and all of its code ran without an error."""
    try:
        notebook = nbformat.read(output, as_version=4)
    except Exception:  # missing, or torn by a kill: many kinds
        return False
    if notebook.metadata.get("papermill", {}).get("exception"):
        return False
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    # The cell in which a kernel died passes for completed, but often nobody counted it.
    return all(cell.execution_count is not None and not _raised(cell) for cell in code)


def _raised(cell: nbformat.NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.outputs)


def execute_all(
    jobs: Sequence[Job],
    *,
    cell_limit: float,
    environment: Mapping[str, str],
    stop_event: str = "",
    patience: float = PATIENCE,
) -> Outcome:
    """Execute notebooks one after the other; the first that fails is the last.

    `cell_limit`: seconds that a cell may take. `environment`: variables of the kernels, over those
    of this process. `stop_event`: name of a Dask event; once it is set, the kernel gets SIGINT,
    after `patience` seconds SIGTERM, then SIGKILL, and the outcome is `stopped`.
    """
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    should_stop: Callable[[], bool] = lambda: False  # noqa: E731
    if stop_event:
        should_stop = Event(stop_event, client=get_client()).is_set
    started = time.monotonic()
    for job in jobs:
        with _Watch(should_stop, patience) as watch:
            try:
                _execute(job, watch, cell_limit=cell_limit, environment=environment)
            except Exception as error:
                seconds = time.monotonic() - started
                if watch.stopping:
                    return Outcome("stopped", seconds)
                name, trace = _described(error)
                notebook = Path(job.notebook).name
                return Outcome.failed(name, notebook=notebook, trace=trace, seconds=seconds)
    return Outcome("done", time.monotonic() - started)


def _execute(
    job: Job, watch: "_Watch", *, cell_limit: float, environment: Mapping[str, str]
) -> None:
    require_parameters(Path(job.notebook), list(job.parameters))
    Path(job.output).parent.mkdir(parents=True, exist_ok=True)
    with _short_folder() as sockets:
        papermill.execute_notebook(
            job.notebook,
            job.output,
            dict(job.parameters),
            engine_name=ENGINE,
            progress_bar=False,
            start_timeout=START_LIMIT,
            execution_timeout=cell_limit,
            watch=watch,
            # Kernels that start at the same time race for TCP ports; sockets in files do not.
            config=Traits({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}}),
            kernel={"env": {**os.environ, **environment}, "cwd": str(Path(job.notebook).parent)},
        )


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """Make a folder whose path leaves room for a socket's, which may have about 100 characters."""
    root = "/tmp" if os.access("/tmp", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="lgq-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Engine(NBClientEngine):
    """papermill's engine, with a hand on the kernel."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man, kernel_name, *, execution_timeout, start_timeout, watch, config, kernel, **_
    ):
        client = PapermillNotebookClient(
            nb_man,
            timeout=execution_timeout,
            startup_timeout=start_timeout,
            kernel_name=kernel_name,
            log=logging.getLogger("papermill"),
            config=config,
            store_widget_state=False,
        )
        start_cell = nb_man.cell_start

        def start_unless_stopping(cell, cell_index, **more):
            if watch.stopping:
                raise Stopped
            start_cell(cell, cell_index, **more)

        nb_man.cell_start = start_unless_stopping
        watch.client = client
        try:
            return client.execute(**kernel)
        except Exception:  # a dead kernel, of whose cell papermill says that it was completed
            nb_man.nb.metadata.papermill["exception"] = True
            raise


papermill_engines.register(ENGINE, _Engine)


class _Watch:
    """Look every half second whether to stop, and see to it that the kernel does."""

    def __init__(self, should_stop: Callable[[], bool], patience: float):
        self.should_stop, self.patience = should_stop, patience
        self.stopping = False
        self.client: PapermillNotebookClient | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join(timeout=5)

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            try:
                stop = self.should_stop()
            except Exception:  # the cluster is gone, and with it whoever wanted the result
                stop = True
            if stop:
                self.stopping = True
                break
        # Training saves a checkpoint on the first two; a second SIGINT would be taken at its word.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self._ended.is_set():
                return
            with contextlib.suppress(AttributeError, ProcessLookupError, TypeError):
                os.kill(self.client.km.provisioner.pid, number)
            self._ended.wait(self.patience)


def _described(error: Exception) -> tuple[str, str]:
    """Give an error's name with its message, and its traceback, as plain text."""
    if isinstance(error, PapermillExecutionError):
        name, trace = f"{error.ename}: {error.evalue}", "\n".join(error.traceback)
    else:
        name = f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
    return ANSI.sub("", name), ANSI.sub("", trace)
