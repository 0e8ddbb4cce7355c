"""The paper's claims C1 to C8, each with a verdict computed from a study's results.

C1 to C5 and C8 rest on runs paired by seed (`comparison`); C6 and C7 are theorems, checked in
float64 on numbers drawn for the purpose. A comparison at equal K is decided at the largest K that
both methods have with two seeds or more; the other sizes stand beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import torch
from scipy.stats import multivariate_normal

from lgqlib.files import write_json
from lgqlib.measure import METRICS
from lgqlib.measure.intervals import Interval
from lgqlib.measure.temperature import energies
from lgqlib.quantizers.assignment import soft_assign
from lgqlib.study.comparison import Difference, at_equal_rate, difference, find
from lgqlib.study.results import Cohort

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided at this scale"
HALF = (0.4, 0.6)
"""What counts as about half of FSQ's active codes."""
PACE = 0.5
"""Exponent of perplexity over K below which a codebook counts as collapsing."""
MARGIN = 0.1
"""dB of PSNR within which fidelity counts as comparable."""
Judged = tuple[str, str]
"""A verdict and its evidence."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and what this study says of it."""

    id: str
    text: str
    verdict: str
    evidence: str
    """The numbers that decided, with their 95 % intervals and seeds."""
    paper: str
    """The paper's own number: ImageNet at 128 x 128, K = 16,384, other features than ours."""


def claims(found: Sequence[Cohort]) -> list[Claim]:
    """Judge every claim by the finished runs of a study."""
    return [Claim(id, text, *judge(found), paper) for id, (text, judge, paper) in CLAIMS.items()]


def claims_table(found: Sequence[Cohort]) -> pandas.DataFrame:
    """Give the claims as a table: `claim`, `verdict`, `evidence`, `in the paper`, by their ids."""
    rows = {c.id: (c.text, c.verdict, c.evidence, c.paper) for c in claims(found)}
    columns = ["claim", "verdict", "evidence", "in the paper"]
    return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)


def write_claims(found: Sequence[Cohort], study: Path | str) -> Path:
    """Write the claims into a study's folder as claims.json; give the path."""
    path = Path(study) / "claims.json"
    write_json(path, {"claims": [asdict(claim) for claim in claims(found)]})
    return path


def all_of(*verdicts: str) -> str:
    """Join verdicts that must all hold: one refuted refutes, all reproduced reproduce."""
    if NOT_REPRODUCED in verdicts:
        return NOT_REPRODUCED
    return REPRODUCED if verdicts and set(verdicts) == {REPRODUCED} else UNDECIDED


def has_sign(d: Difference, sign: int) -> str:
    """Judge a difference that a claim says has a sign: by whether its interval excludes zero."""
    return _verdict(sign * d.direction)


def is_above(interval: Interval | None, bound: float, *, claimed: bool = True) -> str:
    """Judge whether a mean is above a bound (or, as claimed, below), by where its interval lies."""
    if interval is None:
        return UNDECIDED
    above = int(interval.low > bound) - int(interval.high < bound)
    return _verdict(above if claimed else -above)


def _verdict(direction: int) -> str:
    return {1: REPRODUCED, 0: UNDECIDED, -1: NOT_REPRODUCED}[direction]


def _needs(what: str) -> Judged:
    return UNDECIDED, f"needs finished runs of {what}"


def _sizes(found: Sequence[Cohort], peer: str) -> list[int]:
    """Give the K of both LGQ and a peer, those with two shared seeds first, then the largest."""
    sizes = []
    for num_codes in {c.num_codes for c in found}:
        a, b = (find(found, method, num_codes) for method in ("lgq", peer))
        if a and b:
            sizes.append((len(set(a.seeds) & set(b.seeds)) > 1, num_codes))
    return [num_codes for _, num_codes in sorted(sizes, reverse=True)]


def _at_sizes(found: Sequence[Cohort], peer: str, metric: str, **how: bool) -> list[Difference]:
    """Give LGQ's differences to a peer, at the size that decides and then at the others."""
    pairs = [(find(found, "lgq", k), find(found, peer, k)) for k in _sizes(found, peer)]
    answers = [difference(a, b, metric, **how) for a, b in pairs]
    return [d for d in answers if d is not None]


def _written(differences: Sequence[Difference], name: str) -> str:
    return "; ".join(f"{name} {d} at {d.at}" for d in differences)


