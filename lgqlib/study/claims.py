"""The paper's claims C1 to C8, each with a verdict computed from a study's results.

C1 to C5 and C8 rest on runs paired by seed (`comparison`); C6 and C7 are theorems, checked in
float64 on numbers drawn for the purpose. A comparison at equal K is decided at the largest K that
both methods have with two seeds or more; the other sizes stand beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas
import torch
from scipy.stats import multivariate_normal

from lgqlib.files import write_json
from lgqlib.measure.temperature import energies
from lgqlib.quantizers.assignment import soft_assign
from lgqlib.study.comparison import (
    BETTER,
    Cohort,
    Difference,
    at_equal_rate,
    difference,
    find,
)

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided at this scale"
HALF = (0.4, 0.6)
"""What counts as about half of FSQ's active codes."""
PACE = 0.5
"""Exponent of perplexity over K below which a codebook counts as collapsing."""
MARGIN = 0.1
"""dB of PSNR within which fidelity counts as comparable."""
PAPER = {
    "C1": "rFID 110.64 against FSQ's 125.56",
    "C2": "8,199 of FSQ's 16,384 active codes",
    "C3": "rFID 110.64 against SimVQ's 117.77, with 8,199 against about 16,220 active codes",
}
"""The paper's own figures: ImageNet at 128 x 128, K = 16,384, other features than ours."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and what this study says of it."""

    id: str
    text: str
    verdict: str
    evidence: str
    """The numbers that decided, with their 95 % intervals and seeds."""
    paper: str = ""
    """The paper's own number: another data set and scale."""


def claims(found: Sequence[Cohort]) -> list[Claim]:
    """Judge every claim by the finished runs of a study."""
    return [
        _distance("C1", "better distribution distance than FSQ at equal K", found, "fsq"),
        _half(found),
        *_lower_rate(found),
        _no_collapse(found),
        _efficiency(found),
        _cold_limit(),
        _mixture(),
        _usage_term(found),
    ]


def claims_table(found: Sequence[Cohort]) -> pandas.DataFrame:
    """Give the claims as a table: `claim`, `verdict`, `evidence`, `in the paper`, by their ids."""
    rows = claims(found)
    return pandas.DataFrame(
        {
            "claim": [c.text for c in rows],
            "verdict": [c.verdict for c in rows],
            "evidence": [c.evidence for c in rows],
            "in the paper": [c.paper for c in rows],
        },
        index=[c.id for c in rows],
    )


def write_claims(found: Sequence[Cohort], study: Path | str) -> Path:
    """Write the claims into a study's folder as claims.json; give the path."""
    path = Path(study) / "claims.json"
    write_json(path, {"claims": [asdict(c) for c in claims(found)]})
    return path


def all_of(verdicts: Sequence[str]) -> str:
    """Join verdicts that must all hold: one refuted refutes, all reproduced reproduce."""
    if NOT_REPRODUCED in verdicts:
        return NOT_REPRODUCED
    return REPRODUCED if verdicts and set(verdicts) == {REPRODUCED} else UNDECIDED


def judged(d: Difference | None, sign: int) -> str:
    """Judge a difference that a claim says has a sign: by whether its interval excludes zero."""
    if d is None or d.direction == 0:
        return UNDECIDED
    return REPRODUCED if d.direction == sign else NOT_REPRODUCED


def _sizes(found: Sequence[Cohort], *methods: str) -> list[int]:
    """Give the K at which every method is, those with two shared seeds first, then the largest."""
    sizes = []
    for num_codes in {c.num_codes for c in found}:
        cohorts = [find(found, method, num_codes) for method in methods]
        if all(cohorts):
            shared = set.intersection(*(set(c.seeds) for c in cohorts))
            sizes.append((len(shared) > 1, num_codes))
    return [num_codes for _, num_codes in sorted(sizes, reverse=True)]


