"""Quantizers with an implicit codebook: levels (FSQ, iFSQ) or signs (LFQ, BSQ) of channels.

Each maps latents into a small space of D channels (linearly, unless a latent has D channels
already), rounds there, and maps back. The results agree with `vector-quantize-pytorch` where it has
the method; the entropies of LFQ and BSQ are exact here and need no [tokens, codes] tensor.
"""

import functools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgqlib.assignment import mean_over_ranks
from lgqlib.quantizer import Quantized, Quantizer, straight_through

LEVELS = {
    1024: (8, 8, 4, 4),
    4096: (8, 8, 8, 8),
    16384: (8, 8, 8, 8, 4),
    65536: (16, 16, 16, 16),
}
"""Levels with exactly K codes, for the sizes that studies use."""
FEWEST, MOST = 3, 32
"""Levels a channel when they are searched; two would make FSQ's even offset degenerate."""
EPS = 1e-12
"""Floor of a probability inside a logarithm: finite gradients where one underflows."""


def in_float32(method):
    """Run a method of (latents, ...) in float32, whatever autocast says."""

    @functools.wraps(method)
    def call(self, latents, *args):
        with torch.autocast(latents.device.type, enabled=False):
            return method(self, latents.float(), *args)

    return call


def exactly(path: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]) -> Tensor:
    """Give `value` forward, and its gradient to `path`; `straight_through` for any shape."""
    return straight_through(path.flatten(1), value.flatten(1)).reshape(path.shape)


def matching_levels(num_codes: int) -> tuple[int, ...]:
    """Give levels, all at least 3, whose product is exactly K; near 6 where there is a choice.

    Raises ValueError, with the nearest K that has such levels, when this one has none.
    """
    found = LEVELS.get(num_codes) or _factors(num_codes)
    if found is None:
        reach = range(1, num_codes + FEWEST)
        below = next((num_codes - i for i in reach if _factors(num_codes - i)), None)
        above = next(num_codes + i for i in reach if _factors(num_codes + i))
        near = f"{above}" if below is None else f"{below} or {above}"
        raise ValueError(
            f"num_codes = {num_codes}: no levels between {FEWEST} and {MOST} have this product; "
            f"{near} would do."
        )
    return found


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


