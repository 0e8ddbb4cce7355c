"""A run gives back what was written, whole, or says what is wrong and what to do."""

import errno
import hashlib
import io
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.response import addinfourl

import numpy as np
import pytest
import torch
from builders import largest_file

from lgqlib import files
from lgqlib.config import DataConfig
from lgqlib.data import SOURCES, load
from lgqlib.data.sources import Row
from lgqlib.files import download, read_arrays, read_json, replacing, write_arrays, write_json
from lgqlib.presets import preset
from lgqlib.run import Run, Snapshot
from lgqlib.train import train

BOMB = b"cbuiltins\nexec\n(Vraise SystemExit('a pickle was loaded')\ntR."


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path, preset("laptop"))


@pytest.fixture
def whole(copied):
    """Give a trained and evaluated run, to be spoiled."""
    return copied()


def test_metrics_come_back_and_are_rewound_with_a_torn_last_line(run):
    for step in range(1, 6):
        run.log(step, "train", loss=step / 7, tau=step if step > 1 else float("nan"))
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(lines[0][:20])
    table = run.metrics()
    assert table.step.tolist() == [1, 2, 3, 4, 5] and set(table.split) == {"train"}
    assert table.loss[4] == 5 / 7 and np.isnan(table.tau[0])
    run.rewind_metrics(3)
    assert (run.path / "metrics.jsonl").read_text() == "".join(lines[:3])


def test_checkpoints_snapshots_and_evaluations_come_back_to_the_bit(run):
    for step in (10, 20, 30):
        tensors = {"a": torch.rand(9), "b": torch.arange(step), "c": torch.tensor(7.5)}
        run.save_checkpoint(step, {"tokenizer": tensors}, tau=0.1 * step, tau_c=float("nan"))
    checkpoint = run.load_checkpoint()
    assert (checkpoint.step, run.step, run.tau) == (30, 30, 0.1 * 30)
    assert np.isnan(checkpoint.state["tau_c"])
    for name, value in checkpoint.tensors["tokenizer"].items():
        assert torch.equal(value, tensors[name]) and value.dtype == tensors[name].dtype
    kept = sorted(path.stem for path in (run.path / "checkpoints").iterdir())
    assert kept == ["step-00000020", "step-00000030"], "only the newest few stay"

    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    for step in (100, 0, 7):
        run.save_snapshot(Snapshot(step, 0.5, float("nan"), x + step, x, *[np.arange(4)] * 3))
    found = run.snapshots()
    assert [s.step for s in found] == [0, 7, 100]
    assert np.array_equal(found[1].codebook, x + 7) and np.array_equal(found[1].latents, x)
    run.save_evaluation({"psnr": np.float64(20.5), "kid": float("nan")}, {"x": np.arange(3)})
    about = {"step": 30, "settings": run.config.evaluated}
    assert run.evaluation() == {"psnr": 20.5, "kid": None} | about
    assert run.arrays()["x"].tolist() == [0, 1, 2]


def test_equal_configs_share_a_folder_and_what_is_not_in_it_says_what_to_do(tmp_path, run):
    assert Run.create(tmp_path, preset("laptop")).path == run.path
    for use, says in (
        (lambda: Run(tmp_path), "config.json is missing. Notebook 01_train writes it"),
        (lambda: Run.latest(tmp_path), "no trained run below .*01_train, or `make study`"),
        (run.tokenizer, "no checkpoint yet: train it with notebook 01_train"),
        (run.evaluation, "evaluation.json is missing. Run notebook 02_evaluate"),
    ):
        with pytest.raises(ValueError, match=says):
            use()


