"""All that needs a GPU, in one run of ten minutes: is it right, how fast, and what it gives.

    python benchmarks/gpu.py IMAGES OUT [--seconds 540] [--parts right fast geometry] [--small]

IMAGES has folders train/ and val/ of one folder a class. Each part appends its tables to OUT/gpu.md
as it ends, so that a run that is cut loses its last part only. `--small` runs everything in small,
on a CPU as well: a rehearsal.
"""

import argparse
import copy
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from accelerate import Accelerator
from speed import DEVICE, assignments, build, free, in_turn, peak_gb, seconds, table
from tqdm.auto import tqdm

from lgqlib.evaluate import evaluate_run
from lgqlib.losses import TokenizerLoss
from lgqlib.presets import AUTHORS_LGQ, preset
from lgqlib.quantizers import METHODS
from lgqlib.quantizers.assignment import nearest
from lgqlib.run import Run
from lgqlib.tokenizer import Tokenizer
from lgqlib.train import Job, train

PACKAGES = ["torch", "accelerate", "safetensors", "scikit-learn", "vector-quantize-pytorch"]
FSQ = {"backbone.start": "whitened", "backbone.dim": 4, "quantizer.levels": (32, 8, 8, 8),
       "quantizer.scale": 0.4}  # fmt: skip
FIVE = {
    "LGQ": ("lgq", {}),
    "LGQ, the paper's recipe": ("lgq", AUTHORS_LGQ),
    "FSQ": ("fsq", FSQ),
    "SimVQ": ("simvq", {"backbone.start": "pca"}),
    "VQ": ("vq", {}),
}
"""By label: method and changes, all on the same backbone and start."""
SMALL = {"backbone.width": 8, "backbone.depth": 1, "train.batch_size": 4, "data.size": 32,
         "data.resize": 32, "data.eval_crops": 32, "quantizer.num_codes": 256}  # fmt: skip


def passes(tokenizer: Tokenizer, images, loss, tau: float, autocast: bool = False):
    """Take one forward and backward; give images, indices, gradients and buffers, on the CPU."""
    torch.manual_seed(0)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
        output = tokenizer(images, tau)
    total, _ = loss(images, output.images, output.quantized.terms)
    total.backward()
    gradients = {k: v.grad.cpu() for k, v in tokenizer.named_parameters() if v.grad is not None}
    buffers = {k: v.cpu() for k, v in tokenizer.named_buffers()}
    return output.images.detach().float().cpu(), output.quantized.indices.cpu(), gradients, buffers


def apart(a: dict, b: dict) -> float:
    """Give the largest difference of tensors, each as a part of its tensor's largest entry."""
    assert a.keys() == b.keys()
    real = {k: v for k, v in a.items() if v.is_floating_point() and v.isfinite().all()}
    gaps = ((v - b[k]).abs().max() / v.abs().max().clamp_min(1e-6) for k, v in real.items())
    return max((gap.item() for gap in gaps), default=0.0)


