"""Scan the scores of latents and codes in tiles, and find the codes that matter to each latent.

A score is `l_nk = -w_k d_nk`, for an energy `d` and a weight `w` (one, or one a code), up to a
constant of each latent. A matrix product gives it with a rounding error that `slack` bounds; codes
closer to the best than that bound are compared again in float64 from the coordinates themselves.
The answer therefore does not depend on the order of the sums, the tile or the device.
"""

import copy
import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

TF32 = 2.0**-9  # bounds the rounding of a product of two rounded factors
DTYPES = (torch.long, torch.long, None)  # of pairs
GROUP = 16  # codes whose largest score is looked at before their own


class Scores:
    """The scores of every latent and code as a product of two thin factors, tile by tile."""

    def __init__(
        self,
        latents: Float[Tensor, "tokens dim"],
        codebook: Float[Tensor, "codes dim"],
        weights: Float[Tensor, ""] | Float[Tensor, " codes"],
        *,
        energy: str,
    ):
        self.latents, self.codebook = latents, codebook
        self.weights, self.energy = weights, energy
        self.x, self.y = latents, codebook
        w = rearrange(weights, "k -> k 1") if weights.ndim else weights
        if energy in ("squared", "norm"):
            # Distances ignore a common shift; the rounding of products grows with it.
            self.center = codebook.mean(0)
            self.x, self.y = latents - self.center, codebook - self.center
        x, y = self.x, self.y
        one_x, one_y = torch.ones_like(x[:, :1]), torch.ones_like(y[:, :1])
        if energy in ("squared", "norm"):
            xx, yy = x.square().sum(1, keepdim=True), y.square().sum(1, keepdim=True)
        if energy == "norm":  # the product is d^2
            left, right = [y, yy, one_y], [-2 * x, one_x, xx]
        elif energy == "squared" and weights.ndim:
            left, right = [y * w, yy * w, one_y * w], [2 * x, -one_x, -xx]
        elif energy == "squared":
            left, right = [y, yy], [2 * w * x, -w * one_x]
        elif weights.ndim:
            left, right = [y * w, one_y * w], [x, -one_x * (energy == "cosine")]
        else:
            left, right = [y], [x * w]
        self.left, self.right = torch.cat(left, 1), torch.cat(right, 1)
        # Tiles stay in the cache of a processor; on a GPU a launch costs more than memory.
        self.tile_tokens, self.tile_codes = (2048, 8192) if x.is_cuda else (512, 1024)
        rounding = torch.finfo(x.dtype).eps * self.left.shape[1]
        if x.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32":
            rounding += TF32
        self.error = rounding * sum(
            b.norm(dim=1) * a.norm(dim=1).max() for a, b in zip(left, right, strict=True)
        )

    def tile(self, codes: slice, tokens: slice, out: Tensor) -> Float[Tensor, "codes tokens"]:
        """Write the scores of some codes and tokens to `out`."""
        torch.mm(self.left[codes], self.right[tokens].T, out=out)
        if self.energy == "norm":
            w = self.weights[codes, None] if self.weights.ndim else self.weights
            out.clamp_(min=0).sqrt_().mul_(-w)
        return out

    def slack(self, tokens: slice, best: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """Bound twice the error of a token's scores, given the best of them."""
        error = self.error[tokens]
        if self.energy == "norm":  # |sqrt(a + r) - sqrt(a)| <= r / max(sqrt(a), sqrt(r))
            heaviest = self.weights.max()
            error = (
                heaviest
                * error
                / torch.maximum(-best / heaviest, error.sqrt()).clamp_min(
                    torch.finfo(error.dtype).tiny
                )
            )
        return 2 * error

    def restrict(self, tokens: slice | Tensor) -> "Scores":
        """Look at some of the latents only."""
        part = copy.copy(self)
        for name in ("latents", "x", "right", "error"):
            setattr(part, name, getattr(self, name)[tokens])
        return part

    def exact(self, n: Int[Tensor, " pairs"], k: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        """Compute the whole score of pairs of a latent and a code in float64."""
        chunks = []
        for i, j in zip(n.split(8192), k.split(8192), strict=True):
            z, e = self.latents[i].double(), self.codebook[j].double()
            if self.energy in ("squared", "norm"):
                d = z.sub_(e).square_().sum(1)
                d = d.sqrt_() if self.energy == "norm" else d
            else:
                d = float(self.energy == "cosine") - z.mul_(e).sum(1)
            w = self.weights[j] if self.weights.ndim else self.weights
            chunks.append(-w.double() * d)
        return torch.cat(chunks) if chunks else n.new_empty(0, dtype=torch.float64)


class Crowded(Exception):
    """Too many codes compete for the tokens of a block."""


class Pairs(NamedTuple):
    """Some latents (counted within their block), codes and scores, ordered by tile of codes."""

    n: Int[Tensor, " pairs"]
    k: Int[Tensor, " pairs"]
    score: Float[Tensor, " pairs"]

    def where(self, keep: Tensor) -> "Pairs":
        return Pairs(*(x[keep] for x in self))


def blocks(count: int, size: int) -> list[slice]:
    """Cut `range(count)` into slices of `size`."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def padded(count: int) -> int:
    """Round up to whole groups of codes."""
    return -(-count // GROUP) * GROUP


class Search:
    """Collect, tile after tile of codes, all pairs that may come within `reach` of a token's
    `rank`-th best score; beyond `limit` pairs a token it is `crowded` and only follows the best."""

    def __init__(
        self,
        scores: Scores,
        tokens: slice,
        *,
        reach: float = 0.0,
        rank: int = 1,
        limit: float = math.inf,
    ):
        self.scores, self.tokens, self.reach = scores, tokens, reach
        self.num = tokens.stop - tokens.start
        self.room = limit * self.num
        self.best = scores.right.new_full((rank, self.num), -torch.inf)
        self.found = [Pairs(*(self.best.new_empty(0, dtype=t) for t in DTYPES))]

    @property
    def crowded(self) -> bool:
        return self.room < 0

    def floor(self) -> Float[Tensor, " tokens"]:
        return self.best[-1] - self.reach - self.scores.slack(self.tokens, self.best[0])

    def look(self, codes: slice, tile: Float[Tensor, "codes tokens"]) -> None:
        """Look at a tile of scores, by groups of codes whose largest score comes first. Rows of
        the tile past its codes, up to a whole group, are overwritten."""
        tile[codes.stop - codes.start :] = -torch.inf
        groups = rearrange(tile, "(g j) n -> g j n", j=GROUP)
        tops = groups.amax(1)
        if len(self.best) == 1:
            self.best = torch.maximum(self.best, tops.amax(0, keepdim=True))
        else:
            self.best = torch.cat([self.best, tops]).topk(len(self.best), dim=0).values
        if self.crowded:
            return
        floor = self.floor()
        g, n = (tops >= floor).nonzero(as_tuple=True)
        if len(g) <= self.room:  # each group has a pair at least
            near = groups[g, :, n]
            row, j = (near >= floor[n, None]).nonzero(as_tuple=True)
            self.found.append(Pairs(n[row], codes.start + g[row] * GROUP + j, near[row, j]))
            self.room -= len(row)
        else:
            self.room = -1

    def pairs(self) -> Pairs:
        """Return what was found. Raises `Crowded` when it was too much."""
        if self.crowded:
            raise Crowded
        pairs = Pairs(*(torch.cat(parts) for parts in zip(*self.found, strict=True)))
        return pairs.where(pairs.score >= self.floor()[pairs.n])


def search(
    scores: Scores,
    tokens: slice,
    *,
    reach: float = 0.0,
    rank: int = 1,
    limit: float = math.inf,
    space: Float[Tensor, " entries"] | None = None,
) -> tuple[Float[Tensor, " tokens"], Pairs]:
    """Return each token's best score, and all pairs that may come within `reach` of its
    `rank`-th best. `space` is where a tile goes. Raises `Crowded` beyond `limit` pairs a token."""
    seen = Search(scores, tokens, reach=reach, rank=rank, limit=limit)
    num_codes = len(scores.y)
    size = min(scores.tile_codes, padded(num_codes)) * seen.num
    space = scores.right.new_empty(size) if space is None else space[:size]
    for codes in blocks(num_codes, scores.tile_codes):
        tile = space.view(-1, seen.num)[: padded(codes.stop - codes.start)]
        scores.tile(codes, tokens, out=tile[: codes.stop - codes.start])
        seen.look(codes, tile)
        if seen.crowded:
            break
    return seen.best[0], seen.pairs()


def first_best(
    n: Int[Tensor, " pairs"], k: Int[Tensor, " pairs"], score: Float[Tensor, " pairs"], num: int
) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Return the best score of each token and the first code that has it."""
    best = score.new_full((num,), -torch.inf).scatter_reduce_(0, n, score, "amax")
    tied = score == best[n]
    last = torch.iinfo(k.dtype).max
    index = k.new_full((num,), last).scatter_reduce_(0, n[tied], k[tied], "amin")
    return best, index.masked_fill_(index == last, 0)  # a latent that is not a number has none


def pick(scores: Scores, tokens: slice, pairs: Pairs) -> Int[Tensor, " tokens"]:
    """Decide each token's best code among near-ties in float64."""
    num = len(scores.right[tokens])
    n, k = pairs.n.long(), pairs.k.long()
    value = torch.zeros(len(n), dtype=torch.float64, device=n.device)
    close = (torch.bincount(n, minlength=num)[n] > 1).nonzero()[:, 0]
    value[close] = scores.exact(n[close] + tokens.start, k[close])
    return first_best(n, k, value, num)[1]


@torch.no_grad()
def nearest(scores: Scores) -> Int[Tensor, " tokens"]:
    """Return the code with the highest score of every latent, the lowest index on ties."""
    try:
        return _nearest(scores, limit=64)
    except Crowded:  # almost always copies of one code: compare the distinct ones
        keys = scores.codebook
        if scores.weights.ndim:
            keys = torch.cat([keys, scores.weights[:, None]], 1)
        copy = torch.unique(keys, dim=0, return_inverse=True)[1]
        order = torch.arange(len(copy), device=copy.device)
        first = order.new_full((int(copy.max()) + 1,), len(copy))
        first = first.scatter_reduce_(0, copy, order, "amin").sort().values
        weights = scores.weights[first] if scores.weights.ndim else scores.weights
        distinct = Scores(scores.latents, scores.codebook[first], weights, energy=scores.energy)
        return first[_nearest(distinct, limit=math.inf)]


def _nearest(scores: Scores, *, limit: float) -> Int[Tensor, " tokens"]:
    indices = [torch.empty(0, dtype=torch.long, device=scores.right.device)]
    for tokens in blocks(len(scores.right), scores.tile_tokens):
        pairs = search(scores, tokens, limit=limit)[1]
        indices.append(pick(scores, tokens, pairs))
    return torch.cat(indices)


@torch.no_grad()
def two_best(scores: Scores) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Return the best and second-best score of every latent, in float64."""
    values = [(scores.right.new_empty(0).double(),) * 2]
    for tokens in blocks(len(scores.right), scores.tile_tokens):
        pairs = search(scores, tokens, rank=2)[1]
        # With one group of codes there is no second-best group, and what pads it is found as well.
        pairs = Pairs(*(column[pairs.k < len(scores.codebook)] for column in pairs))
        num = len(scores.right[tokens])
        score = scores.exact(pairs.n + tokens.start, pairs.k)
        best, index = first_best(pairs.n, pairs.k, score, num)
        rest = pairs.k != index[pairs.n]
        values.append((best, first_best(pairs.n[rest], pairs.k[rest], score[rest], num)[0]))
    first, second = zip(*values, strict=True)
    return torch.cat(first), torch.cat(second)