def _at_sizes(
    found: Sequence[Cohort], peer: str, metric: str, *, log: bool = False
) -> list[Difference]:
    pairs = [(find(found, "lgq", k), find(found, peer, k)) for k in _sizes(found, "lgq", peer)]
    answers = [difference(a, b, metric, log=log) for a, b in pairs]
    return [d for d in answers if d is not None]


def _missing(*what: str) -> str:
    return f"needs finished runs of {', '.join(what)}"


def _told(differences: Sequence[Difference], name: str) -> str:
    return "; ".join(f"{name} {d} at {d.at}" for d in differences)


def _distance(id: str, text: str, found: Sequence[Cohort], peer: str) -> Claim:
    kid, fd = _at_sizes(found, peer, "kid"), _at_sizes(found, peer, "fd")
    if not kid:
        return Claim(id, text, UNDECIDED, _missing("lgq", peer), PAPER.get(id, ""))
    evidence = f"{_told(kid, 'ΔKID')}; {_told(fd[:1], 'ΔFD')}"
    return Claim(id, text, judged(kid[0], BETTER["kid"]), evidence, PAPER.get(id, ""))


def _half(found: Sequence[Cohort]) -> Claim:
    text = "about half of FSQ's active codes"
    ratios = _at_sizes(found, "fsq", "active", log=True)
    if not ratios:
        return Claim("C2", text, UNDECIDED, _missing("lgq", "fsq"), PAPER["C2"])
    told = []
    for d in ratios:
        i = d.interval
        told.append(
            f"ratio {math.exp(i.mean):.2f} [{math.exp(i.low):.2f}, {math.exp(i.high):.2f}]"
            f" at {d.at} ({i.num_seeds} seeds)"
        )
    first = ratios[0]
    low, high = math.exp(first.interval.low), math.exp(first.interval.high)
    if first.t is None:
        verdict = UNDECIDED
    elif HALF[0] <= low and high <= HALF[1]:
        verdict = REPRODUCED
    else:
        verdict = NOT_REPRODUCED if high < HALF[0] or low > HALF[1] else UNDECIDED
    return Claim("C2", text, verdict, "; ".join(told), PAPER["C2"])


def _lower_rate(found: Sequence[Cohort]) -> list[Claim]:
    """C3, once for each meaning of rate."""
    answers = []
    better = _at_sizes(found, "simvq", "kid")
    meanings = (
        ("C3", "active", "active codes"),
        ("C3, entropy", "bits_per_token_entropy", "bits a token by entropy"),
        ("C3, coded", "bits_per_token_coded", "coded bits a token"),
    )
    for id, metric, name in meanings:
        text = f"better than SimVQ with fewer {name}"
        fewer = _at_sizes(found, "simvq", metric)
        if not better or not fewer:
            answers.append(Claim(id, text, UNDECIDED, _missing("lgq", "simvq"), PAPER["C3"]))
            continue
        verdict = all_of([judged(better[0], BETTER["kid"]), judged(fewer[0], -1)])
        evidence = f"{_told(better[:1], 'ΔKID')}; {_told(fewer, f'Δ {name}')}"
        answers.append(Claim(id, text, verdict, evidence, PAPER["C3"] if id == "C3" else ""))
    return answers


