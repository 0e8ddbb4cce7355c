"""Reduce one strip of a soft assignment, a block of tokens against all codes, and differentiate.

With `p_k` the weights of a token, `q_k` the gradient that arrives at `p_k`, and `l_k` its scores,
the gradient at `l_k` is `p_k (q_k - sum_j p_j q_j)`, plus `p_k` times what arrives at the
log-sum-exp. The chain from a score `-w |x - y|^2` on needs products with `x` and `y` only.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lgqlib.quantizers.nearest import Crowded, Scores, Search, blocks, nearest, padded, pick

BITS = math.log2(math.e)  # in a nat: powers of two are three times faster than exp
FLOOR = {torch.float32: -40.0, torch.float64: -100.0}  # no denormal arises from it, even squared


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
    demand: Float[Tensor, "codes dim+2"] | None = None
    """Values, what arrives at the usage, and ones: with what arrives at tokens, their product is
    what arrives at the weights."""
    spaces: dict[str, Tensor] = field(default_factory=dict)

    def space(self, name: str, size: int) -> Float[Tensor, " entries"]:
        """Lend memory that the next block uses again."""
        if name not in self.spaces or len(self.spaces[name]) < size:
            self.spaces[name] = self.values.new_zeros(size)
        return self.spaces[name][:size]

    def matrix(self, name: str, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        return self.space(name, rows * columns).view(rows, columns)

    def keep(self, needed: int) -> bool:
        """Take bytes to keep from the forward, if the budget has them."""
        fits = needed <= self.budget
        self.budget -= needed if fits else 0
        return fits


class DenseBlock:
    """A strip of weights, computed tile by tile, again in the backward unless it was kept."""

    def __init__(self, call: Call, tokens: slice):
        self.call, self.tokens = call, tokens
        self.num = tokens.stop - tokens.start
        scores, num_codes = call.scores, len(call.scores.y)
        height = scores.tile_tokens * scores.tile_codes // self.num
        self.tiles = blocks(num_codes, min(padded(height), padded(num_codes)))
        self.kept: Tensor | None = None

    def forward(self) -> None:
        call, scores, tokens, totals = self.call, self.call.scores, self.tokens, self.call.totals
        seen = Search(scores, tokens, limit=8)
        space = call.matrix("tile", padded(self.tiles[0].stop), self.num)
        strip = self._strip()
        tops, mass, mean, square = strip.new_empty(4, len(self.tiles), self.num)
        average = totals.average[tokens]
        for i, codes in enumerate(self.tiles):
            count, p = codes.stop - codes.start, strip[codes]
            before, score = seen.best[0], scores.tile(codes, tokens, out=space[:count])
            seen.look(codes, space[: padded(count)])
            tops[i] = seen.best[0]
            score.sub_(tops[i]).clamp_(min=FLOOR[p.dtype]).mul_(BITS)
            mass[i] = torch.exp2(score, out=p).sum(0)
            mean[i] = score.mul_(p).sum(0)
            square[i] = torch.mul(p, p, out=score).sum(0)
            average.mul_(_column((before - tops[i]).exp())).addmm_(p.T, call.values[codes])
        best = tops[-1]
        scale = (tops - best).exp()  # each tile took the best score so far for zero
        total = (scale * mass).sum(0)
        average /= _column(total)
        totals.best[tokens], totals.log_mass[tokens] = best, total.log()
        totals.collision[tokens] = (scale.square() * square).sum(0) / total.square()
        gap = (tops - best).clamp(min=FLOOR[best.dtype])
        totals.entropy[tokens] = total.log() - (scale * (mean / BITS + gap * mass)).sum(0) / total
        for codes, factor in zip(self.tiles, scale / total, strict=True):
            totals.usage[codes] += strip[codes] @ factor
        if self.kept is not None:
            self.scale = scale / total
        try:
            totals.indices[tokens] = pick(scores, tokens, seen.pairs())
        except Crowded:
            totals.indices[tokens] = nearest(scores.restrict(tokens))

    def backward(self, upstream: Upstream, out: Slopes) -> None:
        call, scores, tokens = self.call, self.call.scores, self.tokens
        grad, x, log_sum = upstream.of(tokens), scores.x[tokens], call.log_sum[tokens]
        needs_log = scores.energy == "norm" or any(
            t is not None for t in (grad.entropy, out.tau, out.widths)
        )
        p, log_p, met = self._weights(grad.usage, needs_log)
        average = torch.zeros_like(x) if grad.average is None else grad.average
        ones = torch.ones_like(x[:, :1])
        offer = torch.cat([average, ones, -_column(met + self._mean(grad))], 1)
        dx, across = torch.zeros_like(x), x.new_zeros(self.num)
        factor, scaled = self._factor(), x
        if not factor.ndim:
            scaled = x * factor
        for codes in self.tiles:
            tile, q = p[codes], call.matrix("tile", codes.stop - codes.start, self.num)
            torch.mm(call.demand[codes], offer.T, out=q)
            if grad.average is not None:
                out.values[codes].addmm_(tile, grad.average)
            if grad.collision is not None:
                q.addcmul_(tile, 2 * grad.collision)
            if grad.entropy is not None:
                q.addcmul_(log_p[codes], -grad.entropy)
            q.mul_(tile)
            if out.tau is not None:
                out.tau.sub_((q * log_p[codes]).sum() / call.tau)
            if out.widths is not None:
                slope = (q * log_p[codes]).sum(1) + q @ log_sum
                out.widths[codes] -= slope / call.widths[codes]
            if scores.energy == "norm":  # a norm has no slope where it vanishes
                full = log_p[codes] + log_sum
                q.div_(full.neg_()).masked_fill_(full <= 0, 0)
            if factor.ndim:
                q *= _column(factor[codes])
            dx.addmm_(q.T, scores.y[codes])
            dy = out.codebook[codes].addmm_(q, scaled)
            if scores.energy in ("squared", "norm"):
                across += q.sum(0)
                down = q.sum(1) if factor.ndim else q.sum(1) * factor
                dy.addcmul_(scores.y[codes], _column(down), value=-1)
        dx -= x * _column(across)
        out.latents[tokens] = dx if factor.ndim else dx * factor

    def _strip(self) -> Float[Tensor, "codes tokens"]:
        """Return memory for the weights, to keep if the budget has it."""
        shape = len(self.call.scores.y), self.num
        strip = self.call.totals.best.new_empty(0)
        if self.call.keep(shape[0] * shape[1] * strip.element_size()):
            self.kept = strip.new_empty(shape)
            return self.kept
        return self.call.matrix("strip", *shape)

    def _weights(
        self, usage: Tensor | None, needs_log: bool
    ) -> tuple[Tensor, Tensor | None, Float[Tensor, " tokens"]]:
        """Return `p`, if needed its logarithm, both `[codes, tokens]`, and its product with what
        arrives at the usage."""
        call, tokens = self.call, self.tokens
        p, met = (
            call.matrix("strip", len(call.scores.y), self.num),
            call.log_sum.new_zeros(self.num),
        )
        log_p = call.matrix("logs", *p.shape) if needs_log else p
        shift = call.totals.best[tokens] + call.totals.log_mass[tokens]
        for i, codes in enumerate(self.tiles):
            if self.kept is None:
                # The same product as in the forward: its rounding must not return as a gradient.
                score = call.scores.tile(codes, tokens, out=log_p[codes]).sub_(shift)
                torch.mul(score.clamp_(min=FLOOR[p.dtype]), BITS, out=p[codes]).exp2_()
            else:
                torch.mul(self.kept[codes], self.scale[i], out=p[codes])
                if needs_log:
                    torch.log(p[codes], out=log_p[codes]).clamp_(min=2 * FLOOR[p.dtype])
            if usage is not None:
                met += usage[codes] @ p[codes]
        return p, log_p if needs_log else None, met

    def _mean(self, grad: Upstream) -> Float[Tensor, " tokens"]:
        """Average what arrives at the weights of a token, but for the usage, less what arrives at
        all its scores."""
        totals, tokens = self.call.totals, self.tokens
        mean = self.call.log_sum.new_zeros(self.num)
        if grad.average is not None:
            mean += (grad.average * totals.average[tokens]).sum(1)
        if grad.collision is not None:
            mean += 2 * grad.collision * totals.collision[tokens]
        if grad.entropy is not None:
            mean += grad.entropy * totals.entropy[tokens]
        if grad.free_energy is not None:
            mean += self.call.tau * grad.free_energy
        return mean

    def _factor(self) -> Float[Tensor, ""] | Float[Tensor, " codes"]:
        """Return the slope of a score in the product `x . y` (over the distance for the norm)."""
        w = self.call.scores.weights
        return {"squared": 2 * w, "norm": w.square()}.get(self.call.scores.energy, w)


def _column(x: Float[Tensor, " n"]) -> Float[Tensor, "n 1"]:
    return rearrange(x, "n -> n 1")
