"""LGQ a channel at a time: learned scalar bins, the learned counterpart of FSQ."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgqlib.assignment import hard_assign, mean_over_ranks, soft_assign
from lgqlib.initialization import initial_codes
from lgqlib.quantizer import Quantized, Quantizer, straight_through


class ScalarLGQ(Quantizer):
    """Quantize channel c to the nearest of `levels[c]` learned values; K is the product of the
    levels.

    Equations (1) to (3) of `quantizer` hold in each channel; peak and usage are means over
    channels, usage in the form that is 1 when even.

    Args:
        levels: number of values of each channel, e.g. (16, 16, 8, 8) for K = 16384.
        initialization: `random`, `kmeans`, `gaussian` or `uniform`, of each channel's values.
    """

    def __init__(self, levels: tuple[int, ...], *, initialization: str = "random"):
        super().__init__(math.prod(levels), len(levels))
        self.levels, self.initialization = tuple(levels), initialization
        self.bins = nn.ParameterList([nn.Parameter(torch.linspace(-1, 1, n)) for n in levels])
        # Index = sum_c digit_c * basis_c, the last channel fastest.
        basis = [math.prod(levels[c + 1 :]) for c in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        return torch.cartesian_prod(*self.bins).reshape(self.num_codes, self.dim)

    def lookup(self, indices: Int[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        digits = [indices // base % n for base, n in zip(self.basis, self.levels, strict=True)]
        return torch.stack([v[d] for v, d in zip(self.bins, digits, strict=True)], dim=1)

    def encode(self, latents: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        digits = [
            hard_assign(latents[:, c].reshape(-1, 1), rearrange(values, "n -> n 1"))
            for c, values in enumerate(self.bins)
        ]
        flat = sum(d * base for d, base in zip(digits, self.basis, strict=True))
        return flat.reshape(latents.shape[0], *latents.shape[2:])

    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor) -> Quantized:
        """Quantize each channel softly at temperature tau > 0."""
        z = latents.float()
        z_q, indices, peaks, usages = [], 0, [], []
        for c, values in enumerate(self.bins):
            flat = z[:, c].reshape(-1, 1)
            a = soft_assign(flat, rearrange(values, "n -> n 1"), tau)
            hard = F.embedding(a.indices, rearrange(values, "n -> n 1"))
            z_q.append(straight_through(a.average, hard).reshape(z[:, c].shape))
            indices = indices + a.indices * self.basis[c]
            peaks.append((1 - a.collision).mean())
            usages.append(len(values) * mean_over_ranks(a.usage).square().sum())
        z_q = torch.stack(z_q, dim=1)
        terms = {
            "commit": (z_q - z).square().mean(),
            "peak": torch.stack(peaks).mean(),
            "usage": torch.stack(usages).mean(),
        }
        return Quantized(z_q, indices.reshape(z[:, 0].shape), terms)

    @torch.no_grad()
    def initialize(self, latents: Float[Tensor, "n c"]) -> None:
        """Start each channel's values from that channel of real latents [n, C]."""
        if latents.ndim != 2 or latents.shape[1] != self.dim or len(latents) == 0:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: expected [n >= 1, {self.dim}]."
            )
        for c, values in enumerate(self.bins):
            drawn = initial_codes(latents[:, c : c + 1].float(), len(values), self.initialization)
            values.copy_(drawn[:, 0].sort().values)