def begun(config, images) -> Tokenizer:
    """Give a tokenizer off its network's zeros, so that all of it has a part."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(config).to(images.device).train()
    tokenizer.initialize(images)
    for parameter in tokenizer.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return tokenizer


def right(options) -> str:
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    few = torch.nn.functional.interpolate(torch.randn(128, 3, 8, 8), 32, mode="bicubic")
    images = (few + 0.1 * torch.randn_like(few)).clamp(-1, 1)
    rows = []
    recipes = {row.label: (name, {}) for name, row in METHODS.items() if not row.baseline}
    recipes["LGQ, the paper's recipe"] = "lgq", AUTHORS_LGQ
    for label, (method, changes) in recipes.items():
        config = preset("laptop", method=method).override({**changes, "quantizer.num_codes": 1024})
        ours = begun(config, images)
        theirs, mixed = (copy.deepcopy(ours).to(DEVICE) for _ in range(2))
        tau, loss = 0.1 * ours.width, TokenizerLoss(config.loss)
        a = passes(ours, images, loss, tau)
        b = passes(theirs, images.to(DEVICE), loss.to(DEVICE), tau)
        c = passes(mixed, images.to(DEVICE), loss, tau, autocast=True)
        dtypes = {v.dtype for v in (*c[2].values(), *c[3].values()) if v.is_floating_point()}
        assert dtypes == {torch.float32}, (label, dtypes)
        same, mix = ((a[1] == other[1]).double().mean().item() for other in (b, c))
        gaps = (a[0] - b[0]).abs().max().item(), apart(a[2], b[2]), apart(a[3], b[3])
        rows.append([label, f"{same:.5f}", *gaps, f"{mix:.3f}"])
    torch.backends.cudnn.allow_tf32 = True
    about = "One forward and backward, CPU against the device, float32 (TF32 off); then bf16 "
    about += "autocast, in which all gradients and statistics stayed float32."
    head = ["method", "same indices", "images", "gradients, relative", "statistics, relative"]
    equal = table([*head, "same indices in bf16"], rows)
    return "\n\n".join([about, equal, resumed(options), compiled(images.to(DEVICE))])


def resumed(options) -> str:
    """Compare six steps in one go with three, a checkpoint, and three more."""
    rows, bar = [], tqdm(disable=True)
    small = f"data.name=imagefolder data.root={options.images} data.resize=128 data.eval_crops=16 "
    small += "quantizer.num_codes=256 train.num_steps=6 train.batch_size=16 train.eval_every=0 "
    small += "train.checkpoint_every=100 train.num_snapshots=0"
    for label, (method, changes) in FIVE.items():
        config = preset("laptop", method=method).override(small)
        config = config.override(changes if method == "lgq" else {})
        found = []
        for stops in ((6,), (6,), (3, 6)):
            with tempfile.TemporaryDirectory() as folder:
                run = Run.create(folder, config)
                accelerator = Accelerator(mixed_precision="bf16")
                for before, stop in zip((0, *stops), stops, strict=False):
                    job = Job(config, run, accelerator, cache=options.out / "cache")
                    assert job.step == before
                    while job.step < stop:
                        job.advance(bar)
                    job.save()
                found.append({k: v.cpu() for k, v in job.tokenizer.state_dict().items()})
        rows.append([label, apart(found[0], found[1]), apart(found[0], found[2])])
    title = "Six steps in bf16: the largest relative difference of a weight or statistic."
    return title + "\n\n" + table(["method", "the same run twice", "stopped and resumed"], rows)


def compiled(images) -> str:
    tokenizer = begun(preset("laptop"), images)
    twin = copy.deepcopy(tokenizer)
    twin.encoder.compile()
    twin.decoder.compile()
    loss = TokenizerLoss(preset("laptop").loss).to(DEVICE)
    a, b = (passes(t, images, loss, 0.1 * tokenizer.width) for t in (tokenizer, twin))
    return (
        f"`torch.compile` against eager, LGQ: images differ by {(a[0] - b[0]).abs().max():.2g} at "
        f"most, gradients by {apart(a[2], b[2]):.2g} of their largest entry."
    )


def matmul_peak(dtype, precision: str, side: int) -> float:
    """Give TFLOP/s of a square matrix product."""
    torch.set_float32_matmul_precision(precision)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b) for _ in range(8))
    torch.set_float32_matmul_precision("highest")
    return 2 * side**3 / best / 1e12


def assignment_rows(options, peaks: dict[str, float]) -> list[list]:
    """Give the ways' times, and their rates by the matrix products of N x K x C that they need."""
    tokens, dim = (512, 16) if options.small else (65_536, 64)
    sizes = (1024,) if options.small else (16_384, 65_536, 262_144)
    products = {"dense": 6, "soft_assign": 8, "nearest_assign": 1, "nearest": 1}
    rows = assignments(tokens, [(num_codes, dim) for num_codes in sizes])
    for row in rows:
        way, num_codes, _, spent, _ = row
        rate = products[way] * 2 * tokens * num_codes * dim / spent / 1e9
        row += [rate, rate / peaks["bf16"], rate / peaks["tf32"]]
    return rows


def search_in_tf32(options) -> str:
    """Time the search with TF32's ten bits, and count the tokens for which it finds the same."""
    tokens, num_codes, dim = (512, 1024, 16) if options.small else (65_536, 16_384, 64)
    e = torch.randn(num_codes, dim, device=DEVICE)
    z = e[torch.randint(num_codes, (tokens,), device=DEVICE)]
    z = z + 0.3 * torch.randn_like(z)
    found, spent = [], []
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        found.append(nearest(z, e, 8)[:, 0])
        spent.append(min(seconds(lambda: nearest(z, e, 8)) for _ in range(3)))
    ratio, same = spent[0] / spent[1], (found[0] == found[1]).double().mean()
    return f"The search of eight in TF32 takes {ratio:.2f} of its time in float32; {same:.5f} same."


def step_rows(options) -> tuple[list[list], dict[str, float]]:
    """Time whole training steps of the preset, every method in turn."""
    codes, rounds = (256, 2) if options.small else (16_384, 10)
    steps, memory, batch = {}, {}, 0
    for label, (method, changes) in FIVE.items():
        free()
        how = {"overrides": changes | options.base, "cache": options.out / "cache"}
        steps[label], batch = build("paper", method, codes, **how)
        for _ in range(2):
            steps[label]()
        memory[label] = peak_gb()
    medians = in_turn(steps, rounds)
    fsq = medians["FSQ"]
    rows = [[label, 1e3 * t, batch / t, t / fsq, memory[label]] for label, t in medians.items()]
    return rows, medians


