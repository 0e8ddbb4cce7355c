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
looks:                      # executed for the best finished run (by PSNR) of each of these methods
  notebooks: [03_geometry]
  methods: [lgq, vq]
summary: [06_compare]       # executed once, at the end
cell_limit: 86400           # seconds that a notebook's cell may take (this is the default)
"""

import itertools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from lgqlib.config import Config
from lgqlib.data import identified
from lgqlib.presets import preset
from lgqlib.quantizers import build

NAMED = ("preset", "method", "num_codes", "seed")  # parameters of 01_train beside its overrides
SCHEMA = yaml.safe_load(r"""
type: object
additionalProperties: false
required: [name, grid]
properties:
  name: &name {type: string, pattern: '^[A-Za-z0-9][A-Za-z0-9._-]*\Z'}
  base: {type: object}
  grid: {type: object, additionalProperties: {type: array, minItems: 1, uniqueItems: true}}
  variants:
    type: array
    items:
      type: object
      required: [name]
      properties: {name: {type: string, minLength: 1}}
      additionalProperties: {minItems: 1, uniqueItems: true}
  notebooks: {type: array, items: *name, minItems: 1, uniqueItems: true}
  looks:
    type: object
    additionalProperties: false
    required: [notebooks, methods]
    properties:
      notebooks: {type: array, items: *name, minItems: 1, uniqueItems: true}
      methods: {type: array, items: *name, minItems: 1, uniqueItems: true}
  summary: {type: array, items: *name, uniqueItems: true}
  cell_limit: {type: number, exclusiveMinimum: 0}
""")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study."""

    config: Config
    parameters: Mapping[str, Any]  # of notebook 01_train
    variant: str = ""

    @property
    def name(self) -> str:
        return self.config.run_name


@dataclass(frozen=True)
class Study:
    """The runs of a study, and what is executed for them."""

    name: str
    runs: list[PlannedRun]
    notebooks: list[str]
    looks: Mapping[str, list[str]]  # `notebooks`, and the `methods` of whose best runs they are
    summary: list[str]
    cell_limit: float  # seconds


class _Strict(yaml.SafeLoader):
    """Refuse a key given twice, of which YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor` gives keys that may be given again
        keys = [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != merge]
        if twice := [key for key in keys if keys.count(key) > 1]:
            said = f"in the block that starts at line {node.start_mark.line + 1}"
            raise ValueError(f"{twice[0]!r} is given twice {said}.")
        return super().construct_mapping(node, deep)


def read_study(path: Path) -> Study:
    """Read and check a study. Raises ValueError that names the file, and the key or the run."""
    try:
        text = path.read_text(encoding="utf-8")
        return parse_study(yaml.load(text, Loader=_Strict), folder=path.resolve().parent)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None


def parse_study(value: Any, *, folder: Path = Path()) -> Study:
    """Check what a study's file says; a relative `data.root` is below `folder`."""
    try:
        jsonschema.validate(value, SCHEMA)
    except jsonschema.ValidationError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None
    base, points = value.get("base", {}), _combinations(value["grid"])
    if twice := {*base} & {*value["grid"]}:
        raise ValueError(f"{', '.join(twice)}: in base and in grid; leave it in one.")
    variants = [{"name": ""}, *value.get("variants", [])]
    if len({variant["name"] for variant in variants}) < len(variants):
        raise ValueError("$.variants: two have one name.")
    runs, seen = {}, []
    for variant in variants:
        name, own = variant["name"], {k: v for k, v in variant.items() if k != "name"}
        # A variant's own choices go outside, so that the seeds of a setting stay together.
        for changes, point in itertools.product(_combinations(own), points):
            if (settings := point | changes) not in seen:
                seen.append(settings)
                run = _planned(name, settings, base, folder)
                runs.setdefault(run.name, run)  # two ways to one config are one run
    default = {"notebooks": ["01_train", "02_evaluate"]}
    default |= {"looks": {"notebooks": [], "methods": []}, "summary": [], "cell_limit": 86_400}
    return Study(value["name"], [*runs.values()], *(value.get(k, v) for k, v in default.items()))


def _planned(variant: str, point: Mapping, base: Mapping, folder: Path) -> PlannedRun:
    try:
        settings = {"preset": "laptop"} | base | point
        for key in NAMED:
            if f"quantizer.{key}" in settings:
                raise ValueError(f"quantizer.{key}: write it as {key!r}.")
        if settings.get("data.root"):
            settings["data.root"] = str((folder / str(settings["data.root"])).resolve())
        named = {key: settings.pop(key) for key in NAMED if key in settings}
        parameters = {"preset": named.pop("preset")}
        config = preset(parameters["preset"], **named, overrides=settings)
        build(config.quantizer, config.backbone.dim)  # a size may be no product of levels
        overrides = " ".join(shlex.quote(f"{k}={_text(v)}") for k, v in settings.items())
        # The notebook builds its config from these: it must be the same one.
        if preset(parameters["preset"], **named, overrides=overrides) != config:
            raise ValueError(f"{overrides!r} does not survive being written as text.")
        config = identified(config)
    except (ValueError, TypeError, AttributeError) as error:
        shown = " ".join([variant, *(f"{key}={_text(value)}" for key, value in point.items())])
        raise ValueError(f"run {shown.strip()}: {error}") from None
    parameters |= {"method": config.quantizer.method, "num_codes": config.quantizer.num_codes}
    return PlannedRun(config, parameters | {"seed": config.seed, "overrides": overrides}, variant)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _combinations(choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give every combination of lists of values; a value that is no list is the only one."""
    lists = {}
    for key, values in choices.items():
        several = isinstance(values, list)
        if several and key == "quantizer.levels":  # one value is a list, several are lists
            several = any(isinstance(item, list) for item in values)
        lists[key] = values if several else [values]
    return [dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())]