def _no_collapse(found: Sequence[Cohort]) -> Claim:
    """Perplexity, the number of evenly used codes, must keep pace with K, and VQ's must not."""
    text = "no collapse as K grows, unlike VQ"
    sizes = sorted(_sizes(found, "lgq", "vq"))
    if len(sizes) < 2:
        return Claim("C4", text, UNDECIDED, _missing("lgq and vq at two sizes of codebook or more"))
    ends = {m: [find(found, m, k) for k in (sizes[0], sizes[-1])] for m in ("lgq", "vq")}
    growth = {
        m: difference(large, small, "perplexity", log=True) for m, (small, large) in ends.items()
    }
    above = difference(ends["lgq"][1], ends["vq"][1], "perplexity", log=True)
    log_ratio = math.log(sizes[-1] / sizes[0])
    holds = {1: REPRODUCED, 0: UNDECIDED, -1: NOT_REPRODUCED}
    verdict = all_of(
        [
            holds[_keeps_pace(growth["lgq"], log_ratio)],
            holds[-_keeps_pace(growth["vq"], log_ratio)],
            judged(above, 1),
        ]
    )
    told = []
    for method, d in growth.items():
        i = d.interval
        share = ends[method][1].values("active", per_image=False).mean() / sizes[-1]
        told.append(
            f"perplexity of {method} x {math.exp(i.mean):.2f} [{math.exp(i.low):.2f}, "
            f"{math.exp(i.high):.2f}] from K = {sizes[0]:,} to {sizes[-1]:,}, where "
            f"{share:.0%} are active"
        )
    i = above.interval
    told.append(
        f"there {math.exp(i.mean):.2f} [{math.exp(i.low):.2f}, {math.exp(i.high):.2f}] times vq's"
        f" ({i.num_seeds} seeds)"
    )
    return Claim("C4", text, verdict, "; ".join(told))


def _keeps_pace(growth: Difference, log_ratio: float) -> int:
    """Say whether perplexity grows with more than half the logarithm of K: 1, -1, or 0 undecided.

    Half is the line drawn here between a codebook that grows and one that collapses.
    """
    if growth.t is None:
        return 0
    half = PACE * log_ratio
    return int(growth.t.low > half) - int(growth.t.high < half)


def _efficiency(found: Sequence[Cohort]) -> Claim:
    """Fewer active codes than FSQ, and at an equal coded rate no worse by more than the margin."""
    text = "comparable fidelity with fewer entries: efficiency, not collapse"
    fewer = _at_sizes(found, "fsq", "active", log=True)
    equal = at_equal_rate(found, "lgq", "fsq", "psnr", "bits_per_token_coded")
    if not fewer or equal is None:
        return Claim(
            "C5", text, UNDECIDED, _missing("lgq and fsq at two sizes whose rates overlap")
        )
    if equal.t is None:
        fidelity = UNDECIDED
    elif equal.t.low > -MARGIN:
        fidelity = REPRODUCED
    else:
        fidelity = NOT_REPRODUCED if equal.t.high < -MARGIN else UNDECIDED
    told = [f"ΔPSNR {equal} dB at an {equal.at}", f"{_told(fewer[:1], 'Δ log active codes')}"]
    for method in ("lgq", "fsq"):
        cohort = find(found, method, _sizes(found, "lgq", "fsq")[0])
        numbers = {
            key: cohort.values(key, per_image=False)
            for key in ("perplexity_share", "mass_law_share", "geometry_efficiency")
        }
        if all(value is not None for value in numbers.values()):
            mean = {key: float(value.mean()) for key, value in numbers.items()}
            told.append(
                f"{method}: perplexity/K {mean['perplexity_share']:.2f} under a ceiling of "
                f"{mean['mass_law_share']:.2f}, geometry efficiency "
                f"{mean['geometry_efficiency']:.2f}"
            )
    return Claim("C5", text, all_of([fidelity, judged(fewer[0], -1)]), "; ".join(told))


