"""Quantizers on fixed latents: fit nothing else, measure what each became, and judge what helped.

A setting's quantizer is fitted to latents x as they are, by its terms. Or between a learned linear
encoder with rows of norm 1 and a decoder, z = W x, x' = V z_q + b, where mean (x' - x)^2 is
minimized too. FSQ has nothing to fit and needs some scale, so it always stands there. Distortion
is the mean squared error on held-out latents over their variance: 1 without a code.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from scipy.optimize import brentq
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from tqdm.auto import tqdm

from lgqlib.config import Config
from lgqlib.data import evaluation_images, load, to_model
from lgqlib.measure.geometry import spectrum
from lgqlib.measure.temperature import critical_temperature
from lgqlib.measure.theory import geometry_efficiency, participation_ratio
from lgqlib.measure.usage import code_usage
from lgqlib.presets import AUTHORS_LGQ
from lgqlib.quantizers import METHODS, build
from lgqlib.quantizers.base import initial_codes
from lgqlib.quantizers.fsq import matching_levels
from lgqlib.run import Run
from lgqlib.study.comparison import mean_interval, side

Setting = Mapping[str, Any]  # overrides of a config, by dotted name
WHOLE = "all together"
STARTS = ("random", "kmeans", "gaussian", "uniform", "cluster")  # the last: close to one latent


def schedule(kind: str, start: float, end: float, unit: str = "self") -> Setting:
    """Give a schedule of the temperature, by default in units of the natural width."""
    values = {"kind": kind, "start": start, "end": end, "unit": unit}
    return {f"temperature.{name}": value for name, value in values.items()}


CHANGES: dict[str, Setting] = {
    "free energy": {"quantizer.lgq.codebook_loss": "free_energy"},
    "self-tempering": schedule("exponential", 3.0, 0.005),  # hot first: no start is annealed here
    "entropy usage": {"quantizer.lgq.usage": "entropy", "loss.usage": 0.03},
    "identity": {"quantizer.lgq.identity": 1.0},
}
"""The four hypotheses: changes of the authors' setting. The last needs an encoder."""
QUESTIONS = {WHOLE: (WHOLE, "authors")}  # each is asked twice: a setting, and one to judge it by
for _name in CHANGES:
    QUESTIONS[f"{_name}, added to the authors'"] = f"+ {_name}", "authors"
    QUESTIONS[f"{_name}, added to all the others"] = WHOLE, f"all but {_name}"


def lgq_settings(changes: Sequence[str] = tuple(CHANGES)) -> dict[str, Setting]:
    """Give the authors' LGQ, each change alone, all of them, and all but one, by their names."""
    settings = {"authors": AUTHORS_LGQ} | {f"+ {n}": AUTHORS_LGQ | CHANGES[n] for n in changes}
    for name, without in {WHOLE: "", **{f"all but {n}": n for n in changes}}.items():
        settings[name] = AUTHORS_LGQ | {"loss.peak": 0.0, "loss.commit": 0.25}  # as VQ has it
        for change in changes:
            settings[name] |= {} if change == without else CHANGES[change]
    return settings


PEERS: dict[str, Setting] = {
    METHODS[name].label: {"quantizer.method": name, **METHODS[name].weights}
    for name in ("vq", "vq_ema", "simvq", "fsq")
}
"""LGQ's peers with their recommended weights."""


class FixedLatents(NamedTuple):
    """Latents to fit a quantizer on, and others of the same source to judge it on; float32."""

    name: str
    points: Float[np.ndarray, "N C"]
    held_out: Float[np.ndarray, "M C"]


def geometric_spectrum(dim: int, participation: float) -> Float[np.ndarray, " C"]:
    """Return eigenvalues r^0, r^1, ... with this participation ratio, scaled to sum to `dim`."""
    if not 1 <= participation <= dim:
        raise ValueError(f"participation = {participation}: it must lie between 1 and {dim}.")
    powers = np.arange(dim)
    ratio = brentq(lambda r: participation_ratio(r**powers) - participation, 0.0, 1.0, xtol=1e-15)
    return ratio**powers * dim / (ratio**powers).sum()