@pytest.mark.parametrize(
    ("name", "read", "remedy"),
    [
        ("config.json", lambda run: Run(run.path), "01_train writes it where there is none"),
        ("checkpoints/step-00000008.safetensors", Run.load_checkpoint, "Remove it to go on"),
        ("snapshots/step-00000008.safetensors", Run.snapshots, "Remove it; the rest"),
        ("metrics.jsonl", Run.metrics, "Without the file, training goes on"),
        ("evaluation.json", Run.evaluation, "Run notebook 02_evaluate"),
        ("evaluation.safetensors", Run.arrays, "Run notebook 02_evaluate"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(whole, name, read, remedy):
    file = whole.path / name
    content, middle = file.read_bytes(), file.stat().st_size // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (flipped, BOMB + b"\n", content[:middle] + b"\n"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}.*{remedy}"):
            read(whole)


def test_a_run_of_another_version_is_named_and_hides_no_other(whole, caplog):
    old = shutil.copytree(whole.path, whole.path.parent / "old")
    write_json(old / "config.json", read_json(old / "config.json") | {"version": 7})
    with pytest.raises(ValueError, match=r"config.json.*version = 7.*train .* again"):
        Run(old)
    assert [run.path for run in Run.all(whole.path.parent)] == [whole.path]
    assert Run.latest(whole.path.parent).path == whole.path
    assert "passed over" in caplog.text


def test_a_checkpoint_of_other_shapes_is_refused(whole, cache, tiny_config, tmp_path):
    other = Run.create(tmp_path, tiny_config("lgq", "backbone.width=24 train.num_steps=12"))
    shutil.copytree(whole.path / "checkpoints", other.path / "checkpoints")
    for use in (other.tokenizer, lambda: train(other.config, other, cache=cache, progress=False)):
        with pytest.raises(ValueError, match="does not fit its config.json"):
            use()


def test_a_disk_that_is_full_is_named_and_the_run_goes_on_later(whole, cache):
    (whole.path / "checkpoints" / "step-00000008.safetensors").unlink()
    kept, size = whole.load_checkpoint().tensors, (whole.path / "metrics.jsonl").stat().st_size

    def fails(write, name):
        with pytest.raises(OSError, match=rf"could not write .*{name}.*: File too large") as full:
            write()
        assert full.value.errno == errno.EFBIG

    with largest_file(size + 20):
        fails(lambda: train(whole.config, whole, cache=cache, progress=False), "step-00000008")
        fails(lambda: whole.save_evaluation({}, {"x": np.zeros(4096)}), "evaluation.safetensors")
        whole.rewind_metrics(8)
        fails(lambda: [whole.log(9, "train", loss=0.5) for _ in range(9)], "metrics.jsonl")
    for part, tensors in whole.load_checkpoint().tensors.items():
        assert all(torch.equal(value, kept[part][name]) for name, value in tensors.items())
    with pytest.raises(ValueError, match="evaluation.json is missing"):
        whole.evaluation()
    assert not list(whole.path.rglob("*.tmp.*"))
    train(whole.config, whole, cache=cache, progress=False)
    assert whole.is_complete and whole.metrics().step.max() == 8


def test_one_process_writes_a_run_and_sweeps_what_a_kill_left(run):
    (run.path / "snapshots").mkdir()
    for path in (left := [run.path / ".a.tmp.config.json", run.path / "snapshots" / ".b.tmp.x"]):
        path.touch()
    owner = pytest.raises(RuntimeError, match=f"is being written by process {os.getpid()}")
    with run.locked(), owner, Run(run.path).locked():
        pass
    assert not any(path.exists() for path in left)


def test_kills_and_damages_lose_nothing():
    script = str(Path(__file__).parent.parent / "benchmarks" / "soak.py")
    command = [sys.executable, script, "--seed", "5", "--kills", "10", "--damages", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "10 processes killed in" in done.stdout and "120 damages" in done.stdout
    assert done.stdout.count("lost 0") == 2


def test_a_failed_write_leaves_the_old_content_and_names_the_file(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, {"a": 1})
    for error in (OSError(28, "No space left on device"), RuntimeError("value.json: No space")):
        fails = pytest.raises(type(error), match="value.json: No space")
        with fails, replacing(file) as temporary:
            temporary.write_text("half of it")
            raise error
    assert read_json(file) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_of_two_writers_at_once_the_last_one_wins_whole(tmp_path):
    file = tmp_path / "value.json"
    with replacing(file) as one:
        one.write_text(files.seal({"the": "first"}))
        with replacing(file) as two:
            two.write_text(files.seal({"the": "second"}))
        assert read_json(file) == {"the": "second"}
    assert read_json(file) == {"the": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_a_checksum_is_of_every_byte_and_of_names_types_and_shapes(tmp_path):
    text = files.seal({"b": [1, 2.5, None], "a": {"x": "é"}, "c": math.inf}).encode()
    assert files.unseal(text) == {"b": [1, 2.5, None], "a": {"x": "é"}, "c": None}
    for at in range(len(text)):
        for damaged in (text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :], text[:at]):
            with pytest.raises(ValueError):
                files.unseal(damaged)
    x, file, sums = np.arange(4, dtype=np.int32), tmp_path / "a.safetensors", set()
    others = ({"y": x}, {"x": x[::-1]}, {"x": x.view(np.float32)}, {"x": x.reshape(2, 2)}, {})
    for arrays in ({"x": x}, *others):
        write_arrays(file, arrays, {"tau": math.nan})
        sums.add(files.read_about(file)["arrays"])
        found, about = read_arrays(file)
        assert math.isnan(about["tau"]) and found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], arrays[name]) for name in found)
    assert len(sums) == 1 + len(others)


CONTENT = bytes(range(256)) * 500
URL = "http://server/set.tar"


@pytest.fixture
def server(monkeypatch):
    """Answer downloads with the content, from where a range begins up to where it is cut."""
    server = SimpleNamespace(has_ranges=True, cut=None, asked=[])

    def answer(request, timeout):
        server.asked.append(request.get_header("Range"))
        begins = server.has_ranges and server.asked[-1]
        start = int(begins.removeprefix("bytes=").removesuffix("-")) if begins else 0
        content, length = io.BytesIO(CONTENT[start : server.cut]), len(CONTENT) - start
        return addinfourl(content, {"Content-Length": length}, URL, 206 if begins else 200)

    monkeypatch.setattr(files, "urlopen", answer)
    return server


def fetch(path, content=CONTENT):
    download(URL, path, digest=hashlib.sha256(content).hexdigest(), instead="set data.root")
    return path.read_bytes()


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_download_continues_where_it_was_cut_and_arrives_once(server, tmp_path, has_ranges):
    server.cut, server.has_ranges = 50_000, has_ranges
    with pytest.raises(ConnectionError, match=r"was lost.*Try again to continue.*data.root"):
        fetch(tmp_path / "set.tar")
    assert not (tmp_path / "set.tar").exists()
    server.cut = None
    for _ in range(2):
        assert fetch(tmp_path / "set.tar") == CONTENT
    assert server.asked == [None, "bytes=50000-"]
    (tmp_path / "two.tar.part").write_bytes(CONTENT)
    assert fetch(tmp_path / "two.tar") == CONTENT and len(server.asked) == 2


def test_wrong_bytes_a_full_disk_and_no_network_are_named(server, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"set.tar has SHA-256 \w+, not \w+.*data.root"):
        fetch(tmp_path / "set.tar", content=b"other")
    assert not list(tmp_path.glob("set.tar*[!k]")), "the wrong bytes are removed"
    with largest_file(50_000), pytest.raises(OSError, match=r"could not write .*tar.part: File"):
        fetch(tmp_path / "set.tar")
    monkeypatch.undo()
    monkeypatch.setitem(SOURCES, "cifar10", Row(url="http://127.0.0.1:9/set.tar", digest="0"))
    with pytest.raises(ConnectionError, match=r"127.*set.tar .*set data.root to a folder of"):
        load(DataConfig(name="cifar10"), "train", cache=tmp_path)