class _Projected(Quantizer):
    """Share the way into a space of `inner` channels and back; the identity where dim = inner."""

    def __init__(self, num_codes: int, dim: int, inner: int):
        super().__init__(num_codes, dim)
        self.project_in = nn.Identity() if dim == inner else nn.Linear(dim, inner)
        self.project_out = nn.Identity() if dim == inner else nn.Linear(inner, dim)

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        return self._outward(self.sites)

    @in_float32
    def _outward(self, codes: Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        return self.project_out(codes)

    @in_float32
    def encode(self, latents: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        return self._indices(self.points(latents))

    def _finish(self, hard: Tensor, indices: Tensor, terms: dict[str, Tensor]) -> Quantized:
        """Map codes [B, H, W, D] and their gradient to exactly the codebook's rows."""
        path = rearrange(self.project_out(hard), "b h w c -> b c h w")
        return Quantized(exactly(path, self.lookup(indices)), indices, terms)


class FSQ(_Projected):
    """Round each channel to one of its levels (Mentzer et al. 2023, arXiv 2309.15505).

    Args:
        levels: number of values of each channel; by default `matching_levels(num_codes)`.
    """

    def __init__(self, num_codes: int, dim: int, *, levels: tuple[int, ...] = ()):
        levels = tuple(levels) or matching_levels(num_codes)
        if min(levels) < FEWEST or math.prod(levels) != num_codes:
            raise ValueError(
                f"levels = {levels}: each must be at least {FEWEST}, "
                f"and their product num_codes = {num_codes}."
            )
        super().__init__(num_codes, dim, len(levels))
        self.levels = levels
        count = torch.tensor(levels, dtype=torch.float32)
        low, width = self._frame(count)
        # Index = sum_c digit_c * basis_c, the first channel fastest; a digit's value is
        # (digit + low) / width.
        basis = torch.cumprod(torch.tensor([1, *levels[:-1]]), 0)
        self.register_buffer("count", count, persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("width", width, persistent=False)
        self.register_buffer("basis", basis, persistent=False)

    @staticmethod
    def _frame(count: Tensor) -> tuple[Tensor, Tensor]:
        return -(count // 2), count // 2

    def _bound(self, x: Tensor) -> Tensor:
        """Bound to the span of the integer levels: tanh(x + shift) (L - 1) / 2 - offset."""
        half = (self.count - 1) * (1 + 1e-3) / 2
        offset = 0.5 * (self.count % 2 == 0)
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    @property
    def sites(self) -> Float[Tensor, "K D"]:
        indices = torch.arange(self.num_codes, device=self.basis.device)
        digits = rearrange(indices, "k -> k 1") // self.basis % self.count.long()
        return (digits + self.low) / self.width

    @in_float32
    def points(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        """Give bounded latents before they are rounded, in the units of `sites`."""
        x = self.project_in(rearrange(latents, "b c h w -> b h w c"))
        return self._bound(x) / self.width

    def _digits(self, points: Tensor) -> Tensor:
        digits = torch.round(points * self.width - self.low)
        return torch.minimum(digits.clamp(min=0), self.count - 1)

    def _indices(self, points: Tensor) -> Tensor:
        return (self._digits(points).long() * self.basis).sum(-1)

    @in_float32
    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor) -> Quantized:
        """Quantize latents; the temperature has no part in it, and there are no terms."""
        points = self.points(latents)
        hard = (self._digits(points) + self.low) / self.width
        return self._finish(exactly(points, hard), self._indices(points), {})


class IFSQ(FSQ):
    """FSQ with the bound 2 sigmoid(1.6 x) - 1, which spreads a Gaussian evenly (Lin et al. 2026).

    The paper has odd levels, with values k / ((L - 1) / 2); even ones, needed for K = 2^b, are the
    same symmetric grid.
    """

    @staticmethod
    def _frame(count: Tensor) -> tuple[Tensor, Tensor]:
        return -(count - 1) / 2, (count - 1) / 2

    def _bound(self, x: Tensor) -> Tensor:
        return (2 * torch.sigmoid(1.6 * x) - 1) * self.width


class LFQ(_Projected):
    """Take the sign of each of log2 K channels (Yu et al. 2023, arXiv 2310.05737).

    Terms: `commit`, and `entropy` = mean_n H(p_n) - H(mean_n p_n) in nats over the corners of the
    cube, with p_nk = softmax_k(2 beta x_n . c_k): negative where the use of codes is broad and each
    choice sure.
    """

    beta = 100.0
    """Inverse temperature of the entropies (Open-MAGVIT2: 1 / 0.01)."""

    def __init__(self, num_codes: int, dim: int):
        bits = num_codes.bit_length() - 1
        if bits < 1 or 2**bits != num_codes:
            raise ValueError(
                f"num_codes = {num_codes}: signs need a power of two; "
                f"{2 ** max(bits, 1)} or {2 ** (bits + 1)} would do."
            )
        super().__init__(num_codes, dim, bits)
        self.register_buffer("basis", 2 ** torch.arange(bits).flip(0), persistent=False)

    @property
    def radius(self) -> float:
        """Absolute value of a code's channels."""
        return 1.0

    @property
    def sites(self) -> Float[Tensor, "K D"]:
        indices = torch.arange(self.num_codes, device=self.basis.device)
        bits = rearrange(indices, "k -> k 1") // self.basis % 2
        return self.radius * (2.0 * bits - 1)

    @in_float32
    def points(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        return self.project_in(rearrange(latents, "b c h w -> b h w c"))

    def _indices(self, points: Tensor) -> Tensor:
        return ((points > 0) * self.basis).sum(-1)

    @in_float32
    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor) -> Quantized:
        """Quantize latents; the temperature has no part in it."""
        points = self.points(latents)
        hard = torch.where(points > 0, self.radius, -self.radius)
        terms = {"commit": (points - hard).square().mean(), "entropy": self._entropy(points)}
        return self._finish(exactly(points, hard), self._indices(points), terms)

    def _entropy(self, points: Tensor) -> Tensor:
        # Over a cube's corners the softmax is a product over bits: p(code) = prod_i sigmoid(+-l_i).
        logits = 4 * self.beta * self.radius * rearrange(points, "b h w d -> (b h w) d")
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

    beta = 1.0
    """Inverse temperature of the entropies, as in the authors' code."""

    @property
    def radius(self) -> float:
        return len(self.basis) ** -0.5

    @in_float32
    def points(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        """Give projected latents on the unit sphere."""
        return F.normalize(super().points(latents), dim=-1)
