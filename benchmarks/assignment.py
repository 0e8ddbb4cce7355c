"""Cost of the soft assignment, forward and backward, by engine; and of encoding, which is hard.

    python benchmarks/assignment.py [--codes 1024 16384] [--tau 1 0.1 0.01] [--quick] [--save]

`definition` is the assignment written with `torch.cdist`, softmax and autograd; `dense` the same
with matrix products in place of `cdist`; both hold several `[tokens, codes]` tensors. Latents and
codes are standard normal, so that tau_c = 2. Times are medians over interleaved rounds (every
engine in turn, so that a noisy machine is noisy for all). Memory is what a step adds to its peak:
of a process of its own (its largest resident set) on a CPU, of the allocator on a GPU.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lgqlib.quantizers.assignment import Assignment, attention_average, hard_assign, soft_assign

NEEDED = 14  # times N K C: two products forward, five backward
RESIDENT = Path("/proc/self/status")


def definition(z: Tensor, e: Tensor, tau: float) -> Assignment:
    """Assign softly with `[tokens, codes]` tensors, as the equations are written."""
    d = torch.cdist(z, e).square()
    logits = -d / tau
    p = logits.softmax(1)
    entropy = -(p * logits.log_softmax(1)).sum(1)
    energy = -tau * logits.logsumexp(1)
    return Assignment(p @ e, d.argmin(1), p.square().sum(1), entropy, energy, p.mean(0))


def engines(device: str) -> dict[str, Callable]:
    """Name every way to assign softly on a device."""
    every = {
        "definition": definition,
        "dense": partial(soft_assign, engine="dense"),
        "streaming": partial(soft_assign, engine="streaming"),
    }
    if device == "cuda":
        for products in ("tf32x3", "tf32", "bf16"):
            name = f"triton {products}"
            every[name] = partial(soft_assign, engine="triton", products=products)
    return every


def step(assign: Callable, z: Tensor, e: Tensor, tau: float, pull: Tensor) -> None:
    """Take the terms of the quantizer's loss, and their gradients."""
    a = assign(z, e, tau)
    loss = (a.average * pull).mean() + (1 - a.collision).mean() + a.free_energy.mean()
    loss = loss + len(e) * a.usage.square().sum()
    torch.autograd.grad(loss, (z, e))


def attention(z: Tensor, e: Tensor, tau: float, pull: Tensor) -> None:
    torch.autograd.grad((attention_average(z, e, tau) * pull).mean(), (z, e))


