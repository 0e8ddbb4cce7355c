"""A quantizer laboratory: fit nothing but a quantizer on fixed latents, and measure what it became.

A variant is a named setting (`variants`). Two benches:

`fixed`: latents x go to the quantizer as they are, and its own terms are all there is to minimize.
`linear`: a learned linear encoder with rows of norm 1 and a learned linear decoder stand around it,
    z = W x, x' = V z_q + b, and mean (x' - x)^2 is minimized too: the smallest tokenizer in which
    the encoder's gradient matters. FSQ has nothing to fit and needs some scale, so it always
    stands there, with a free W.

Distortion is the mean squared error on held-out latents over their variance: 1 without a code.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgqlib.config import Config
from lgqlib.measure.geometry import count_codes, occupancy
from lgqlib.measure.temperature import critical_temperature
from lgqlib.measure.theory import geometry_efficiency, mass_law_perplexity, water_filling
from lgqlib.quantizers import build
from lgqlib.quantizers.base import initial_codes
from lgqlib.quantizers.fsq import matching_levels
from lgqlib.study.latents import FixedLatents
from lgqlib.study.variants import Variant

STARTS = ("random", "kmeans", "gaussian", "uniform", "cluster")
"""Where codes start; `cluster` puts all of them close to one latent."""
CLUSTER = 0.05
"""Spread of that cluster, in units of the latents'."""
LOOKS = 12
"""Times that a fit is looked at on its way."""
TAU_C_EVERY = 10
"""Steps between estimates of tau_c behind a learned encoder."""


@dataclass(frozen=True)
class Experiment:
    """How quantizers are fitted: everything but the variant, the start and the seed."""

    num_codes: int = 64
    num_steps: int = 200
    batch_size: int = 1024
    lr: float = 0.02
    bench: str = "fixed"
    """`fixed` or `linear`."""
    dim: int = 0
    """Channels behind the linear encoder; 0 is as many as the latents have."""

    def __post_init__(self):
        for name in ("num_codes", "num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be at least 1")
        if not self.lr > 0 or self.dim < 0:
            raise ValueError(f"lr = {self.lr}, dim = {self.dim}: they must be > 0 and >= 0")
        if self.bench not in ("fixed", "linear"):
            raise ValueError(f"bench = {self.bench!r}: it must be 'fixed' or 'linear'")

    def config(self, variant: Variant, dim: int) -> Config:
        """Return the config of a variant on this bench, with `dim` channels."""
        return Config().override(
            {
                "quantizer.method": variant.method,
                "quantizer.num_codes": self.num_codes,
                "backbone.dim": dim,
                "backbone.norm": "none",
                "train.num_steps": self.num_steps,
                "train.lr": variant.lr or self.lr,
                **variant.changes,
            }
        )


