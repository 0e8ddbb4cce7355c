"""What a training step costs: every method in turn at the same backbone, and the soft assignment.

    python benchmarks/speed.py [--preset laptop] [--codes 1024 4096 16384] [--threads 1 2] [--save]

Steps are interleaved (every method in turn, so that a noisy machine is noisy for all) and compared
as ratios of medians; peak memory is of a process that takes five steps of one method. Then one call
of the soft assignment with its backward, 4,096 tokens, by each of its ways.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from lgqlib.losses import TokenizerLoss
from lgqlib.presets import preset
from lgqlib.quantizers import METHODS
from lgqlib.quantizers.assignment import dense, nearest_assign, soft_assign
from lgqlib.tokenizer import Tokenizer
from lgqlib.train import parameter_groups

RESULTS = Path(__file__).parent.parent / "docs" / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(name: str, method: str, num_codes: int, overrides=""):
    """Give a function that takes one training step of a method on smooth random images.

    A quantizer with a temperature trains at that of the middle of its schedule.
    """
    config = preset(name, method=method, num_codes=num_codes).override(overrides)
    torch.manual_seed(0)
    tokenizer = Tokenizer(config).to(DEVICE).train()
    size, tokens = config.data.size, config.latent_side**2
    few = torch.randn(max(config.train.batch_size, 2 * num_codes // tokens), 3, 8, 8)
    images = torch.nn.functional.interpolate(few, size, mode="bicubic").clamp(-1, 1).to(DEVICE)
    images = (images + 0.1 * torch.randn_like(images)).clamp(-1, 1)
    tokenizer.initialize(images)
    images = images[: config.train.batch_size]
    train = config.train
    groups = parameter_groups(tokenizer, weight_decay=0.0, codebook_lr=train.codebook_lr)
    optimizer = torch.optim.AdamW(groups, lr=1e-6, fused=DEVICE == "cuda")
    loss = TokenizerLoss(config.loss).to(DEVICE)
    units = {"absolute": 1.0, "tau_c": tokenizer.tau_c, "self": tokenizer.width}
    half = config.temperature.at(train.num_steps // 2, train.num_steps)
    tau = half * units[config.temperature.unit]
    bf16 = train.precision == "bf16" and DEVICE == "cuda"

    def step() -> None:
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bf16):
            output = tokenizer(images, tau)
        total, _ = loss(images, output.images, output.quantized.terms)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        tokenizer.quantizer.after_step()
        tokenizer.observe(output.latents, output.quantized.indices)

    return step, config.train.batch_size


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def steps(options, threads: int) -> list[list]:
    """Give rows: method, K, ms a step, its ratios to FSQ's and VQ's, peak memory in MB."""
    torch.set_num_threads(threads)
    rows = []
    for num_codes in options.codes:
        calls = {m: build(options.preset, m, num_codes, options.overrides) for m in options.methods}
        times: dict[str, list[float]] = {m: [] for m in calls}
        for round_ in range(options.steps + 2):
            for method, (step, _) in calls.items():
                spent = seconds(step)
                if round_ >= 2:
                    times[method].append(spent)
        medians = {m: statistics.median(values) for m, values in times.items()}
        for method, median in medians.items():
            ratios = [median / medians.get(of, float("nan")) for of in ("fsq", "vq")]
            batch, memory = calls[method][1], peak(options, method, num_codes)
            label = METHODS[method].label
            rows.append([label, num_codes, threads, 1e3 * median, batch / median, *ratios, memory])
            print(row(rows[-1]), flush=True)
    return rows


def peak(options, method: str, num_codes: int) -> float:
    """Give the peak memory in MB of a process of its own that takes five steps of a method."""
    own = ["--one", method, "--codes", str(num_codes), "--preset", options.preset]
    command = [sys.executable, __file__, *own, "--overrides", options.overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def take(options) -> None:
    torch.set_num_threads(1)
    step, _ = build(options.preset, options.one, options.codes[0], options.overrides)
    for _ in range(5):
        step()
    on_gpu = DEVICE == "cuda"
    used = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(0).ru_maxrss
    print(used / 1e6)


def assignments(options) -> list[list]:
    """Give rows: way, K, C, ms of one call with its backward."""
    rows = []
    for num_codes, dim in ((1024, 5), (16384, 5), (16384, 64), (262144, 64)):
        z = torch.randn(4096, dim, device=DEVICE, requires_grad=True)
        e = torch.randn(num_codes, dim, device=DEVICE, requires_grad=True)
        with torch.no_grad():
            near = nearest_assign(z, e, 1.0).indices
            tau = 0.1 * 2 * (z - e[near]).square().sum(1).mean().item() / dim
        for way in (dense, soft_assign, nearest_assign):
            if way is dense and num_codes > 16384:
                continue

            def call(way=way, z=z, e=e, tau=tau) -> None:
                a = way(z, e, tau)
                (a.average.sum() + a.free_energy.sum()).backward()

            call()
            rows.append([way.__name__, num_codes, dim, 1e3 * min(seconds(call) for _ in range(3))])
            print(row(rows[-1]), flush=True)
    return rows


def row(values: list) -> str:
    cells = [f"{v:.{2 if v < 10 else 0}f}" if isinstance(v, float) else str(v) for v in values]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    how = {"description": __doc__, "formatter_class": argparse.RawTextHelpFormatter}
    parser = argparse.ArgumentParser(**how)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--methods", nargs="+", default=["fsq", "vq", "vq_ema", "simvq", "lgq"])
    parser.add_argument("--codes", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--overrides", default="", help="of every config, name=value name=value")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="write docs/results/speed-DEVICE.md")
    options = parser.parse_args()
    if options.one:
        take(options)
        return
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.machine()
    print(head := "| method | K | threads | ms a step | images/s | to FSQ | to VQ | peak MB |")
    found = [r for threads in options.threads for r in steps(options, threads)]
    torch.set_num_threads(1)
    print(of_ways := "| way | K | C | ms |")
    ways = assignments(options)
    if options.save:
        about = (
            f"Device: {name}, torch {torch.__version__}. Command: `python {' '.join(sys.argv)}`."
        )
        about += f" Medians of {options.steps} interleaved steps; ratios are within one run."
        tables = [[head, "|---" * 8 + "|", *map(row, found)]]
        tables += [[of_ways, "|---" * 4 + "|", *map(row, ways)]]
        text = "\n\n".join([f"# Speed, `{options.preset}`", about, *map("\n".join, tables)])
        where = "gpu" if DEVICE == "cuda" else "cpu"
        (RESULTS / f"speed-{options.preset}-{where}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
