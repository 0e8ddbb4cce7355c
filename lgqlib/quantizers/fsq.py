"""Quantizers with an implicit codebook: levels (FSQ, iFSQ) or signs (LFQ, BSQ) of channels.

Each maps latents into a small space of D channels, rounds there, and maps back, by the modules of
`vector-quantize-pytorch`; the entropies are our own, exact and without a [tokens, codes] tensor.
"""

import functools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgqlib.quantizers.assignment import mean_over_ranks
from lgqlib.quantizers.base import Quantized, Quantizer, in_float32, straight_through

LEVELS = {
    256: (8, 8, 4),
    1024: (16, 8, 8),
    4096: (16, 8, 8, 4),
    16384: (32, 8, 8, 8),
    65536: (16, 16, 16, 16),
}
"""Levels with exactly K codes, for the sizes that studies use, by a small search."""
FEWEST, MOST = 3, 32  # levels when they are searched; two would break FSQ's even offset
EPS = 1e-12  # floor of a probability inside a logarithm: finite gradients where one underflows


def matching_levels(num_codes: int) -> tuple[int, ...]:
    """Give levels of product K, near 6; ValueError, with the nearest K that has some, for none."""
    if found := LEVELS.get(num_codes) or _factors(num_codes):
        return found
    reach = range(1, num_codes + FEWEST)
    below = [f"{k} or " for i in reach if _factors(k := num_codes - i)][:1]
    above = next(num_codes + i for i in reach if _factors(num_codes + i))
    raise ValueError(
        f"num_codes = {num_codes}: no levels between {FEWEST} and {MOST} have this product; "
        f"{''.join(below)}{above} would do."
    )


