"""Cost of a whole training step: LGQ against its peers at the same backbone, in one run.

    python benchmarks/training.py [--preset laptop] [--methods lgq fsq simvq vq] [--steps 20]
    [--save]

Prints medians over interleaved rounds (every method in turn, so that a noisy machine is noisy for
all), and ratios to FSQ.
"""

import argparse
import platform
import resource
import statistics
import time
from pathlib import Path

import torch

from lgqlib.losses import TokenizerLoss
from lgqlib.presets import preset
from lgqlib.tokenizer import Tokenizer
from lgqlib.train import parameter_groups


def build(name: str, method: str, overrides: str, device: str):
    """Give a function that takes one training step of a method on random images."""
    config = preset(name, method=method).override(overrides)
    tokenizer = Tokenizer(config).to(device).train()
    size, batch = config.data.size, config.train.batch_size
    images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    with torch.no_grad():
        latents = tokenizer.latents(images)
        flat = latents.movedim(1, -1).flatten(0, -2)
        rounds = -(-config.quantizer.num_codes // len(flat))
        tokenizer.quantizer.initialize(
            flat.repeat(rounds, 1) + 0.01 * torch.randn(rounds * len(flat), 1, device=device)
        )
        tokenizer.observe(latents)
    groups = parameter_groups(tokenizer, weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups, lr=config.train.lr, fused=device == "cuda")
    loss = TokenizerLoss(config.loss).to(device)
    scale = tokenizer.tau_c if config.temperature.reduced else 1.0
    half = config.temperature.at(config.train.num_steps // 2, config.train.num_steps) * scale
    precision = torch.bfloat16 if config.train.precision == "bf16" and device == "cuda" else None

    def step() -> None:
        with torch.autocast(device, dtype=precision, enabled=precision is not None):
            output = tokenizer(images, half)
        total, _ = loss(images, output.images, output.quantized.terms)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    return step, batch, half


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--methods", nargs="+", default=["fsq", "lgq", "simvq", "vq", "vq_ema"])
    parser.add_argument("--overrides", default="", help="of every config, name=value name=value")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write docs/results/")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps, times = {}, {method: [] for method in options.methods}
    for method in options.methods:
        steps[method], batch, tau = build(options.preset, method, options.overrides, device)
        print(f"{method}: batch {batch}, tau {tau:.4g} (half way through its schedule)", flush=True)
    for round_ in range(options.steps + 3):
        for method, step in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_ >= 3:
                times[method].append(time.perf_counter() - start)
    medians = {method: statistics.median(values) for method, values in times.items()}
    base = medians.get("fsq", min(medians.values()))
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else platform.processor() or platform.machine()
    )
    lines = [
        f"Device: {name}, {torch.get_num_threads()} threads. "
        "Command: `python benchmarks/training.py "
        f"--preset {options.preset} --methods {' '.join(options.methods)} "
        f"--steps {options.steps}`. "
        f"Medians of {options.steps} interleaved steps; peak memory of the process "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB.",
        "",
        "| method | ms a step | images/s | against FSQ |",
        "|---|---|---|---|",
    ]
    for method, value in medians.items():
        lines.append(f"| {method} | {1e3 * value:.0f} | {batch / value:.0f} | {value / base:.2f} |")
    table = "\n".join(lines)
    print(table)
    if options.save:
        folder = Path(__file__).parent.parent / "docs" / "results"
        folder.mkdir(exist_ok=True)
        where = "gpu" if device == "cuda" else "cpu"
        (folder / f"training-{options.preset}-{where}.md").write_text(
            table + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
