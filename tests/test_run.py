"""The run directory gives back what was written, and says what is wrong with what was not."""

import json
import pickle

import numpy as np
import pytest
import torch

from lgqlib.files import read_json, replacing, sweep, write_json
from lgqlib.presets import preset
from lgqlib.run import Run, Snapshot


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path, preset("laptop"))


def test_creating_twice_finds_the_same_folder(tmp_path, run):
    assert Run.create(tmp_path, preset("laptop")).path == run.path
    assert Run.create(tmp_path, preset("laptop", seed=1)).path != run.path
    assert Run.open(run.path).config == run.config


def test_a_folder_that_is_no_run_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="is not a run: it has no config.json. Train one with"):
        Run.open(tmp_path)
    with pytest.raises(ValueError, match="no trained run below"):
        Run.latest(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (lambda text: text.replace('"version": 1', '"version": 7'), "version = 7"),
        (lambda text: text.replace('"lr": 0.002', '"lr": -1'), "train.lr = -1"),
        (lambda text: text.replace('"clip"', '"klip"'), "lacks train.clip"),
    ],
)
def test_a_damaged_config_is_named_with_the_reason(run, damage, says):
    file = run.path / "config.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError) as refusal:
        Run.open(run.path)
    assert "config.json" in str(refusal.value)
    assert says in str(refusal.value)


def test_metrics_come_back_by_step_and_split(run):
    assert list(run.metrics().columns) == ["step", "split"]
    run.log(1, "train", loss=0.5, tau=float("nan"))
    run.log(2, "val", psnr=20.0)
    table = run.metrics()
    assert table.step.tolist() == [1, 2]
    assert table.loss[0] == 0.5
    assert np.isnan(table.tau[0])
    assert table.psnr[1] == 20.0


def test_a_torn_last_line_is_left_out_and_a_damaged_middle_named(run):
    run.log(1, "train", loss=0.5)
    file = run.path / "metrics.jsonl"
    with open(file, "a") as stream:
        stream.write('{"step": 2, "split": "tr')
    assert run.metrics().step.tolist() == [1]
    run.rewind_metrics(1)
    assert len(file.read_text().splitlines()) == 1
    file.write_text('{"step": 1\n' + json.dumps({"step": 2, "split": "train"}) + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1 is not JSON"):
        run.metrics()


def test_rewinding_drops_what_came_later(run):
    for step in range(1, 6):
        run.log(step, "train", loss=step / 7)
    run.rewind_metrics(3)
    assert run.metrics().loss.tolist() == [1 / 7, 2 / 7, 3 / 7]


def save(run, step):
    value = {"a": torch.full((3,), float(step)), "b": torch.arange(step)}
    run.save_checkpoint(step, {"tokenizer": value}, tau=0.1 * step, tau_c=float("nan"))


def test_checkpoints_come_back_and_only_the_newest_few_stay(run):
    assert run.load_checkpoint() is None
    assert run.step == 0
    for step in (10, 20, 30):
        save(run, step)
    checkpoint = run.load_checkpoint()
    assert checkpoint.step == run.step == 30
    assert checkpoint.state["tau"] == run.tau == 0.1 * 30
    assert checkpoint.state["tau_c"] is None
    assert torch.equal(checkpoint.tensors["tokenizer"]["b"], torch.arange(30))
    kept = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert kept == ["step-00000020", "step-00000030"]


@pytest.mark.parametrize("where", [0, 100, -1])
def test_one_flipped_bit_in_a_checkpoint_is_found(run, where):
    save(run, 10)
    file = run.path / "checkpoints" / "step-00000010" / "tokenizer.safetensors"
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.safetensors is damaged: its checksum"):
        run.load_checkpoint()


def test_a_missing_checkpoint_file_is_named(run):
    save(run, 10)
    (run.path / "checkpoints" / "step-00000010" / "tokenizer.safetensors").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.safetensors is missing"):
        run.load_checkpoint()


def test_a_checkpoint_of_another_shape_is_refused(run):
    save(run, 10)
    with pytest.raises(ValueError, match="does not fit its config.json"):
        run.tokenizer()


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def test_a_planted_pickle_is_never_loaded(run):
    save(run, 10)
    folder = run.path / "checkpoints" / "step-00000010"
    bomb = pickle.dumps(Bomb())
    for name in ("tokenizer.safetensors", "tokenizer.pt"):
        (folder / name).write_bytes(bomb)
    (run.path / "snapshots").mkdir()
    (run.path / "snapshots" / "step-00000001.safetensors").write_bytes(bomb)
    (run.path / "evaluation.json").write_bytes(bomb)
    for read in (run.load_checkpoint, run.snapshots, run.evaluation, run.tokenizer):
        with pytest.raises(ValueError, match="damaged|not valid JSON"):
            read()


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


def test_snapshots_come_back_in_the_order_of_training(run):
    for step in (100, 0, 7):
        run.save_snapshot(snapshot(step))
    found = run.snapshots()
    assert [s.step for s in found] == [0, 7, 100]
    assert np.array_equal(found[1].codebook, snapshot(7).codebook)
    assert found[1].tau == 0.5
    assert np.isnan(found[1].tau_c)


def test_evaluations_come_back_and_their_absence_says_what_to_do(run):
    with pytest.raises(ValueError, match="no evaluation yet: run notebook 02_evaluate"):
        run.evaluation()
    run.save_evaluation({"psnr": np.float64(20.5), "kid": float("nan")}, {"x": np.arange(3)})
    assert run.evaluation() == {"psnr": 20.5, "kid": None, "step": 0}
    assert run.arrays()["x"].tolist() == [0, 1, 2]


def test_replacing_leaves_the_old_content_when_writing_fails(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, {"a": 1})
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half of it")
        raise RuntimeError
    assert read_json(file) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_replacing_a_folder_replaces_all_of_it(tmp_path):
    folder = tmp_path / "folder"
    for name in ("one", "two"):
        with replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [p.name for p in folder.iterdir()] == ["two"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, 1)
    full = pytest.raises(OSError, match=r"could not write .*value.json: No space left")
    with full, replacing(file) as temporary:
        temporary.write_text("2")
        raise OSError(28, "No space left on device")
    assert read_json(file) == 1


def test_what_a_kill_left_is_swept(tmp_path):
    (tmp_path / ".step-1.abc.tmp").mkdir()
    (tmp_path / "step-1").mkdir()
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
