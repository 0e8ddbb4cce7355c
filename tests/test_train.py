"""Training repeats bit for bit, resumes as if never stopped, and stops with a reason."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import assert_same

from lgqlib.config import LossConfig
from lgqlib.data import TrainingBatches
from lgqlib.losses import PatchDiscriminator, TokenizerLoss, discriminator_loss, frozen
from lgqlib.quantizers import METHODS
from lgqlib.run import Run
from lgqlib.tokenizer import Tokenizer
from lgqlib.train import Job, NonFiniteLoss, parameter_groups, snapshot_steps

GOLDEN = Path(__file__).parent / "golden" / "laptop-tiny.json"
EVERYTHING = (
    "train.ema=0.9 loss.adversarial=0.1 loss.adversarial_start=0.25 loss.perceptual=0.1 "
    "loss.perceptual_side=32"
)


def logged(run):
    """Everything that was logged, but for the clock's readings."""
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] != "timing"]


@pytest.mark.parametrize(
    ("method", "at", "number"),
    [("lgq", 1, signal.SIGTERM), ("lgq", 5, signal.SIGINT), ("vq_ema", 5, signal.SIGTERM)],
)
def test_resumed_equals_uninterrupted(method, at, number, trained_in, tiny_config, monkeypatch):
    config, advance, pending, drawn = tiny_config(method, EVERYTHING), Job.advance, [], {}

    def watched(job, bar):
        if pending and job.step == at:
            os.kill(os.getpid(), pending.pop())
        advance(job, bar)
        drawn.setdefault(job.step, set()).add(torch.rand(()).item())

    monkeypatch.setattr(Job, "advance", watched)
    whole, pending = trained_in("whole", config), [number]
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as left:
        trained_in("broken", config)
    assert number == signal.SIGINT or left.value.code == 128 + number
    [path] = (whole.path.parents[1] / "broken").iterdir()
    assert Run(path).step == at + 1
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "split": "tra')  # what a kill leaves
    broken = trained_in("broken", config)

    assert_same(whole, broken)
    assert logged(whole) == logged(broken)
    assert all(len(streams) == 1 for streams in drawn.values()), "a step has a random stream"
    for a, b in zip(whole.snapshots(), broken.snapshots(), strict=True):
        for name in ("step", "codebook", "counts", "last_used", "latents"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), (a.step, name)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_logs_and_evaluates(method, trained):
    run = trained(method)
    metrics, steps = run.metrics(), run.config.train.num_steps
    assert run.is_complete and steps == (0 if METHODS[method].baseline else 8)
    assert [run.snapshots()[i].step for i in (0, -1)] == [0, steps]
    numbers = run.evaluation()
    assert numbers["num_images"] == 32 and 5 < numbers["psnr"] < 40
    assert numbers["num_photographs"] == 2 and 5 < numbers["whole_psnr"] < 40
    if steps == 0:
        assert metrics.split.tolist() == ["val"] and 15 < metrics.psnr[0] < 40
        return
    last = metrics[metrics.split == "train"].iloc[-1].dropna()
    logged = {"loss", "reconstruction", "psnr", "active", "perplexity", "tau", "grad_norm"}
    assert logged <= {*last.index} and 1 <= last.active <= 64


def test_the_first_steps_follow_the_golden_curve(trained):
    """Losses of eight steps as they were when the loop was last changed on purpose."""
    golden = json.loads(GOLDEN.read_text())
    metrics = trained("lgq").metrics().query("split == 'train'")
    assert metrics.step.tolist() == golden["step"]
    assert metrics.loss.tolist() == pytest.approx(golden["loss"], rel=2e-3)
    assert metrics.psnr.tolist() == pytest.approx(golden["psnr"], rel=2e-3)


@pytest.mark.parametrize("unit", ["self", "tau_c", "absolute"])
def test_the_temperature_is_in_its_unit(unit, trained_in, tiny_config, monkeypatch):
    units, advance = [], Job.advance

    def watched(job, bar):
        now = {"self": job.tokenizer.width, "tau_c": job.tau_c, "absolute": 1.0}
        units.append(now[unit])
        advance(job, bar)

    monkeypatch.setattr(Job, "advance", watched)
    more = f"temperature.unit={unit} temperature.kind=linear temperature.start=0.5"
    run = trained_in(unit, tiny_config("lgq", f"{more} temperature.end=0.4 train.log_every=1"))
    schedule = [run.config.temperature.at(step, 8) for step in range(8)]
    expected = [r * unit for r, unit in zip(schedule, units, strict=True)]
    taus = run.metrics().query("split == 'train'").tau.tolist()
    assert taus == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["lgq", "vq_ema"])
def test_looking_changes_nothing_and_sees_the_averaged_weights(method, trained_in, tiny_config):
    config = tiny_config(method, "train.ema=0.5 train.num_steps=6 train.eval_every=1")
    watched = trained_in("watched", config)
    alone = trained_in("alone", config.override("train.eval_every=0 train.num_snapshots=0"))
    assert_same(watched, alone, "tokenizer", "ema")
    tokenizer, tensors = watched.tokenizer(), watched.load_checkpoint().tensors
    assert not tokenizer.training
    assert np.array_equal(watched.snapshots()[-1].codebook, tokenizer.codebook.detach())
    for name, value in tokenizer.named_parameters():
        assert torch.equal(value, tensors["ema"][name])
        assert not torch.equal(value, tensors["tokenizer"][name])


