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

import itertools
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lgqlib.config import Config
from lgqlib.presets import preset
from lgqlib.quantizers import build

NAMED = ("preset", "method", "num_codes", "seed")
"""Parameters of notebook 01_train beside its overrides."""
LISTS = ("quantizer.levels",)
"""Fields whose value is itself a list; several of them are a list of lists."""


def _are_settings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _are_lists(value: Any) -> bool:
    return _are_settings(value) and all(isinstance(choices, list) for choices in value.values())


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value))


def _are_notebooks(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_name, value)) and len({*value}) == len(value)


RIGHT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_name, "letters, digits, '.', '_' and '-', for it is a folder"),
    "base": (_are_settings, "names and values"),
    "grid": (_are_lists, "names and lists of values, [a, b]"),
    "variants": (
        lambda v: isinstance(v, list) and all(map(_are_settings, v)),
        "a list of settings",
    ),
    "notebooks": (lambda v: _are_notebooks(v) and v, "notebooks without .ipynb, each once"),
    "summary": (_are_notebooks, "notebooks without .ipynb, each once"),
    "cell_limit": (lambda v: type(v) in (int, float) and v > 0, "seconds, more than 0"),
}
"""By key of a study's file: whether a value fits, and what does."""


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
    _require(_are_settings(value), f"a study is {', '.join(RIGHT)}, not {value!r}.")
    for key in (*value, "name", "grid"):
        _require(key in RIGHT, f"unknown key {key!r}; a study has {', '.join(RIGHT)}.")
        _require(key in value, f"{key!r} is missing; a study has {', '.join(RIGHT)}.")
        fits, right = RIGHT[key]
        _require(fits(value[key]), f"{key} = {value[key]!r}: it must be {right}.")
    base, points, blocks = value.get("base", {}), _combinations("grid", value["grid"]), {"": [{}]}
    for key in {*base} & {*value["grid"]}:
        raise ValueError(f"{key} is in base and in grid; leave it in one.")
    for variant in value.get("variants", []):
        settings = dict(variant)
        name = settings.pop("name", None)
        is_new = isinstance(name, str) and name not in blocks
        _require(is_new, f"variants: name = {name!r}; each has a name of its own.")
        blocks[name] = _combinations(f"variant {name!r}", settings)
    runs: dict[str, PlannedRun] = {}
    seen: list[dict] = []
    # A variant's own choices go outside, so that the seeds of a setting stay together.
    for name, own, point in ((n, own, p) for n in blocks for own in blocks[n] for p in points):
        if (settings := point | own) not in seen:
            seen.append(settings)
            run = _planned(name, settings, base, folder)
            runs.setdefault(run.name, run)  # two ways to one config are one run
    lists = {key: tuple(value[key]) for key in ("notebooks", "summary") if key in value}
    limit = float(value.get("cell_limit", Study.cell_limit))
    return Study(value["name"], tuple(runs.values()), **lists, cell_limit=limit)


def _planned(variant: str, point: Mapping, base: Mapping, folder: Path) -> PlannedRun:
    try:
        settings = base | point
        for key in settings:
            short = key.removeprefix("quantizer.")
            _require(short == key or short not in NAMED, f"{key}: write it as {short!r}.")
        if settings.get("data.root"):
            settings["data.root"] = str((folder / str(settings["data.root"])).resolve())
        named = {key: settings.pop(key) for key in NAMED if key in settings}
        start = preset(named.pop("preset", "laptop"), **named)
        config = start.override(settings)
        build(config.quantizer, config.backbone.dim)  # a size may be no product of levels
        overrides = " ".join(shlex.quote(f"{k}={_text(v)}") for k, v in settings.items())
        # The notebook builds its config from these: it must be the same one.
        same = start.override(overrides) == config
        _require(same, f"{overrides!r} does not survive being written as text.")
    except (ValueError, TypeError) as error:
        shown = " ".join(f"{key}={_text(value)}" for key, value in point.items())
        where = f"{variant}: {shown}" if variant else shown or "(base)"
        raise ValueError(f"run {where}: {error}") from None
    parameters = {"preset": (base | point).get("preset", "laptop"), "seed": config.seed}
    parameters |= {"method": config.quantizer.method, "num_codes": config.quantizer.num_codes}
    return PlannedRun(config, parameters | {"overrides": overrides}, variant)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _combinations(where: str, choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give every combination of lists of values; a value that is no list is the only one."""
    lists = {}
    for key, values in choices.items():
        several = isinstance(values, list)
        if several and key in LISTS:
            several = any(isinstance(item, list) for item in values)
        lists[key] = values if several else [values]
        _require(lists[key], f"{where}: {key} = {values!r} has no value.")
        twice = any(lists[key].count(item) > 1 for item in lists[key])
        _require(not twice, f"{where}: {key} = {values!r} has a value twice.")
    return [dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())]
