"""Kill and damage, again and again: nothing of a run may be lost.

    python benchmarks/soak.py [--kills 80] [--damages 300] [--seed 0]

Processes that train die at random moments, between two calls of the system, and in the middle of a
write; each run is then finished, and must equal, to the bit, one that nobody killed. Files of a run
and of a store are cut, flipped and overwritten; each must be refused by its name, be repaired, or
change nothing that is read. The first loss ends the command with what it was.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from lgqlib.config import Config
from lgqlib.data import SPLITS, identified, load
from lgqlib.presets import preset
from lgqlib.run import KEPT_CHECKPOINTS, Run
from lgqlib.train import train

TINY = (
    "data.name=imagefolder data.size=16 data.eval_crops=4 backbone.width=8 backbone.depth=1 "
    "train.num_steps=60 train.batch_size=4 train.log_every=2 train.eval_every=20 train.ema=0.9 "
    "train.checkpoint_every=4 train.num_snapshots=24 train.probe=32 evaluation.batch_size=4 "
    "quantizer.num_codes=36 loss.adversarial=0.1 loss.adversarial_start=0.8"
)
METHODS = ("lgq", "vq_ema", "fsq", "ibq")  # in turn: each keeps something else in a checkpoint
PLACES = {"checkpoints": 300_000, "snapshots": 2_000, "metrics.jsonl": 400, "stores": 10_000}
"""What is written, as its paths name it, and the most bytes of a write that dies in the middle."""
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "os.scandir"}
HOW = {"time": 1.2, "torn": 5, "between": 20}
"""Seconds, writes or calls after which a victim is dead at the latest."""


def config_of(number: int, folder: Path) -> Config:
    """Give the config of run `number`, on small images in `folder`."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    for i, values in enumerate(() if folder.exists() else pixels):
        path = folder / ("val" if i % 3 == 0 else "train") / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    tiny = f"{TINY} data.root='{folder}'"
    return identified(preset(method=METHODS[number % 4], seed=number, overrides=tiny))


