"""Notebooks refuse bad parameters and unfit runs by saying which and why; no kernel is started.

As a script: read cases (name, until, values) as JSON, and write what each raised. A process of its
own has no hook that checks types, which would refuse what the library is to refuse.
"""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest

from lgqlib.run import Run

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
BAD = {
    ("00_lgq_in_the_plane", "clusters("): [
        *({"num_points": value} for value in (0, 1.5, "many", math.nan, None)),
        *({"num_codes": 10_000}, {"seed": -1}, {"num_taus": 0}, {"coldest": 7.0}),
    ],
    ("01_train", "Run.create"): [
        *({"preset": 3}, {"method": None}, {"seed": "x"}, {"overrides": "train.lr='1"}),
        *({"num_codes": value} for value in (0, 2**40, math.nan, 1.5, "many")),
    ],
    ("02_evaluate", "evaluate_run("): [{"train_batches": math.nan}, {"train_batches": 0}],
    ("03_geometry", "open_runs("): [{"num_images": 2.5}],
    ("04_entropy", "open_runs("): [{"num_images": -1}],
    ("05_temperature", "open_runs("): [{"num_codes": 10**6}, {"num_anneal": math.nan}],
}
"""By notebook and the last cell that a refusal may take; the last parameter is the bad one."""


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
        return execute(name, until, values) and ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_every_bad_parameter_is_refused_by_its_name(trained, cache, tmp_path):
    """Each case is a notebook, the cell, the parameters, and what is said."""
    run, cases = {"run": str(trained("lgq").path), "cache": str(cache)}, []
    for (name, until), bad in BAD.items():
        others = {"00": {}, "01": {"cache": str(cache)}}.get(name[:2], run)
        for each in bad:
            ((key, value),) = each.items()
            said = [key] if isinstance(value, str) else [key, str(value)]
            cases.append((name, until, others | each, said))
    said = ["'tsne' of 5 channels: give pca, umap, or plane"]
    cases.append(("03_geometry", "project(", run | {"projection": "tsne"}, said))
    bare = str(Run.create(tmp_path / "bare", trained("lgq").config).path)
    for name, until in (("02_evaluate", "evaluate_run("), ("03_geometry", "open_runs(")):
        said = ["no checkpoint yet: train it", "01_train"]
        cases.append((name, until, {"run": bare}, said))
    said = ["no trained run below", "01_train"]
    cases.append(("02_evaluate", "evaluate_run(", {"runs": str(tmp_path)}, said))

    script = dict(input=json.dumps([case[:3] for case in cases]), capture_output=True, text=True)
    done = subprocess.run([sys.executable, __file__], check=False, **script)
    assert done.returncode == 0, done.stderr[-4000:]
    for case, said in zip(cases, json.loads(done.stdout), strict=True):
        assert said.startswith("ValueError: ") and all(x in said for x in case[3]), (case, said)


@pytest.mark.parametrize("name", ["03_geometry", "04_entropy", "05_temperature"])
def test_runs_of_other_methods_or_that_still_train_are_opened(name, trained, copied, cache):
    values = {"run": str(trained("fsq").path), "cache": cache, "num_images": 4}
    assert "fsq" in execute(name, "open_runs(", values)["this"].about
    run = copied()
    newest = run.path / "checkpoints" / "step-00000008.safetensors"
    (run.path / "evaluation.json").unlink()
    with run.locked():
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 8')
        newest.rename(newest.with_name(f".0.tmp.{newest.name}"))
        opened = execute(name, "open_runs(", values | {"run": str(run.path)})["this"]
    assert "step 4" in opened.about


if __name__ == "__main__":
    warnings.simplefilter("error")
    cases = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr
    json.dump([raised(*case) for case in cases], output)
