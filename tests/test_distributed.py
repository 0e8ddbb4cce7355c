"""Two processes with half a batch each train as one process with the whole batch does."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lgqlib.config import QuantizerConfig
from lgqlib.quantizers import METHODS, build
from lgqlib.quantizers.assignment import mean_over_ranks, soft_assign
from lgqlib.run import Run
from lgqlib.train import train

pytestmark = pytest.mark.xdist_group("distributed")
UNITS = ("", " distortion", " moments")
TEN_STEPS = (
    "train.num_steps=10 train.log_every=1 train.eval_every=0 train.lr=5e-4 "
    "train.checkpoint_every=10 loss.usage=1"
)
SCRIPT = """
import importlib
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lgqlib.run import Run
from test_distributed import loss_of, terms_of

loop = importlib.import_module("lgqlib.train")
cache, folder, stop_at = *map(Path, sys.argv[1:3]), int(sys.argv[3])
found = {}

class Job(loop.Job):
    def advance(self, bar):
        super().advance(bar)
        if self.step == stop_at and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # one of the two is told to stop

    def save(self):
        super().save()
        method, tokenizer = self.config.quantizer.method, self.tokenizer
        found[method] = tokenizer.codebook.detach().contiguous()
        for name in ("distortion", "moments"):
            found[f"{method} {name}"] = getattr(tokenizer, name)

loop.Job = Job  # trains as ever, and shows what each rank holds
for run in map(Run, sys.argv[4:]):
    loop.train(run.config, run, cache=cache, progress=False)

rank, given = torch.distributed.get_rank(), load_file(folder / "given.safetensors")
transform, codes = (given[name].requires_grad_() for name in ("transform", "codes"))
loss, found["usage"] = loss_of(given["x"].chunk(2)[rank], transform, codes)
loss.backward()
for name, value in (("transform", transform), ("codes", codes)):
    torch.distributed.all_reduce(value.grad)  # as DistributedDataParallel does
    found[name] = value.grad / 2
found |= terms_of(given["latents"].chunk(2)[rank])
found = {name: value.detach() for name, value in found.items()}
save_file(found, folder / f"rank-{rank}.safetensors")
"""


def loss_of(x, transform, codes):
    """Give a loss like the quantizer's: means over tokens, and a square of one over all ranks."""
    a = soft_assign(x @ transform, codes, 0.5)
    usage = mean_over_ranks(a.usage)
    return (a.average - x @ transform).square().mean() + 5 * usage.square().sum(), usage


def terms_of(latents):
    """Give the terms of every method."""
    found = {}
    for name in METHODS:
        torch.manual_seed(0)
        quantizer = build(QuantizerConfig(method=name, num_codes=64), 4).eval()
        terms = quantizer(latents.float(), 0.5).terms
        found |= {f"{name} {term}": value for term, value in terms.items()}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def torchrun(folder, cache):
    """Give what trains runs on two processes, one of which may be told to stop after a step."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    make = torch.Generator().manual_seed(0)
    shapes = {"x": (32, 4), "transform": (4, 4), "codes": (10, 4), "latents": (8, 4, 3, 3)}
    given = {k: torch.randn(v, dtype=torch.float64, generator=make) for k, v in shapes.items()}
    save_file(given, folder / "given.safetensors")

    def launch(*runs, stop_at=0):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node=2", str(script), str(cache), str(folder), str(stop_at)]
        path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
        env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command += [str(run.path) for run in runs]
        env |= {"PYTHONPATH": path}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == (stop_at == 0), done.stderr

    return launch


@pytest.fixture(scope="module")
def together(folder, tiny_config, torchrun):
    """Give a run of LGQ on two processes, after one of VQ-EMA; and what each rank then holds."""
    runs = [Run.create(folder / "two", tiny_config(name, TEN_STEPS)) for name in ("vq_ema", "lgq")]
    torchrun(*runs)
    return runs[1], [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]


def test_every_rank_holds_the_same_and_its_terms_and_gradients_are_of_the_whole_batch(
    folder, together
):
    ranks, given = together[1], load_file(folder / "given.safetensors")
    for name in (f"{method}{what}" for method in ("lgq", "vq_ema") for what in UNITS):
        assert torch.equal(*(seen[name] for seen in ranks)) and ranks[0][name].abs().sum() > 0
    transform, codes = (given[name].requires_grad_() for name in ("transform", "codes"))
    loss, usage = loss_of(given["x"], transform, codes)
    loss.backward()
    for seen in ranks:
        torch.testing.assert_close(seen["usage"], usage.detach())
        torch.testing.assert_close(seen["transform"], transform.grad)
        torch.testing.assert_close(seen["codes"], codes.grad)
    for name, value in terms_of(given["latents"]).items():
        mean = (ranks[0][name] + ranks[1][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5, msg=name)


def test_two_processes_train_as_one(folder, cache, together):
    two = together[0]
    start = two.config.override("train.num_steps=1 train.warmup=1 train.lr=1e-30")
    zero, one = Run.create(folder / "zero", start), Run.create(folder / "one", two.config)
    for run in (zero, one):
        train(run.config, run, cache=cache, progress=False)
    before, a, b = (run.load_checkpoint().tensors["tokenizer"] for run in (zero, one, two))
    names = [name for name, value in a.items() if value.is_floating_point()]
    way, apart = (
        torch.cat([(x[name] - y[name]).flatten() for name in names]).norm()
        for x, y in ((a, before), (a, b))
    )
    # Sums in another order round differently, and Adam enlarges that where a gradient is near zero:
    # 0.4 % of the way was measured after ten steps, most of it the codebook's.
    assert apart < 1e-2 * way
    logs = [run.metrics().query("split == 'train'") for run in (one, two)]
    assert logs[1].loss.tolist() == pytest.approx(logs[0].loss.tolist(), rel=1e-3, abs=1e-4)
    assert abs(logs[1].active - logs[0].active).max() <= 1
    assert (abs(logs[1].perplexity - logs[0].perplexity) <= 1).all()


def test_ranks_stop_together_and_go_on_as_if_never_stopped(folder, together, torchrun):
    """A signal that reaches one rank stops both after the same step, and the uses of codes that
    a snapshot counts are counted once.
    """
    whole, stopped = together[0], Run.create(folder / "stopped", together[0].config)
    torchrun(stopped, stop_at=2)
    assert stopped.load_checkpoint().step == 8  # the next time that ranks ask each other
    torchrun(stopped)
    again = stopped.load_checkpoint().tensors
    for part, tensors in whole.load_checkpoint().tensors.items():
        assert all(torch.equal(again[part][name], value) for name, value in tensors.items())
    for a, b in zip(whole.snapshots(), stopped.snapshots(), strict=True):
        assert a.step == b.step
        assert (a.counts == b.counts).all()
        assert (a.last_used == b.last_used).all()