def table(what: str, columns: tuple[str, ...], cases: list[tuple[str, str]]) -> str:
    """Count the cases of each row and column in a table in Markdown."""
    counts, rows = Counter(cases), [[what, *columns], ["---"] * (1 + len(columns))]
    for row in dict.fromkeys(row for row, _ in cases):
        rows.append([row, *(str(counts[row, column] or "–") for column in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def kill(count: int, seed: int, folder: Path) -> str:
    """Kill until there are `count`, in as many runs as that takes; give the report."""
    died, runs = [], 0
    while len(died) < count:
        config, chance = config_of(runs, folder / "images"), random.Random(f"{seed} {runs}")
        whole, _ = finish(config, folder / f"whole-{runs}", 0, chance)
        run, places = finish(config, folder / f"killed-{runs}", count - len(died), chance)
        assert left(run) == left(whole), f"{run.name} after {places} is another run"
        died, runs = died + places, runs + 1
        print(f"{run.name}: {len(places)} kills, equal to the run left alone", file=sys.stderr)
    said = f"{len(died)} processes killed in {runs} runs of 60 steps; lost 0: each equals, to the "
    said += "bit and but for the clock's readings, the same run left alone."
    return f"{said}\n\n{table('where', tuple(HOW), died)}"


def finish(config: Config, folder: Path, kills: int, chance: random.Random) -> tuple[Run, list]:
    """Train to the end through up to `kills` kills; give the run and where its processes died."""
    folder.mkdir(parents=True)
    died, step, status = [], 0, -1
    while status != 0:
        built = len(list(folder.rglob("index.json"))) == 2 or sum("stores" in d for d in died) > 3
        place = chance.choice(["anywhere", *list(PLACES)[:3], *([] if built else 8 * ["stores"])])
        how = "time" if place == "anywhere" else chance.choice(["torn", "between"])
        aim = (place, how, chance.uniform(0, HOW[how])) if len(died) < kills else None
        status = victim(config, folder, aim, chance.random())
        if status in (signal.SIGKILL, signal.SIGXFSZ):
            died.append((place, how))
        else:
            assert status == 0, f"{died}: {status}, {(folder / 'error.txt').read_text()}"
        if (folder / config.run_name / "config.json").exists():
            run = Run(folder / config.run_name)  # all that is left can be read, no step is lost
            _ = run.metrics(), run.snapshots(), run.load_checkpoint()
            assert run.step >= step, f"step {run.step} after {step}: {died}"
            step = run.step
    assert run.is_complete, f"step {run.step} after {died}"
    with run.locked():  # as the next who writes would
        assert not [*run.path.rglob("*.tmp.*")], f"leftovers of {died}"
    return run, died


def left(run: Run) -> dict:
    """Give all that training left, to the bit, but for the clock's readings."""
    kept = sorted(run.path.glob("checkpoints/*"))[-KEPT_CHECKPOINTS:]
    kept += [*run.path.glob("snapshots/*"), *run.path.parent.rglob("stores/*/*.*")]
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    files = {str(file.relative_to(run.path.parent)): file.read_bytes() for file in kept}
    return files | {"metrics": [line for line in lines if '"split": "timing"' not in line]}


def victim(config: Config, folder: Path, aim: tuple | None, share: float) -> int:
    """Train in a fork that dies where `aim` says; give its status."""
    pid = os.fork()
    if pid == 0:  # a fork that went on would be a second parent: it never returns
        code = 1
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            if aim and aim[1] != "time":
                sys.addaudithook(deadly(*aim, share))
            train(config, Run.create(folder, config), cache=folder / "cache", progress=False)
            code = 0
        except BaseException:
            (folder / "error.txt").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    if aim and aim[1] == "time":
        time.sleep(aim[2])
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def deadly(place: str, how: str, at: float, share: float):
    """Give a hook that dies at the n-th call in the place, or in the write after it."""
    seen = []

    def hook(event: str, arguments: tuple) -> None:
        is_there = event in EVENTS and any(place in f"{path}" for path in arguments[:2])
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wa"
        if not is_there or not (writes or how == "between"):
            return
        seen.append(event)
        if len(seen) == int(at) + 1 and how == "between":
            os.kill(os.getpid(), signal.SIGKILL)
        elif len(seen) == int(at) + 1:  # the kernel kills whoever writes beyond the limit
            begun = os.path.getsize(arguments[0]) if os.path.exists(arguments[0]) else 0
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limit = begun + int(share * PLACES[place])
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    return hook


def damage(count: int, seed: int, folder: Path) -> str:
    """Damage every kind of file `count` times; give the report."""
    config, cache = config_of(0, folder / "images"), folder / "cache"
    run = Run.create(folder, config)
    train(config, run, cache=cache, progress=False)
    run.save_evaluation({"psnr": 20.5, "kid": None, "name": "é"}, {"x": np.arange(100.0)})
    kinds = {
        "config.json": lambda: Run(run.path).config.to_dict(),
        f"checkpoints/{max(run.path.glob('checkpoints/*')).name}": run.load_checkpoint,
        "snapshots/*": run.snapshots,
        "metrics.jsonl": run._records,
        "evaluation.*": lambda: [run.evaluation(), run.arrays()],
        "../cache/stores/*/*.*": lambda: [load(config.data, s, cache=cache) for s in SPLITS],
    }
    cases = []
    for pattern, read in kinds.items():
        chance, whole = random.Random(f"{seed} {pattern}"), plain(read())
        for number in range(count):
            file = chance.choice(sorted(run.path.glob(pattern)))
            content = file.read_bytes()
            file.write_bytes(damaged := harm(content, chance))
            where = f"{pattern} {number}: {file.name}"
            try:
                found = plain(read())
            except ValueError as error:
                assert file.name in str(error), f"{where}: the error names no file: {error}"
                outcome = "refused"
            else:
                torn = "metrics" in pattern and len(found) < len(whole)
                assert found == (whole[: len(found)] if torn else whole), f"{where}: lost"
                outcome = "repaired" if torn or file.read_bytes() != damaged else "harmless"
            kind = next(kind for kind in ("config.json", *PLACES, "evaluation") if kind in pattern)
            cases.append((kind, outcome))
            file.write_bytes(content)
    said = f"{len(cases)} damages (bits, cuts, zeros, noise, longer, empty); lost 0: each is "
    said += "refused by the file's name, repaired, or changes nothing that is read."
    return f"{said}\n\n{table('file', ('refused', 'repaired', 'harmless'), cases)}"


def harm(content: bytes, chance: random.Random) -> bytes:
    """Damage bytes in one of many ways; a flipped bit is the most frequent."""
    place = chance.randrange(len(content))
    size, head = min(chance.randint(1, 64), len(content) - place), content[:place]
    bit = head + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    noise, end = chance.randbytes(size), content[place + size :]
    others = [head, head, head + bytes(size) + end, head + noise + end, content + noise, b""]
    return chance.choice([bit, bit, bit, *others])


def plain(value):
    """Give a value that `==` compares to the last bit."""
    value = value.numpy() if hasattr(value, "numpy") else value
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    value = vars(value) if hasattr(value, "__dataclass_fields__") else value
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else repr(value)


def main() -> int:
    """Run both parts and print the report; give 1 when something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"kills": 80, "damages": 300, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # a store that is built again says so a thousand times
    with tempfile.TemporaryDirectory() as temporary:
        try:  # First the kills: a process that forks must not have computed anything.
            killed = kill(asked.kills, asked.seed, Path(temporary) / "kills")
            damaged = damage(asked.damages, asked.seed, Path(temporary) / "damage")
        except Exception:
            print(f"LOST: {traceback.format_exc()}")
            return 1
    print(f"# What a run survives\n\n{killed}\n\n{damaged}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