def _cold_limit() -> Claim:
    """The soft average becomes the nearest code, except at a tie, which never resolves."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(512, 5, generator=generator, dtype=torch.float64)
    codes = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    a = soft_assign(z, codes, 1e-6)
    nearest = torch.cdist(z, codes).argmin(1)
    away = float((a.average - codes[nearest]).abs().max())
    tie = soft_assign(
        torch.zeros(1, 5, dtype=torch.float64),
        torch.stack([torch.ones(5), -torch.ones(5)]).double(),
        1e-6,
    )
    split = float(tie.collision[0])
    holds = away < 1e-6 and bool((a.indices == nearest).all())
    return Claim(
        "C6",
        "nearest neighbor in the low-temperature limit",
        REPRODUCED if holds and abs(split - 0.5) < 1e-9 else NOT_REPRODUCED,
        f"largest distance of the soft average to the nearest code {away:.1g} at τ = 1e-6 "
        f"(512 tokens, 64 codes); where two codes tie each keeps a half (Σp² = {split:.3f}), "
        "so distinct codes are not enough: the nearest must be unique",
    )


def _mixture() -> Claim:
    """Assignments are a Gaussian mixture's posterior and minimize F; not with the norm."""
    rng = np.random.default_rng(0)
    z, codes, tau = rng.normal(size=(64, 3)), rng.normal(size=(16, 3)), 0.7
    density = np.stack([multivariate_normal(e, tau / 2 * np.eye(3)).pdf(z) for e in codes], axis=1)
    posterior = density / density.sum(1, keepdims=True)
    errors = {}
    for energy in ("squared", "norm"):
        d = energies(torch.from_numpy(z), torch.from_numpy(codes), energy=energy)
        p = torch.softmax(-d / tau, dim=1)
        errors[energy] = float(np.abs(p.numpy() - posterior).max())
        if energy == "squared":
            q = torch.from_numpy(rng.dirichlet(np.ones(16), size=64))
            least = -tau * torch.logsumexp(-d / tau, 1)
            above = (q * d).sum(1) - tau * torch.special.entr(q).sum(1) - least
            gap = float((above - tau * (q * (q / p).log()).sum(1)).abs().max())
            lowest = float(above.min())
    holds = errors["squared"] < 1e-12 and gap < 1e-10 and lowest > 0
    return Claim(
        "C7",
        "mixture responsibilities, minimum of a free energy",
        REPRODUCED if holds else NOT_REPRODUCED,
        f"squared energy: largest difference to the mixture's posterior {errors['squared']:.1g}, "
        f"F(q) - F* = τ KL(q || p) to {gap:.1g}; the unsquared norm of the paper's first version "
        f"is no Gaussian mixture (difference {errors['norm']:.2g})",
    )


def _usage_term(found: Sequence[Cohort]) -> Claim:
    """Perplexity must grow with the weight of the usage term, all else equal."""
    text = "the usage term balances use"
    for num_codes in sorted({c.num_codes for c in found}, reverse=True):
        weights = {_usage_weight(c): c for c in _differing_in_usage(found, num_codes)}
        if len(weights) >= 2 and 0.0 in weights:
            least, most = weights[0.0], weights[max(weights)]
            d = difference(most, least, "perplexity", log=True)
            means = ", ".join(
                f"{w:g}: {weights[w].values('perplexity', per_image=False).mean():.0f}"
                for w in sorted(weights)
            )
            i = d.interval
            evidence = (
                f"perplexity by weight ({means}) at K = {num_codes:,}; x {math.exp(i.mean):.2f} "
                f"[{math.exp(i.low):.2f}, {math.exp(i.high):.2f}] from 0 to {max(weights):g} "
                f"({i.num_seeds} seeds)"
            )
            return Claim("C8", text, judged(d, 1), evidence)
    return Claim(
        "C8", text, UNDECIDED, _missing("lgq with loss.usage = 0 and more, all else equal")
    )


def _usage_weight(cohort: Cohort) -> float:
    return float(next(iter(cohort.rows.values()))["loss.usage"])


def _differing_in_usage(found: Sequence[Cohort], num_codes: int) -> list[Cohort]:
    plain = find(found, "lgq", num_codes, "")
    if plain is None:
        return []

    def settings(cohort: Cohort) -> dict:
        row = next(iter(cohort.rows.values()))
        fields = [k for k in row if "." in k and k != "loss.usage"]
        return {k: row[k] for k in fields}

    return [
        c
        for c in found
        if c.method == "lgq" and c.num_codes == num_codes and settings(c) == settings(plain)
    ]
