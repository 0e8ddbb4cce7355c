"""Kill, damage and misconfigure: what a run survives, what is detected, what is refused.

    python benchmarks/soak.py [--kills 150] [--damages 400] [--configs 600] [--seed 0]
    [--minutes 30] [--save]

Three parts. Kills: training dies of SIGKILL, at random moments and inside the writing of a
checkpoint, a snapshot, a line of metrics and the data store; each run is then finished, and must
equal one that nobody killed, to the bit. Damages: files of a run are cut, flipped and overwritten;
each must be refused with an error that names the file, be repaired, or change nothing that is read.
Configs: random values; each is refused with an error that names a field, or trains two steps. The
first thing that is lost ends the command with what it was.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import logging
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from soaking import damage, kills, settings

from lgqlib.assess import assess
from lgqlib.run import Run

HERE = Path(__file__).parent


def kill(options: argparse.Namespace, folder: Path, until: float) -> list[str]:
    """Kill, and give the lines of the report."""
    tally = kills.campaign(options.kills, seed=options.seed, folder=folder, until=until, say=say)
    total = tally.kills.total()
    lines = [
        "## Kills survived",
        "",
        f"{total} processes killed with SIGKILL in {tally.runs} runs of 100 steps; "
        f"lost: 0. All {tally.runs} runs equal, to the bit, the same run left alone: weights, "
        f"optimizer, snapshots and metrics (but for the clock's). {tally.seconds:.0f} s.",
        "",
        "| where | at a random time | between two system calls | in the middle of a write |",
        "|---|---|---|---|",
    ]
    for place in ("clock", *kills.PLACES):
        counts = [tally.kills[place, how] for how in ("time", "between", "torn")]
        name = "anywhere" if place == "clock" else place
        lines.append(f"| {name} | " + " | ".join(str(c) if c else "–" for c in counts) + " |")
    return lines


def harm(options: argparse.Namespace, folder: Path) -> list[str]:
    """Damage files, and give the lines of the report."""
    started = time.monotonic()
    run, cache = finished(folder)
    found = damage.damage(run, cache=cache, rounds=options.damages, seed=options.seed)
    total = sum(found.values(), Counter())
    lines = [
        "## Files corrupted",
        "",
        f"{total.total()} damages (flipped bits, cuts, zeros, noise, longer or empty files): "
        f"{total['detected']} refused by the file's name, {total['repaired']} repaired (a store "
        "built again, a torn end of the metrics left out), "
        f"{total['harmless']} without effect on what is read, read wrongly: 0. "
        f"{time.monotonic() - started:.0f} s.",
        "",
        f"| file | damages | {' | '.join(damage.OUTCOMES)} |",
        "|---|---|---|---|---|",
    ]
    for kind, counts in found.items():
        numbers = [counts.total(), *(counts[outcome] for outcome in damage.OUTCOMES)]
        lines.append(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")
    return lines


def finished(folder: Path) -> tuple[Run, Path]:
    """Train and evaluate a tiny run; give it with its cache."""
    config = kills.config_of(0, kills.make_images(folder / "images"))
    config = config.override("evaluation.extractor=")
    run = Run.create(folder, config)
    kills.train(config, run, cache=folder / "cache", progress=False)
    assess(run, cache=folder / "cache", train_batches=2, progress=False)
    return run, folder / "cache"


def misconfigure(options: argparse.Namespace, folder: Path, until: float) -> list[str]:
    """Try configs, and give the lines of the report."""
    started, outcomes = time.monotonic(), Counter()
    for number in range(options.configs):
        if time.monotonic() > until:
            break
        method, changes = settings.draw(random.Random(f"{options.seed} {number}"))
        root = folder / "configs"
        outcome, _ = settings.attempt(method, changes, root=root, cache=folder / "cache")
        outcomes[outcome] += 1
        shutil.rmtree(root, ignore_errors=True)
    return [
        "## Inputs refused",
        "",
        f"{outcomes.total()} configs with one to five fields drawn: {outcomes['refused']} refused "
        f"by a field's name, {outcomes['completed']} trained their two steps, "
        f"{outcomes['stopped']} stopped at a loss that is no number, anything else: 0. "
        f"{time.monotonic() - started:.0f} s.",
    ]


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def give_up(*_) -> None:
    """Stop what hangs: each part ends by itself before the time is up."""
    raise AssertionError("the time is up: something hangs")


def main() -> int:
    """Run the parts within the time; give 1 when something was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--damages", type=int, default=400, help="of each kind of file")
    parser.add_argument("--configs", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="at most")
    parser.add_argument("--save", action="store_true", help="write docs/results/soak.md")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(round(60 * options.minutes))
    logging.disable(logging.WARNING)  # a store that is built again says so a thousand times
    started = time.monotonic()

    def until(share: float) -> float:
        return started + 60 * options.minutes * share

    given = f"--kills {options.kills} --damages {options.damages} --configs {options.configs}"
    lines = [
        "# What a run survives",
        "",
        f"Command: `python benchmarks/soak.py {given} --seed {options.seed}` (`make soak`). "
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, one thread a process, "
        f"Python {platform.python_version()}. All randomness follows from the seed, but for what a "
        "process was doing when the clock killed it.",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            # First the kills: a process that forks must not have computed anything.
            if options.kills:
                lines += ["", *kill(options, folder / "kills", until(0.6))]
            if options.damages:
                lines += ["", *harm(options, folder / "damage")]
            if options.configs:
                lines += ["", *misconfigure(options, folder, until(0.95))]
        except AssertionError as error:
            say(f"LOST: {error}\n{traceback.format_exc()}")
            return 1
    text = "\n".join(lines) + "\n"
    say(text)
    if options.save:
        (HERE.parent / "docs" / "results" / "soak.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
