"""Reduce one strip of a soft assignment, a block of tokens against all codes, and differentiate.

With `p_k` the weights of a token, `q_k` the gradient that arrives at `p_k`, and `l_k` its scores,
the gradient at `l_k` is `p_k (q_k - sum_j p_j q_j)`, plus `p_k` times what arrives at the
log-sum-exp. The chain from a score `-w |x - y|^2` on needs products with `x` and `y` only.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lgqlib.nearest import (
    TILE_CODES,
    Crowded,
    Scores,
    above,
    blocks,
    grouped,
    nearest,
    padded,
    pick,
)

FLOOR = {torch.float32: -80.0, torch.float64: -700.0}  # exp is many times slower below


class Totals(NamedTuple):
    """What the forward fills in: sums over codes for each token, over tokens for each code."""

    average: Float[Tensor, "tokens dim"]
    best: Float[Tensor, " tokens"]
    log_mass: Float[Tensor, " tokens"]
    collision: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]
    indices: Int[Tensor, " tokens"]
    usage: Float[Tensor, " codes"]


class Upstream(NamedTuple):
    """The gradients that arrive, `None` where nothing does."""

    average: Float[Tensor, "tokens dim"] | None
    free_energy: Float[Tensor, " tokens"] | None
    collision: Float[Tensor, " tokens"] | None
    entropy: Float[Tensor, " tokens"] | None
    usage: Float[Tensor, " codes"] | None

    def of(self, tokens: slice) -> "Upstream":
        *per_token, usage = self
        return Upstream(*(None if g is None else g[tokens] for g in per_token), usage)


class Slopes(NamedTuple):
    """The gradients that leave."""

    latents: Float[Tensor, "tokens dim"]
    codebook: Float[Tensor, "codes dim"]
    values: Float[Tensor, "codes dim"]
    tau: Float[Tensor, ""] | None
    widths: Float[Tensor, " codes"] | None


@dataclass
class Call:
    """What the blocks of one call share."""

    scores: Scores
    values: Float[Tensor, "codes dim"]
    totals: Totals
    reach: float
    """Scores this far below a token's best do not matter."""
    tau: Float[Tensor, ""]
    widths: Float[Tensor, " codes"] | None
    log_sum: Float[Tensor, " tokens"]
    """`logsumexp_k(-d_nk / (tau s_k))`, for the backward."""
    budget: int
    """Bytes that blocks may keep for the backward."""
    spaces: dict[str, Tensor] = field(default_factory=dict)

    def space(self, name: str, size: int) -> Float[Tensor, " entries"]:
        """Lend memory that the next block uses again."""
        if name not in self.spaces or len(self.spaces[name]) < size:
            self.spaces[name] = self.values.new_zeros(size)
        return self.spaces[name][:size]

    def matrix(self, name: str, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        return self.space(name, rows * columns).view(rows, columns)

    def keep(self, *tensors: Tensor) -> bool:
        """Take memory for tensors of the forward, if the budget has it."""
        needed = sum(t.numel() * t.element_size() for t in tensors)
        fits = needed <= self.budget
        self.budget -= needed if fits else 0
        return fits


def chain(scores: Scores, codes: slice | Tensor, grad: Tensor, full: Tensor | None) -> Tensor:
    """Turn gradients at scores into gradients at products `x . y`, given whole scores for the
    norm; the squares in a distance follow from the sums of these."""
    w = scores.weights[codes] if scores.weights.ndim else scores.weights
    if grad.ndim == 2 and w.ndim:
        w = rearrange(w, "k -> k 1")
    if scores.energy == "squared":
        return grad * (2 * w)
    if scores.energy == "norm":  # a norm has no slope where it vanishes
        apart = full < 0
        return torch.where(apart, grad * w.square() / torch.where(apart, -full, 1), 0)
    return grad * w


class DenseBlock:
    """A strip of weights, computed tile by tile, again in the backward unless it was kept."""

    def __init__(self, call: Call, tokens: slice):
        self.call, self.tokens = call, tokens
        self.kept: Tensor | None = None

    def forward(self) -> None:
        call, scores, tokens, totals = self.call, self.call.scores, self.tokens, self.call.totals
        num_codes, num = len(scores.y), tokens.stop - tokens.start
        whole = call.matrix("strip", padded(num_codes), num)
        whole[num_codes:] = -torch.inf
        strip = whole[:num_codes]
        for codes in blocks(num_codes, TILE_CODES):
            scores.tile(codes, tokens, out=strip[codes])
        tops = grouped(whole).amax(1)
        best = tops.amax(0)
        try:
            near = above(whole, tops, best - scores.slack(tokens, best), limit=8 * num)
            totals.indices[tokens] = pick(scores, tokens, near)
        except Crowded:
            totals.indices[tokens] = nearest(scores.restrict(tokens))
        average, mass, square, mean = totals.average[tokens], *best.new_zeros(3, num)
        for codes in blocks(num_codes, TILE_CODES):
            p = strip[codes]
            work = call.matrix("tile", len(p), num).copy_(p.sub_(best).clamp_(min=FLOOR[p.dtype]))
            mass += p.exp_().sum(0)
            mean += work.mul_(p).sum(0)
            square += torch.mul(p, p, out=work).sum(0)
            average.addmm_(p.T, call.values[codes])
        average /= rearrange(mass, "n -> n 1")
        totals.usage.addmv_(strip, 1 / mass)
        totals.best[tokens], totals.log_mass[tokens] = best, mass.log()
        totals.collision[tokens] = square / mass.square()
        totals.entropy[tokens] = mass.log() - mean / mass
        if call.keep(strip):
            self.kept = strip / mass

    def backward(self, upstream: Upstream, out: Slopes) -> None:
        call, scores, tokens, totals = self.call, self.call.scores, self.tokens, self.call.totals
        grad, num, num_codes = upstream.of(tokens), tokens.stop - tokens.start, len(scores.y)
        log_sum, x, dx = call.log_sum[tokens], scores.x[tokens], out.latents[tokens]
        needs_log = scores.energy == "norm" or any(
            t is not None for t in (grad.entropy, out.tau, out.widths)
        )
        p, log_p = self._weights(needs_log)
        mean = p.new_zeros(num)
        if grad.average is not None:
            mean += (grad.average * totals.average[tokens]).sum(1)
        if grad.collision is not None:
            mean += 2 * grad.collision * totals.collision[tokens]
        if grad.entropy is not None:
            mean += grad.entropy * totals.entropy[tokens]
        if grad.usage is not None:
            mean += p.T @ grad.usage
        if grad.free_energy is not None:
            mean += call.tau * grad.free_energy
        across = p.new_zeros(num)
        for codes in blocks(num_codes, TILE_CODES):
            tile = p[codes]
            q = call.matrix("tile", len(tile), num)
            if grad.average is not None:
                torch.mm(call.values[codes], grad.average.T, out=q)
                out.values[codes].addmm_(tile, grad.average)
            else:
                q.zero_()
            if grad.usage is not None:
                q += rearrange(grad.usage[codes], "k -> k 1")
            if grad.collision is not None:
                q.addcmul_(tile, 2 * grad.collision)
            if grad.entropy is not None:
                q.addcmul_(log_p[codes], -grad.entropy)
            q.sub_(mean).mul_(tile)
            full = log_p[codes] + log_sum if scores.energy == "norm" else None
            if out.tau is not None:
                out.tau.sub_((q * log_p[codes]).sum() / call.tau)
            if out.widths is not None:
                slope = (q * log_p[codes]).sum(1) + q @ log_sum
                out.widths[codes] -= slope / call.widths[codes]
            q = chain(scores, codes, q, full)
            dx.addmm_(q.T, scores.y[codes])
            dy = out.codebook[codes].addmm_(q, x)
            if scores.energy in ("squared", "norm"):
                across += q.sum(0)
                dy -= scores.y[codes] * q.sum(1, keepdim=True)
        dx -= x * rearrange(across, "n -> n 1")

    def _weights(self, needs_log: bool) -> tuple[Tensor, Tensor | None]:
        """Return `p` and, if needed, its logarithm, `[codes, tokens]`."""
        if self.kept is not None:
            return self.kept, self.kept.log() if needs_log else None
        call, tokens, num_codes = self.call, self.tokens, len(self.call.scores.y)
        p = call.matrix("strip", num_codes, tokens.stop - tokens.start)
        log_p = call.matrix("logs", *p.shape) if needs_log else p
        shift = call.totals.best[tokens] + call.totals.log_mass[tokens]
        for codes in blocks(num_codes, TILE_CODES):
            tile = call.scores.tile(codes, tokens, out=log_p[codes])
            torch.exp(tile.sub_(shift).clamp_(min=FLOOR[p.dtype]), out=p[codes])
        return p, log_p if needs_log else None
