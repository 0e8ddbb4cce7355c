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

import dataclasses
import functools
import itertools
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lgqlib.config import Config
from lgqlib.presets import preset
from lgqlib.quantizers import build

KEYS = ("name", "base", "grid", "variants", "notebooks", "summary", "cell_limit")
NAMED = {"preset": str, "method": str, "num_codes": int, "seed": int}
"""Parameters of notebook 01_train beside its overrides, and their types."""
LISTS = ("quantizer.levels",)
"""Fields whose value is itself a list; several of them are a list of lists."""
INSTEAD = {"quantizer.method": "method", "quantizer.num_codes": "num_codes"}
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Cell:
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
    cells: tuple[Cell, ...]
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
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None
    try:
        return parse_study(yaml.load(text, Loader=_Strict), folder=path.resolve().parent)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None


def parse_study(value: Any, *, folder: Path = Path()) -> Study:
    """Check what a study's file says; a relative `data.root` is below `folder`."""
    value = _mapping("the study", value, KEYS)
    for key in ("name", "grid"):
        if key not in value:
            raise ValueError(f"{key!r} is missing; a study has {', '.join(KEYS)}.")
    name = value["name"]
    if not isinstance(name, str) or not FOLDER.fullmatch(name):
        raise ValueError(f"name = {name!r}: letters, digits, '.', '_' and '-', for it is a folder.")

    base = _settings("base", value.get("base", {}))
    grid = _settings("grid", value["grid"])
    for key, choices in grid.items():
        if not isinstance(choices, list):
            raise ValueError(f"grid.{key} = {choices!r}: write it as a list, [a, b].")
    both = set(base) & set(grid)
    if both:
        raise ValueError(f"{', '.join(sorted(both))} is in base and in grid; leave it in one.")

    points = _combinations("grid", grid)
    cells: dict[str, Cell] = {}
    seen: set[str] = set()
    for variant, choices in [("", [{}]), *_variants(value.get("variants", []))]:
        # A variant's own choices go outside, so that the seeds of a setting stay together.
        for overrides, point in itertools.product(choices, points):
            merged = point | overrides
            if (key := repr(sorted(merged.items()))) not in seen:
                seen.add(key)
                cell = _cell(variant, merged, base, folder)
                cells.setdefault(cell.name, cell)  # two ways to one config are one run
    return Study(
        name,
        tuple(cells.values()),
        _names("notebooks", value.get("notebooks", list(Study.notebooks))),
        _names("summary", value.get("summary", [])),
        _seconds(value.get("cell_limit", Study.cell_limit)),
    )


def _cell(variant: str, point: Mapping, base: Mapping, folder: Path) -> Cell:
    shown = " ".join(f"{key}={_text(value)}" for key, value in point.items())
    where = f"run {variant + ': ' if variant else ''}{shown or '(base)'}"
    try:
        settings = base | point
        if settings.get("data.root"):
            settings["data.root"] = str((folder / str(settings["data.root"])).resolve())
        named = {key: settings.pop(key) for key in NAMED if key in settings}
        for key, item in named.items():
            if not isinstance(item, NAMED[key]) or isinstance(item, bool):
                kind = "a whole number" if NAMED[key] is int else "a name"
                raise ValueError(f"{key} = {item!r}: it must be {kind}.")
        seed, method = named.get("seed", 0), named.get("method", "lgq")
        start = preset(
            named.get("preset", "laptop"),
            method=method,
            num_codes=named.get("num_codes"),
            seed=seed,
        )
        config = start.override(settings)
        _require_quantizer(dataclasses.replace(config, seed=0))
        parameters = {
            "preset": named.get("preset", "laptop"),
            "method": method,
            "num_codes": config.quantizer.num_codes,
            "seed": seed,
            "overrides": " ".join(
                shlex.quote(f"{key}={_text(value)}") for key, value in settings.items()
            ),
        }
        # The notebook builds its config from these: it must be the same one.
        if start.override(parameters["overrides"]) != config:
            raise ValueError(f"{parameters['overrides']!r} does not survive being written as text.")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    return Cell(config, parameters, variant)


@functools.cache
def _require_quantizer(config: Config) -> None:
    """Build a run's quantizer: a size may have no levels, or be no power of two."""
    build(config.quantizer, config.backbone.dim)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return str(value)


def _mapping(where: str, value: Any, known: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}; it must hold names and values.")
    for key in value:
        if not isinstance(key, str) or (known and key not in known):
            raise ValueError(f"unknown key {key!r} in {where}; known: {', '.join(known)}.")
    return dict(value)


def _setting(where: str, key: str) -> None:
    if key in INSTEAD:
        raise ValueError(f"{where}.{key}: write it as {INSTEAD[key]!r}.")
    if key in NAMED:
        return
    node: Any = Config()
    for part in key.split("."):
        if not hasattr(node, part) or part.startswith("_") or callable(getattr(node, part)):
            raise ValueError(
                f"unknown key {key!r} in {where}; known: {', '.join(NAMED)}, and the fields of a "
                "config by their dotted names, e.g. train.lr."
            )
        node = getattr(node, part)


def _settings(where: str, value: Any) -> dict[str, Any]:
    settings = _mapping(where, value)
    for key in settings:
        _setting(where, key)
    return settings


def _combinations(where: str, choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give every combination of lists of values; a value that is no list is the only one."""
    lists = {}
    for key, values in choices.items():
        one = not isinstance(values, list) or (
            key in LISTS and not any(isinstance(item, list) for item in values)
        )
        lists[key] = [values] if one else values
        if not lists[key]:
            raise ValueError(f"{where}: {key} = {values!r} has no value.")
        if any(lists[key].count(item) > 1 for item in lists[key]):
            raise ValueError(f"{where}: {key} = {values!r} has a value twice.")
    return [dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())]


def _variants(value: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    if not isinstance(value, list):
        raise ValueError(f"variants = {value!r}: write it as a list of names with overrides.")
    variants: dict[str, list[dict[str, Any]]] = {}
    for item in value:
        item = _mapping("variants", item)
        name = item.pop("name", None)
        if not isinstance(name, str) or not name or name in variants:
            raise ValueError(f"variants: name = {name!r}; each has a name of its own.")
        where = f"variant {name!r}"
        variants[name] = _combinations(where, _settings(where, item))
    return list(variants.items())


def _names(key: str, value: Any) -> tuple[str, ...]:
    good = isinstance(value, list) and all(
        isinstance(item, str) and FOLDER.fullmatch(item) for item in value
    )
    if not good or len(set(value)) < len(value) or (key == "notebooks" and not value):
        raise ValueError(f"{key} = {value!r}: a list of notebooks without .ipynb, each once.")
    return tuple(value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"cell_limit = {value!r}: seconds, more than 0.")
    return float(value)
