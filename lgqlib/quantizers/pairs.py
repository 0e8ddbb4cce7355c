"""Reduce one strip of a soft assignment from the few pairs of a token and a code that matter.

One matrix product finds the pairs whose weight is visible beside a token's largest one; all else,
the backward included, touches those pairs only.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lgqlib.quantizers.blocks import Call, Slopes, Upstream
from lgqlib.quantizers.nearest import Pairs, blocks, first_best, pick, search

EXACT_SHARE = 0.001  # of all pairs: below it every score is refined in float64
ROUGH = 0.01  # a bound on the error of scores above which they are refined in any case
ROWS = 4096  # gathered at once


class PairBlock:
    """The pairs that matter in a strip, found again in the backward unless they were kept."""

    def __init__(self, call: Call, tokens: slice, *, limit: float):
        self.call, self.tokens, self.limit = call, tokens, limit
        self.num = tokens.stop - tokens.start
        self.kept: Pairs | None = None

    def forward(self) -> None:
        """Fill in the totals. Raises `Crowded` beyond `limit` pairs a token."""
        call, tokens, totals = self.call, self.tokens, self.call.totals
        pairs, totals.indices[tokens] = self._find()
        n, k, score = pairs
        if call.keep(len(n) * (8 + score.element_size())):
            self.kept = Pairs(n.int(), k.int(), score)
        p = score.exp()
        mass = self._per_token(n, p)
        totals.log_mass[tokens] = mass.log()
        totals.entropy[tokens] = mass.log() - self._per_token(n, p * score) / mass
        p /= mass[n]
        totals.collision[tokens] = self._per_token(n, p.square())
        totals.usage.index_add_(0, k, p)
        average = totals.average[tokens]
        for part in blocks(len(p), ROWS):
            rows = call.values[k[part]].mul_(rearrange(p[part], "j -> j 1"))
            average.index_add_(0, n[part], rows)

    def backward(self, upstream: Upstream, out: Slopes) -> None:
        call, tokens, grad = self.call, self.tokens, upstream.of(self.tokens)
        if self.kept is None:
            pairs = self._find()[0]
        else:
            pairs = Pairs(self.kept.n.long(), self.kept.k.long(), self.kept.score)
        n, k, score = pairs
        log_p = score - call.totals.log_mass[tokens][n]
        full = log_p + call.log_sum[tokens][n]
        p = log_p.exp()
        q = self._arriving(pairs, p, log_p, grad)
        slope = p * (q - self._per_token(n, p * q)[n])
        if grad.free_energy is not None:
            slope -= p * (call.tau * grad.free_energy)[n]
        if out.tau is not None:
            out.tau.sub_((slope * log_p).sum() / call.tau)
        if out.widths is not None:
            out.widths.index_add_(0, k, slope * full / call.widths[k], alpha=-1)
        self._spread(pairs, p, slope, grad, out)

    def _find(self) -> tuple[Pairs, Int[Tensor, " tokens"]]:
        """Return the pairs, with scores below the best of each token, and the best codes."""
        call, scores, tokens = self.call, self.call.scores, self.tokens
        space = call.space("tile", scores.tile_codes * self.num)
        best, (n, k, score) = search(
            scores, tokens, reach=call.reach, limit=self.limit, space=space
        )
        slack = scores.slack(tokens, best)
        near = score >= (best - slack)[n]
        index = pick(scores, tokens, Pairs(n[near], k[near], score[near]))
        few = len(n) <= EXACT_SHARE * self.num * len(scores.y)
        if few or float(slack.max()) > ROUGH:
            whole = scores.exact(n + tokens.start, k)
            best = first_best(n, k, whole, self.num)[0]
            score = (whole - best[n]).to(score.dtype)
        else:
            score = score - best[n]
        keep = score >= -call.reach
        return Pairs(n[keep], k[keep], score[keep]), index

    def _arriving(self, pairs: Pairs, p: Tensor, log_p: Tensor, grad: Upstream) -> Tensor:
        """Return the gradient at each weight less that at the weight of the token's best code, so
        that what a token has in common cancels, and a token with one code gets exactly nothing."""
        call, (n, k, _) = self.call, pairs
        best = call.totals.indices[self.tokens][n]
        q = torch.zeros_like(p)
        if grad.average is not None:
            for part in blocks(len(p), ROWS):
                apart = call.values[k[part]].sub_(call.values[best[part]])
                q[part] = apart.mul_(grad.average[n[part]]).sum(1)
        if grad.usage is not None:
            q += grad.usage[k]
        if grad.collision is not None:
            q += 2 * grad.collision[n] * p
        if grad.entropy is not None:
            q -= grad.entropy[n] * log_p
        hit = (k == best).nonzero()[:, 0]
        return q - q.new_zeros(self.num).index_put_((n[hit],), q[hit])[n]

    def _spread(self, pairs: Pairs, p: Tensor, slope: Tensor, grad: Upstream, out: Slopes) -> None:
        """Gather the coordinates of pairs and add what they contribute to the gradients."""
        scores, (n, k, _) = self.call.scores, pairs
        x = scores.latents[self.tokens]
        dx = out.latents[self.tokens]
        for part in blocks(len(p), ROWS):
            i, j, m = n[part], k[part], rearrange(slope[part], "j -> j 1")
            w = rearrange(scores.weights[j], "j -> j 1") if scores.weights.ndim else scores.weights
            if grad.average is not None:
                rows = grad.average[i].mul_(rearrange(p[part], "j -> j 1"))
                out.values.index_add_(0, j, rows)
            if scores.energy in ("squared", "norm"):
                rows = scores.codebook[j].sub_(x[i])
                if scores.energy == "norm":  # the direction, none where they meet
                    size = rows.norm(dim=1, keepdim=True)
                    rows = torch.where(size > 0, rows / torch.where(size > 0, size, 1), 0) / 2
                rows.mul_(2 * w * m)
                dx.index_add_(0, i, rows)
                out.codebook.index_add_(0, j, rows, alpha=-1)
            else:
                dx.index_add_(0, i, scores.codebook[j].mul_(w * m))
                out.codebook.index_add_(0, j, x[i].mul_(w * m))

    def _per_token(self, n: Int[Tensor, " pairs"], x: Float[Tensor, " pairs"]) -> Tensor:
        return x.new_zeros(self.num).index_add_(0, n, x)
