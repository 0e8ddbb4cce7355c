"""A study as a value: the runs that a YAML file names, all checked before any of them starts.

name: ablation              # folder below runs/
base:                       # of every run; `preset`, `method`, `num_codes`, `seed`, or any field by
  preset: laptop            # its dotted name
  data.eval_crops: 256
grid:                       # every combination of these
  method: [lgq, fsq]
  seed: [0, 1]
variants:                   # the grid once more for each, with further overrides
  - name: cosine
    method: lgq             # takes the place of the grid's
    temperature.kind: cosine  # or several values, [cosine, linear]
notebooks: [01_train, 02_evaluate]   # of each run, in this order (this is the default)
summary: [06_compare]       # executed once, at the end
cell_limit: 86400           # seconds that a notebook's cell may take (this is the default)
"""

import functools
import itertools
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lgqlib.config import Config
from lgqlib.presets import preset
from lgqlib.quantizers import build

KEYS = ("name", "base", "grid", "variants", "notebooks", "summary", "cell_limit")
NAMED = {"preset": "laptop", "method": "lgq", "num_codes": None, "seed": 0}
"""Parameters of notebook 01_train beside its overrides, and what they are unless given."""
LISTS = ("quantizer.levels",)
"""Fields whose value is itself a list; several of them are a list of lists."""
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study."""

    config: Config
    parameters: Mapping[str, Any]
    """Of notebook 01_train: `preset`, `method`, `num_codes`, `seed`, `overrides`."""
    variant: str = ""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.config.run_name


@dataclass(frozen=True)
class Study:
    """The runs of a study, and what is executed for them."""

    name: str
    runs: tuple[PlannedRun, ...]
    notebooks: tuple[str, ...] = ("01_train", "02_evaluate")
    summary: tuple[str, ...] = ()
    cell_limit: float = 86_400.0


class _Strict(yaml.SafeLoader):
    """Refuse a key given twice, of which YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor` gives keys that may be given again
        keys = [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"{key!r} is given twice in the block that starts at line {line}.")
        return super().construct_mapping(node, deep)


def read_study(path: Path | str) -> Study:
    """Read and check a study.

    Raises ValueError that names the file and the key, or the run, that is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        return parse_study(yaml.load(text, Loader=_Strict), folder=path.resolve().parent)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None


def parse_study(value: Any, *, folder: Path = Path()) -> Study:
    """Check what a study's file says; a relative `data.root` is below `folder`."""
    value = _mapping("the study", value, KEYS)
    for key in ("name", "grid"):
        _require(key in value, f"{key!r} is missing; a study has {', '.join(KEYS)}.")
    name, limit = value["name"], value.get("cell_limit", Study.cell_limit)
    is_name = isinstance(name, str) and FOLDER.fullmatch(name)
    _require(is_name, f"name = {name!r}: letters, digits, '.', '_' and '-', for it is a folder.")
    is_limit = isinstance(limit, int | float) and limit is not True and limit > 0
    _require(is_limit, f"cell_limit = {limit!r}: seconds, more than 0.")

    base, grid = _settings("base", value.get("base", {})), _settings("grid", value["grid"])
    for key, choices in grid.items():
        is_list = isinstance(choices, list)
        _require(is_list, f"grid.{key} = {choices!r}: write it as a list, [a, b].")
        _require(key not in base, f"{key} is in base and in grid; leave it in one.")
    points = _combinations("grid", grid)
    merged: dict[str, tuple[str, dict]] = {}
    for variant, choices in [("", [{}]), *_variants(value.get("variants", []))]:
        # A variant's own choices go outside, so that the seeds of a setting stay together.
        for overrides, point in itertools.product(choices, points):
            settings = point | overrides
            merged.setdefault(repr(sorted(settings.items())), (variant, settings))
    runs: dict[str, PlannedRun] = {}
    for variant, settings in merged.values():
        run = _planned(variant, settings, base, folder)
        runs.setdefault(run.name, run)  # two ways to one config are one run
    names = [_names(key, value.get(key, list(getattr(Study, key)))) for key in KEYS[4:6]]
    return Study(name, tuple(runs.values()), *names, float(limit))


def _planned(variant: str, point: Mapping, base: Mapping, folder: Path) -> PlannedRun:
    shown = " ".join(f"{key}={_text(value)}" for key, value in point.items())
    try:
        settings = base | point
        if settings.get("data.root"):
            settings["data.root"] = str((folder / str(settings["data.root"])).resolve())
        named = {key: settings.pop(key, default) for key, default in NAMED.items()}
        for key, item in named.items():
            kind, right = (str, "name") if key in ("preset", "method") else (int, "whole number")
            is_right = item is None or type(item) is kind
            _require(is_right, f"{key} = {item!r}: it must be a {right}.")
        start = preset(named.pop("preset"), **named)
        config = start.override(settings)
        _require_quantizer(replace(config, seed=0))
        overrides = " ".join(shlex.quote(f"{k}={_text(v)}") for k, v in settings.items())
        # The notebook builds its config from these: it must be the same one.
        same = start.override(overrides) == config
        _require(same, f"{overrides!r} does not survive being written as text.")
    except (ValueError, TypeError) as error:
        where = f"{variant}: {shown}" if variant else shown or "(base)"
        raise ValueError(f"run {where}: {error}") from None
    parameters = {"preset": (base | point).get("preset", NAMED["preset"]), **named}
    parameters |= {"num_codes": config.quantizer.num_codes, "overrides": overrides}
    return PlannedRun(config, parameters, variant)


@functools.cache
def _require_quantizer(config: Config) -> None:
    """Build a run's quantizer: a size may have no levels, or be no power of two."""
    build(config.quantizer, config.backbone.dim)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _mapping(where: str, value: Any, known: tuple[str, ...] = ()) -> dict[str, Any]:
    is_mapping = isinstance(value, Mapping)
    _require(is_mapping, f"{where} is {value!r}; it must hold names and values.")
    for key in value:
        is_known = isinstance(key, str) and (not known or key in known)
        _require(is_known, f"unknown key {key!r} in {where}; known: {', '.join(known)}.")
    return dict(value)


def _settings(where: str, value: Any) -> dict[str, Any]:
    """Check that keys are parameters of the notebook, or fields of a config by dotted names."""
    for key in (settings := _mapping(where, value)):
        short = key.removeprefix("quantizer.")
        _require(short == key or short not in NAMED, f"{where}.{key}: write it as {short!r}.")
        node: Any = NAMED if key in NAMED else Config()
        for part in key.split(".") if node is not NAMED else ():
            fields = getattr(node, "__dataclass_fields__", {})
            known = f"{', '.join(NAMED)}, and the fields of a config by dotted names, e.g. train.lr"
            _require(part in fields, f"unknown key {key!r} in {where}; known: {known}.")
            node = getattr(node, part)
    return settings


def _combinations(where: str, choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give every combination of lists of values; a value that is no list is the only one."""
    lists = {}
    for key, values in choices.items():
        several = isinstance(values, list) and (
            key not in LISTS or any(isinstance(item, list) for item in values)
        )
        lists[key] = values if several else [values]
        _require(lists[key], f"{where}: {key} = {values!r} has no value.")
        twice = any(lists[key].count(item) > 1 for item in lists[key])
        _require(not twice, f"{where}: {key} = {values!r} has a value twice.")
    return [dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())]


def _variants(value: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    is_list = isinstance(value, list)
    _require(is_list, f"variants = {value!r}: write it as a list of names with overrides.")
    variants: dict[str, list[dict[str, Any]]] = {}
    for item in value:
        settings = _mapping("variants", item)
        name = settings.pop("name", None)
        is_new = isinstance(name, str) and name and name not in variants
        _require(is_new, f"variants: name = {name!r}; each has a name of its own.")
        where = f"variant {name!r}"
        variants[name] = _combinations(where, _settings(where, settings))
    return list(variants.items())


def _names(key: str, value: Any) -> tuple[str, ...]:
    good = isinstance(value, list) and (value or key != "notebooks")
    good = good and all(isinstance(v, str) and FOLDER.fullmatch(v) for v in value)
    right = "a list of notebooks without .ipynb, each once"
    _require(good and len(set(value)) == len(value), f"{key} = {value!r}: {right}.")
    return tuple(value)
