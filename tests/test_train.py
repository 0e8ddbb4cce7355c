"""Training repeats bit for bit, resumes as if never stopped, and stops with a reason."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lgqlib.data import TrainingBatches
from lgqlib.losses import TokenizerLoss
from lgqlib.quantizers import METHODS
from lgqlib.run import Run
from lgqlib.tokenizer import Tokenizer
from lgqlib.train import Job, NonFiniteLoss, parameter_groups, snapshot_steps, train

GOLDEN = Path(__file__).parent / "golden" / "laptop-tiny.json"


def run_of(config, root):
    return Run.create(root, config)


def weights(run):
    return run.load_checkpoint().tensors


def logged(run):
    """Everything that was logged, but for the clock's readings."""
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] != "timing"]


def same(a, b):
    assert a.keys() == b.keys()
    for file in a:
        assert a[file].keys() == b[file].keys()
        for name in a[file]:
            assert torch.equal(a[file][name], b[file][name]), (file, name)


EVERYTHING = (
    "train.ema=0.9 loss.adversarial=0.1 loss.adversarial_start=0.25 loss.perceptual=0.1 "
    "loss.perceptual_side=32"
)


def test_a_run_repeats_bit_for_bit(tmp_path, cache, tiny_config):
    config = tiny_config("lgq")
    runs = [run_of(config, tmp_path / name) for name in "ab"]
    for run in runs:
        train(config, run, cache=cache, progress=False)
    same(weights(runs[0]), weights(runs[1]))
    assert logged(runs[0]) == logged(runs[1])


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["lgq", "vq_ema"])
@pytest.mark.parametrize(
    ("at", "number", "leaves"),
    [(1, signal.SIGTERM, SystemExit), (5, signal.SIGINT, KeyboardInterrupt)],
)
def test_resumed_equals_uninterrupted(
    method, at, number, leaves, tmp_path, cache, tiny_config, monkeypatch
):
    config = tiny_config(method, EVERYTHING)
    whole, broken = run_of(config, tmp_path / "whole"), run_of(config, tmp_path / "broken")
    train(config, whole, cache=cache, progress=False)

    advance = Job.advance

    def interrupted(job, bar):
        if job.step == at:
            os.kill(os.getpid(), number)
        advance(job, bar)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "advance", interrupted)
        with pytest.raises(leaves) as left:
            train(config, broken, cache=cache, progress=False)
    if leaves is SystemExit:
        assert left.value.code == 128 + number
    assert broken.step == at + 1
    train(config, broken, cache=cache, progress=False)

    same(weights(whole), weights(broken))
    assert logged(whole) == logged(broken)
    assert [s.step for s in whole.snapshots()] == [s.step for s in broken.snapshots()]
    for a, b in zip(whole.snapshots(), broken.snapshots(), strict=True):
        assert (a.codebook == b.codebook).all()
        assert (a.counts == b.counts).all()
        assert (a.last_used == b.last_used).all()


