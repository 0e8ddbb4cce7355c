"""Two processes with half a batch each train as one process with the whole batch does."""

import os
import subprocess
import sys

import pytest
import torch
from builders import assert_same
from safetensors.torch import load_file

from lgqlib.config import QuantizerConfig
from lgqlib.quantizers import METHODS, build
from lgqlib.run import Run
from lgqlib.train import train

pytestmark = pytest.mark.xdist_group("distributed")
HELD = ("codebook", "distortion", "moments")
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
from builders import assert_same
from safetensors.torch import save_file

from lgqlib.run import Run
from test_distributed import given, terms_of

loop = importlib.import_module("lgqlib.train")
cache, folder, found, told = *map(Path, sys.argv[1:3]), {}, []

class Job(loop.Job):
    def advance(self, bar):
        super().advance(bar)
        if told and self.step == 2 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), told.pop())  # one of the two is told to stop

    def save(self):
        super().save()
        for name in ("codebook", "distortion", "moments"):
            value = getattr(self.tokenizer, name).detach().contiguous()
            found.setdefault(f"{self.config.quantizer.method} {name}", value)

loop.Job = Job  # trains as ever, and shows what each rank holds
*whole, stopped = map(Run, sys.argv[3:])
for run in whole:
    loop.train(run.config, run, cache=cache, progress=False)
told.append(signal.SIGTERM)
try:
    loop.train(stopped.config, stopped, cache=cache, progress=False)
except SystemExit:
    torch.distributed.barrier()  # until the first rank has saved
    found["stopped at"] = torch.tensor(stopped.step)
    torch.distributed.barrier()
loop.train(stopped.config, stopped, cache=cache, progress=False)

rank = torch.distributed.get_rank()
found |= terms_of(given().chunk(2)[rank])
save_file(found, folder / f"rank-{rank}.safetensors")
"""


def given():
    """Give latents, half for each rank."""
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def terms_of(latents):
    """Give the terms of every method, and their gradients in its parameters, over all ranks."""
    found = {}
    for name in METHODS:
        torch.manual_seed(0)
        quantizer = build(QuantizerConfig(method=name, num_codes=64), 4).eval()
        for term, value in quantizer(latents, 0.5).terms.items():
            found[f"{name} {term}"] = value.detach()
            weights = [p for p in quantizer.parameters() if p.requires_grad]
            if name == "lgq":  # the square of a mean over ranks
                grads = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
                found |= {f"lgq {term} {i}": g for i, g in enumerate(grads) if g is not None}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def together(folder, cache, tiny_config):
    """Give two runs of LGQ on two processes, after one of VQ-EMA, and what each rank then holds.

    The second is stopped, and goes on.
    """
    script = folder / "script.py"
    script.write_text(SCRIPT)
    configs = [tiny_config(name, TEN_STEPS) for name in ("vq_ema", "lgq")]
    runs = [Run.create(folder / "two", config) for config in configs]
    runs.append(Run.create(folder / "stopped", configs[1]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += map(str, [script, cache, folder, *(run.path for run in runs)])
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return *runs[1:], [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]


def test_every_rank_holds_the_same_and_the_mean_of_terms_is_that_of_the_whole_batch(together):
    ranks = together[2]
    for name in (f"{method} {what}" for method in ("lgq", "vq_ema") for what in HELD):
        assert torch.equal(*(seen[name] for seen in ranks)) and ranks[0][name].abs().sum() > 0
    for name, value in terms_of(given()).items():
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


def test_ranks_stop_together_and_go_on_as_if_never_stopped(together):
    """A signal that reaches one rank stops both after the same step, and the uses of codes that
    a snapshot counts are counted once.
    """
    whole, stopped, ranks = together
    # The next time that ranks ask each other.
    assert [int(held["stopped at"]) for held in ranks] == [8, 8]
    assert_same(whole, stopped)
    for a, b in zip(whole.snapshots(), stopped.snapshots(), strict=True):
        assert a.step == b.step
        assert (a.counts == b.counts).all()
        assert (a.last_used == b.last_used).all()
