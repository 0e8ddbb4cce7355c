"""Studies: what a file may say; runs are executed, skipped, recorded, stopped and resumed."""

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
import pytest

import lgqlib
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.study.__main__ import main
from lgqlib.study.crew import cluster, fitting_workers
from lgqlib.study.execute import Job, execute_all, require_parameters, was_executed
from lgqlib.study.grid import parse_study, read_study
from lgqlib.study.progress import duration, progress_of
from lgqlib.study.results import FAILURE_FILE, collect
from lgqlib.study.runner import Places, check_notebooks, chosen

ROOT = Path(lgqlib.__file__).parent.parent
STUDIES = sorted((ROOT / "notebooks" / "studies").glob("*.yaml"))
GRID = {"name": "s", "grid": {"method": ["lgq", "fsq"], "seed": [0, 1]}}


# What a file may say -----------------------------------------------------------------------------


def test_a_grid_is_every_combination_in_order():
    study = parse_study(GRID)
    points = [(c.config.quantizer.method, c.config.seed) for c in study.cells]
    assert points == [("lgq", 0), ("lgq", 1), ("fsq", 0), ("fsq", 1)]
    assert study.notebooks == ("01_train", "02_evaluate")


def test_parameters_of_a_run_rebuild_its_config():
    value = GRID | {"base": {"train.lr": "1e-3", "data.flip": False, "train.precision": "no"}}
    value["grid"] = {"num_codes": [64, 1024], "quantizer.lgq.identity": [0, 0.5], "seed": [3]}
    for cell in parse_study(value).cells:
        named = dict(cell.parameters)
        overrides = named.pop("overrides")
        assert preset(named.pop("preset"), **named).override(overrides) == cell.config
        assert all(isinstance(v, str | int) for v in cell.parameters.values())


def test_levels_may_be_a_list():
    value = {"name": "s", "base": {"method": "fsq", "num_codes": 1000}}
    value["grid"] = {"quantizer.levels": [[8, 5, 5, 5], [10, 10, 10]]}
    levels = [cell.config.quantizer.levels for cell in parse_study(value).cells]
    assert levels == [(8, 5, 5, 5), (10, 10, 10)]


def test_a_variant_is_the_grid_once_more_and_equal_runs_are_one():
    variants = [{"name": "cosine", "method": "lgq", "temperature.kind": "cosine"}]
    cells = parse_study(GRID | {"variants": variants}).cells
    assert [(c.variant, c.config.seed) for c in cells[4:]] == [("cosine", 0), ("cosine", 1)]
    assert len({cell.name for cell in cells}) == len(cells) == 6


def test_a_variant_may_be_a_grid_of_its_own():
    variant = {"name": "4 channels", "method": ["fsq", "ifsq"], "num_codes": [1024, 4096]}
    variant |= {"backbone.dim": 4, "backbone.norm": "none"}
    cells = parse_study({"name": "s", "grid": {"seed": [0, 1]}, "variants": [variant]}).cells
    added = [c.config.quantizer for c in cells if c.variant]
    assert [(q.method, q.num_codes) for q in added[::2]] == [
        ("fsq", 1024),
        ("fsq", 4096),
        ("ifsq", 1024),
        ("ifsq", 4096),
    ]
    assert len(cells) == 2 + 8


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grids": {}}, "unknown key 'grids' in the study; known: name, base"),
        ({"name": "a/b"}, "name = 'a/b'"),
        ({"name": ".."}, "it is a folder"),
        ({"grid": {"method": "lgq"}}, "grid.method = 'lgq': write it as a list"),
        ({"grid": {"seed": []}}, "grid: seed = .* has no value"),
        ({"grid": {"seed": [0, 0]}}, "grid: seed = .*twice"),
        ({"grid": {"train.learning_rate": [1]}}, "unknown key 'train.learning_rate' in grid"),
        ({"base": {"tarin.lr": 1}}, "unknown key 'tarin.lr' in base"),
        ({"base": {"seed": 1}}, "seed is in base and in grid"),
        ({"grid": {"quantizer.method": ["lgq"]}}, "write it as 'method'"),
        ({"grid": {"method": ["vgq"], "seed": [0]}}, "run method=vgq seed=0: method 'vgq'"),
        ({"grid": {"method": ["lgq"], "train.lr": [-1]}}, "run method=lgq train.lr=-1: train.lr"),
        ({"grid": {"method": ["fsq"], "num_codes": [1021]}}, "method=fsq num_codes=1021: .*1020"),
        ({"grid": {"method": ["lfq"], "num_codes": [1000]}}, "method=lfq num_codes=1000: .*power"),
        ({"grid": {"seed": ["zero"]}}, "run seed=zero: seed = 'zero'"),
        ({"base": {"preset": "huge"}}, "preset 'huge'"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants: name = 'a'"),
        ({"variants": [{"temperature.kind": "cosine"}]}, "name = None"),
        ({"variants": [{"name": "a", "num_codes": []}]}, "variant 'a': num_codes"),
        ({"variants": [{"name": "a", "temprature.kind": 1}]}, "unknown key .* in variant 'a'"),
        ({"variants": [{"name": "warm", "temperature.end": 0}]}, "run warm: .*temperature.end"),
        ({"summary": "06_compare"}, "summary = '06_compare'"),
        ({"notebooks": []}, "notebooks"),
        ({"notebooks": ["../x"]}, "notebooks"),
        ({"cell_limit": 0}, "cell_limit = 0"),
        ({"cell_limit": True}, "cell_limit = True"),
    ],
)
def test_a_mistake_is_refused_with_its_key_or_its_run(change, message):
    with pytest.raises(ValueError, match=message):
        parse_study(GRID | change)


