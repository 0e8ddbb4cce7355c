"""A crew of Dask workers that executes notebooks, and can be told to stop."""

import collections
import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import dask
from dask.distributed import Client, Event, Future, LocalCluster, WorkerPlugin

from lgqlib.study.execute import PATIENCE, THREAD_VARIABLES, Job, Outcome, execute_all

SLOW_MACHINE = {
    "distributed.comm.timeouts.connect": "300s",
    "distributed.comm.timeouts.tcp": "300s",
    "distributed.scheduler.worker-ttl": None,
}
BYTES_A_RUN = 2 * 2**30
"""Memory that a kernel may take, when workers are counted."""


class StopSignals:
    """Count SIGINT and SIGTERM instead of dying of them; the second one acts at once."""

    def __enter__(self) -> "StopSignals":
        self.count = 0
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class _IgnoreInterrupt(WorkerPlugin):
    """Leave Ctrl-C, which a terminal sends to every process, to the one that started them."""

    def setup(self, worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def fitting_workers(num_runs: int, *, num_gpus: int, cores: int, memory: int) -> int:
    """Give how many runs at a time fit a machine: one a GPU, or one a core with its memory."""
    fitting = num_gpus or min(cores, memory // BYTES_A_RUN)
    return max(1, min(num_runs, fitting))


@contextlib.contextmanager
def cluster(workers: int, scheduler: str = "") -> Iterator[Client]:
    """Connect to a scheduler, or start a local cluster of single-threaded workers."""
    if scheduler:
        with Client(scheduler, timeout=30) as client:
            yield client
        return
    with (
        # A machine that is short of memory or of cores is slow, not gone.
        dask.config.set(SLOW_MACHINE),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port: two studies may run at a time
            memory_limit=0,  # the kernels need the memory, not the workers
            silence_logs=logging.CRITICAL,
        ) as local,
        Client(local) as client,
    ):
        client.register_plugin(_IgnoreInterrupt())
        yield client


class Crew:
    """Execute the notebooks of many tasks, as many at a time as there are workers.

    Args:
        client: of the cluster; its machines share the folders.
        signals: what asks to stop.
        threads: CPU threads of a kernel.
        gpus: GPUs of this machine among which tasks are dealt; 0 or 1 leaves them as they are.
        cell_limit: seconds that a cell may take.
        patience: seconds that a kernel has to stop, before it is told so more firmly.
    """

    def __init__(
        self,
        client: Client,
        signals: StopSignals,
        *,
        threads: int,
        gpus: int,
        cell_limit: float,
        patience: float = PATIENCE,
    ):
        self.client, self.signals = client, signals
        self.threads, self.gpus = threads, gpus
        self.cell_limit, self.patience = cell_limit, patience
        self.stopped = False
        self._stop = Event(f"stop-{uuid.uuid4().hex}", client=client)

    def outcomes(
        self, tasks: Mapping[str, Sequence[Job]], watch: Callable[[Sequence[str]], None]
    ) -> Iterator[tuple[str, Outcome]]:
        """Give each task as it ends; `watch` sees the names of those that run, again and again.

        Once a signal came nothing more is begun, and what runs is asked to stop.
        """
        waiting, running = collections.deque(tasks), {}
        free: list[int] = []
        while running or (waiting and not self.stopped):
            if self.signals.count and not self.stopped:
                self.stopped = True
                self._stop.set()
            while waiting and not self.stopped and len(running) < self._num_workers():
                slot = free.pop() if free else len(running)
                name = waiting.popleft()
                running[name] = (self._submit(tasks[name], slot), slot)
            watch(list(running))
            for name in [n for n, (future, _) in running.items() if future.done()]:
                future, slot = running.pop(name)
                free.append(slot)
                yield name, _outcome(future)
            time.sleep(0.2)
        self.stopped |= bool(self.signals.count)

    def _num_workers(self) -> int:
        return sum(self.client.nthreads().values())

    def _submit(self, jobs: Sequence[Job], slot: int) -> Future:
        environment = dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        if self.gpus > 1:
            given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            names = given.split(",") if given else [str(i) for i in range(self.gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
        return self.client.submit(
            execute_all,
            jobs,
            cell_limit=self.cell_limit,
            environment=environment,
            stop_event=self._stop.name,
            patience=self.patience,
            pure=False,
        )


def _outcome(future: Future) -> Outcome:
    if future.status == "finished":
        return future.result()
    error = future.exception(timeout=5) if future.status == "error" else None
    said = f"{type(error).__name__}: {error}" if error else f"the cluster has {future.status} it."
    return Outcome.failed(said)
