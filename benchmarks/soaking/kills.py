"""Kill training with SIGKILL, again and again, and hold what is left against a run left alone.

Every victim is a process of its own. It is a fork of this one, which has imported PyTorch and used
none of it, so that a start costs a fraction of a second.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

import lgqlib.data.store
import lgqlib.run
from lgqlib.config import Config
from lgqlib.files import sha256
from lgqlib.presets import preset
from lgqlib.run import KEPT_CHECKPOINTS, Run
from lgqlib.train import train

TINY = (
    "data.size=16 data.eval_crops=4 backbone.width=8 backbone.depth=1 "
    "train.num_steps=100 train.batch_size=4 train.log_every=2 train.eval_every=20 "
    "train.checkpoint_every=4 train.num_snapshots=24 train.probe=32 train.ema=0.9 "
    "evaluation.batch_size=4"
)
METHODS = {
    "lgq": "quantizer.num_codes=32",
    "vq_ema": "quantizer.num_codes=32",
    "fsq": "quantizer.num_codes=36",
    "ibq": "quantizer.num_codes=32 loss.adversarial=0.1 loss.adversarial_start=0.3",
}
"""The runs, one after the other: what each method keeps in its checkpoint differs."""
PLACES = {
    "checkpoint": f"{os.sep}checkpoints{os.sep}",
    "snapshot": f"{os.sep}snapshots{os.sep}",
    "metrics": "metrics.jsonl",
    "store": f"{os.sep}stores{os.sep}",
}
"""What is being written, and how its paths are told."""
EVENTS = {
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.listdir",
    "tempfile.mkdtemp", "shutil.rmtree",
}  # fmt: skip
LONGEST = 1.2
"""Seconds after which a victim of the clock is dead at the latest."""


@dataclass(frozen=True)
class Aim:
    """Where a victim dies."""

    place: str
    """`clock`, or a name of `PLACES`."""
    how: str = "time"
    """`time`; `between` two calls of the system; `torn`, in the middle of a write."""
    at: float = 0.0
    """Seconds, or the number of the call."""
    share: float = 0.0
    """Of a torn write, how much reaches the file."""


@dataclass
class Tally:
    """What happened."""

    kills: Counter = field(default_factory=Counter)
    """By place and how."""
    runs: int = 0
    """Runs that were killed, resumed to their end and found equal."""
    seconds: float = 0.0


def draw_aim(random_: random.Random, *, building: bool) -> Aim:
    """Draw where the next victim dies; in the store only while it is being built."""
    places = ["clock", "checkpoint", "snapshot", "metrics"]
    place = random_.choice(places + 8 * ["store"] * building)
    if place == "clock":
        return Aim(place, at=random_.uniform(0, LONGEST))
    if random_.random() < 0.5:
        return Aim(place, "torn", random_.randint(1, 6), random_.random())
    return Aim(place, "between", random_.randint(1, 20 if place == "store" else 45))


def make_images(folder: Path, *, count: int = 12) -> Path:
    """Write a folder of small images, of which the stores are built."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    for i, values in enumerate(pixels):
        path = folder / ("val" if i % 3 == 0 else "train") / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return folder


def config_of(number: int, images: Path) -> Config:
    """Give the config of the campaign's run `number`."""
    method = list(METHODS)[number % len(METHODS)]
    tiny = preset("laptop", method=method, seed=number).override(f"{TINY} {METHODS[method]}")
    return tiny.override({"data.name": "imagefolder", "data.root": str(images)})


def campaign(kills: int, *, seed: int, folder: Path, until: float, say: Callable) -> Tally:
    """Kill until there are `kills`, in as many runs as that takes; each is then finished and held
    against one that nobody killed.

    `until`: no new run begins after this reading of `time.monotonic`. Raises AssertionError, with
    the run and its aims, at the first thing that was lost.
    """
    started, tally = time.monotonic(), Tally()
    images = make_images(folder / "images")
    while tally.kills.total() < kills and time.monotonic() < until:
        config = config_of(tally.runs, images)
        random_ = random.Random(f"{seed} {tally.runs}")
        alone = _finished(config, folder / f"alone-{tally.runs}", kills=0, random_=random_)[0]
        left = kills - tally.kills.total()
        run, died = _finished(config, folder / f"killed-{tally.runs}", kills=left, random_=random_)
        assert fingerprint(run) == fingerprint(alone), f"{run.name} after {died} is another run"
        tally.kills.update((aim.place, aim.how) for aim in died)
        tally.runs += 1
        say(f"{run.name}: {len(died)} kills, equal to the run left alone")
    tally.seconds = time.monotonic() - started
    return tally