@pytest.mark.parametrize("value", [None, [], "text", {"name": "s"}, {"grid": {}}, {1: 2}])
def test_what_is_no_study_is_refused(value):
    with pytest.raises(ValueError):
        parse_study(value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: s\nname: t\ngrid: {}", "'name' is given twice"),
        ("name: [", "a.yaml"),
        ("name: s\ngrid: {seed: [0, }", "a.yaml"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=r"b\.yaml cannot be read"):
        read_study(tmp_path / "b.yaml")


def test_a_relative_data_root_is_below_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "name: s\nbase: {data.name: imagefolder, data.root: images}\ngrid: {seed: [0]}"
    )
    (cell,) = read_study(tmp_path / "a.yaml").cells
    assert cell.config.data.root == str(tmp_path / "images")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_this_project_can_be_run(path, tmp_path):
    study = read_study(path)
    assert study.name == path.stem
    places = Places(ROOT / "notebooks", tmp_path, tmp_path, tmp_path / study.name)
    check_notebooks(study, places)


def test_patterns_choose_runs_by_name_or_variant():
    variants = [{"name": "cosine", "method": "lgq", "temperature.kind": "cosine"}]
    study = parse_study(GRID | {"variants": variants})
    assert {c.config.quantizer.method for c in chosen(study, ("fsq",))} == {"fsq"}
    assert {c.variant for c in chosen(study, ("cosine",))} == {"cosine"}
    assert [c.config.seed for c in chosen(study, ("fsq-*-s1-",))] == [1]
    with pytest.raises(ValueError, match="--only bsq fits none of lgq-photos"):
        chosen(study, ("bsq",))


def test_workers_are_as_many_as_fit():
    gib = 2**30
    assert fitting_workers(8, num_gpus=0, cores=2, memory=24 * gib) == 2
    assert fitting_workers(8, num_gpus=0, cores=16, memory=7 * gib) == 3
    assert fitting_workers(1, num_gpus=0, cores=16, memory=64 * gib) == 1
    assert fitting_workers(8, num_gpus=2, cores=16, memory=64 * gib) == 2
    assert fitting_workers(8, num_gpus=0, cores=1, memory=gib) == 1


def test_progress_is_read_from_the_metrics(tmp_path):
    run = Run.create(tmp_path, preset().override("train.num_steps=200 train.batch_size=50"))
    assert progress_of(run) == (0, "starting")
    run.log(40, "train", loss=1.0)
    run.log(40, "timing", images_per_second=100.0)
    assert progress_of(run) == (40, "step 40/200, 100 images/s, 80 s left")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 200, "spl')
    assert progress_of(run)[0] == 40, "a line that is being written does not disturb"
    run = Run.create(tmp_path, preset(seed=1).override("train.num_steps=10"))
    run.log(10, "train", loss=1.0)
    assert progress_of(run) == (10, "step 10/10, evaluating")
    assert duration(99) == "99 s" and duration(120) == "2 min"


# One notebook ------------------------------------------------------------------------------------


def write_notebook(path, parameters, *cells):
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
    node = nbformat.v4.new_notebook(cells=[first, *rest])
    node.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(node, path)
    return path


def execute(tmp_path, *cells, cell_limit=60.0, **parameters):
    notebook = write_notebook(tmp_path / "a.ipynb", "x = 1  # a number", *cells)
    job = Job(str(notebook), str(tmp_path / "out" / "a.ipynb"), parameters)
    outcome = execute_all([job], cell_limit=cell_limit, environment={"OMP_NUM_THREADS": "7"})
    return outcome, tmp_path / "out" / "a.ipynb"