def test_one_batch_is_overfitted(trained_in, tiny_config, monkeypatch):
    more = "train.num_steps=160 train.log_every=160 train.lr=5e-3 backbone.width=32"
    batch = TrainingBatches.batch
    monkeypatch.setattr(TrainingBatches, "batch", lambda self, step: batch(self, 0))
    run = trained_in("one", tiny_config("lgq", f"{more} temperature.start=0.01"))
    assert run.metrics().query("split == 'train'").iloc[-1].psnr > 19


def test_a_loss_that_is_no_number_stops_with_step_terms_and_checkpoint(
    trained_in, tiny_config, monkeypatch
):
    forward, calls = TokenizerLoss.forward, []

    def poisoned(self, *args):
        total, terms = forward(self, *args)
        calls.append(1)
        return (total * float("nan"), terms) if len(calls) == 6 else (total, terms)

    monkeypatch.setattr(TokenizerLoss, "forward", poisoned)
    with pytest.raises(NonFiniteLoss) as stop:
        trained_in("poisoned", tiny_config("lgq"))
    for part in ("the loss is nan", "at step 6", "reconstruction = ", "checkpoint is of step 4"):
        assert part in str(stop.value)


def test_codes_and_norms_are_never_decayed(tiny_config):
    tokenizer = Tokenizer(tiny_config("lgq"))
    groups = parameter_groups(tokenizer, weight_decay=0.1, codebook_lr=7.0)
    assert [group["weight_decay"] for group in groups] == [0.1, 0, 0]
    decayed, _, (codes,) = (group["params"] for group in groups)
    assert codes is tokenizer.quantizer.codes and all(p.ndim > 1 for p in decayed)
    assert sum(len(g["params"]) for g in groups) == len([*tokenizer.parameters()])


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_codebook_moves_by_its_own_rate_and_its_average_by_a_share(
    scale, trained_in, tiny_config
):
    """Adam's first step is its learning rate along every coordinate that has a gradient."""
    changes = {"train.codebook_lr": scale, "train.num_steps": 1, "train.clip": 0.0}
    run = trained_in("once", tiny_config("lgq").override(changes | {"train.ema": 0.9}))
    before, average = (snapshot.codebook for snapshot in run.snapshots())
    after = run.load_checkpoint().tensors["tokenizer"]["quantizer.codes"].numpy()
    assert abs(after - before).max() == pytest.approx(scale * run.config.train.lr, rel=1e-3)
    assert average - before == pytest.approx(0.1 * (after - before), abs=1e-6)


def test_snapshots_are_log_spaced_from_start_to_end():
    assert snapshot_steps(100, 5) == {0, 1, 5, 22, 100}
    assert snapshot_steps(100, 0) == set()
    assert snapshot_steps(3, 12) == {0, 1, 2, 3}
    assert snapshot_steps(100, 1) == {100}


def pair(size=32):
    torch.manual_seed(0)
    x, y = (torch.rand(2, 3, size, size) * 2 - 1 for _ in range(2))
    return x, y.requires_grad_()


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_total_is_the_weighted_sum_of_unweighted_terms(reconstruction):
    x, y = pair()
    loss = TokenizerLoss(LossConfig(commit=0.5, usage=0.25, reconstruction=reconstruction))
    total, terms = loss(x, y, {"commit": torch.tensor(2.0), "usage": torch.tensor(4.0)})
    error = (x - y).abs() if reconstruction == "l1" else (x - y).square()
    assert terms["reconstruction"].item() == pytest.approx(error.mean().item())
    assert terms["commit"].item() == 2.0
    assert total.item() == pytest.approx(error.mean().item() + 0.5 * 2 + 0.25 * 4)
    with pytest.raises(ValueError, match="'mystery' has no weight; known: commit"):
        loss(x, y, {"mystery": torch.tensor(1.0)})


def test_the_generator_s_term_never_reaches_the_discriminator():
    _, y = pair()
    judge = PatchDiscriminator(8)
    with frozen(judge):
        logits = judge(y)
    (-logits.mean()).backward()
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())
    # The hinge: nothing is left to do beyond the margin.
    assert discriminator_loss(torch.tensor([1.5, 2.0]), torch.tensor([-1.1, -3.0])).item() == 0
    assert discriminator_loss(torch.tensor([0.0]), torch.tensor([0.0])).item() == 1


def test_the_adaptive_scale_is_the_ratio_of_gradients_at_the_last_layer():
    torch.manual_seed(0)
    last, judge = torch.nn.Conv2d(4, 3, 1), PatchDiscriminator(8)
    y = last(torch.randn(2, 4, 16, 16))
    total = y.abs().mean()
    with frozen(judge):
        logits = judge(y)
    loss = TokenizerLoss(LossConfig(adversarial=0.1))
    whole, terms = loss.adversarial(total, logits, last.weight)
    rest, own = (
        torch.autograd.grad(term, last.weight, retain_graph=True)[0].norm()
        for term in (total, -logits.mean())
    )
    scale = terms["adversarial_scale"].item()
    assert scale == pytest.approx((rest / (own + 1e-4)).item(), rel=1e-5)
    assert whole.item() == pytest.approx((total + 0.1 * scale * terms["adversarial"]).item())
