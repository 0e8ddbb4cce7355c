"""Configs of any values: each is refused by a field's name, or trains two steps."""

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from lgqlib import config
from lgqlib.config import Config
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.train import NonFiniteLoss, train

BASE = (
    "data.size=16 data.eval_crops=4 backbone.width=8 backbone.depth=1 quantizer.num_codes=16 "
    "train.num_steps=2 train.batch_size=2 train.probe=16 evaluation.batch_size=4"
)
INTEGERS = (-1, 0, 1, 2, 3, 5, 8, 16, 20, 32, 10**10, math.nan, 1.5, True, None, "many", [2])
FLOATS = (-1.0, 0, 1e-9, 1e-6, 0.3, 1, 2.5, 1e4, 1e30, math.nan, math.inf, True, None, "much")
BOOLEANS = (True, False, 1, None, "perhaps")
LEVELS = ((), (16,), (4, 4), (2, 8), (2, 2, 2, 2), (3, 3), (0,), (-4, -4), (4.0, 4), "4,4", 16)
CHOICES = {
    "data.name": ("photos", "imagefolder"),
    "data.root": ("", "nowhere"),
    "backbone.family": ("patch", "vqgan"),
    "backbone.norm": ("layer", "group", "group+layer", "none"),
    "quantizer.method": config.METHODS,
    "quantizer.lgq.energy": config.ENERGIES,
    "quantizer.lgq.codebook_loss": ("commit", "free_energy"),
    "quantizer.lgq.usage": ("square", "entropy"),
    "quantizer.lgq.initialization": config.INITIALIZATIONS,
    "quantizer.lgq.engine": ("auto", "dense", "streaming", "triton"),
    "temperature.kind": ("linear", "cosine", "exponential", "constant"),
    "loss.reconstruction": ("l1", "l2"),
    "train.decay": ("cosine", "constant"),
    "train.precision": ("no", "bf16", "fp16"),
    "evaluation.extractor": ("lite2", "lite0", "", "missing.pt"),
    "evaluation.distance": ("", "missing.pt"),
}
UNLIKE = ("Nonsense", "", 3, None)
SLOW = {"train.compile", "train.num_steps", "version"}
"""Fields that keep their value: a compiler's minutes, the steps themselves, and the format."""


def _tree(value: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for item in dataclasses.fields(value):
        inner = getattr(value, item.name)
        if dataclasses.is_dataclass(inner):
            found |= _tree(inner, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = inner
    return found


DEFAULTS = _tree(Config())
FIELDS = sorted(DEFAULTS.keys() - SLOW)
METHODS = config.METHODS


def values_of(field: str) -> tuple:
    """Give the values to try in a field: fitting, extreme, and of other types."""
    default = DEFAULTS[field]
    if field in CHOICES:
        return CHOICES[field] + UNLIKE
    kinds = {bool: BOOLEANS, int: INTEGERS, float: FLOATS, tuple: LEVELS}
    return kinds[type(default)]


def fits(field: str, value: Any) -> bool:
    """Say whether a config takes this value when all else is as it was."""
    try:
        preset("laptop").override(BASE).override({field: value})
    except ValueError:
        return False
    return True


FITTING = {field: [v for v in values_of(field) if fits(field, v)] for field in FIELDS}


def draw(random_: random.Random) -> tuple[str, dict[str, Any]]:
    """Draw a method and the values of one to five fields; now and then a field that is none.

    Most values fit by themselves, for one that does not would hide what else is wrong.
    """
    fields = random_.sample(FIELDS, random_.randint(1, 5))
    changes = {}
    for field in fields:
        values = FITTING[field] if FITTING[field] and random_.random() < 0.85 else values_of(field)
        changes[field] = random_.choice(values)
    if random_.random() < 0.05:
        changes[random_.choice(["train.lrr", "speed", "data"])] = 1
    return random_.choice(METHODS), changes


def attempt(method: str, changes: dict[str, Any], *, root: Path, cache: Path) -> tuple[str, str]:
    """Train two steps, or give the refusal: (`completed`, ``), (`refused` or `stopped`, message).

    Raises AssertionError when a refusal names no field, and whatever else goes wrong.
    """
    # accelerate keeps the precision of a process's first run for good; here each has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        chosen = preset("laptop", method=method).override(BASE).override(changes)
        run = Run.create(root, chosen)
        train(chosen, run, cache=cache, progress=False)
    except NonFiniteLoss as error:
        return "stopped", str(error)
    except ValueError as error:
        known = [*DEFAULTS, *changes]
        named = [field for field in known if field in str(error)]
        assert named, f"{method} {changes}: the refusal names no field: {error}"
        return "refused", str(error)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert run.step == chosen.train.num_steps
    assert math.isfinite(run.metrics()["loss"].dropna().iloc[-1])
    return "completed", ""
