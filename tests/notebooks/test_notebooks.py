"""Every notebook runs: as it stands under nbval, and with other parameters under papermill."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import plotly.graph_objects as go
import pytest
from builders import assert_readable, place_notebook
from conftest import TINY

from lgqlib.study.engine import parameters_of
from lgqlib.study.report import to_html

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def papered(test):
    """Mark a test that executes a notebook by papermill."""
    return pytest.mark.notebook(pytest.mark.xdist_group("papermill")(test))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_tells_and_the_library_does(path):
    notebook = nbformat.read(path, 4)
    first, code = notebook.cells[0], [c for c in notebook.cells if c.cell_type == "code"]
    for part in ("# ", "**The question.**", "**What to expect.**", "**How long.**"):
        assert part in first.source
    (parameters,) = (c for c in code if "parameters" in c.metadata.get("tags", []))
    for line in filter(str.strip, parameters.source.splitlines()):
        name, _, rest = line.partition(" = ")
        value, _, comment = rest.partition("  # ")
        assert name.isidentifier() and comment and "=" not in rest, line  # papermill's grammar
        assert isinstance(eval(value, {}), str | int | float | bool), line
    for cell in code:
        lines = [*filter(str.strip, cell.source.splitlines())]
        assert len(lines) <= 12, cell.source
        assert not any(line.startswith(("def ", "class ", "for ", "while ")) for line in lines)
        checked = "nbval-check-output" in cell.metadata.get("tags", [])
        assert bool(cell.outputs) == checked, f"outputs belong to checked cells: {cell.source}"


SHORTER = {
    "01_train": {"overrides": "train.num_steps=60 evaluation.prior_steps=60"},
    "07_laboratory": {"num_steps": 10, "num_seeds": 2},
    "08_prior": {"head_steps": 30, "many_codes": 2100},
}
"""Notebooks whose own settings take a minute: with these every cell does the same in less."""


@pytest.mark.notebook
@pytest.mark.xdist_group("nbval")
@pytest.mark.timeout(1200)
def test_every_notebook_passes_nbval(tmp_path):
    """One after the other in a copy, so that 02 and later find the run that 01 trained."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=300", "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null"]
    command += ["--rootdir", str(tmp_path), "--durations=9"]
    for path in NOTEBOOKS:
        place_notebook(path, tmp_path / "notebooks", SHORTER.get(path.stem, {}))
        command.append(str(tmp_path / "notebooks" / path.name))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


def execute(name: str, folder: Path, **parameters) -> nbformat.NotebookNode:
    """Execute a notebook with parameters that it must know; give what came out."""
    source = next(path for path in NOTEBOOKS if path.stem == name)
    known = parameters_of(source)
    assert set(parameters) <= known, f"{name} has no {set(parameters) - known}"
    how = dict(execution_timeout=300, start_timeout=60, progress_bar=False, engine_name="lgqlib")
    result = str(folder / f"{name}.ipynb")
    notebook = papermill.execute_notebook(str(source), result, parameters, cwd=str(folder), **how)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if figure := output.get("data", {}).get("application/vnd.plotly.v1+json"):
            assert_readable(go.Figure(figure["data"], figure["layout"]))
    return notebook


def printed(notebook) -> str:
    return "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )


@papered
def test_what_learns_nothing_is_trained_and_evaluated(tmp_path, cache):
    overrides = f"{TINY} backbone.dim=4 evaluation.extractor= train.num_steps=0"
    how = dict(method="pca_kmeans", num_codes=64, seed=3, overrides=overrides, cache=str(cache))
    assert "Nothing was trained." in printed(
        execute("01_train", tmp_path, runs=str(tmp_path), **how)
    )
    (run,) = tmp_path.glob("pca_kmeans-photos-K64-s3-*")
    options = dict(run=str(run), train_batches=2, cache=str(cache))
    text = printed(execute("02_evaluate", tmp_path, **options))
    assert "of 64 codes over 2048 tokens" in text and "no KID (n = 32)" in text
    assert (run / "evaluation.json").is_file()


@papered
@pytest.mark.parametrize("method, other", [("lgq", "vq"), ("fsq", "")])
@pytest.mark.parametrize("name", ["03_geometry", "04_entropy", "05_temperature"])
def test_what_a_run_learned_is_shown_for_every_kind_of_method(
    name, method, other, tmp_path, cache, trained, copied
):
    run, others = copied(method).path, str(trained(other).path) if other else ""
    options = dict(run=str(run), others=others, cache=str(cache), num_images=2)
    notebook = execute(name, tmp_path, **options)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
    assert (tmp_path / f"{name}.ipynb").stat().st_size < 5_000_000
    page = to_html(tmp_path / f"{name}.ipynb")
    assert len(page) < 6_000_000 and 'class="lgx-page"' in page and "srcdoc=" in page
    assert (run / "notebooks" / "codebook.html").exists() == (name == "03_geometry")


@papered
def test_a_prior_is_fitted_and_files_are_written_for_any_method(tmp_path, cache, copied):
    run = copied("fsq")
    steps = dict(num_steps=20, head_steps=3, many_codes=2100, largest=64)
    text = printed(execute("08_prior", tmp_path, run=str(run.path), cache=str(cache), **steps))
    assert "the picture came back bit for bit" in text and "dB against JPEG" in text
    numbers = json.loads((run.notebooks / "08_prior.json").read_text())
    assert 0 < numbers["prior"] < 8 and numbers["num_photographs"] == 9


@papered
def test_methods_are_compared_and_claims_judged(tmp_path, cache, copied):
    folder = copied("lgq").path.parent
    assert copied("fsq").path.parent == folder
    text = printed(execute("06_compare", tmp_path, study=str(folder), cache=str(cache)))
    assert "2 of 2 runs finished, 2 cohorts" in text
    assert "C1: undecided at this scale" in text and "C7: reproduced" in text
    assert len(json.loads((folder / "claims.json").read_text())["claims"]) == 10


@papered
@pytest.mark.parametrize("name", ["03_geometry", "04_entropy", "05_temperature"])
def test_without_a_run_the_tokenizer_that_ships_is_shown_and_what_it_lacks(name, tmp_path, cache):
    options = dict(runs=str(tmp_path), cache=str(cache), num_images=1)
    text = printed(execute(name, tmp_path, **options))
    assert "this is lgq-f4-1024, which ships" in text
    if name == "03_geometry":  # it has no history
        assert "for want of two snapshots" in text and "train.num_snapshots=2" in text
        (numbers,) = tmp_path.rglob("03_geometry.json")
        assert json.loads(numbers.read_text())["births"] is None
