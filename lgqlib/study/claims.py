"""The paper's claims C1 to C8, each with a verdict computed from a study's results.

C6 and C7 are theorems, checked on drawn numbers; the others rest on runs paired by seed, at the
largest K that both methods have with two seeds.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pandas import DataFrame
from scipy.stats import multivariate_normal

from lgqlib.files import write_json
from lgqlib.measure import METRICS
from lgqlib.quantizers.assignment import probabilities, soft_assign
from lgqlib.study.comparison import Difference, at_equal_rate, difference, find, side

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided at this scale"
VERDICTS = {1: REPRODUCED, 0: UNDECIDED, -1: NOT_REPRODUCED}
BELOW, ANY = (-math.inf, 0.0), (-math.inf, math.inf)
HALF = (math.log(0.4), math.log(0.6))  # what counts as about half of FSQ's active codes
PACE = 0.5  # exponent of perplexity over K below which a codebook counts as collapsing
MARGIN = 0.1  # dB of PSNR within which fidelity counts as comparable
# 1: as the paper claims, -1: the opposite, 0: neither; of several parts the least decides.
Judged = tuple[int, str]


def claims_table(runs: DataFrame) -> DataFrame:
    """Judge every claim by finished runs: `claim`, `verdict`, `evidence`, `in the paper`, by id."""
    rows = {id: (text, *judge(runs), PAPER.get(id, "")) for id, (text, judge) in CLAIMS.items()}
    columns = ["claim", "verdict", "evidence", "in the paper"]
    table = DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.assign(verdict=table["verdict"].map(VERDICTS))


def write_claims(runs: DataFrame, study: Path | str) -> Path:
    """Write claims.json into a study's folder; give its path."""
    table = claims_table(runs).rename(columns={"claim": "text", "in the paper": "paper"})
    path = Path(study) / "claims.json"
    write_json(path, {"claims": table.reset_index(names="id").to_dict("records")})
    return path


def _pairs(runs: DataFrame, peer: str) -> list[tuple[DataFrame, DataFrame]]:
    """Give LGQ and a peer at each K of both, with two shared seeds first, then the largest K."""
    sizes = sorted(runs["num_codes"].unique(), reverse=True)
    pairs = [(find(runs, "lgq", k), find(runs, peer, k)) for k in sizes]
    pairs = [(a, b) for a, b in pairs if len(a) and len(b)]
    return sorted(pairs, key=lambda pair: len(pair[0].index.intersection(pair[1].index)) < 2)


def _ratio(d: Difference) -> str:
    mean, low, high = np.exp([d.difference, d.low, d.high])
    return f"x {mean:.2f} [{low:.2f}, {high:.2f}] ({d.seeds} seeds)"


def _at_equal_k(runs: DataFrame, peer: str, **wanted: tuple[float, float]) -> Judged:
    """Judge whether LGQ's differences to a peer (ratios of active codes) lie between bounds."""
    directions, said = [], []
    for key, (low, high) in wanted.items():
        log = key == "active"
        found = [d for pair in _pairs(runs, peer) if (d := difference(*pair, key, log=log))]
        if not found:
            return 0, f"needs finished runs of lgq and {peer}"
        ends = found[0].low, found[0].high
        directions.append(min(side(*ends, low), -side(*ends, high)))
        written = [f"{_ratio(d) if log else d} at {d.at}" for d in found]
        said.append(f"{METRICS[key].label}: {', '.join(written)}")  # what decides is first
    return min(directions), "; ".join(said)


def _no_collapse(runs: DataFrame) -> Judged:
    """Judge whether perplexity keeps pace with K, grows with over half its logarithm; not VQ's."""
    pairs = {a["num_codes"].iloc[0]: (a, b) for a, b in _pairs(runs, "vq")}
    if len(pairs) < 2:
        return 0, "needs finished runs of lgq and vq at two sizes of codebook or more"
    small, large = min(pairs), max(pairs)
    directions, said = [], []
    for sign, least, most in zip((1, -1), pairs[small], pairs[large], strict=True):
        growth = difference(most, least, "perplexity", log=True)
        directions.append(sign * side(growth.low, growth.high, PACE * math.log(large / small)))
        said.append(
            f"perplexity of {growth.a} {_ratio(growth)} from K = {small:,} to {large:,}, where "
            f"{most['active'].mean() / large:.0%} are active"
        )
    last = difference(*pairs[large], "perplexity", log=True)
    said.append(f"there lgq's is vq's {_ratio(last)}")
    return min(*directions, side(last.low, last.high)), "; ".join(said)


def _efficiency(runs: DataFrame) -> Judged:
    """Judge C5: fewer active codes than FSQ, and at an equal rate no worse by over the margin."""
    equal = at_equal_rate(runs, "lgq", "fsq", "psnr", "bits_per_token_coded")
    if equal is None:
        return 0, "needs finished runs of lgq and fsq at two sizes whose rates overlap"
    fewer, evidence = _at_equal_k(runs, "fsq", active=BELOW)
    said = [f"ΔPSNR {equal} dB at an {equal.at}", evidence]
    shares = ("perplexity_share", "mass_law_share", "geometry_efficiency")
    for key in [key for key in shares if key in runs]:
        means = [f"{cohort[key].mean():.2f}" for cohort in _pairs(runs, "fsq")[0]]
        said.append(f"{METRICS[key].title}: {' against '.join(means)}")
    return min(side(equal.low, equal.high, -MARGIN), fewer), "; ".join(said)


