"""Curves that follow a run while it trains."""

import threading
from typing import Protocol, runtime_checkable

import pandas
import plotly.graph_objects as go
from IPython.display import display

from lgqlib.config import Config
from lgqlib.explorers.sent import SentWhole
from lgqlib.figures.training import training_curves


@runtime_checkable
class Logged(Protocol):
    """What live curves need of a run."""

    config: Config

    def metrics(self) -> pandas.DataFrame:
        """Give the log so far."""
        ...


class LiveCurves:
    """Show a run's curves and keep them up to date for as long as the `with` block lasts.

    The block trains in the main thread; another thread reads the run's log every `interval`
    seconds and sends what is new. Without a live front end the messages go nowhere, and nothing
    else changes.

    Args:
        run: the run that is being trained.
        interval: seconds between looks at the log.
    """

    def __init__(self, run: Logged, *, interval: float = 1.0):
        self.run, self.interval = run, interval
        self.widget = SentWhole(self._figure())
        self.failure: Exception | None = None
        self._seen = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "LiveCurves":
        display(self.widget)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        if exception[0] is None:
            self.update()

    def update(self) -> None:
        """Read the log once and show what is new."""
        metrics = self.run.metrics()
        if len(metrics) == self._seen:
            return
        self._seen = len(metrics)
        new = self._figure(metrics)
        with self.widget.batch_update():
            if [t.name for t in new.data] == [t.name for t in self.widget.data]:
                for old, trace in zip(self.widget.data, new.data, strict=True):
                    old.update(x=trace.x, y=trace.y)
            else:
                self.widget.data = ()
                self.widget.add_traces(new.data)
            self.widget.layout.update(new.layout)

    def _follow(self) -> None:
        try:
            while not self._stop.wait(self.interval):
                self.update()
        except Exception as error:  # a curve that fails to draw must not end a training
            self.failure = error

    def _figure(self, metrics: pandas.DataFrame | None = None) -> go.Figure:
        quantizer = self.run.config.quantizer
        return training_curves(
            self.run.metrics() if metrics is None else metrics,
            method=quantizer.method,
            num_codes=quantizer.num_codes,
        )
