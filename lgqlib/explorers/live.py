"""Figures that a kernel keeps up to date: beside a widget, or while a run trains."""

import threading
from collections.abc import Mapping
from typing import Any

import pandas
import plotly.graph_objects as go
from IPython.display import display

from lgqlib.figures.style import show
from lgqlib.figures.training import training_curves


class SentWhole(go.FigureWidget):
    """A FigureWidget whose data are in the message that creates it.

    plotly's own opens its channel first and sends the data after it, as a change; a browser busy
    enough to draw in between, or to miss the change, shows an empty figure for good.
    """

    _built = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._built = True
        self.open()

    def open(self) -> None:
        """Open the channel to the browser, once everything is there to be sent."""
        if self._built:
            super().open()

    def move(self, traces: Mapping[str, Mapping]) -> None:
        """Change traces by their names, in one message."""
        with self.batch_update():
            for trace in self.data:
                trace.update(traces.get(trace.name, {}))

    def show(self) -> None:
        """Display it and, for where no kernel runs, itself standing still.

        A page with a live widget hides what stands still (`static/style.js`).
        """
        display(self)
        show(go.Figure(self))


class LiveCurves:
    """Show a run's curves and keep them up to date for as long as the `with` block lasts.

    The block trains in the main thread; another thread reads the run's log every `interval`
    seconds and sends what is new; without a live front end the messages go nowhere.

    Args:
        run: the `Run` that is being trained, or what has its `config` and `metrics()`.
        interval: seconds between looks at the log.
    """

    def __init__(self, run: Any, *, interval: float = 1.0):
        self.run, self.interval, self._seen = run, interval, -1
        self.widget = SentWhole(self._figure(run.metrics()))
        self.failure: Exception | None = None
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
        traces = {t.name: {"x": t.x, "y": t.y} for t in new.data}
        if [*traces] != [t.name for t in self.widget.data]:
            self.widget.data = ()
            self.widget.add_traces(new.data)
        with self.widget.batch_update():
            self.widget.move(traces)
            self.widget.layout.update(new.layout)

    def _follow(self) -> None:
        try:
            while not self._stop.wait(self.interval):
                self.update()
        except Exception as error:  # a curve that fails to draw must not end a training
            self.failure = error

    def _figure(self, metrics: pandas.DataFrame) -> go.Figure:
        quantizer = self.run.config.quantizer
        return training_curves(metrics, method=quantizer.method, num_codes=quantizer.num_codes)