@functools.cache
def _factors(product: int) -> tuple[int, ...] | None:
    """Search levels in descending order, the set whose members are closest to 6 by ratio."""

    def search(rest: int, largest: int):
        if rest == 1:
            yield ()
        for level in range(min(largest, rest), FEWEST - 1, -1):
            if rest % level == 0:
                yield from ((level, *more) for more in search(rest // level, level))

    found = [levels for levels in search(product, MOST) if levels]
    cost = {levels: sum(math.log(level / 6) ** 2 for level in levels) for levels in found}
    return min(cost, key=cost.get) if found else None


class _Implicit(Quantizer):
    """Hold a library's quantizer: its projections, codes and indices behind our contract."""

    bounded = True

    def __init__(self, num_codes: int, dim: int, library: nn.Module):
        super().__init__(num_codes, dim)
        self.library = library

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        return self._outward(self.sites)

    @in_float32
    def _outward(self, codes: Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        return self.library.project_out(codes)

    @in_float32
    def _inward(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        return self.library.project_in(rearrange(latents, "b c h w -> b h w c"))

    def _finish(self, hard: Tensor, indices: Tensor, terms: dict[str, Tensor]) -> Quantized:
        """Map codes [B, H, W, D] and their gradient to exactly the codebook's rows."""
        path = rearrange(self.library.project_out(hard), "b h w c -> b c h w")
        return Quantized(straight_through(path, self.lookup(indices)), indices, terms)


class FSQ(_Implicit):
    """Round each channel to one of its levels (Mentzer et al. 2023, arXiv 2309.15505).

    `levels`: by default `matching_levels(num_codes)`. `scale`: of latents before the bound; below 1
    the levels cover more of their spread.
    """

    symmetric = False  # the library's grid with half-steps where a number of levels is even

    def __init__(
        self, num_codes: int, dim: int, *, levels: tuple[int, ...] = (), scale: float = 1.0
    ):
        levels = tuple(levels) or matching_levels(num_codes)
        if min(levels) < FEWEST or math.prod(levels) != num_codes:
            right = f"each must be at least {FEWEST}, and their product num_codes = {num_codes}"
            raise ValueError(f"levels = {levels}: {right}.")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale = {scale}: it must be a finite number > 0.")
        import vector_quantize_pytorch as vqp  # late: it takes seconds

        library = vqp.FSQ(list(levels), dim=dim, preserve_symmetry=self.symmetric)
        super().__init__(num_codes, dim, library)
        self.levels, self.scale = levels, scale

    @property
    def sites(self) -> Float[Tensor, "K D"]:
        return self.library.implicit_codebook

    @in_float32
    def _inward(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        return self.scale * super()._inward(latents)

    @in_float32
    def points(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        """Give bounded latents before they are rounded, which the library keeps to itself."""
        count = torch.tensor(self.levels, device=latents.device)
        half, offset = (count - 1) * (1 + 1e-3) / 2, 0.5 * (count % 2 == 0)
        x = self._inward(latents) + torch.atanh(offset / half)
        return (torch.tanh(x) * half - offset) / (count // 2)

    @in_float32
    def _encode(self, latents: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        return self.library.codes_to_indices(self.library.quantize(self._inward(latents))).long()

    @in_float32
    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor | None) -> Quantized:
        hard = self.library.quantize(self._inward(latents))
        return self._finish(hard, self.library.codes_to_indices(hard).long(), {})


class IFSQ(FSQ):
    """FSQ with the bound 2 sigmoid(1.6 x) - 1 = tanh(0.8 x), on a symmetric grid (Lin et al. 2026).

    The paper's levels are odd; the same grid serves even ones, needed for K = 2^b.
    """

    symmetric = True

    @in_float32
    def points(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        return torch.tanh(self._inward(latents))

    @in_float32
    def _inward(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        return 0.8 * super()._inward(latents)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


class LFQ(_Implicit):
    """Take the sign of each of log2 K channels (Yu et al. 2023, arXiv 2310.05737).

    Terms: `commit`, and `entropy` = mean_n H(p_n) - H(mean_n p_n) in nats over the corners of the
    cube, with p_nk = softmax_k(2 beta x_n . c_k): negative where the use of codes is broad and each
    choice sure. The library's own forward holds several [tokens, K] tensors for it.
    """

    beta = 100.0  # inverse temperature of the entropies (Open-MAGVIT2: 1 / 0.01)
    spherical = False

    def __init__(self, num_codes: int, dim: int):
        bits = num_codes.bit_length() - 1
        if bits < 1 or 2**bits != num_codes:
            near = f"{2 ** max(bits, 1)} or {2 ** (max(bits, 1) + 1)} would do"
            raise ValueError(f"num_codes = {num_codes}: signs need a power of two; {near}.")
        import vector_quantize_pytorch as vqp  # late: it takes seconds

        library = vqp.LFQ(dim=dim, codebook_size=num_codes, spherical=self.spherical)
        library.maybe_l2norm = _unit if self.spherical else nn.Identity()  # can be pickled
        super().__init__(num_codes, dim, library)

    @property
    def sites(self) -> Float[Tensor, "K D"]:
        return self.library.maybe_l2norm(self.library.codebook)

    @in_float32
    def points(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        """Give projected latents, on the unit sphere for BSQ."""
        return self.library.maybe_l2norm(self._inward(latents))

    def _encode(self, latents: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        return self._indices(self.points(latents))

    def _indices(self, points: Tensor) -> Tensor:
        return ((points > 0) * self.library.mask).sum(-1)

    @in_float32
    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor | None) -> Quantized:
        points = self.points(latents)
        indices = self._indices(points)
        hard = F.embedding(indices, self.sites)
        terms = {"commit": (points - hard).square().mean(), "entropy": self._entropy(points)}
        return self._finish(straight_through(points, hard), indices, terms)

    def _entropy(self, points: Tensor) -> Tensor:
        # Over a cube's corners the softmax is a product over bits: p(code) = prod_i sigmoid(+-l_i).
        radius = self.sites[-1, 0]  # absolute value of a code's channels
        logits = 4 * self.beta * radius * rearrange(points, "b h w d -> (b h w) d")
        surprise = F.softplus(-logits.abs()) + logits.abs() * torch.sigmoid(-logits.abs())
        sample = surprise.sum(-1).mean()  # mean_n H(p_n), bit by bit
        # mean_n p_n is a mean of outer products of the two halves of the bits: one matrix product.
        first, second = (_corner_probabilities(half) for half in logits.tensor_split(2, dim=1))
        mean = mean_over_ranks(first.T @ second / len(logits))
        batch = -(mean * mean.clamp(min=EPS).log()).sum()
        return sample - batch


def _corner_probabilities(logits: Float[Tensor, "n d"]) -> Float[Tensor, "n corners"]:
    probability = logits.new_ones(len(logits), 1)
    for bit in torch.sigmoid(logits).unbind(1):
        both = torch.stack([1 - bit, bit], dim=1)
        probability = rearrange(probability, "n p -> n p 1") * rearrange(both, "n q -> n 1 q")
        probability = rearrange(probability, "n p q -> n (p q)")
    return probability


class BSQ(LFQ):
    """LFQ on the unit sphere, with codes +-1 / sqrt(log2 K) (arXiv 2406.07548)."""

    beta = 1.0  # inverse temperature of the entropies, as in the authors' code
    spherical = True