def _ratio(d: Difference) -> str:
    """Write a difference of logarithms as a ratio."""
    mean, low, high = (math.exp(x) for x in (d.interval.mean, d.interval.low, d.interval.high))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _distance(found: Sequence[Cohort]) -> Judged:
    kid, fd = _at_sizes(found, "fsq", "kid"), _at_sizes(found, "fsq", "fd")
    if not kid:
        return _needs("lgq, fsq")
    evidence = f"{_written(kid, 'ΔKID')}; {_written(fd[:1], 'ΔFD')}"
    return has_sign(kid[0], METRICS["kid"].better), evidence


def _half(found: Sequence[Cohort]) -> Judged:
    ratios = _at_sizes(found, "fsq", "active", log=True)
    if not ratios:
        return _needs("lgq, fsq")
    low, high = (math.log(share) for share in HALF)
    ends = ratios[0].t
    within = all_of(is_above(ends, low), is_above(ends, high, claimed=False))
    said = [f"ratio {_ratio(d)} at {d.at} ({d.interval.num_seeds} seeds)" for d in ratios]
    return within, "; ".join(said)


def _lower_rate(found: Sequence[Cohort], *, metric: str, name: str) -> Judged:
    """Judge C3 in one meaning of rate: a better distance, and less of it."""
    better, fewer = _at_sizes(found, "simvq", "kid"), _at_sizes(found, "simvq", metric)
    if not better or not fewer:
        return _needs("lgq, simvq")
    verdict = all_of(has_sign(better[0], METRICS["kid"].better), has_sign(fewer[0], -1))
    return verdict, f"{_written(better[:1], 'ΔKID')}; {_written(fewer, f'Δ {name}')}"


def _no_collapse(found: Sequence[Cohort]) -> Judged:
    """Judge whether perplexity keeps pace with K, grows with over half its logarithm; not VQ's."""
    sizes = sorted(_sizes(found, "vq"))
    if len(sizes) < 2:
        return _needs("lgq and vq at two sizes of codebook or more")
    small, large = sizes[0], sizes[-1]
    verdicts, said = [], []
    for method in ("lgq", "vq"):
        least, most = (find(found, method, k) for k in (small, large))
        growth = difference(most, least, "perplexity", log=True)
        pace = PACE * math.log(large / small)
        verdicts.append(is_above(growth.t, pace, claimed=method == "lgq"))
        said.append(
            f"perplexity of {method} x {_ratio(growth)} from K = {small:,} to {large:,}, where "
            f"{most.values('active').mean() / large:.0%} are active"
        )
    pair = find(found, "lgq", large), find(found, "vq", large)
    above = difference(*pair, "perplexity", log=True)
    said.append(f"there {_ratio(above)} times vq's ({above.interval.num_seeds} seeds)")
    return all_of(*verdicts, has_sign(above, 1)), "; ".join(said)


def _efficiency(found: Sequence[Cohort]) -> Judged:
    """Judge C5: fewer active codes than FSQ, and at an equal rate no worse by over the margin."""
    fewer = _at_sizes(found, "fsq", "active", log=True)
    equal = at_equal_rate(found, "lgq", "fsq", "psnr", "bits_per_token_coded")
    if not fewer or equal is None:
        return _needs("lgq and fsq at two sizes whose rates overlap")
    said = [f"ΔPSNR {equal} dB at an {equal.at}", _written(fewer[:1], "Δ log active codes")]
    for method in ("lgq", "fsq"):
        cohort = find(found, method, _sizes(found, "fsq")[0])
        keys = ("perplexity_share", "mass_law_share", "geometry_efficiency")
        numbers = [cohort.values(key) for key in keys]
        if all(value is not None for value in numbers):
            share, ceiling, efficiency = (value.mean() for value in numbers)
            said.append(
                f"{method}: perplexity/K {share:.2f} under a ceiling of {ceiling:.2f}, geometry "
                f"efficiency {efficiency:.2f}"
            )
    return all_of(is_above(equal.t, -MARGIN), has_sign(fewer[0], -1)), "; ".join(said)


