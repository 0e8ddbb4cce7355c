"""Notebooks refuse bad parameters and unfit runs by saying which and why; no kernel is started."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cells import execute
from PIL import Image

from lgqlib.files import read_json, write_json
from lgqlib.run import Run

NAMES = ["02_evaluate", "03_geometry", "04_entropy", "05_temperature"]
TINY = "data.eval_crops=16 backbone.width=16 backbone.depth=1 train.num_steps=2 train.batch_size=4"

MISSING = "no such folder"
BAD = {
    "00_lgq_in_the_plane": {
        "num_points": [0, -3, 1.5, "many", math.nan, None],
        "num_codes": [0, -1, 10_000, "x", math.nan],
        "seed": [-1, "x", 0.5],
        "hottest": [0, -1.0, math.nan, "hot", 0.001],
        "coldest": [0, -1.0, math.nan, "cold", 7.0],
        "num_taus": [0, -1, 2.5],
    },
    "01_train": {
        "preset": ["desktop", 3, None],
        "method": ["pq", 3, None],
        "num_codes": [0, -1, 2**40, math.nan, 1.5, "many"],
        "seed": [-1, math.nan, "x", 2**40],
        "runs": [3, None],
    },
    "02_evaluate": {
        "run": [3, MISSING],
        "runs": [3],
        "train_batches": [0, -1, math.nan, "x"],
    },
    "03_geometry": {
        "run": [3, MISSING],
        "num_images": [-1, math.nan, "x", 2.5],
        "projection": ["tsne", 3, None],
    },
    "04_entropy": {"run": [3], "num_images": [-1, math.nan, "x"]},
    "05_temperature": {
        "run": [3],
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


def refusals(cases):
    """Execute the cases in one process, and give what each raised."""
    command = [sys.executable, str(Path(__file__).with_name("cells.py"))]
    done = subprocess.run(
        command, input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


OVERRIDES = {
    3: "overrides = 3",
    "train.lr='1": "overrides = ",
    "train.lr": "override 'train.lr'",
    "train.lrr=1": "train.lrr",
    "train.lr=nan": "train.lr = nan",
    "data.size=400": "data.size = 400",
    "quantizer.levels=8,8": "quantizer.levels = (8, 8)",
    "quantizer.num_codes=1023 quantizer.method=lfq": "quantizer.num_codes = 1023",
    "data.name=imagefolder data.root=nowhere": "nowhere",
}
"""Overrides of notebook 01, and what their refusal says."""


def test_every_bad_parameter_is_refused_by_its_name(trained, cache, tmp_path):
    run, cases, expected = str(trained("lgq").path), [], []
    for name, bad in BAD.items():
        for parameter, values in bad.items():
            others = {"cache": str(cache)} if name[:2] > "00" else {}
            if name[:2] > "01" and parameter not in ("run", "runs"):
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
    few = f"{TINY} data.name=imagefolder data.root={tmp_path / 'images'} data.size=16"
    changes = OVERRIDES | {few: "quantizer.num_codes = 1024: the training images have 32"}
    cases += [("01_train", "train(config", {**folders, "overrides": text}) for text in changes]
    expected += [(said,) for said in changes.values()]

    for case, said, parts in zip(cases, refusals(cases), expected, strict=True):
        assert said.startswith("ValueError: "), (case, said)
        assert all(part in said for part in parts), (case, said)


# Runs of other kinds and states -----------------------------------------------------------------


@pytest.fixture
def copied(trained, tmp_path):
    whole = trained("lgq")
    shutil.copytree(whole.path, tmp_path / "runs" / whole.name)
    return Run(tmp_path / "runs" / whole.name)


def opened(name, run, cache, **values):
    until = "evaluate_run(" if name == "02_evaluate" else "open_views("
    return execute(name, until, {"run": run, "cache": Path(cache), **values})


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_not_fit_says_what_to_do(name, copied, cache, tmp_path):
    def refuses(says, run=str(copied.path), **more):
        with pytest.raises(ValueError, match=says):
            opened(name, run, cache, **more)

    refuses("no trained run below .*: train one with notebook 01", run="", runs=str(tmp_path / "x"))
    file = copied.path / "config.json"
    config = read_json(file)
    write_json(file, config | {"version": 0})
    refuses("config.json .*version = 0: .* train the run again")
    write_json(file, config | {"train": {k: v for k, v in config["train"].items() if k != "lr"}})
    refuses("config.json .*lacks train.lr")
    write_json(file, config)
    shutil.rmtree(copied.path / "checkpoints")
    (copied.path / "evaluation.json").unlink()
    refuses("has no checkpoint yet: train it with notebook 01_train")


@pytest.mark.parametrize("name", ["03_geometry", "04_entropy", "05_temperature"])
def test_a_run_of_another_method_is_opened(name, trained, cache):
    views = opened(name, str(trained("fsq").path), cache, num_images=4)
    assert "fsq" in views["this"].name


@pytest.mark.parametrize("name", ["03_geometry", "04_entropy", "05_temperature"])
def test_a_run_that_still_trains_is_opened_as_far_as_it_is(name, copied, cache):
    """It holds the lock, has one checkpoint of two, a torn line of metrics and no evaluation."""
    newest = copied.path / "checkpoints" / "step-00000008.safetensors"
    (copied.path / "evaluation.json").unlink()
    with copied.locked():
        with open(copied.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 8')
        newest.rename(newest.with_name(f".0.tmp.{newest.name}"))
        scope = opened(name, str(copied.path), cache, num_images=4)
    assert scope["this"].step == 4 and not scope["this"].is_complete
