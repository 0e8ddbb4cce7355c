"""How far the runs of a study are: bars on a terminal, a line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm.auto import tqdm

from lgqlib.run import Run

LINE_EVERY = 20
"""Seconds between lines of progress where there is no terminal."""


def duration(seconds: float) -> str:
    """Write a duration in seconds, or from 100 on in minutes."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def progress_of(run: Run) -> tuple[int, str]:
    """Give a running run's step, and a line about it: step, images/s, time left."""
    steps = run.config.train.num_steps
    try:
        metrics = run.metrics()
    except ValueError as error:  # a damaged file: the run's own notebook will stop at it
        return 0, str(error)
    train = metrics[metrics["split"] == "train"] if len(metrics) else metrics
    if not len(train):
        return 0, "starting"
    step = int(train["step"].iloc[-1])
    if step >= steps:
        return step, f"step {step}/{steps}, evaluating"
    timing = metrics[metrics["split"] == "timing"]
    speed = float(timing["images_per_second"].iloc[-1]) if len(timing) else math.nan
    text = f"step {step}/{steps}"
    if speed > 0:
        left = (steps - step) * run.config.train.batch_size / speed
        text += f", {speed:.0f} images/s, {duration(left)} left"
    return step, text


class Display:
    """A bar for each running run on a terminal, and a line now and then elsewhere."""

    def __init__(self):
        self.live = sys.stderr.isatty()
        self.bars: dict[str, tqdm] = {}
        self.looked = self.spoke = -math.inf

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def update(self, running: Mapping[str, Path]) -> None:
        """Show how far the running runs are; looked up once a second."""
        now = time.monotonic()
        if now - self.looked < 1:
            return
        self.looked = now
        speak = not self.live and now - self.spoke >= LINE_EVERY
        for name, path in running.items():
            if not (self.live or speak):
                break
            run = Run.open(path)
            step, text = progress_of(run)
            if speak:
                self.spoke = now
                self.say(f"{name}: {text}")
                continue
            if name not in self.bars:
                self.bars[name] = tqdm(
                    total=run.config.train.num_steps,
                    desc=name,
                    leave=False,
                    bar_format="{desc} {bar} {postfix}",
                )
            self.bars[name].n = step
            self.bars[name].set_postfix_str(text)

    def forget(self, name: str) -> None:
        """Remove the bar of a run that ended."""
        if name in self.bars:
            self.bars.pop(name).close()