def _cold_limit(_found: Sequence[Cohort]) -> Judged:
    """Check that the soft average becomes the nearest code, unless two codes are equally near."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(512, 5, generator=generator, dtype=torch.float64)
    codes = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    a = soft_assign(z, codes, 1e-6)
    nearest = torch.cdist(z, codes).argmin(1)
    away = float((a.average - codes[nearest]).abs().max())
    pair = torch.ones(2, 5, dtype=torch.float64) * torch.tensor([[1.0], [-1.0]])
    split = float(soft_assign(torch.zeros_like(pair[:1]), pair, 1e-6).collision[0])
    holds = away < 1e-6 and bool((a.indices == nearest).all()) and abs(split - 0.5) < 1e-9
    return REPRODUCED if holds else NOT_REPRODUCED, (
        f"largest distance of the soft average to the nearest code {away:.1g} at τ = 1e-6 "
        f"(512 tokens, 64 codes); where two codes are equally near each keeps a half "
        f"(Σp² = {split:.3f}), so distinct codes are not enough: the nearest must be unique"
    )


def _mixture(_found: Sequence[Cohort]) -> Judged:
    """Check that p is a Gaussian mixture's posterior and minimizes F; not so with the norm."""
    rng = np.random.default_rng(0)
    z, codes, tau = rng.normal(size=(64, 3)), rng.normal(size=(16, 3)), 0.7
    density = np.stack([multivariate_normal(e, tau / 2 * np.eye(3)).pdf(z) for e in codes], axis=1)
    posterior = torch.from_numpy(density / density.sum(1, keepdims=True))
    pair = torch.from_numpy(z), torch.from_numpy(codes)
    d, norm = (energies(*pair, energy=energy) for energy in ("squared", "norm"))
    p = torch.softmax(-d / tau, dim=1)
    error = float((p - posterior).abs().max())
    norm_error = float((torch.softmax(-norm / tau, dim=1) - posterior).abs().max())
    q = torch.from_numpy(rng.dirichlet(np.ones(16), size=64))
    least = -tau * torch.logsumexp(-d / tau, 1)
    above = (q * d).sum(1) - tau * torch.special.entr(q).sum(1) - least
    gap = float((above - tau * (q * (q / p).log()).sum(1)).abs().max())
    holds = error < 1e-12 and gap < 1e-10 and float(above.min()) > 0
    return REPRODUCED if holds else NOT_REPRODUCED, (
        f"squared energy: largest difference to the mixture's posterior {error:.1g}, F(q) - F* = "
        f"τ KL(q || p) to {gap:.1g}; the unsquared norm of the paper's first version is no "
        f"Gaussian mixture (difference {norm_error:.2g})"
    )


def _usage_term(found: Sequence[Cohort]) -> Judged:
    """Judge whether perplexity grows with the weight of the usage term, all else equal."""
    for num_codes in sorted({c.num_codes for c in found}, reverse=True):
        plain = find(found, "lgq", num_codes, "")
        alike = [
            c
            for c in found
            if plain is not None and c.method == "lgq" and c.num_codes == num_codes
            if c.settings | {"loss.usage": 0} == plain.settings | {"loss.usage": 0}
        ]
        weights = {float(c.settings["loss.usage"]): c for c in alike}
        if len(weights) >= 2 and 0.0 in weights:
            most = max(weights)
            d = difference(weights[most], weights[0.0], "perplexity", log=True)
            means = [
                f"{w:g}: {weights[w].values('perplexity').mean():.0f}" for w in sorted(weights)
            ]
            return has_sign(d, 1), (
                f"perplexity by weight ({', '.join(means)}) at K = {num_codes:,}; x {_ratio(d)} "
                f"from 0 to {most:g} ({d.interval.num_seeds} seeds)"
            )
    return _needs("lgq with loss.usage = 0 and more, all else equal")


_active = partial(_lower_rate, metric="active", name="active codes")
_entropy = partial(_lower_rate, metric="bits_per_token_entropy", name="bits a token by entropy")
_coded = partial(_lower_rate, metric="bits_per_token_coded", name="coded bits a token")
SIMVQ = "rFID 110.64 against SimVQ's 117.77, with 8,199 against about 16,220 active codes"
CLAIMS: dict[str, tuple[str, Callable[[Sequence[Cohort]], Judged], str]] = {
    "C1": (
        "better distribution distance than FSQ at equal K",
        _distance,
        "rFID 110.64 against FSQ's 125.56",
    ),
    "C2": ("about half of FSQ's active codes", _half, "8,199 of FSQ's 16,384 active codes"),
    "C3": ("better than SimVQ with fewer active codes", _active, SIMVQ),
    "C3, entropy": ("better than SimVQ with fewer bits a token by entropy", _entropy, ""),
    "C3, coded": ("better than SimVQ with fewer coded bits a token", _coded, ""),
    "C4": ("no collapse as K grows, unlike VQ", _no_collapse, ""),
    "C5": ("comparable fidelity with fewer entries: efficiency, not collapse", _efficiency, ""),
    "C6": ("nearest neighbor in the low-temperature limit", _cold_limit, ""),
    "C7": ("mixture responsibilities, minimum of a free energy", _mixture, ""),
    "C8": ("the usage term balances use", _usage_term, ""),
}
"""By id: what the paper claims, how a study is asked about it, and the paper's own number."""
