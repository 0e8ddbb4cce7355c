"""What a training step costs: every method in turn at the same backbone, and the soft assignment.

    python benchmarks/speed.py [--preset laptop] [--codes 1024 4096 16384] [--threads 1 2] [--save]

Steps are interleaved (every method in turn, so that a noisy machine is noisy for all) and compared
as ratios of medians. Then one call of the soft assignment with its backward, 4,096 tokens, by each
of its ways, and of the search of the nearest code alone.
"""

import argparse
import gc
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from lgqlib.presets import preset
from lgqlib.quantizers import METHODS
from lgqlib.quantizers.assignment import dense, nearest, nearest_assign, soft_assign
from lgqlib.run import Run
from lgqlib.train import Job

ROOT = Path(__file__).parent.parent
RESULTS, CACHE = ROOT / "docs" / "results", ROOT / "data" / "cache"
SILENT = "train.log_every=1000000 train.checkpoint_every=1000000 train.eval_every=0 "
SILENT += "train.num_snapshots=0 train.num_steps=60"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(name: str, method: str, num_codes: int, overrides="", *, cache: Path = CACHE):
    """Give what takes one training step of a method, and the images of a step.

    It has taken 40 of 60 steps, for the first ones, while it is hot, are not like the others; it
    logs and writes nothing.
    """
    config = preset(name, method=method, num_codes=num_codes).override(overrides).override(SILENT)
    accelerator = Accelerator(mixed_precision=config.train.precision)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(config, Run.create(folder, config), accelerator, cache=cache)
    step = partial(job.advance, tqdm(disable=True))
    for _ in range(40):
        step()
    return step, config.train.batch_size


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Give each call's median seconds over rounds of all of them, after two that warm up."""
    spent = [{name: seconds(call) for name, call in calls.items()} for _ in range(rounds + 2)]
    return {name: statistics.median(each[name] for each in spent[2:]) for name in calls}


def free() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float:
    """Give the most memory that a GPU had in use since `free`."""
    return torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else float("nan")


def steps(options, threads: int) -> list[list]:
    """Give rows: method, K, threads, ms a step, images a second, ratios to FSQ's and VQ's."""
    torch.set_num_threads(threads)
    rows = []
    for num_codes in options.codes:
        built = {m: build(options.preset, m, num_codes, options.overrides) for m in options.methods}
        medians = in_turn({m: step for m, (step, _) in built.items()}, options.steps)
        for method, median in medians.items():
            ratios = [median / medians.get(of, float("nan")) for of in ("fsq", "vq")]
            label, batch = METHODS[method].label, built[method][1]
            rows.append([label, num_codes, threads, 1e3 * median, batch / median, *ratios])
            print(row(rows[-1]), flush=True)
    return rows


def assignments(tokens: int, sizes: Iterable[tuple[int, int]]) -> list[list]:
    """Give rows: way, K, C, ms with backward (of all but `nearest`, the search alone), peak GB."""
    rows, tau = [], 0.05 * 2 * 0.3**2
    for num_codes, dim in sizes:
        e = torch.randn(num_codes, dim, device=DEVICE)
        z = e[torch.randint(num_codes, (tokens,), device=DEVICE)]  # a token lies near a code
        z = z + 0.3 * torch.randn_like(z)
        inputs = z.requires_grad_(), e.requires_grad_()
        for way in (dense, soft_assign, nearest_assign, nearest):
            if way is dense and num_codes > 16_384:
                continue

            def call(way=way, inputs=inputs) -> None:
                if way is nearest:
                    way(*inputs, 1)
                else:
                    a = way(*inputs, tau)
                    (a.average.sum() + a.free_energy.sum()).backward()

            free()
            try:
                call()
                spent = 1e3 * min(seconds(call) for _ in range(3))
            except torch.OutOfMemoryError:
                spent = float("nan")
            rows.append([way.__name__, num_codes, dim, spent, peak_gb()])
            print(row(rows[-1]), flush=True)
    return rows


def row(values: Iterable, digits: int = 3) -> str:
    """Write a row of a table in Markdown; numbers with so many digits, none of them cut off."""

    def cell(value) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"

    return f"| {' | '.join(map(cell, values))} |"


def table(head: Sequence[str], rows: Iterable[Iterable], digits: int = 3) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(row(line, digits) for line in lines)


def main() -> None:
    how = {"description": __doc__, "formatter_class": argparse.RawTextHelpFormatter}
    parser = argparse.ArgumentParser(**how)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--methods", nargs="+", default=["fsq", "vq", "vq_ema", "simvq", "lgq"])
    parser.add_argument("--codes", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--overrides", default="", help="of every config, name=value name=value")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save", action="store_true", help="write docs/results/speed-DEVICE.md")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.machine()
    head = ["method", "K", "threads", "ms a step", "images/s", "to FSQ", "to VQ"]
    print(row(head))
    found = [r for threads in options.threads for r in steps(options, threads)]
    torch.set_num_threads(1)
    print(row(of_ways := ["way", "K", "C", "ms", "peak GB"]))
    ways = assignments(4096, [(1024, 5), (16384, 5), (16384, 64), (262144, 64)])
    if options.save:
        about = f"Device: {name}, torch {torch.__version__}. Command: `{' '.join(sys.argv)}`. "
        about += f"Medians of {options.steps} interleaved steps; ratios are within one run."
        parts = [f"# Speed, `{options.preset}`", about, table(head, found), table(of_ways, ways)]
        where = "gpu" if DEVICE == "cuda" else "cpu"
        path = RESULTS / f"speed-{options.preset}-{where}.md"
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
