"""What a study's file may say: every combination, every mistake refused by its name."""

from pathlib import Path

import pytest
from builders import folder_of

import lgqlib
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.study.__main__ import Work
from lgqlib.study.grid import parse_study, read_study
from lgqlib.tokenizer import SHIPPED, Tokenizer

ROOT = Path(lgqlib.__file__).parent.parent
STUDIES = sorted((ROOT / "notebooks" / "studies").glob("*.yaml"))
SHIPPED_BY = ROOT / "notebooks" / "studies" / "pretrained.yaml"
GRID = {"name": "s", "grid": {"method": ["lgq", "fsq"], "seed": [0, 1]}}
COSINE = {"name": "cosine", "method": "lgq", "temperature.kind": "cosine"}


def test_a_grid_is_every_combination_in_order_and_so_is_a_variant():
    variant = {"name": "few", "method": ["fsq", "ifsq"], "num_codes": [64, 343], "seed": [0]}
    study = parse_study(GRID | {"variants": [COSINE, variant]})
    points = [(p.variant, p.config.quantizer.method, p.config.seed) for p in study.runs[:6]]
    plain = [("", "lgq", 0), ("", "lgq", 1), ("", "fsq", 0), ("", "fsq", 1)]
    assert points == [*plain, ("cosine", "lgq", 0), ("cosine", "lgq", 1)]
    own = [(p.config.quantizer.method, p.config.quantizer.num_codes) for p in study.runs[6:]]
    assert own == [("fsq", 64), ("fsq", 343), ("ifsq", 64), ("ifsq", 343)]
    assert len({planned.name for planned in study.runs}) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"base": {"train.lr": "1e-3", "data.flip": False, "train.precision": "no"}},
        {"grid": {"num_codes": [64, 1024], "quantizer.lgq.identity": [0, 0.5], "seed": [3]}},
        {"base": {"method": "fsq", "num_codes": 1000}, "grid": {"quantizer.levels": [[10] * 3]}},
    ],
)
def test_parameters_of_a_run_rebuild_its_config(change):
    for planned in parse_study(GRID | change).runs:
        named = dict(planned.parameters)
        overrides = named.pop("overrides")
        assert preset(named.pop("preset"), **named, overrides=overrides) == planned.config
        assert all(isinstance(v, str | int) for v in planned.parameters.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grids": {}}, "'grids' was unexpected"),
        ({"name": ".."}, "name: '..' does not match"),
        ({"grid": {"train.__class__": [1]}}, "unknown field 'train.__class__'"),
        ({"base": {"tarin.lr": 1}}, "unknown field 'tarin'"),
        ({"base": {"seed": 1}}, "seed: in base and in grid"),
        ({"grid": {"quantizer.method": ["lgq"]}}, "write it as 'method'"),
        ({"grid": {"method": ["lgq"], "train.lr": [-1]}}, "run method=lgq train.lr=-1: train.lr"),
        ({"grid": {"method": ["fsq"], "num_codes": [1021]}}, "method=fsq num_codes=1021: .*1020"),
        ({"variants": [{"temperature.kind": "cosine"}]}, r"variants\[0\]: 'name' is a required"),
        ({"notebooks": ["../x"]}, "notebooks"),
    ],
)
def test_a_mistake_is_refused_with_its_key_or_its_run(change, message):
    with pytest.raises(ValueError, match=message):
        parse_study(GRID | change)


def test_a_broken_file_is_named(tmp_path):
    for text, message in (
        (b"name: s\nname: t\ngrid: {}", "a.yaml: 'name' is given twice"),
        (b"name: [", "a.yaml"),
        (b"\xff\xfe\x00", "a.yaml"),
        (b"name: !!python/object/apply:os.system [ls]", "a.yaml.*could not determine"),
    ):
        (tmp_path / "a.yaml").write_bytes(text)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            read_study(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="b.yaml: .*No such file"):
        read_study(tmp_path / "b.yaml")


def test_a_relative_data_root_is_below_the_file(tmp_path):
    base = "base: {data.name: imagefolder, data.root: images}"
    (tmp_path / "a.yaml").write_text(f"name: s\n{base}\ngrid: {{seed: [0]}}")
    with pytest.raises(ValueError, match=r"a.yaml: run seed=0: data.root = .*images'"):
        read_study(tmp_path / "a.yaml")
    folder_of(tmp_path / "images", "a.png")
    (planned,) = read_study(tmp_path / "a.yaml").runs
    assert planned.config.data.root == str(tmp_path / "images")
    assert planned.name == Run.create(tmp_path / "runs", planned.config).name


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_this_project_can_be_run(path, tmp_path):
    study = read_study(path)
    assert study.name == path.stem
    Work(study, ROOT / "notebooks", tmp_path / study.name, tmp_path).check()


def test_the_tokenizers_that_ship_are_those_that_their_study_plans():
    folders = [file.parent for file in SHIPPED.glob("*/config.json")]
    shipped = {folder.name: Tokenizer.from_pretrained(folder).config for folder in folders}
    planned = [run.config for run in read_study(SHIPPED_BY).runs]
    names = [f"{c.quantizer.method}-f4-{c.quantizer.num_codes}" for c in planned]
    assert shipped == dict(zip(names, planned, strict=True))