def gaussian_latents(
    num_points: int, eigenvalues: Float[np.ndarray, " C"], *, seed: int = 0, separation: float = 0.0
) -> FixedLatents:
    """Draw a Gaussian of these covariance eigenvalues, in a random rotation.

    `separation` parts it along its narrowest axis, in deviations of the widest; variance stays.
    """
    rng, dim = np.random.default_rng(seed), len(eigenvalues)
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    x = rng.standard_normal((2 * num_points, dim)) * np.sqrt(eigenvalues)
    offset = separation * np.sqrt(eigenvalues.max())
    x[:, np.argmin(eigenvalues)] += offset * rng.choice([-1.0, 1.0], 2 * num_points)
    x *= np.sqrt(eigenvalues.sum() / (eigenvalues.sum() + offset**2))
    x = (x @ axes.T).astype(np.float32)
    kind = f"two clusters {separation:g} apart" if separation else "Gaussian"
    name = f"{kind}, {dim} channels, effective dimension {participation_ratio(eigenvalues):.3g}"
    return FixedLatents(name, x[:num_points], x[num_points:])


@torch.no_grad()
def run_latents(folder: Path | str, *, cache: Path | str, num_points: int) -> FixedLatents:
    """Encode a run's training images to fit on, and held-out ones; center and scale both."""
    run = Run(folder)
    tokenizer, data = run.tokenizer(), run.config.data
    limit, halves = math.ceil(num_points / run.config.latent_side**2), []
    for split in ("train", "val"):
        stored = load(data, split, cache=Path(cache))
        images, _, _ = evaluation_images(stored, size=data.size, limit=limit)
        latents = torch.cat([tokenizer.latents(to_model(batch)) for batch in images.split(64)])
        halves.append(rearrange(latents, "b c h w -> (b h w) c").double().numpy()[:num_points])
    mean = halves[0].mean(0)
    scale = np.sqrt(np.square(halves[0] - mean).mean())
    halves = [((x - mean) / scale).astype(np.float32) for x in halves]
    return FixedLatents(f"latents of {run.name}", *halves)


class Bench(nn.Module):
    """A setting's quantizer for latents `[n, dim, 1, 1]`: as it is, or between two linear maps."""

    def __init__(self, setting: Setting, dim: int, encoder_dim: int):
        super().__init__()
        is_fsq = setting.get("quantizer.method") == "fsq"
        inner = len(matching_levels(setting["quantizer.num_codes"])) if is_fsq else encoder_dim
        fixed = {"backbone.dim": inner or dim, "backbone.norm": "none"}
        self.config = Config().override({**fixed, **setting})
        self.quantizer = build(self.config.quantizer, inner or dim)
        self.encoder = self.decoder = nn.Identity()
        if inner:
            self.encoder = nn.Conv2d(dim, inner, 1, bias=False)
            self.decoder = nn.Conv2d(inner, dim, 1)
            nn.init.orthogonal_(self.encoder.weight)
            self.decoder.weight.data.copy_(self.encoder.weight.transpose(0, 1))
        if inner and not is_fsq:
            weight_norm(self.encoder).parametrizations.weight.original0.requires_grad_(False)


def start_codes(latents: Float[Tensor, "n c"], num_codes: int, how: str) -> Float[Tensor, "K c"]:
    """Draw where codes start, in one of the ways of STARTS."""
    if how != "cluster":
        return initial_codes(latents, num_codes, how)
    noise, place = torch.randn(num_codes, latents.shape[1]), torch.randint(len(latents), (1,))
    return latents[place] + 0.05 * latents.std(0, correction=0) * noise