def fast(options) -> str:
    side = 256 if options.small else 8192
    peaks = {
        "bf16": matmul_peak(torch.bfloat16, "highest", side),
        "tf32": matmul_peak(torch.float32, "high", side),
        "float32": matmul_peak(torch.float32, "highest", side),
    }
    said = ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in peaks.items())
    head = ["way", "K", "C", "ms with backward", "peak GB", "TFLOP/s", "of bf16", "of TF32"]
    ways = table(head, assignment_rows(options, peaks))
    free()
    tf32 = search_in_tf32(options)
    rows, options.medians = step_rows(options)
    steps = table(["method", "ms a step", "images/s", "to FSQ", "peak GB alone"], rows)
    free()
    return "\n\n".join([f"Matrix products of {side} x {side}: {said}.", ways, tf32, steps])


COLUMNS = {
    "PSNR, dB": "psnr", "SSIM": "ssim", "KID": "kid", "active": "active",
    "entropy, bits": "entropy", "coded bits": "bits_per_token_coded", "steps": "steps",
    "training, s": "train_s",
}  # fmt: skip


def train_one(options, label: str, recipe: tuple, num_steps: int, lr=None) -> list[str]:
    """Train and evaluate a run of the preset; give its row."""
    method, changes = recipe
    base = {
        "data.eval_crops": 1024, "train.num_steps": num_steps, "train.decay": "cosine",
        "train.eval_every": 0, "train.checkpoint_every": 10**6, "train.num_snapshots": 0,
        "train.log_every": 10, **({"train.lr": lr} if lr else {}),
    }  # fmt: skip
    config = preset("paper", method=method).override(base | changes | options.base)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(folder, config)
        train(config, run, cache=options.out / "cache", progress=False)
        trained = time.perf_counter() - start
        found = evaluate_run(run, cache=options.out / "cache", progress=False).numbers
    free()
    found |= {"steps": num_steps, "train_s": trained}
    row = [label, *(f"{found.get(key, float('nan')):.4g}" for key in COLUMNS.values())]
    print(row, flush=True)
    return row


def search(options) -> str:
    """Find the learning rate for so few steps: two rates for each method, a tenth of the steps."""
    num_steps = 3 if options.small else 60
    cases = product(("LGQ", "FSQ", "VQ"), (3e-4, 1e-3))
    rows = [train_one(options, f"{x}, lr {lr:g}", FIVE[x], num_steps, lr) for x, lr in cases]
    return table(["method", *COLUMNS], rows)


def geometry(options) -> str:
    """Train all for equal steps, as many as fit in what is left of the time."""
    medians = options.medians or step_rows(options)[1]
    free()
    unlearned = {"backbone.family": "linear", "backbone.start": "pca", "backbone.norm": "none",
                 "quantizer.prefit": True}  # fmt: skip
    found = [train_one(options, "PCA-64 and annealed codes, no learning", ("vq", unlearned), 0)]
    left = options.seconds - (time.perf_counter() - options.began)
    each = 16  # seconds of start, evaluation and checkpoint
    num_steps = int((left - each * len(FIVE)) / (1.05 * sum(medians.values())))
    num_steps = 3 if options.small else max(20, num_steps // 10 * 10)
    found += [train_one(options, *five, num_steps, options.lr) for five in FIVE.items()]
    return table(["method", *COLUMNS], found)


PARTS = {"right": right, "fast": fast, "search": search, "geometry": geometry}


def main() -> None:
    how = {"description": __doc__, "formatter_class": argparse.RawTextHelpFormatter}
    parser = argparse.ArgumentParser(**how)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["right", "fast", "geometry"])
    parser.add_argument("--seconds", type=float, default=540, help="of the whole run")
    parser.add_argument("--lr", type=float, help="of `geometry`; by default the preset's")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    options.began, options.medians = time.perf_counter(), None
    options.base = {"data.name": "imagefolder", "data.root": str(options.images)}
    if options.small:
        options.base |= SMALL
        FSQ["quantizer.levels"] = (4, 4, 4, 4)
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / "gpu.md"
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    found = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    about = f"{name}. Python {sys.version.split()[0]}, {found}. Command: `{' '.join(sys.argv)}`."
    page.write_text(f"# On a GPU\n\n{about}\n")
    for name in options.parts:
        start = time.perf_counter()
        try:
            text = PARTS[name](options)
        except Exception:
            text = f"FAILED\n\n```\n{traceback.format_exc()}```"
        with page.open("a") as file:
            file.write(f"\n## {name} ({time.perf_counter() - start:.0f} s)\n\n{text}\n")
        print(text, flush=True)


if __name__ == "__main__":
    main()
