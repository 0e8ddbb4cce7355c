"""A run gives back what was written, whole, or says what is wrong and what to do."""

import errno
import fcntl
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from filesystem import largest_file

from lgqlib.files import read_json, write_json
from lgqlib.presets import preset
from lgqlib.run import Run, Snapshot
from lgqlib.train import train


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path, preset("laptop"))


@pytest.fixture
def whole(trained, tmp_path):
    """Give a copy of a trained and evaluated run, to be spoiled."""
    shutil.copytree(trained("lgq").path, tmp_path / trained("lgq").name)
    return Run.open(tmp_path / trained("lgq").name)


def save(run, step):
    value = {"a": torch.full((4096,), float(step)), "b": torch.arange(step), "c": torch.tensor(7)}
    run.save_checkpoint(step, {"tokenizer": value}, tau=0.1 * step, tau_c=float("nan"))


def snapshot(step):
    return Snapshot(
        step,
        tau=0.5,
        tau_c=float("nan"),
        codebook=np.random.default_rng(step).normal(size=(4, 2)).astype(np.float32),
        latents=np.zeros((5, 2), np.float32),
        indices=np.arange(5) % 4,
        counts=np.arange(4),
        last_used=np.full(4, -1),
    )


# What is written comes back ----------------------------------------------------------------------


def test_equal_configs_have_the_same_folder(tmp_path, run):
    assert Run.create(tmp_path, preset("laptop")).path == run.path
    assert Run.create(tmp_path, preset("laptop", seed=1)).path != run.path
    assert Run.open(run.path).config == run.config
    shutil.copytree(run.path, tmp_path / "copy")
    assert Run.open(tmp_path / "copy").config == run.config


def test_metrics_come_back_by_step_and_split(run):
    assert list(run.metrics().columns) == ["step", "split"]
    run.log(1, "train", loss=0.5, tau=float("nan"))
    run.log(2, "val", psnr=20.0)
    table = run.metrics()
    assert table.step.tolist() == [1, 2] and table.split.tolist() == ["train", "val"]
    assert table.loss[0] == 0.5 and table.psnr[1] == 20.0
    assert np.isnan(table.tau[0])


def test_rewinding_drops_what_came_later_and_a_torn_last_line(run):
    for step in range(1, 6):
        run.log(step, "train", loss=step / 7)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(lines[0][:20])
    assert run.metrics().step.tolist() == [1, 2, 3, 4, 5]
    run.rewind_metrics(3)
    assert (run.path / "metrics.jsonl").read_text() == "".join(lines[:3])


def test_checkpoints_come_back_and_only_the_newest_few_stay(run):
    assert run.load_checkpoint() is None and run.step == 0
    for step in (10, 20, 30):
        save(run, step)
    checkpoint = run.load_checkpoint()
    assert checkpoint.step == run.step == 30
    assert checkpoint.state["tau"] == run.tau == 0.1 * 30
    assert checkpoint.state["tau_c"] is None
    assert torch.equal(checkpoint.tensors["tokenizer"]["b"], torch.arange(30))
    assert checkpoint.tensors["tokenizer"]["c"].shape == ()
    kept = sorted(path.stem for path in (run.path / "checkpoints").iterdir())
    assert kept == ["step-00000020", "step-00000030"]


def test_snapshots_come_back_in_the_order_of_training(run):
    for step in (100, 0, 7):
        run.save_snapshot(snapshot(step))
    found = run.snapshots()
    assert [s.step for s in found] == [0, 7, 100]
    assert np.array_equal(found[1].codebook, snapshot(7).codebook)
    assert found[1].tau == 0.5 and np.isnan(found[1].tau_c)


def test_evaluations_come_back(run):
    run.save_evaluation({"psnr": np.float64(20.5), "kid": float("nan")}, {"x": np.arange(3)})
    assert run.evaluation() == {"psnr": 20.5, "kid": None, "step": 0}
    assert run.arrays()["x"].tolist() == [0, 1, 2]


# What is missing or damaged ----------------------------------------------------------------------