def fit(
    setting: Setting, latents: FixedLatents, *, start: str, seed: int, encoder_dim: int = 0
) -> Bench:
    """Fit a setting; of equal seeds, all start from the same codes and see the same batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.from_numpy(latents.points)[..., None, None]
        bench = Bench(setting, x.shape[1], encoder_dim)
        torch.manual_seed(seed)  # whatever the construction drew, the start is the same
        with torch.no_grad():
            seen = bench.encoder(x).flatten(1)
            bench.quantizer.initialize(start_codes(seen, bench.quantizer.num_codes, start))
        torch.manual_seed(seed)
        _train(bench, x)
    return bench.eval()


def _train(bench: Bench, x: Float[Tensor, "n c 1 1"]) -> None:
    config, quantizer, unit = bench.config, bench.quantizer, 1.0
    parameters = [p for p in bench.parameters() if p.requires_grad]
    anything = parameters or [nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.AdamW(anything, betas=(0.9, 0.99), weight_decay=0.0)
    still = isinstance(bench.encoder, nn.Identity)
    for step in range(config.train.num_steps):
        batch = x[torch.randint(len(x), (config.train.batch_size,))]
        seen = bench.encoder(batch).detach()
        if config.temperature.unit == "self":
            hard = quantizer.lookup(quantizer.encode(seen)).detach()
            unit = 2 * float((seen - hard).square().mean())  # 2 D / C; D sums over channels
        elif config.temperature.unit == "tau_c" and step % 10 == 0:
            unit = critical_temperature((x if still else seen).flatten(1), energy=quantizer.energy)
        tau = config.temperature.at(step, config.train.num_steps) * unit
        quantized = quantizer(bench.encoder(batch), tau)
        total = sum(getattr(config.loss, name) * term for name, term in quantized.terms.items())
        if not still:
            total = total + (bench.decoder(quantized.z_q) - batch).square().mean()
        optimizer.param_groups[0]["lr"] = config.train.lr_at(step)
        optimizer.zero_grad(set_to_none=True)
        if total.requires_grad:  # VQ-EMA's codes move in its forward
            total.backward()
            nn.utils.clip_grad_norm_(parameters, config.train.clip)
        optimizer.step()


@torch.no_grad()
def measure(bench: Bench, latents: FixedLatents) -> dict[str, float]:
    """Measure a fitted quantizer on held-out latents."""
    z = bench.encoder(torch.from_numpy(latents.held_out)[..., None, None])
    indices = bench.quantizer.encode(z)  # [M, 1, 1]
    decoded = bench.decoder(bench.quantizer.lookup(indices)).flatten(1)
    return _numbers(latents, decoded, indices.flatten(), bench.quantizer.num_codes)


def kmeans(latents: FixedLatents, num_codes: int, *, seed: int = 0) -> dict[str, float]:
    """Measure k-means (k-means++ start, Lloyd's algorithm), the reference."""
    found = KMeans(num_codes, n_init=1, max_iter=60, random_state=seed).fit(latents.points)
    indices = found.predict(latents.held_out)
    return _numbers(latents, found.cluster_centers_[indices], indices, num_codes)


def _numbers(latents: FixedLatents, decoded: Any, indices: Any, num_codes: int) -> dict[str, float]:
    difference = np.asarray(decoded, dtype=np.float64) - latents.held_out
    error, basis = float(np.square(difference).sum(1).mean()), spectrum(latents.held_out)
    usage = code_usage(torch.from_numpy(np.bincount(np.asarray(indices), minlength=num_codes)))
    bits = min(usage["entropy_miller_madow"], math.log2(num_codes))
    return {
        "distortion": error / basis.total,
        "bits": bits,
        "perplexity": usage["perplexity"],
        "active_share": usage["active_share"],
        "efficiency": geometry_efficiency(basis.eigenvalues, bits * math.log(2), error),
    }


def compare(
    seeds: Mapping[int, FixedLatents],
    settings: Mapping[str, Setting],
    common: Setting,
    *,
    starts: Iterable[str] = ("random",),
    encoder_dim: int = 0,
) -> pd.DataFrame:
    """Fit settings, and what is `common` to all, from every start; a row a fit, and for k-means."""
    rows, num_codes = [], common["quantizer.num_codes"]
    for seed, latents in seeds.items():
        row = {"setting": "k-means", "method": "kmeans", "start": "k-means++", "seed": seed}
        rows.append(row | kmeans(latents, num_codes, seed=seed))
    for name, how, seed in tqdm([(n, h, s) for n in settings for h in starts for s in seeds]):
        setting = {**common, **settings[name]}
        bench = fit(setting, seeds[seed], encoder_dim=encoder_dim, start=how, seed=seed)
        row = {"setting": name, "method": bench.config.quantizer.method, "start": how, "seed": seed}
        rows.append(row | measure(bench, seeds[seed]))
    return pd.DataFrame(rows)


def effects(trials: pd.DataFrame) -> pd.DataFrame:
    """Judge the error of each of QUESTIONS that was fitted, in percent; a row also a start."""
    errors = trials.pivot(index="seed", columns=["setting", "start"], values="distortion")
    rows = []
    for question, (a, b) in QUESTIONS.items():
        for start in [start for start in STARTS if {(a, start), (b, start)} <= {*errors}]:
            logs = np.log([errors[a, start], errors[b, start]])
            ends = mean_interval(logs[0] - logs[1])
            verdict = {1: "worse", 0: "undecided", -1: "better"}[side(*ends[1:])]
            rows.append((question, start, *np.expm1(ends) * 100, logs.shape[1], verdict))
    names = ["question", "start", "change", "low", "high", "num_seeds", "verdict"]
    return pd.DataFrame(rows, columns=names)
