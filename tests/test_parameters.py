"""Notebooks refuse bad parameters and unfit runs by saying which and why; no kernel is started.

As a script: read cases (name, until, values) as JSON, and write what each raised. A process of its
own has no hook that checks types, which would refuse what the library is to refuse.
"""

import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from lgqlib.files import read_json, write_json
from lgqlib.run import Run

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
MISSING = "no such folder"
BAD = {
    "00_lgq_in_the_plane": {
        "num_points": [0, -3, 1.5, "many", math.nan, None],
        "num_codes": [0, 10_000, "x", math.nan],
        "seed": [-1, "x", 0.5],
        "hottest": [0, -1.0, math.nan, "hot"],
        "coldest": [0, -1.0, math.nan, "cold", 7.0],
        "num_taus": [0, 2.5],
    },
    "01_train": {
        "preset": ["desktop", 3, None],
        "method": ["pq", 3, None],
        "num_codes": [0, -1, 2**40, math.nan, 1.5, "many"],
        "seed": [-1, math.nan, "x", 2**40],
    },
    "02_evaluate": {"run": [MISSING], "train_batches": [0, -1, math.nan, "x"]},
    "03_geometry": {"run": [MISSING], "num_images": [-1, math.nan, "x", 2.5]},
    "04_entropy": {"run": [MISSING], "num_images": [-1, math.nan, "x"]},
    "05_temperature": {
        "num_images": [-1, math.nan, "x"],
        "image": [-2, 10**6, 0.5, "x"],
        "num_codes": [0, -1, 10**6, math.nan],
        "num_anneal": [0, -5, math.nan, "x"],
    },
}
LAST = {
    "00_lgq_in_the_plane": "clusters(",
    "01_train": "Run.create",
    "02_evaluate": "evaluate_run(",
}
"""Where a notebook has read all of its parameters, if not where it opens its runs."""
OVERRIDES = {
    3: "overrides = 3",
    "train.lr='1": "overrides = ",
    "train.lr": "override 'train.lr'",
    "train.lrr=1": "train.lrr",
    "train.lr=nan": "train.lr = nan",
    "train.batch_size=1099511627776": "train.batch_size = 1099511627776",
    "data.size=400": "data.size = 400",
    "quantizer.levels=8,8": "quantizer.levels = (8, 8)",
    "quantizer.num_codes=1023 quantizer.method=lfq": "quantizer.num_codes = 1023",
    "quantizer.num_codes=34 quantizer.method=fsq": "quantizer.num_codes = 34: no levels",
    "quantizer.num_codes=16 quantizer.levels=2,8 quantizer.method=fsq": "each must be at least 3",
    "data.name=imagefolder data.root=nowhere": "nowhere",
}
"""Overrides of notebook 01, and what their refusal says."""


def execute(name: str, until: str, values: dict) -> dict:
    """Run a notebook's cells in this process, up to the one that holds `until`."""
    scope = {"__name__": "__main__"}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), scope)
            if "parameters" in cell.metadata.get("tags", []):
                assert values.keys() <= scope.keys()
                scope |= values
            if until in cell.source:
                return scope
    raise AssertionError(f"{name} has no cell with {until}")


def raised(name: str, until: str, values: dict) -> str:
    """Give what an execution raises, `ValueError: why`; nothing if it does not."""
    try:
        execute(name, until, values)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_every_bad_parameter_is_refused_by_its_name(trained, cache, tmp_path):
    run, cases, expected = str(trained("lgq").path), [], []
    for name, bad in BAD.items():
        for parameter, values in bad.items():
            others = {"cache": str(cache)} if name[:2] > "00" else {}
            if name[:2] > "01" and parameter != "run":
                others["run"] = run
            if parameter == "image":
                others["num_images"] = 4
            until = LAST.get(name, "open_runs(")
            cases += [(name, until, {**others, parameter: value}) for value in values]
            expected += [(MISSING,) if v == MISSING else (parameter, str(v)) for v in values]

    folders = {"runs": str(tmp_path), "cache": str(cache)}
    for side in ("train", "val"):
        (tmp_path / "images" / side).mkdir(parents=True)
        Image.linear_gradient("L").resize((16, 16)).save(tmp_path / "images" / side / "one.png")
    few = f"data.size=16 train.batch_size=4 data.name=imagefolder data.root={tmp_path / 'images'}"
    changes = OVERRIDES | {few: "quantizer.num_codes = 1024: the training images have 32"}
    cases += [("01_train", "train(config", {**folders, "overrides": text}) for text in changes]
    cases.append(("03_geometry", "Codes(", {"run": run, "cache": str(cache), "projection": "tsne"}))
    expected += [
        *((said,) for said in changes.values()),
        ("'tsne', expected one of plane, pca, umap",),
    ]

    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(cases), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for case, said, parts in zip(cases, json.loads(done.stdout), expected, strict=True):
        assert said.startswith("ValueError: "), (case, said)
        assert all(part in said for part in parts), (case, said)


# Runs of other kinds and states ------------------------------------------------------------------


@pytest.fixture
def copied(trained, tmp_path):
    return Run(shutil.copytree(trained("lgq").path, tmp_path / "runs" / trained("lgq").name))


def opened(name, run, cache, **values):
    until = "evaluate_run(" if name == "02_evaluate" else "open_views("
    return execute(name, until, {"run": run, "cache": Path(cache), **values})


@pytest.mark.parametrize("name", ["02_evaluate", "03_geometry", "04_entropy", "05_temperature"])
def test_a_run_that_is_not_fit_says_what_to_do(name, copied, cache, tmp_path):
    with pytest.raises(ValueError, match="no trained run below .*: train one with notebook 01"):
        opened(name, "", cache, runs=str(tmp_path / "x"))
    config = read_json(copied.path / "config.json")
    write_json(copied.path / "config.json", config | {"version": 0})
    with pytest.raises(ValueError, match="config.json .*version = 0: .* train the run again"):
        opened(name, str(copied.path), cache)
    write_json(copied.path / "config.json", config)
    shutil.rmtree(copied.path / "checkpoints")
    (copied.path / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="has no checkpoint yet: train it with notebook 01_train"):
        opened(name, str(copied.path), cache)


@pytest.mark.parametrize("name", ["03_geometry", "04_entropy", "05_temperature"])
def test_runs_of_another_method_and_runs_that_still_train_are_opened(name, copied, trained, cache):
    views = opened(name, str(trained("fsq").path), cache, num_images=4)
    assert "fsq" in views["this"].name
    newest = copied.path / "checkpoints" / "step-00000008.safetensors"
    (copied.path / "evaluation.json").unlink()
    with copied.locked():
        with open(copied.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 8')
        newest.rename(newest.with_name(f".0.tmp.{newest.name}"))
        scope = opened(name, str(copied.path), cache, num_images=4)
    assert scope["this"].step == 4 and not scope["this"].is_complete


if __name__ == "__main__":
    warnings.simplefilter("error")
    cases = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr
    json.dump([raised(*case) for case in cases], output)
