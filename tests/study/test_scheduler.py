"""Notebooks and studies are executed, skipped, recorded, stopped, killed and gone on with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from dask.distributed import Client

import lgqlib
from lgqlib.files import locked
from lgqlib.run import Run
from lgqlib.study.__main__ import _gpus, cluster, main
from lgqlib.study.engine import Job, execute
from lgqlib.study.results import FAILURE_FILE, collect

ROOT = Path(lgqlib.__file__).parent.parent


def write_notebook(path, parameters, *cells):
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    node = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(node, path)
    return path


def test_a_cell_that_hangs_is_a_failure_with_half_the_notebook(tmp_path):
    cells = ("print('before')", "import time\ntime.sleep(1000)", "print('after')")
    job = Job(write_notebook(tmp_path / "a.ipynb", "x = 1", *cells), tmp_path / "b.ipynb", {"x": 2})
    how = dict(stop=tmp_path / "stop", cell_limit=1, environment={}, gpus=[])
    failure = execute([job], **how)
    assert "CellTimeoutError" in failure["error"] and "Traceback" in failure["traceback"]
    assert failure["notebook"] == "a.ipynb" and "\x1b" not in json.dumps(failure)
    assert "before" in (tmp_path / "b.part.ipynb").read_text() and not job.output.exists()


TRAIN = """
import json, os, pathlib, time
from lgqlib import files
(run,) = pathlib.Path(runs).glob(f"{method}-*-s{seed}-*")
num_steps = json.loads((run / "config.json").read_text())["train"]["num_steps"]
saved = sorted((run / "checkpoints").glob("step-*"))
step = files.read_about(saved[-1])["step"] if saved else 0
"""
FAIL = """
if seed == 1 and not pathlib.Path('repaired').exists(): raise RuntimeError('on purpose')
if seed == 2: os.kill(os.getpid(), 9)
"""
STEPS = """
def save():
    path = run / "checkpoints" / f"step-{step:08d}.safetensors"
    files.write_arrays(path, {}, {"step": step, "tau": 0.1, "tau_c": 1.0})
try:
    while step < num_steps:
        time.sleep(0.1 if method == "fsq" else 0)
        step += 1
        with open(run / "metrics.jsonl", "a") as file:
            file.write(files.seal({"step": step, "split": "train", "loss": 1.0}) + "\\n")
        if step % 10 == 0:
            save()
finally:
    save()
"""
EVALUATE = """
import json, pathlib
from lgqlib import files
config = json.loads((pathlib.Path(run) / "config.json").read_text())
step = files.read_about(max((pathlib.Path(run) / "checkpoints").iterdir()))["step"]
numbers = {"step": step, "psnr": 20.0, "active": 5, "num_images": 4, "num_tokens": 8}
numbers["settings"] = {"eval_crops": config["data"]["eval_crops"], **config["evaluation"]}
files.write_json(pathlib.Path(run) / "evaluation.json", numbers)
"""
COMPARE = "import pathlib\nassert (pathlib.Path(study) / 'results.csv').is_file()"
NAMES = ("preset", "method", "num_codes", "seed", "overrides", "runs", "cache")


@pytest.fixture
def project(tmp_path):
    """Give a project whose notebooks leave the files of a run; FSQ takes long."""
    folder = tmp_path / "a project" / "notebooks"
    parameters = "\n".join(f"{name} = ''" for name in NAMES)
    write_notebook(folder / "01_train.ipynb", parameters, TRAIN, FAIL, STEPS)
    write_notebook(folder / "02_evaluate.ipynb", "run = ''", EVALUATE)
    write_notebook(folder / "06_compare.ipynb", "study = ''", COMPARE)
    return folder.parent


def write_study(project, *, method="[lgq]", seed="[0]", more=""):
    path = project / "notebooks" / "studies" / "s.yaml"
    path.parent.mkdir(exist_ok=True)
    base = "base: {train.num_steps: 60}\nsummary: [06_compare]"
    path.write_text(f"name: s\n{base}\ngrid: {{method: {method}, seed: {seed}}}\n{more}")
    return [str(path), "--runs", str(project / "runs"), "--cache", str(project / "cache")]


@pytest.fixture(scope="module")
def scheduler():
    """Give the address of a cluster that is there already, as on a machine with a queue."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # for the kernels
        with cluster(2) as client:
            yield ["--scheduler", client.scheduler.address]


