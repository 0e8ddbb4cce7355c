"""Quantizers on fixed latents: fit nothing else, measure what each became, and judge what helped.

A variant, a named setting, is fitted to latents x as they are: its quantizer's own terms are all
there is to minimize. Or behind a learned linear encoder with rows of norm 1 and before a learned
linear decoder, z = W x, x' = V z_q + b, where mean (x' - x)^2 is minimized too: the smallest
tokenizer in which the encoder's gradient matters. FSQ has nothing to fit and needs some scale, so
it always stands there, with a free W.

Distortion is the mean squared error on held-out latents over their variance: 1 without a code.
Effects are of one setting against another at the same start and seed: the same latents, codes to
start from, and batches. A verdict is `better` or `worse` where the 95 % interval excludes zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgqlib.config import Config
from lgqlib.measure.intervals import paired_difference
from lgqlib.measure.temperature import critical_temperature
from lgqlib.measure.theory import geometry_efficiency, mass_law_perplexity, water_filling
from lgqlib.measure.usage import code_usage
from lgqlib.presets import AUTHORS_LGQ
from lgqlib.quantizers import METHODS, build
from lgqlib.quantizers.base import initial_codes
from lgqlib.quantizers.fsq import matching_levels
from lgqlib.study.latents import FixedLatents

ANNEALING: dict[str, Any] = {
    "temperature.kind": "exponential",
    "temperature.start": 1.0,
    "temperature.end": 0.003,
    "temperature.reduced": True,
}
"""From the first critical temperature down, instead of from 1 to 0.1 whatever the latents are."""
CHANGES: dict[str, dict[str, Any]] = {
    "free energy": {"quantizer.lgq.codebook_loss": "free_energy"},
    "annealing": ANNEALING,
    "entropy usage": {"quantizer.lgq.usage": "entropy", "loss.usage": 0.03},
    "identity": {"quantizer.lgq.identity": 1.0},
}
"""The four hypotheses, each as what it changes in the authors' setting."""
REST: dict[str, Any] = {"loss.peak": 0.0, "loss.commit": 0.25}
"""What changes besides when all are together: no peak term, and the commitment of VQ."""
CONSTANT, LINEAR = {"temperature.kind": "constant"}, {"temperature.kind": "linear"}
SCHEDULES: dict[str, dict[str, Any]] = {
    "exponential, 1 to 0.003 tau_c": {},
    "linear, 1 to 0.003 tau_c": LINEAR,
    "cosine, 1 to 0.003 tau_c": {"temperature.kind": "cosine"},
    "exponential, 0.1 to 0.003 tau_c": {"temperature.start": 0.1},
    "constant, 0.1 tau_c": CONSTANT | {"temperature.start": 0.1},
    "constant, 0.003 tau_c": CONSTANT | {"temperature.start": 0.003},
    "linear, 1 to 0.1 (the authors')": LINEAR
    | {"temperature.end": 0.1, "temperature.reduced": False},
}
"""Schedules of the temperature, each as what it changes in ANNEALING."""
STARTS = ("random", "kmeans", "gaussian", "uniform", "cluster")
"""Where codes start; `cluster` puts all of them close to one latent."""
CLUSTER = 0.05
"""Spread of that cluster, in units of the latents'."""
BETTER = {"distortion": -1, "spread": -1, "efficiency": 1, "active_share": 1}
"""Measures, with 1 where more is better. `spread` is of the distortion over starts."""
VERDICTS = {1: "better", 0: "undecided", -1: "worse"}


@dataclass(frozen=True)
class Variant:
    """A named setting of a method."""

    name: str
    method: str = "lgq"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the config, by dotted name."""
    lr: float = 0.0
    """Learning rate of the quantizer; 0 is the experiment's."""

    @property
    def setting(self) -> str:
        """The overrides as a command line has them."""
        return " ".join(f"{name}={value}" for name, value in self.changes.items())


def together(name: str = "all together", *, encoder: bool = False, without: str = "", **changes):
    """Give the variant with all changes to the authors' LGQ, or with all but one of them."""
    setting = AUTHORS_LGQ | REST
    for change in testable(encoder):
        setting |= {} if change == without else CHANGES[change]
    return Variant(name, changes=setting | changes)


def testable(encoder: bool) -> list[str]:
    """Give the changes that can be tested: without an encoder, an identity path carries nothing."""
    return [name for name in CHANGES if encoder or name != "identity"]