def problem(tokens: int, codes: int, dim: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    z, e, pull = (torch.randn(n, dim, device=device) for n in (tokens, codes, tokens))
    return z.requires_grad_(), e.requires_grad_(), pull


def seconds(action: Callable, device: str) -> float:
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(actions: dict[str, Callable], rounds: int, device: str) -> dict[str, float]:
    """Time every action in turn, round after round, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            taken = seconds(action, device)
            if number:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_rate(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Measure the machine's own rate of square matrix products, in floating-point operations/s."""
    side = 8192 if device == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / medians({"": lambda: a @ a}, 7, device)[""]


def megabytes(line: str) -> float:
    """Read a line of the process's status that Linux keeps in kB."""
    found = next(row for row in RESIDENT.read_text().splitlines() if row.startswith(line))
    return int(found.split()[1]) / 1024


def added_memory(name: str, tokens: int, codes: int, dim: int, tau: float, device: str) -> float:
    """Run one step and return what it adds to the peak of memory, in MB."""
    assign = engines(device)[name]
    small = problem(64, min(codes, 64), dim, device)
    step(assign, *small[:2], tau, small[2])  # loads libraries, starts threads
    z, e, pull = problem(tokens, codes, dim, device)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        step(assign, z, e, tau, pull)
        return torch.cuda.max_memory_allocated() / 2**20 - before
    before = megabytes("VmRSS")
    step(assign, z, e, tau, pull)
    return max(0.0, megabytes("VmHWM") - before)


def memory(options, name: str, codes: int, tau: float, device: str) -> float | None:
    """Measure in a process of its own; `None` where it cannot be told."""
    if device == "cpu" and not RESIDENT.exists():
        return None
    given = json.dumps([name, options.tokens, codes, options.dim, tau, device])
    command = [sys.executable, __file__, "--measure", given]
    command += ["--threads", str(options.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def fits(name: str, tokens: int, codes: int, device: str) -> bool:
    """Say whether an engine's `[tokens, codes]` tensors, about eight, have room."""
    if name not in ("definition", "dense"):
        return True
    room = torch.cuda.mem_get_info()[0] if device == "cuda" else 10 * 2**30
    return 8 * 4 * tokens * codes < room


def soft_table(options, device: str, rate: float) -> list[str]:
    names = list(engines(device))
    heads = [f"{name}, ms" for name in names] + ["attention*, ms"]
    heads += ["against definition", "share of matrix rate"]
    heads += [f"{name}, MB" for name in names]
    lines = [f"| K | tau | tau / tau_c | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for codes in options.codes:
        z, e, pull = problem(options.tokens, codes, options.dim, device)
        here = {n: f for n, f in engines(device).items() if fits(n, options.tokens, codes, device)}
        for tau in options.tau:
            actions = {n: partial(step, f, z, e, tau, pull) for n, f in here.items()}
            actions["attention"] = partial(attention, z, e, tau, pull)
            rounds = options.rounds if options.tokens * codes < 2**28 else 1
            taken = medians(actions, rounds, device)
            ours = taken[names[-1]]
            cells = [f"{1e3 * taken[n]:.0f}" if n in taken else "–" for n in (*names, "attention")]
            gain = f"{taken['definition'] / ours:.1f}x" if "definition" in taken else "–"
            needed = NEEDED * options.tokens * codes * options.dim
            cells += [gain, f"{needed / ours / rate:.0%}"]
            for name in names:
                used = memory(options, name, codes, tau, device) if name in here else None
                cells.append("–" if used is None else f"{used:.0f}")
            lines.append(f"| {codes} | {tau:g} | {tau / 2:g} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def hard_table(options, device: str, rate: float) -> list[str]:
    lines = ["| K | tokens/s | share of matrix rate |", "|---|---|---|"]
    for codes in options.codes:
        z, e, _ = problem(options.tokens, codes, options.dim, device)
        taken = medians({"": partial(hard_assign, z, e)}, options.rounds, device)[""]
        share = 2 * options.tokens * codes * options.dim / taken / rate
        lines.append(f"| {codes} | {options.tokens / taken:.0f} | {share:.0%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, help="N; 4096, or 65536 on a GPU")
    parser.add_argument("--dim", type=int, default=64, help="C")
    parser.add_argument("--codes", type=int, nargs="+", default=[1024, 16384, 65536, 262144])
    parser.add_argument("--tau", type=float, nargs="+", default=[2.0, 1.0, 0.1, 0.01])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a minute: few codes, few tokens")
    parser.add_argument("--save", action="store_true", help="write docs/results/")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(added_memory(*json.loads(options.measure)))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.tokens = options.tokens or (65536 if device == "cuda" else 4096)
    if options.quick:
        options.tokens, options.codes, options.tau = 1024, [1024, 4096], [1.0, 0.01]
        options.rounds = 3
    rate = matrix_rate(device, torch.bfloat16 if device == "cuda" else torch.float32)
    kind = "bfloat16" if device == "cuda" else "float32"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    words = [f"--tokens {options.tokens} --dim {options.dim} --rounds {options.rounds}"]
    words += ["--codes", *map(str, options.codes), "--tau", *(f"{tau:g}" for tau in options.tau)]
    text = [
        "# Soft assignment: time and memory of a step, and encoding",
        "",
        f"Device: {name}, {options.threads} threads, torch {torch.__version__}. "
        f"N = {options.tokens}, C = {options.dim}. Matrix rate: {rate / 1e9:.0f} GFLOP/s ({kind}). "
        f"Command: `python benchmarks/assignment.py {' '.join(words)}`.",
        "",
        "Forward and backward, medians of one run; `against definition` and the share of the "
        f"matrix rate (over the {NEEDED} N K C operations of an assignment without skipping) are "
        f"of `{list(engines(device))[-1]}`, and MB is what a step adds to the peak of memory. "
        "*Attention computes the soft average alone.",
        "",
    ]
    print("\n".join(text))
    text += soft_table(options, device, rate)
    hard = ["", "Encoding (nearest code only):", "", *hard_table(options, device, rate)]
    print("\n".join(hard))
    if options.save:
        folder = Path(__file__).parent.parent / "docs" / "results"
        folder.mkdir(exist_ok=True)
        slug = name.lower().replace(" ", "-") if device == "cuda" else "cpu"
        path = folder / f"assignment-{slug}.md"
        path.write_text("\n".join(text + hard) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