def test_a_failure_leaves_the_rest_and_the_next_command_only_repeats_it(project, scheduler, capsys):
    """Two notebooks fail beside each other, one by an error and one with its kernel."""
    assert main(write_study(project, seed="[0, 1, 2]") + scheduler) == 1
    said = capsys.readouterr()
    assert "20.00" in said.out and "report" in said.out
    assert "RuntimeError: on purpose" in said.err and "DeadKernelError" in said.err

    study = project / "runs" / "s"
    table = collect(study).set_index("seed")
    assert table["state"].to_dict() == {0: "done", 1: "failed", 2: "failed"}
    good, bad = study / table.loc[0, "run"], study / table.loc[1, "run"]
    failure = json.loads((bad / FAILURE_FILE).read_text())
    assert failure["notebook"] == "01_train.ipynb" and "on purpose" in failure["traceback"]
    assert [file.name for file in (bad / "notebooks").iterdir()] == ["01_train.part.ipynb"]
    page = (study / "report" / "index.html").read_text()
    assert "on purpose" in page and "20.00" in page and "06_compare.html" in page

    # What failed is repeated; a notebook that the study got later is executed for all.
    (project / "notebooks" / "repaired").touch()
    write_notebook(project / "notebooks" / "03_more.ipynb", "run = ''", "print(run)")
    trained, (summary,) = good / "notebooks" / "01_train.ipynb", study.rglob("06_compare.ipynb")
    kept, made = trained.stat().st_mtime_ns, summary.stat().st_mtime_ns
    more = "notebooks: [01_train, 02_evaluate, 03_more]"
    arguments = write_study(project, seed="[0, 1]", more=more) + scheduler
    assert main([*arguments, "--dry-run"]) == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states == ["partial", "failed"]
    assert main(arguments) == 0
    assert "study.json changes: 0 runs are new, 1 leave it" in capsys.readouterr().err
    assert set(collect(study)["state"]) == {"done"} and not (bad / FAILURE_FILE).exists()
    assert all((path / "notebooks" / "03_more.ipynb").exists() for path in (good, bad))
    assert trained.stat().st_mtime_ns == kept

    # What is over all runs is redone when they change, and only then.
    assert made < (again := summary.stat().st_mtime_ns)
    assert main(arguments) == 0 and "2 of 2 runs are done already" in capsys.readouterr().err
    assert summary.stat().st_mtime_ns == again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_a_study_that_is_stopped_or_killed_goes_on(project, scheduler, number):
    arguments = write_study(project, method="[fsq, lgq]")
    command = [sys.executable, "-m", "lgqlib.study", *arguments, "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    study, begun = project / "runs" / "s", time.monotonic()
    try:
        while not (saved := [*study.glob("fsq-*/checkpoints/step-*")]):
            assert time.monotonic() < begun + 100 and process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        # A terminal sends Ctrl-C to the whole group of processes: workers must not die of it.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
    if number == signal.SIGKILL:
        time.sleep(3)  # a kernel looks every second whether its parent lives
    path = saved[0].parents[1]
    lines = (path / "metrics.jsonl").read_text().splitlines()
    kept = Run(path).step
    assert 10 <= kept <= len(lines) < 60, "the kernel ended"
    if number == signal.SIGINT:
        assert process.returncode == 130 and "stopping" in said, said
        states = collect(study).set_index("method")["state"].to_dict()
        assert states == {"fsq": "partial", "lgq": "new"}, "nothing more was begun"
        assert kept == len(lines), "the checkpoint is of the last step"

    assert main([*arguments, *scheduler]) == 0
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps[len(lines) :] == list(range(kept + 1, 61)), "it went on from the checkpoint"
    assert set(collect(study)["state"]) == {"done"}


def test_each_worker_has_a_gpu_of_its_own(tmp_path, scheduler, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    how = {"stop": tmp_path / "stop", "cell_limit": 60.0, "environment": {}, "gpus": _gpus()}
    write = "import os, time\ntime.sleep(2)\nopen(x, 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"
    notebook = write_notebook(tmp_path / "a.ipynb", "x = ''", write)
    jobs = [Job(notebook, tmp_path / f"{i}.ipynb", {"x": f"{i}.txt"}) for i in range(2)]
    with Client(scheduler[1]) as client:
        futures = [client.submit(execute, [job], **how) for job in jobs]
        assert client.gather(futures) == [{}, {}]
    assert {(tmp_path / f"{i}.txt").read_text() for i in range(2)} == {"3", "5"}


def test_mistakes_are_said_before_anything_starts(project, capsys):
    def refused(arguments):
        assert main(arguments) == 2
        return capsys.readouterr().err

    assert "s.yaml: run method=vgq" in refused(write_study(project, method="[lgq, vgq]"))
    arguments = write_study(project)
    elsewhere = [*arguments, "--notebooks", str(project / "elsewhere")]
    assert re.search(r"elsewhere/01_train.ipynb is missing: .*--notebooks", refused(elsewhere))
    with locked(project / "runs" / "s" / "lock", wait=False):
        assert "is being run by another process" in refused(arguments)
    write_notebook(project / "notebooks" / "01_train.ipynb", "preset = ''")
    assert "has no parameter cache, method" in refused(arguments)
