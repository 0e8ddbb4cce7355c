"""Execute notebooks by papermill, with limits of time and a file that stops them; light imports."""

import ast
import contextlib
import logging
import os
import re
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil
from dask.distributed import get_worker
from traitlets.config import Config

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Job:
    """One notebook to execute, in its own folder, with values for its cell of parameters."""

    notebook: Path
    output: Path  # until the last cell has run, it is named `<name>.part.ipynb`
    parameters: Mapping[str, Any]


def parameters_of(notebook: Path) -> set[str]:
    """Give the names that a notebook's `parameters` cell assigns; ValueError for no such cell."""
    # papermill's own reading of the cell leaves out lines whose comment has an equals sign.
    try:
        cells = nbformat.read(notebook, as_version=4).cells
        (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    except Exception as error:  # nbformat raises many kinds
        raise ValueError(f"{notebook} has no one cell of parameters ({error!r}).") from None
    lines = [line for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)]
    return {t.id for line in lines for t in line.targets if isinstance(t, ast.Name)}


def execute(
    jobs: Sequence[Job], *, stop: Path, cell_limit: float, environment: Mapping, gpus: Sequence[str]
) -> dict[str, str]:
    """Execute notebooks one after the other; give the failure of the first that fails, or `{}`.

    The file `stop` interrupts the kernel. `cell_limit`: seconds. `gpus`: a Dask worker sees one.
    """
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    os.environ.update(environment)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(get_worker().name) % len(gpus)]
    for job in jobs:
        try:
            _execute(job, stop, cell_limit)
        except Exception as error:
            return failure(error, job.notebook.name)
    return {}


def failure(error: BaseException, notebook: str = "") -> dict[str, str]:
    """Describe an error as text: `notebook`, `error`, `traceback`, `host` and `time`."""
    # What failed in the kernel has the kernel's traceback, with colors.
    name, said = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    trace = getattr(error, "traceback", None) or traceback.format_exception(error)
    return {
        "notebook": notebook,
        "error": ANSI.sub("", f"{name}: {said}").strip(),
        "traceback": ANSI.sub("", "\n".join(line.rstrip("\n") for line in trace)),
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _execute(job: Job, stop: Path, cell_limit: float) -> None:
    import papermill

    def go_on(**_) -> None:
        if stop.exists():
            raise InterruptedError(f"{stop} is there.")

    job.output.parent.mkdir(parents=True, exist_ok=True)
    part, ended = job.output.with_suffix(".part.ipynb"), threading.Event()
    # A socket's path may have about 100 characters, which leaves no room for a long TMPDIR.
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lgq-", dir=short) as folder:
        connection = f"{os.path.realpath(folder)}/k.json"
        # Kernels that start at the same time race for TCP ports; sockets in files do not.
        ipc = {"transport": "ipc", "connection_file": connection}
        threading.Thread(target=_interrupt, args=(stop, connection, ended), daemon=True).start()
        try:
            papermill.execute_notebook(
                str(job.notebook),
                str(part),
                dict(job.parameters),
                kernel_name="python3",
                language="python",  # said here, as a notebook need not say it
                progress_bar=False,
                start_timeout=300,
                execution_timeout=cell_limit,
                # What follows goes to nbclient.
                config=Config({"KernelManager": ipc}),
                resources={"metadata": {"path": str(job.notebook.parent)}},
                extra_arguments=["--log-level=CRITICAL"],  # it calls its end an interrupt, in red
                store_widget_state=False,
                on_cell_start=go_on,
            )
        finally:
            ended.set()
    part.replace(job.output)


def _interrupt(stop: Path, connection: str, ended: threading.Event) -> None:
    """Send SIGINT to the kernel of a connection file as soon as the file `stop` is there."""
    while not ended.wait(0.5):
        if stop.exists():
            with contextlib.suppress(psutil.Error):  # it ended by itself
                for child in psutil.Process().children():
                    if connection in child.cmdline():
                        child.send_signal(signal.SIGINT)
            return


def __getattr__(name: str) -> type:
    """Build papermill's engine `lgqlib` when it is asked for, which papermill's own import does."""
    if name != "Light":
        raise AttributeError(name)
    from papermill.engines import NBClientEngine

    class Light(NBClientEngine):
        """papermill's own engine, which stores no widget's state: 5 MB of code for each."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            options["store_widget_state"] = False
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    return Light