class Bench(nn.Module):
    """Put a variant's quantizer on the bench: as it is, or between two linear maps."""

    def __init__(self, variant: Variant, experiment: Experiment, dim: int):
        super().__init__()
        implicit = variant.method == "fsq"
        self.is_linear = implicit or experiment.bench == "linear"
        inner = (experiment.dim or dim) if self.is_linear else dim
        inner = len(matching_levels(experiment.num_codes)) if implicit else inner
        self.config = experiment.config(variant, inner)
        self.quantizer = build(self.config.quantizer, self.config.backbone.dim)
        self.is_unit = not implicit
        if self.is_linear:
            rows = nn.init.orthogonal_(torch.empty(inner, dim))
            self.encoder = nn.Parameter(rows)
            self.decoder = nn.Linear(inner, dim)
            self.decoder.weight.data.copy_(rows.T)

    def latents(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """Give what the quantizer sees."""
        if not self.is_linear:
            return x
        return F.linear(x, F.normalize(self.encoder, dim=1) if self.is_unit else self.encoder)

    def encode(self, x: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        """Choose the code of each point."""
        return self.quantizer.encode(_as_map(self.latents(x))).flatten()

    def decode(self, indices: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Give the points that indices stand for."""
        codes = F.embedding(indices, self.quantizer.codebook)
        return self.decoder(codes) if self.is_linear else codes

    def forward(self, x: Float[Tensor, "n c"], tau: float) -> Tensor:
        """Give the weighted loss of a batch."""
        quantized = self.quantizer(_as_map(self.latents(x)), tau)
        weights = self.config.loss
        total = sum(getattr(weights, name) * value for name, value in quantized.terms.items())
        if self.is_linear:
            decoded = self.decoder(rearrange(quantized.z_q, "1 c n 1 -> n c"))
            total = total + (decoded - x).square().mean()
        return total


def _as_map(z: Float[Tensor, "n c"]) -> Float[Tensor, "1 c n 1"]:
    return rearrange(z, "n c -> 1 c n 1")


def start_codes(latents: Float[Tensor, "n c"], num_codes: int, how: str) -> Float[Tensor, "K c"]:
    """Draw where codes start: as `initial_codes`, or all of them in one small `cluster`."""
    if how not in STARTS:
        raise ValueError(f"start = {how!r}: it must be one of {', '.join(STARTS)}")
    if how != "cluster":
        return initial_codes(latents, num_codes, how)
    noise = torch.randn(num_codes, latents.shape[1])
    place = latents[torch.randint(len(latents), (1,))]
    return place + CLUSTER * latents.std(0, correction=0) * noise


def fit(
    variant: Variant,
    cloud: FixedLatents,
    experiment: Experiment,
    *,
    start: str = "random",
    seed: int = 0,
) -> tuple[Bench, pd.DataFrame]:
    """Fit a variant on a cloud; give it with its history, one row a look.

    Deterministic given the seed, which draws the start, the encoder and the batches; the global
    random stream is left as it was. With equal seeds, every variant starts from the same codes and
    sees the same batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        points = torch.from_numpy(cloud.points)
        bench = Bench(variant, experiment, cloud.dim).train()
        torch.manual_seed(seed)  # whatever the construction drew, the start is the same
        with torch.no_grad():
            codes = start_codes(bench.latents(points), experiment.num_codes, start)
            bench.quantizer.initialize(codes)
        torch.manual_seed(seed)
        return bench, pd.DataFrame(_train(bench, points, cloud, experiment))


def _train(bench: Bench, points: Tensor, cloud: FixedLatents, experiment: Experiment) -> list[dict]:
    temperature, train = bench.config.temperature, bench.config.train
    parameters = [p for p in bench.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters or [nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99), weight_decay=0.0
    )
    probe = replace(cloud, held_out=cloud.held_out[:2048])
    num_steps, history, scale = experiment.num_steps, [], 1.0
    looks = {round(step) for step in np.linspace(0, num_steps - 1, LOOKS)}
    energy = getattr(bench.quantizer, "energy", "squared")
    for step in range(num_steps):
        x = points[torch.randint(len(points), (experiment.batch_size,))]
        if temperature.reduced and (step == 0 or (bench.is_linear and step % TAU_C_EVERY == 0)):
            seen = bench.latents(x if bench.is_linear else points).detach()
            scale = critical_temperature(seen, energy=energy)
        tau = temperature.at(step, num_steps) * scale
        for group in optimizer.param_groups:
            group["lr"] = train.lr_at(step)
        if step in looks:
            row = measure(bench, probe)
            history.append({"step": step, "tau": tau} | row)
        total = bench(x, tau)
        optimizer.zero_grad(set_to_none=True)
        if total.requires_grad:  # VQ-EMA's codes move in its forward
            total.backward()
            nn.utils.clip_grad_norm_(parameters, train.clip)
        optimizer.step()
    return history


@torch.no_grad()
def measure(bench: Bench, cloud: FixedLatents) -> dict[str, float]:
    """Measure a fitted quantizer on the held-out latents of a cloud."""
    x = torch.from_numpy(cloud.held_out)
    indices = bench.encode(x)
    errors = (bench.decode(indices) - x).double().square().sum(1).mean().item()
    return _numbers(cloud, errors, indices.numpy(), bench.config.quantizer.num_codes)


def _numbers(
    cloud: FixedLatents, error: float, indices: np.ndarray, num_codes: int
) -> dict[str, float]:
    basis, usage = cloud.spectrum, occupancy(count_codes(indices, num_codes))
    rate = usage.entropy_corrected
    return {
        "distortion": error / basis.total,
        "bits": float(rate / np.log(2)),
        "perplexity": usage.perplexity,
        "active": usage.active,
        "active_share": usage.active / num_codes,
        "efficiency": geometry_efficiency(basis.eigenvalues, rate, error),
    }


def kmeans(cloud: FixedLatents, num_codes: int, *, seed: int = 0) -> dict[str, float]:
    """Measure k-means (k-means++ start, Lloyd's algorithm) on a cloud: the reference."""
    from sklearn.cluster import KMeans

    found = KMeans(num_codes, n_init=1, max_iter=60, random_state=seed).fit(cloud.points)
    indices = found.predict(cloud.held_out)
    difference = cloud.held_out - found.cluster_centers_[indices]
    return _numbers(cloud, float(np.square(difference).sum(1).mean()), indices, num_codes)


def bounds(cloud: FixedLatents, num_codes: int) -> dict[str, float]:
    """Give what no quantizer of K codes passes on a Gaussian of the cloud's spectrum.

    `distortion`: water-filling at log K nats. `perplexity`: the mass law's, not a bound but where
    a good quantizer with many codes is.
    """
    basis = cloud.spectrum
    return {
        "distortion": float(water_filling(basis.eigenvalues, float(np.log(num_codes))))
        / basis.total,
        "perplexity": num_codes * mass_law_perplexity(max(basis.participation, 1.0)),
    }


def tuned(
    variants: Iterable[Variant],
    cloud: FixedLatents,
    experiment: Experiment,
    lrs: Sequence[float],
    *,
    starts: Sequence[str] = ("random",),
    seed: int = 1000,
    progress: bool = True,
) -> list[Variant]:
    """Give each variant the learning rate whose error is least on the points fitted on.

    The geometric mean over starts decides. Take a cloud and a seed that nothing is measured on.
    """
    own = replace(cloud, held_out=cloud.points[:8192])
    chosen = []
    for variant in tqdm(list(variants), disable=not progress, desc="learning rates"):
        errors = {}
        for lr in lrs if len(lrs) > 1 else ():
            trial = replace(variant, lr=lr)
            fits = [fit(trial, cloud, experiment, start=how, seed=seed)[0] for how in starts]
            errors[lr] = sum(np.log(measure(bench, own)["distortion"]) for bench in fits)
        chosen.append(replace(variant, lr=min(errors, key=errors.get) if errors else lrs[0]))
    return chosen


def run(
    clouds: Mapping[int, FixedLatents],
    variants: Sequence[Variant],
    experiment: Experiment,
    *,
    starts: Iterable[str] = ("random",),
    progress: bool = True,
) -> pd.DataFrame:
    """Fit every variant from every start on each seed's cloud; one row a fit.

    Seeds are the keys of `clouds`. `against_kmeans` is k-means' distortion over the fit's own, for
    the same seed; k-means itself is there as a variant.
    """
    reference = {seed: kmeans(c, experiment.num_codes, seed=seed) for seed, c in clouds.items()}
    base = {"variant": "k-means", "method": "kmeans", "start": "k-means++", "lr": 0.0}
    rows = [base | {"seed": seed} | numbers for seed, numbers in reference.items()]
    grid = [(v, how, seed) for v in variants for how in starts for seed in clouds]
    for variant, how, seed in tqdm(grid, disable=not progress, desc=experiment.bench):
        bench, _ = fit(variant, clouds[seed], experiment, start=how, seed=seed)
        row = {"variant": variant.name, "method": variant.method, "start": how, "seed": seed}
        rows.append(row | {"lr": bench.config.train.lr} | measure(bench, clouds[seed]))
    trials = pd.DataFrame(rows)
    best = trials["seed"].map({seed: n["distortion"] for seed, n in reference.items()})
    return trials.assign(against_kmeans=best / trials["distortion"])