def lgq_variants(*, encoder: bool = False) -> list[Variant]:
    """Give the authors' LGQ, each change alone, all of them, and all but one."""
    names = testable(encoder)
    return [
        Variant("authors", changes=AUTHORS_LGQ),
        *(Variant(f"+ {name}", changes=AUTHORS_LGQ | CHANGES[name]) for name in names),
        together(encoder=encoder),
        *(together(f"all but {name}", encoder=encoder, without=name) for name in names),
    ]


def peer_variants(methods: Sequence[str] = ("vq", "vq_ema", "simvq", "fsq")) -> list[Variant]:
    """Give LGQ's peers with their recommended weights."""
    return [Variant(METHODS[m].label, m, METHODS[m].weights) for m in methods]


def energy_variants() -> list[Variant]:
    """Give the authors' LGQ with each energy, at their temperatures and a hundred times colder.

    With their loss, for the free energy of a dot product has no minimum over the codes.
    """
    colder = {"temperature.kind": "exponential", "temperature.end": 0.001}
    return [
        Variant(
            f"{energy}, tau 1 to {changes.get('temperature.end', 0.1)}",
            changes=AUTHORS_LGQ | {"quantizer.lgq.energy": energy} | changes,
        )
        for energy in ("squared", "norm", "cosine", "dot")
        for changes in ({}, colder)
    ]


def schedule_variants() -> list[Variant]:
    """Give all changes together under other schedules of the temperature."""
    return [together(name, **changes) for name, changes in SCHEDULES.items()]


@dataclass(frozen=True)
class Experiment:
    """How quantizers are fitted: everything but the variant, the start and the seed."""

    num_codes: int = 64
    num_steps: int = 200
    batch_size: int = 1024
    lr: float = 0.02
    encoder_dim: int = 0
    """Channels behind a learned linear encoder; 0 is no encoder."""

    def config(self, variant: Variant, dim: int) -> Config:
        """Give the config of a variant, with `dim` channels; it refuses values that cannot be."""
        return Config().override(
            {
                "quantizer.method": variant.method,
                "quantizer.num_codes": self.num_codes,
                "backbone.dim": dim,
                "backbone.norm": "none",
                "train.num_steps": self.num_steps,
                "train.batch_size": self.batch_size,
                "train.lr": variant.lr or self.lr,
                **variant.changes,
            }
        )