def test_a_notebook_runs_in_its_folder_with_its_parameters_and_threads(tmp_path):
    check = "import os\nassert (x, os.environ['OMP_NUM_THREADS'], os.path.exists('a.ipynb')) == "
    outcome, output = execute(tmp_path, check + "(5, '7', True)", x=5)
    assert outcome.status == "done", outcome.failure
    assert was_executed(output)


def test_an_error_is_a_failure_with_its_traceback_and_half_the_notebook(tmp_path):
    outcome, output = execute(tmp_path, "print('before')", "1 / 0", "print('after')")
    assert outcome.status == "failed"
    assert outcome.failure["error"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in outcome.failure["traceback"] and "\x1b" not in outcome.failure["traceback"]
    json.dumps(outcome.failure)
    assert "before" in output.read_text() and not was_executed(output)


def test_a_dead_kernel_is_a_failure_within_seconds(tmp_path):
    started = time.monotonic()
    outcome, output = execute(tmp_path, "import os\nos.kill(os.getpid(), 9)", "print('after')")
    assert outcome.status == "failed" and "DeadKernelError" in outcome.failure["error"]
    assert time.monotonic() - started < 60
    assert output.exists() and not was_executed(output)


def test_a_notebook_whose_last_cell_killed_its_kernel_was_not_executed(tmp_path):
    """Also where the kernel counted the cell before it died."""
    pause = "import time; time.sleep(0.5)"
    _, output = execute(tmp_path, f"{pause}\nimport os\nos.kill(os.getpid(), 9)")
    notebook = nbformat.read(output, as_version=4)
    assert notebook.cells[-1].execution_count is not None
    assert not was_executed(output)


def test_notebooks_that_run_at_once_do_not_disturb_each_other(tmp_path):
    """One of them dies in the middle; all work in the same folder, each in its own kernel."""
    pause = "import os, time\ntime.sleep(1)\nos.getpid()"
    end = "if x == 1:\n    os.kill(os.getpid(), 9)\nprint('x is', x)"
    source = write_notebook(tmp_path / "a.ipynb", "x = 0  # a number", pause, end)
    outputs = [tmp_path / f"out-{x}" / "a.ipynb" for x in range(2)]
    jobs = [[Job(str(source), str(path), {"x": x})] for x, path in enumerate(outputs)]
    execute_one = functools.partial(execute_all, cell_limit=60.0, environment={})
    started = time.monotonic()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        outcomes = list(pool.map(execute_one, jobs))
    assert [outcome.status for outcome in outcomes] == ["done", "failed"], outcomes
    assert "DeadKernelError" in outcomes[1].failure["error"]
    assert time.monotonic() - started < 120
    assert [was_executed(path) for path in outputs] == [True, False]
    assert "x is 0" in outputs[0].read_text()


def test_a_cell_that_hangs_is_a_failure_at_its_limit(tmp_path):
    started = time.monotonic()
    outcome, _ = execute(tmp_path, "import time\ntime.sleep(1000)", cell_limit=1.0)
    assert outcome.status == "failed" and "CellTimeoutError" in outcome.failure["error"]
    assert time.monotonic() - started < 60


def test_unknown_parameters_are_refused(tmp_path):
    outcome, output = execute(tmp_path, "pass", y=1)
    assert "no parameter 'y'; it has x" in outcome.failure["error"]
    assert not output.exists()
    with pytest.raises(ValueError, match="is missing"):
        require_parameters(tmp_path / "b.ipynb", ["x"])
    (tmp_path / "c.ipynb").write_text("{}")
    with pytest.raises(ValueError, match=r"c\.ipynb"):
        require_parameters(tmp_path / "c.ipynb", ["x"])


# A study -----------------------------------------------------------------------------------------

TRAIN = """
import pathlib, time
from lgqlib.presets import preset as named
from lgqlib.run import Run
config = named(preset, method=method, num_codes=num_codes, seed=seed).override(overrides)
run = Run.create(runs, config)
step = run.step
"""
FAIL = "if seed == 1 and not pathlib.Path('repaired').exists(): raise RuntimeError('on purpose')"
STEPS = """
try:
    while step < config.train.num_steps:
        if method == "fsq":
            time.sleep(0.1)
        step += 1
        run.log(step, "train", loss=1.0)
finally:
    run.save_checkpoint(step, {}, tau=0.1, tau_c=1.0)
"""
EVALUATE = """
from lgqlib.run import Run
numbers = {"psnr": 20.0, "active": 5, "num_images": 4, "num_tokens": 8}
Run.open(run).save_evaluation(numbers, {})
"""
COMPARE = "import pathlib\nassert (pathlib.Path(study) / 'results.csv').is_file()"


@pytest.fixture
def project(tmp_path):
    """Give a project whose notebooks leave the files of a run; seed 1 fails, FSQ takes long."""
    folder = tmp_path / "a project" / "notebooks"
    parameters = 'preset = ""\nmethod = ""\nnum_codes = 0\nseed = 0\noverrides = ""\n'
    parameters += 'runs = ""\ncache = ""'
    write_notebook(folder / "01_train.ipynb", parameters, TRAIN, FAIL, STEPS)
    write_notebook(folder / "02_evaluate.ipynb", 'run = ""', EVALUATE)
    write_notebook(folder / "06_compare.ipynb", 'study = ""', COMPARE)
    (folder / "studies").mkdir()
    return folder.parent


def write_study(project, *, method="[lgq]", seed="[0]", num_steps=20):
    path = project / "notebooks" / "studies" / "s.yaml"
    path.write_text(
        f"name: s\nbase: {{train.num_steps: {num_steps}}}\n"
        f"grid: {{method: {method}, seed: {seed}}}\nsummary: [06_compare]\n"
    )
    folders = ["--runs", str(project / "runs"), "--cache", str(project / "cache")]
    return [str(path), *folders]


@pytest.fixture(scope="module")
def scheduler():
    """Give the address of a cluster that is there already, as on a machine with a queue."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # for the kernels
        with cluster(1) as client:
            yield ["--scheduler", client.scheduler.address]


def test_a_failure_leaves_the_rest_and_the_next_command_only_repeats_it(project, scheduler, capsys):
    arguments = write_study(project, seed="[0, 1]") + scheduler
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "20.00" in said.out and "report" in said.out
    assert "RuntimeError: on purpose" in said.err

    study = project / "runs" / "s"
    table = collect(study).set_index("seed")
    assert table["state"].to_dict() == {0: "done", 1: "failed"}
    good, bad = study / table.loc[0, "run"], study / table.loc[1, "run"]
    failure = json.loads((bad / FAILURE_FILE).read_text())
    assert failure["notebook"] == "01_train.ipynb" and "on purpose" in failure["traceback"]
    assert (bad / "notebooks" / "01_train.ipynb").exists()
    page = (study / "report" / "index.html").read_text()
    assert "on purpose" in page and "20.00" in page and "06_compare.html" in page

    kept = (good / "notebooks" / "01_train.ipynb").stat().st_mtime_ns
    (project / "notebooks" / "repaired").touch()
    assert main([*arguments, "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["done", "failed"]
    assert main(arguments) == 0
    assert set(collect(study)["state"]) == {"done"} and not (bad / FAILURE_FILE).exists()
    assert (good / "notebooks" / "01_train.ipynb").stat().st_mtime_ns == kept
    assert "1 of 2 runs are done already" in capsys.readouterr().err

    # A notebook that the study got later is executed for the runs that are done, and nothing else.
    write_notebook(project / "notebooks" / "03_more.ipynb", 'run = ""', "print(run)")
    with open(arguments[0], "a") as file:
        file.write("notebooks: [01_train, 02_evaluate, 03_more]\n")
    assert main(arguments) == 0
    assert all((path / "notebooks" / "03_more.ipynb").exists() for path in (good, bad))
    assert (good / "notebooks" / "01_train.ipynb").stat().st_mtime_ns == kept


def test_ctrl_c_saves_what_runs_and_the_same_command_goes_on(project, scheduler):
    arguments = write_study(project, method="[lgq, fsq]", num_steps=60)
    command = [sys.executable, "-m", "lgqlib.study", *arguments, "--workers", "1"]
    # A terminal sends Ctrl-C to the whole group of processes: workers must not die of it.
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    study = project / "runs" / "s"
    try:
        begun = time.monotonic() + 100
        while not (slow := list(study.glob("fsq-*/metrics.jsonl"))):
            assert time.monotonic() < begun and process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
    assert process.returncode == 130, said
    assert "stopping" in said
    path = slow[0].parent
    assert 0 < Run.open(path).step < 60 and not (path / FAILURE_FILE).exists()
    states = collect(study).set_index("method")["state"].to_dict()
    assert states == {"lgq": "done", "fsq": "partial"}

    assert main([*arguments, *scheduler]) == 0
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61)), "no step was lost or done twice"


def test_mistakes_are_told_before_anything_starts(project, capsys):
    arguments = write_study(project, method="[lgq, vgq]")
    assert main(arguments) == 2
    assert "s.yaml: run method=vgq" in capsys.readouterr().err
    assert not (project / "runs").exists()

    arguments = write_study(project)
    write_notebook(project / "notebooks" / "01_train.ipynb", 'preset = ""')
    assert main(arguments) == 2
    assert "has no parameter 'method'" in capsys.readouterr().err
    assert not (project / "runs").exists()
