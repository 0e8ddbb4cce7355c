"""Damage the files of a finished run, and see that each is detected, repaired or without effect."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lgqlib.data import load
from lgqlib.run import Run

OUTCOMES = ("detected", "repaired", "harmless")


@dataclass(frozen=True)
class Kind:
    """A kind of file, how it is read, and what may be read of a damaged one."""

    files: list[Path]
    read: Callable[[], Any]
    repaired: Callable[[Any, Any], bool] = lambda found, whole: False
    """Whether what was found is what the library promises to make of a damaged file."""


def kinds_of(run: Run, cache: Path) -> dict[str, Kind]:
    """Give the kinds of files of a trained and evaluated run."""
    path = run.path
    newest = sorted((path / "checkpoints").iterdir())[-1]
    stores = sorted(p for p in cache.glob("stores/*/images/*") if p.is_file())
    return {
        "config": Kind([path / "config.json"], lambda: Run.open(path).config.to_dict()),
        "checkpoint": Kind(sorted(newest.iterdir()), lambda: _plain(run.load_checkpoint())),
        "snapshot": Kind(sorted((path / "snapshots").iterdir()), lambda: _plain(run.snapshots())),
        "metrics": Kind([path / "metrics.jsonl"], run._records, _is_beginning),
        "evaluation": Kind(
            sorted(path.glob("evaluation.*")), lambda: _plain([run.evaluation(), run.arrays()])
        ),
        # A cache is built again, and then the same as before.
        "store": Kind(stores, lambda: _stores(run, cache), lambda found, whole: found == whole),
    }


def _stores(run: Run, cache: Path) -> list[Any]:
    """Read both stores; which of them had to be built again is seen from their times."""
    sets = [load(run.config.data, split, cache=cache) for split in ("train", "val")]
    return [(s.content, s.names, s.classes, s.skipped, _plain(s.pixels)) for s in sets]


def _plain(value: Any) -> Any:
    """Give a value that `==` compares to the last bit."""
    if hasattr(value, "numpy"):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return repr(value)


def _is_beginning(found: list, whole: list) -> bool:
    """A torn end is left out; training logs it again."""
    return found == whole[: len(found)]


def _holds(found: Any, whole: Any) -> bool:
    """Whether all is there as it was; a damaged name of a checksum may have come to it."""
    if isinstance(whole, dict) and isinstance(found, dict):
        return all(name in found and _holds(found[name], whole[name]) for name in whole)
    if isinstance(whole, list) and isinstance(found, list):
        return len(found) == len(whole) and all(map(_holds, found, whole))
    return found == whole


def harm(content: bytes, random_: random.Random) -> tuple[str, bytes]:
    """Damage bytes in one of many ways; give its name and the result."""
    how = random_.choice(["bit", "bit", "bit", "cut", "cut", "zeros", "noise", "longer", "empty"])
    place = random_.randrange(len(content))
    size = random_.randint(1, 64)
    damaged = bytearray(content)
    if how == "bit":
        damaged[place] ^= 1 << random_.randrange(8)
    elif how == "cut":
        del damaged[place:]
    elif how == "zeros":
        damaged[place : place + size] = bytes(len(damaged[place : place + size]))
    elif how == "noise":
        damaged[place : place + size] = random_.randbytes(len(damaged[place : place + size]))
    elif how == "longer":
        damaged += random_.randbytes(size)
    else:
        damaged.clear()
    return how, bytes(damaged)


def damage(run: Run, *, cache: Path, rounds: int, seed: int) -> dict[str, Counter]:
    """Damage every kind of file `rounds` times; count the outcomes.

    Raises AssertionError when something else was read without a word, or another error came.
    """
    return {
        name: _damage_kind(kind, name, rounds=rounds, random_=random.Random(f"{seed} {name}"))
        for name, kind in kinds_of(run, cache).items()
    }


def _damage_kind(kind: Kind, name: str, *, rounds: int, random_: random.Random) -> Counter:
    whole, outcomes = kind.read(), Counter()
    for number in range(rounds):
        file = random_.choice(kind.files)
        content = file.read_bytes()
        how, damaged = harm(content, random_)
        if damaged == content:
            outcomes["harmless"] += 1
            continue
        file.write_bytes(damaged)
        where = f"{name} {number}: {file.name}, {how}"
        try:
            found = kind.read()
        except ValueError as error:
            assert file.name in str(error), f"{where}: the error names no file: {error}"
            outcomes["detected"] += 1
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        else:
            # What was built again has other bytes than those that were planted.
            is_rebuilt = name == "store" and file.read_bytes() != damaged
            if not is_rebuilt and _holds(found, whole):
                outcomes["harmless"] += 1
            else:
                assert kind.repaired(found, whole), f"{where}: read without a word"
                outcomes["repaired"] += 1
        file.write_bytes(content)
    return outcomes


def copied(run: Run, cache: Path, folder: Path) -> tuple[Run, Path]:
    """Copy a run and its stores, to be damaged."""
    shutil.copytree(run.path, folder / run.name)
    shutil.copytree(cache, folder / "cache")
    return Run.open(folder / run.name), folder / "cache"