def _finished(
    config: Config, folder: Path, *, kills: int, random_: random.Random
) -> tuple[Run, list[Aim]]:
    """Train to the end through up to `kills` kills; give the run and where its processes died."""
    died: list[Aim] = []
    path, cache = folder / config.run_name, folder / "cache"
    step = 0
    while True:
        has_store = len(list(cache.glob("stores/*/images"))) == 2
        building = not has_store and sum(aim.place == "store" for aim in died) < 3
        aim = draw_aim(random_, building=building) if len(died) < kills else None
        status = _victim(config, folder, cache, aim)
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            assert code == 0, f"after {died}: {(folder / 'error.txt').read_text()}"
            break
        number = os.WTERMSIG(status)
        assert number == signal.SIGKILL and aim is not None, f"signal {number} after {died}"
        died.append(aim)
        step = _inspect(path, step, died)
    run = Run.open(path)
    assert run.is_complete, f"step {run.step} after {died}"
    with run.locked():  # as the next who writes would: after a kill at the very end nobody has yet
        left = [*path.rglob("*.tmp")]
    assert not left, f"{left} are left of {died}"
    return run, died


def _inspect(path: Path, before: int, died: list[Aim]) -> int:
    """Read all that a kill left: whole, and no step further back than `before`; give the step."""
    if not (path / "config.json").exists():
        return 0
    run = Run.open(path)
    run.metrics()
    run.snapshots()
    step = run.step
    assert step >= before, f"step {step} after {before}: {died}"
    if step:
        folder = path / "checkpoints" / f"step-{step:08d}"
        for name, expected in run.state["files"].items():
            assert sha256(folder / name) == expected, f"{name} is torn: {died}"
    return step


def fingerprint(run: Run) -> dict[str, object]:
    """Give all that training left, to the bit, but for the clock's readings."""
    # Killed after its last checkpoint, a run may have an older one that was to be removed.
    kept = sorted(run.path.glob("checkpoints/*"))[-KEPT_CHECKPOINTS:]
    files = [file for folder in kept for file in folder.iterdir()]
    found: dict[str, object] = {str(f.relative_to(run.path)): sha256(f) for f in files}
    # safetensors writes the names of a snapshot's metadata in any order: compare what they say.
    found["snapshots"] = [
        [v.tobytes() if isinstance(v, np.ndarray) else repr(v) for v in vars(snapshot).values()]
        for snapshot in run.snapshots()
    ]
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return found | {"metrics": [line for line in lines if '"split": "timing"' not in line]}


# Victims -----------------------------------------------------------------------------------------


def _victim(config: Config, folder: Path, cache: Path, aim: Aim | None) -> int:
    """Train in a fork that dies where `aim` says; give its status."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        _train_and_leave(config, folder, cache, aim)
    try:
        if aim is not None and aim.how == "time":
            time.sleep(aim.at)
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    except BaseException:  # the time is up, or Ctrl-C: leave nothing behind
        os.kill(pid, signal.SIGKILL)
        raise


def _train_and_leave(config: Config, folder: Path, cache: Path, aim: Aim | None) -> None:
    """Never return: a fork that went on would be a second parent."""
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if aim is not None and aim.how == "between":
            _die_between(aim)
        elif aim is not None and aim.how == "torn":
            _die_torn(aim, folder / config.run_name)
        run = Run.create(folder, config)
        train(config, run, cache=cache, progress=False)
        code = 0
    except BaseException:
        (folder / "error.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_between(aim: Aim) -> None:
    """Die at the n-th call that opens, makes, moves or removes something in the place."""
    seen, mark = [], PLACES[aim.place]

    def hook(event: str, arguments: tuple) -> None:
        is_there = event in EVENTS and any(mark in f"{path}{os.sep}" for path in arguments[:2])
        # What is removed with a folder is named relative to it.
        is_removal = event in ("os.remove", "os.rmdir") and "shutil.rmtree" in seen[-9:]
        if is_there or is_removal:
            seen.append(event)
            if len(seen) == aim.at:
                _die()

    sys.addaudithook(hook)


def _die_torn(aim: Aim, path: Path) -> None:
    """Die in the n-th write to the place, when a share of it is on the disk."""
    calls = []

    def tearing(write: Callable, tear: Callable) -> Callable:
        def either(*arguments, **named):
            calls.append(1)
            if len(calls) < aim.at:
                return write(*arguments, **named)
            tear(*arguments, **named)
            return _die()

        return either

    def cut(values, file, **named) -> None:
        save(values, file, **named)
        os.truncate(file, int(aim.share * os.path.getsize(file)))

    def half_a_line(record) -> None:
        text = line(record)
        with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(text[: int(aim.share * len(text))])

    def half_an_image(file, pixels, **_) -> None:
        content = pixels.tobytes()
        file.write(content[: int(aim.share * len(content))])

    line = lgqlib.run.sealed_line
    if aim.place == "metrics":
        lgqlib.run.sealed_line = tearing(line, half_a_line)
    elif aim.place == "store":
        lgqlib.data.store._write = tearing(lgqlib.data.store._write, half_an_image)
    else:
        name = {"checkpoint": "save_file", "snapshot": "save_arrays"}[aim.place]
        save = getattr(lgqlib.run, name)
        setattr(lgqlib.run, name, tearing(save, cut))