def test_a_crash_between_checkpoints_loses_only_what_came_after(
    tmp_path, cache, tiny_config, monkeypatch
):
    config = tiny_config("lgq")
    whole, broken = run_of(config, tmp_path / "whole"), run_of(config, tmp_path / "broken")
    train(config, whole, cache=cache, progress=False)
    advance = Job.advance

    def crashing(job, bar):
        if job.step == 7:
            raise Stop
        advance(job, bar)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "advance", crashing)
        with pytest.raises(Stop):
            train(config, broken, cache=cache, progress=False)
    assert broken.step == 4
    with open(broken.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "split": "tra')  # what a kill leaves
    train(config, broken, cache=cache, progress=False)
    same(weights(whole), weights(broken))
    assert logged(whole) == logged(broken)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_logs_and_evaluates(method, trained):
    run = trained(method)
    assert run.is_complete
    metrics = run.metrics()
    last = metrics[metrics.split == "train"].iloc[-1]
    assert {"loss", "reconstruction", "psnr", "active", "perplexity", "tau", "grad_norm"} <= {
        name for name in metrics.columns if last[name] == last[name]
    }
    assert 1 <= last.active <= run.config.quantizer.num_codes
    numbers = run.evaluation()
    assert numbers["num_images"] == 32
    assert 5 < numbers["psnr"] < 40
    assert numbers["num_tokens"] == 32 * 64
    assert run.snapshots()[0].step == 0
    assert run.snapshots()[-1].step == 8


def test_one_batch_is_overfitted(tmp_path, cache, tiny_config, monkeypatch):
    config = tiny_config(
        "lgq",
        "train.num_steps=160 train.log_every=160 train.lr=5e-3 backbone.width=32 "
        "temperature.start=0.01",
    )
    batch = TrainingBatches.batch
    monkeypatch.setattr(TrainingBatches, "batch", lambda self, step: batch(self, 0))
    run = run_of(config, tmp_path)
    train(config, run, cache=cache, progress=False)
    last = run.metrics().query("split == 'train'").iloc[-1]
    assert last.psnr > 19


def test_a_loss_that_is_no_number_stops_with_step_terms_and_checkpoint(
    tmp_path, cache, tiny_config, monkeypatch
):
    config = tiny_config("lgq")
    run = run_of(config, tmp_path)
    forward = TokenizerLoss.forward
    calls = []

    def poisoned(self, *args):
        total, terms = forward(self, *args)
        calls.append(1)
        return (total * float("nan"), terms) if len(calls) == 6 else (total, terms)

    monkeypatch.setattr(TokenizerLoss, "forward", poisoned)
    with pytest.raises(NonFiniteLoss) as stop:
        train(config, run, cache=cache, progress=False)
    message = str(stop.value)
    assert "the loss is nan at step 6" in message
    assert "reconstruction = " in message
    assert "checkpoint is of step 4" in message
    assert run.step == 4


def test_a_second_process_is_refused_with_the_owner_s_name(tmp_path, cache, tiny_config):
    config = tiny_config("lgq")
    run = run_of(config, tmp_path)
    hold = (
        "import sys, time\nfrom lgqlib.run import Run\n"
        "with Run.open(sys.argv[1]).locked():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout.readline() == "held\n"
    try:
        with pytest.raises(RuntimeError, match=f"being written by process {owner.pid}, started 20"):
            train(config, run, cache=cache, progress=False)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    train(config, run, cache=cache, progress=False)  # the dead owner's lock holds nobody
    assert run.is_complete


def test_codes_and_norms_are_never_decayed(tiny_config):
    tokenizer = Tokenizer(tiny_config("lgq"))
    groups = parameter_groups(tokenizer, weight_decay=0.1, codebook_lr=7.0)
    decayed, rest, quantizer = groups
    assert decayed["weight_decay"] == 0.1
    assert rest["weight_decay"] == quantizer["weight_decay"] == 0
    assert [group["scale"] for group in groups] == [1, 1, 7]
    assert [p is tokenizer.quantizer.codes for p in quantizer["params"]] == [True]
    assert all(p.ndim > 1 for p in decayed["params"])
    count = sum(p.numel() for group in groups for p in group["params"])
    assert count == sum(p.numel() for p in tokenizer.parameters())


def test_a_faster_codebook_moves_its_codes_as_much_further(tiny_config, tmp_path, cache):
    """Adam's first step is its learning rate along every coordinate that has a gradient."""
    moved = {}
    for scale in (1.0, 5.0):
        changes = {"train.codebook_lr": scale, "train.num_steps": 1, "train.clip": 0.0}
        config = tiny_config("lgq").override(changes)
        run = Run.create(tmp_path / f"runs {scale}", config)
        train(config, run, cache=cache, progress=False)
        codes = [snapshot.codebook for snapshot in run.snapshots()]
        moved[scale] = float(abs(codes[-1] - codes[0]).max())
    assert moved[1.0] > 0
    assert moved[5.0] == pytest.approx(5 * moved[1.0], rel=1e-3)


def test_snapshots_are_log_spaced_from_start_to_end():
    assert snapshot_steps(100, 5) == {0, 1, 5, 22, 100}
    assert snapshot_steps(100, 0) == set()
    assert snapshot_steps(3, 12) == {0, 1, 2, 3}
    assert snapshot_steps(100, 1) == {100}


def test_the_first_steps_follow_the_golden_curve(trained):
    """Losses of eight steps as they were when the loop was last changed on purpose."""
    golden = json.loads(GOLDEN.read_text())
    metrics = trained("lgq").metrics().query("split == 'train'")
    assert metrics.step.tolist() == golden["step"]
    assert metrics.loss.tolist() == pytest.approx(golden["loss"], rel=2e-3)
    assert metrics.psnr.tolist() == pytest.approx(golden["psnr"], rel=2e-3)