class Bench(nn.Module):
    """A variant's quantizer: as it is, or between two linear maps."""

    def __init__(self, variant: Variant, experiment: Experiment, dim: int):
        super().__init__()
        implicit = variant.method == "fsq"
        inner = len(matching_levels(experiment.num_codes)) if implicit else experiment.encoder_dim
        self.is_linear, self.is_unit = inner > 0, not implicit
        self.config = experiment.config(variant, inner or dim)
        self.quantizer = build(self.config.quantizer, self.config.backbone.dim)
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
        """Choose the code of each latent."""
        return self.quantizer.encode(_as_map(self.latents(x))).flatten()

    def decode(self, indices: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Give the latents that indices stand for."""
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
    latents: FixedLatents,
    experiment: Experiment,
    *,
    start: str = "random",
    seed: int = 0,
) -> tuple[Bench, pd.DataFrame]:
    """Fit a variant; give it with its history, measured a dozen times on the way.

    Deterministic given the seed, which draws the start, the encoder and the batches; the global
    random stream is left as it was. With equal seeds, every variant starts from the same codes and
    sees the same batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.from_numpy(latents.points)
        bench = Bench(variant, experiment, latents.dim).train()
        torch.manual_seed(seed)  # whatever the construction drew, the start is the same
        with torch.no_grad():
            codes = start_codes(bench.latents(x), experiment.num_codes, start)
            bench.quantizer.initialize(codes)
        torch.manual_seed(seed)
        return bench, pd.DataFrame(_train(bench, x, latents, experiment))


def _train(bench: Bench, x: Tensor, latents: FixedLatents, experiment: Experiment) -> list[dict]:
    temperature, train = bench.config.temperature, bench.config.train
    parameters = [p for p in bench.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters or [nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99), weight_decay=0.0
    )
    probe = replace(latents, held_out=latents.held_out[:2048])
    num_steps, history, scale = experiment.num_steps, [], 1.0
    measured = {round(step) for step in np.linspace(0, num_steps - 1, 12)}
    energy = getattr(bench.quantizer, "energy", "squared")
    for step in range(num_steps):
        batch = x[torch.randint(len(x), (experiment.batch_size,))]
        if temperature.reduced and (step == 0 or (bench.is_linear and step % 10 == 0)):
            seen = bench.latents(batch if bench.is_linear else x).detach()
            scale = critical_temperature(seen, energy=energy)
        tau = temperature.at(step, num_steps) * scale
        for group in optimizer.param_groups:
            group["lr"] = train.lr_at(step)
        if step in measured:
            history.append({"step": step, "tau": tau} | measure(bench, probe))
        total = bench(batch, tau)
        optimizer.zero_grad(set_to_none=True)
        if total.requires_grad:  # VQ-EMA's codes move in its forward
            total.backward()
            nn.utils.clip_grad_norm_(parameters, train.clip)
        optimizer.step()
    return history


@torch.no_grad()
def measure(bench: Bench, latents: FixedLatents) -> dict[str, float]:
    """Measure a fitted quantizer on held-out latents."""
    x = torch.from_numpy(latents.held_out)
    indices = bench.encode(x)
    error = (bench.decode(indices) - x).double().square().sum(1).mean().item()
    return _numbers(latents, error, indices.numpy(), bench.config.quantizer.num_codes)


def _numbers(latents: FixedLatents, error: float, indices: np.ndarray, num_codes: int) -> dict:
    basis, counts = latents.spectrum, np.bincount(indices, minlength=num_codes)
    usage = code_usage(torch.from_numpy(counts))
    rate = np.log(2) * min(usage["entropy_miller_madow"], np.log2(num_codes))
    return {
        "distortion": error / basis.total,
        "bits": float(rate / np.log(2)),
        "perplexity": usage["perplexity"],
        "active": usage["active"],
        "active_share": usage["active_share"],
        "efficiency": geometry_efficiency(basis.eigenvalues, rate, error),
    }


def kmeans(latents: FixedLatents, num_codes: int, *, seed: int = 0) -> dict[str, float]:
    """Measure k-means (k-means++ start, Lloyd's algorithm), the reference."""
    from sklearn.cluster import KMeans

    found = KMeans(num_codes, n_init=1, max_iter=60, random_state=seed).fit(latents.points)
    indices = found.predict(latents.held_out)
    difference = latents.held_out - found.cluster_centers_[indices]
    return _numbers(latents, float(np.square(difference).sum(1).mean()), indices, num_codes)


def bounds(latents: FixedLatents, num_codes: int) -> dict[str, float]:
    """Give what no quantizer of K codes passes on a Gaussian of the latents' spectrum.

    `distortion`: water-filling at log K nats. `perplexity`: the mass law's, not a bound but where
    a good quantizer with many codes is.
    """
    basis = latents.spectrum
    least = float(water_filling(basis.eigenvalues, float(np.log(num_codes))))
    share = mass_law_perplexity(max(basis.participation, 1.0))
    return {"distortion": least / basis.total, "perplexity": num_codes * share}


def tuned(
    variants: Iterable[Variant],
    latents: FixedLatents,
    experiment: Experiment,
    lrs: Sequence[float],
    *,
    starts: Sequence[str] = ("random",),
    seed: int = 1000,
    progress: bool = True,
) -> list[Variant]:
    """Give each variant the learning rate whose error is least on the latents fitted on.

    The geometric mean over starts decides. Take latents and a seed that nothing is measured on.
    """
    own = replace(latents, held_out=latents.points[:8192])
    chosen = []
    for variant in tqdm(list(variants), disable=not progress, desc="learning rates"):
        errors = {}
        for lr in lrs if len(lrs) > 1 else ():
            trial = replace(variant, lr=lr)
            fits = [fit(trial, latents, experiment, start=how, seed=seed)[0] for how in starts]
            errors[lr] = sum(np.log(measure(bench, own)["distortion"]) for bench in fits)
        chosen.append(replace(variant, lr=min(errors, key=errors.get) if errors else lrs[0]))
    return chosen


def compare(
    seeds: Mapping[int, FixedLatents],
    variants: Sequence[Variant],
    experiment: Experiment,
    *,
    starts: Iterable[str] = ("random",),
    progress: bool = True,
) -> pd.DataFrame:
    """Fit every variant from every start on each seed's latents; one row a fit.

    `against_kmeans` is k-means' distortion over the fit's own, for the same seed; k-means itself is
    there as a variant.
    """
    reference = {seed: kmeans(x, experiment.num_codes, seed=seed) for seed, x in seeds.items()}
    base = {"variant": "k-means", "method": "kmeans", "start": "k-means++", "lr": 0.0}
    rows = [base | {"seed": seed} | numbers for seed, numbers in reference.items()]
    grid = [(v, how, seed) for v in variants for how in starts for seed in seeds]
    for variant, how, seed in tqdm(grid, disable=not progress, desc="fits"):
        bench, _ = fit(variant, seeds[seed], experiment, start=how, seed=seed)
        row = {"variant": variant.name, "method": variant.method, "start": how, "seed": seed}
        rows.append(row | {"lr": bench.config.train.lr} | measure(bench, seeds[seed]))
    trials = pd.DataFrame(rows)
    best = trials["seed"].map({seed: n["distortion"] for seed, n in reference.items()})
    return trials.assign(against_kmeans=best / trials["distortion"])


def summary(trials: pd.DataFrame) -> pd.DataFrame:
    """Give the mean of every number over seeds, by variant and start, and how much seeds differ.

    `deviation` is the standard deviation of the distortion over seeds.
    """
    numbers = ["distortion", "bits", "perplexity", "active_share", "efficiency", "against_kmeans"]
    groups = trials.groupby(["variant", "start"], sort=False)
    table = groups[["lr", *numbers]].mean()
    table.insert(2, "deviation", groups["distortion"].std())
    return table.reset_index()


def spreads(trials: pd.DataFrame) -> pd.DataFrame:
    """Give max / min of the distortion over starts, for each variant with several, and seed."""
    groups = trials.groupby(["variant", "seed"], sort=False)
    several = groups.filter(lambda rows: rows["start"].nunique() > 1)
    distortion = several.groupby(["variant", "seed"], sort=False)["distortion"]
    ratio = distortion.max() / distortion.min()
    return ratio.rename("spread").reset_index().assign(start="any")


def effect(trials: pd.DataFrame, variant: str, against: str, *, start: str, measure: str) -> dict:
    """Give a row of the table of effects: the change in percent with its interval, and a verdict.

    The interval is Student's of log(variant / against) over seeds.
    Raises ValueError where the two have not the same two or more seeds.
    """
    at = trials[trials["start"] == start].set_index("seed")
    a, b = (at.loc[at["variant"] == v, measure].sort_index() for v in (variant, against))
    if len(a) < 2 or not a.index.equals(b.index):
        raise ValueError(
            f"{variant!r} has seeds {list(a.index)} from start {start!r} and {against!r} has "
            f"{list(b.index)}: they must be the same, and at least 2"
        )
    interval = paired_difference(np.log(a.to_numpy()), np.log(b.to_numpy()), method="t")
    ends = {"change": interval.mean, "low": interval.low, "high": interval.high}
    return {
        **{"variant": variant, "against": against, "start": start, "measure": measure},
        **{name: float(100 * np.expm1(value)) for name, value in ends.items()},
        **{
            "num_seeds": interval.num_seeds,
            "verdict": VERDICTS[BETTER[measure] * interval.direction],
        },
    }


def effects(trials: pd.DataFrame, measures: Iterable[str] = ("distortion",)) -> pd.DataFrame:
    """Judge each hypothesis twice, and all together: one row a question, start and measure.

    Each change is added to the authors' setting alone, and is the last to be added to the others.
    Questions without fits are left out.
    """
    alone, last, whole = "added to the authors'", "added to all the others", "all together"
    questions = [(whole, alone, whole, "authors")]
    for name in CHANGES:
        questions.append((name, alone, f"+ {name}", "authors"))
        questions.append((name, last, whole, f"all but {name}"))
    rows = []
    for measure in measures:
        table = spreads(trials) if measure == "spread" else trials
        for hypothesis, context, variant, against in questions:
            for start in _starts_of(table, variant, against):
                row = effect(table, variant, against, start=start, measure=measure)
                rows.append({"hypothesis": hypothesis, "context": context} | row)
    return pd.DataFrame(rows)


def effects_against(trials: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Judge every variant's distortion against that of one of them, at every start of both."""
    return pd.DataFrame(
        effect(trials, variant, reference, start=start, measure="distortion")
        for variant in trials["variant"].unique()
        for start in _starts_of(trials, variant, reference)
        if variant != reference
    )


def _starts_of(trials: pd.DataFrame, a: str, b: str) -> list[str]:
    starts = trials.groupby("variant")["start"].unique()
    return [start for start in starts.get(a, ()) if start in starts.get(b, ())]


def sentences(table: pd.DataFrame) -> list[str]:
    """Say every effect in words."""
    return [
        f"{row.hypothesis}, {row.context}, start {row.start}: "
        f"{row.measure.replace('_', ' ')} {row.change:+.1f} % "
        f"[{row.low:+.1f}, {row.high:+.1f}], {row.verdict}."
        for row in table.itertuples()
    ]