def test_what_is_not_there_says_what_to_do(tmp_path, run):
    with pytest.raises(ValueError, match="no config.json.*01_train"):
        Run.open(tmp_path)
    with pytest.raises(ValueError, match="no trained run below .*01_train, or `make study`"):
        Run.latest(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint yet: train it with notebook 01_train"):
        run.tokenizer()
    with pytest.raises(ValueError, match="no evaluation yet: run notebook 02_evaluate"):
        run.evaluation()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: text.replace('"version": 1', '"version": 7'), "version = 7.*train .* again"),
        (lambda text: text.replace('"lr": 0.002', '"lr": -1'), "train.lr = -1"),
        (lambda text: text.replace('"clip"', '"klip"'), "lacks train.clip"),
        (lambda text: text.replace('"lr": 0.002', '"lr": 0.003'), "has the hash .*train .* again"),
    ],
)
def test_a_damaged_config_is_named_with_the_reason(run, damage, says):
    file = run.path / "config.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=rf"config.json.*{says}"):
        Run.open(run.path)


def flip(content: bytes, place: float) -> bytes:
    at = int(place * (len(content) - 1))
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("name", "read", "remedy"),
    [
        ("checkpoints/step-00000008.safetensors", Run.load_checkpoint, "Remove it to go on"),
        ("snapshots/step-00000008.safetensors", Run.snapshots, "Remove it; the rest"),
        ("metrics.jsonl", Run.metrics, "Without it, training goes on"),
        ("evaluation.json", Run.evaluation, "Run notebook 02_evaluate again"),
        ("evaluation.safetensors", Run.arrays, "Run notebook 02_evaluate again"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(whole, cache, name, read, remedy):
    file = whole.path / name
    content = file.read_bytes()
    bomb = pickle.dumps(Bomb()) + b"\n"
    flipped = [flip(content, place) for place in (0, 0.003, 0.1, 0.5, 0.9, 0.99)]
    for damaged in (*flipped, bomb, content[: len(content) // 2] + b"\n"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}.*{remedy}"):
            read(whole)
    if "checkpoint" in name:
        file.unlink()
        assert whole.load_checkpoint().step == 4
        train(whole.config, whole, cache=cache, progress=False)
        assert whole.is_complete


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def test_a_checkpoint_of_other_shapes_is_refused(whole, cache, tiny_config, tmp_path):
    other = Run.create(tmp_path, tiny_config("lgq", "backbone.width=24 train.num_steps=12"))
    shutil.copytree(whole.path / "checkpoints", other.path / "checkpoints")
    for use in (other.tokenizer, lambda: train(other.config, other, cache=cache, progress=False)):
        with pytest.raises(ValueError, match="does not fit its config.json"):
            use()


def test_a_run_that_cannot_be_read_does_not_hide_one_that_can(whole, caplog):
    shutil.copytree(whole.path, whole.path.parent / "old")
    file = whole.path.parent / "old" / "config.json"
    write_json(file, read_json(file) | {"version": 0})
    assert [run.path for run in Run.all(whole.path.parent)] == [whole.path]
    assert Run.latest(whole.path.parent).path == whole.path
    assert "version = 0" in caplog.text


# Full disks and other writers --------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="no evaluation yet"):
        whole.evaluation()
    assert not list(whole.path.rglob("*.tmp.*"))
    train(whole.config, whole, cache=cache, progress=False)
    assert whole.is_complete and whole.metrics().step.max() == 8


def test_a_lock_sweeps_what_a_kill_left_and_needs_no_file_system_with_locks(run, monkeypatch):
    (run.path / "snapshots").mkdir()
    left = [run.path / ".a.tmp.config.json", run.path / "snapshots" / ".b.tmp.step-1.safetensors"]
    for path in left:
        path.touch()
    other = Run.open(run.path).locked()
    with run.locked():
        assert not any(path.exists() for path in left)
        owner = f"is being written by process {os.getpid()}, started 20"
        with pytest.raises(RuntimeError, match=owner), other:
            pass

    def lockless(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lockless)
    with run.locked():
        pass