def _cold_limit(_runs: DataFrame) -> Judged:
    """Check that the soft average becomes the nearest code, unless two codes are equally near."""
    generator = torch.Generator().manual_seed(0)
    z, codes = torch.randn(576, 5, generator=generator, dtype=torch.float64).split([512, 64])
    a, nearest = soft_assign(z, codes, 1e-6), torch.cdist(z, codes).argmin(1)
    away = float((a.average - codes[nearest]).abs().max())
    split = float(soft_assign(0 * codes[:1], torch.stack([codes[0], -codes[0]]), 1e-6).collision[0])
    holds = away < 1e-6 and torch.equal(a.indices, nearest) and abs(split - 0.5) < 1e-9
    return 1 if holds else -1, (
        f"at τ = 1e-6 the soft average is {away:.1g} from the nearest code (512 tokens, 64 codes); "
        f"of two codes equally near each keeps a half (Σp² = {split:.3f}): it must be unique"
    )


def _mixture(_runs: DataFrame) -> Judged:
    """Check that p is a Gaussian mixture's posterior and minimizes F; not so with the norm."""
    rng, tau = np.random.default_rng(0), 0.7
    z, codes = rng.normal(size=(64, 3)), rng.normal(size=(16, 3))
    density = [multivariate_normal(e, tau / 2 * np.eye(3)).pdf(z) for e in codes]
    posterior = torch.from_numpy(density / np.sum(density, axis=0)).T
    z, codes, q = map(torch.from_numpy, (z, codes, rng.dirichlet(np.ones(16), size=64)))
    p, other = (probabilities(z, codes, tau, energy=energy) for energy in ("squared", "norm"))
    error, norm_error = (float((x - posterior).abs().max()) for x in (p, other))
    energy = (q * torch.cdist(z, codes).square()).sum(1) - tau * torch.special.entr(q).sum(1)
    above = energy - soft_assign(z, codes, tau).free_energy
    gap = float((above - tau * (q * (q / p).log()).sum(1)).abs().max())
    holds = error < 1e-12 and gap < 1e-10 and float(above.min()) > 0
    return 1 if holds else -1, (
        f"p is the mixture's posterior to {error:.1g} and F(q) - F* = τ KL(q || p) to {gap:.1g}; "
        f"with the norm of the paper's first version it is no Gaussian mixture ({norm_error:.2g})"
    )


def _usage_term(runs: DataFrame) -> Judged:
    """Judge whether perplexity grows with the weight of the usage term, all else equal."""
    own = runs[runs["method"] == "lgq"]
    fields = ["num_codes", *(name for name in runs if "." in name and name != "loss.usage")]
    for _, first in own[own["variant"] == ""].sort_values("num_codes")[::-1].iterrows():
        alike = own[(own[fields] == first[fields]).all(axis=1)]
        weights = {weight: part.set_index("seed") for weight, part in alike.groupby("loss.usage")}
        if len(weights) > 1 and 0.0 in weights:
            d = difference(weights[max(weights)], weights[0.0], "perplexity", log=True)
            means = [f"{w:g}: {part['perplexity'].mean():.0f}" for w, part in weights.items()]
            return side(d.low, d.high), (
                f"perplexity by weight ({', '.join(means)}) at {d.at}; {_ratio(d)} from 0 to "
                f"{max(weights):g}"
            )
    return 0, "needs finished runs of lgq with loss.usage = 0 and more, all else equal"


_fsq = partial(partial, _at_equal_k, peer="fsq")
_simvq = partial(partial, _at_equal_k, peer="simvq", kid=BELOW)
CLAIMS: dict[str, tuple[str, Callable[[DataFrame], Judged]]] = {
    "C1": ("better distribution distance than FSQ at equal K", _fsq(kid=BELOW, fd=ANY)),
    "C2": ("about half of FSQ's active codes", _fsq(active=HALF)),
    "C3": ("better than SimVQ with fewer active codes", _simvq(active=BELOW)),
    "C3, entropy": ("better than SimVQ with a lower entropy", _simvq(bits_per_token_entropy=BELOW)),
    "C3, coded": ("better than SimVQ with fewer coded bits", _simvq(bits_per_token_coded=BELOW)),
    "C4": ("no collapse as K grows, unlike VQ", _no_collapse),
    "C5": ("comparable fidelity with fewer entries: efficiency, not collapse", _efficiency),
    "C6": ("nearest neighbor in the low-temperature limit", _cold_limit),
    "C7": ("mixture responsibilities, minimum of a free energy", _mixture),
    "C8": ("the usage term balances use", _usage_term),
}
"""By id: what the paper claims, and how a study is asked about it."""
PAPER = {
    "C1": "rFID 110.64 against FSQ's 125.56",
    "C2": "8,199 of FSQ's 16,384 active codes",
    "C3": "rFID 110.64 against SimVQ's 117.77, with 8,199 against about 16,220 active codes",
}
"""The paper's own numbers: ImageNet at 128 x 128, K = 16,384, other features than ours."""
