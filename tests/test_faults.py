"""Full disks, lost permissions, runs of other states: a clear error, and nothing lost."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import lgqlib.run
from lgqlib.files import read_json, sealed, write_json
from lgqlib.run import Run
from lgqlib.train import train

NOBODY = 65534


@pytest.fixture
def run(trained, tmp_path):
    """Give a copy of a trained and evaluated run, to be spoiled."""
    whole = trained("lgq")
    shutil.copytree(whole.path, tmp_path / whole.name)
    return Run.open(tmp_path / whole.name)


@contextlib.contextmanager
def without_permission(folder: Path):
    """Let this process write nothing below `folder`; root has to become somebody else for it."""
    root = os.geteuid() == 0
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(NOBODY)
    try:
        assert not os.access(folder, os.W_OK, effective_ids=True)
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def reachable():
    """Give a folder that everybody may enter, as pytest's own may not be."""
    folder = Path(tempfile.mkdtemp(prefix="lgq-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def largest_file(num_bytes: int):
    """Let no file grow beyond `num_bytes`: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def save(run, step):
    tensors = {"tokenizer": {"a": torch.full((4096,), float(step))}}
    run.save_checkpoint(step, tensors, tau=0.5, tau_c=1.0)


def test_a_disk_that_fills_in_training_is_named_and_the_run_goes_on_later(
    tmp_path, cache, tiny_config, monkeypatch
):
    config = tiny_config("lgq")
    run = Run.create(tmp_path, config)
    write = lgqlib.run.save_file

    def full(tensors, file, **more):
        if run.step < 4:
            return write(tensors, file, **more)
        Path(file).write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(lgqlib.run, "save_file", full)
        with pytest.raises(OSError, match=r"could not write .*step-00000008: No space") as stop:
            train(config, run, cache=cache, progress=False)
    assert stop.value.errno == errno.ENOSPC
    assert run.load_checkpoint().step == 4
    assert not list(run.path.rglob("*.tmp"))
    train(config, run, cache=cache, progress=False)
    assert run.is_complete


def test_a_file_that_cannot_grow_is_named_and_the_checkpoint_before_stays(run):
    whole = run.load_checkpoint().tensors
    with largest_file(4096):
        with pytest.raises(OSError, match=r"could not write .*step-00000012: File too large"):
            save(run, 12)
        with pytest.raises(OSError, match=r"could not write .*evaluation.safetensors: File too"):
            run.save_evaluation({}, {"x": torch.zeros(4096).numpy()})
    assert run.step == 8
    for file, tensors in run.load_checkpoint().tensors.items():
        assert all(torch.equal(value, whole[file][name]) for name, value in tensors.items())
    assert not list(run.path.rglob("*.tmp"))
    with pytest.raises(ValueError, match="no evaluation yet"):
        run.evaluation()


def test_a_line_of_metrics_that_finds_no_room_is_named_and_repaired(run):
    lines = len(run.metrics())
    size = (run.path / "metrics.jsonl").stat().st_size
    full = pytest.raises(OSError, match=r"could not write .*metrics.jsonl: File too large")
    with largest_file(size + 20), full:
        run.log(9, "train", loss=0.5)
    assert len(run.metrics()) == lines
    run.rewind_metrics(8)
    run.log(9, "train", loss=0.5)
    assert len(run.metrics()) == lines + 1


def test_a_lost_permission_is_named_and_what_was_there_can_be_read(
    trained, cache, reachable, tiny_config
):
    shutil.copytree(trained("lgq").path, reachable / "run")
    run = Run.open(reachable / "run")
    shutil.rmtree(run.path / "checkpoints" / "step-00000008")
    writes = {
        "step-00000012": lambda: save(run, 12),
        "lock": lambda: train(run.config, run, cache=cache, progress=False),
        "metrics.jsonl": lambda: run.log(9, "train", loss=0.5),
        "evaluation.json": lambda: run.save_evaluation({}, {}),
    }
    with without_permission(reachable):
        for name, write in writes.items():
            with pytest.raises(PermissionError, match=f"could not write .*{name}: Permission"):
                write()
        assert run.load_checkpoint().step == 4
        assert run.evaluation()["num_images"] == 32
    train(run.config, run, cache=cache, progress=False)
    assert run.is_complete


def test_a_read_only_file_system_is_named(run, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(OSError, match=r"could not write .*step-00000012: Read-only file system"):
        save(run, 12)
    assert run.load_checkpoint().step == 8


# Files of other runs and versions ----------------------------------------------------------------


def checkpoint_file(run, name):
    return run.path / "checkpoints" / "step-00000008" / name


@pytest.mark.parametrize("name", ["state.json", "tokenizer.safetensors", "training.safetensors"])
def test_a_damaged_checkpoint_names_the_file_and_what_to_remove(run, name, cache):
    file = checkpoint_file(run, name)
    content = file.read_bytes()
    for damaged in (content.replace(b"0", b"1", 1), content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name} is .*Remove .*step-00000008 to go on"):
            run.load_checkpoint()
    shutil.rmtree(file.parent)
    assert run.load_checkpoint().step == 4
    train(run.config, run, cache=cache, progress=False)
    assert run.is_complete


def test_a_checkpoint_of_other_shapes_is_refused_in_training(
    run, trained, cache, tiny_config, tmp_path
):
    config = tiny_config("lgq", "backbone.width=24 train.num_steps=12")
    other = Run.create(tmp_path, config)
    shutil.copytree(run.path / "checkpoints", other.path / "checkpoints")
    with pytest.raises(ValueError, match="checkpoint of step 8 does not fit its config.json"):
        train(config, other, cache=cache, progress=False)


def test_a_config_that_is_not_of_its_folder_is_refused(run):
    file = run.path / "config.json"
    file.write_text(file.read_text().replace('"lr": 0.002', '"lr": 0.003'))
    with pytest.raises(ValueError, match=r"config.json is not the config that this folder was"):
        Run.open(run.path)


def test_a_run_that_cannot_be_read_does_not_hide_one_that_can(run):
    older = run.path.parent / "old"
    shutil.copytree(run.path, older)
    config = read_json(older / "config.json")
    write_json(older / "config.json", config | {"version": 0})
    assert Run.latest(run.path.parent).path == run.path
    shutil.rmtree(run.path)
    with pytest.raises(ValueError, match=r"1 could not be read: .*config.json: version = 0"):
        Run.latest(run.path.parent)


def test_arrays_of_another_evaluation_are_refused(run):
    file = run.path / "evaluation.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"evaluation.safetensors is damaged.*02_evaluate again"):
        run.arrays()
    file.unlink()
    with pytest.raises(ValueError, match=r"evaluation.safetensors is missing"):
        run.arrays()


def test_a_checksum_finds_every_change_and_none_where_there_is_none(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"x": "é"}}
    assert sealed(value) == sealed({"a": {"x": "é"}, "b": (1, 2.5, None)})
    assert sealed(value)["checksum"] != sealed(value | {"b": [1, 2.25, None]})["checksum"]
