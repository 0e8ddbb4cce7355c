"""LGQ a channel at a time: learned scalar bins, the learned counterpart of FSQ."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgqlib.quantizers.base import Quantized, Quantizer
from lgqlib.quantizers.lgq import LGQ


class ScalarLGQ(Quantizer):
    """Quantize channel c to the nearest of `levels[c]` learned values; K is their product.

    Each channel is an `LGQ` of its own in one dimension, with `options`; a term is their mean.
    """

    def __init__(self, levels: tuple[int, ...], **options: Any):
        super().__init__(math.prod(levels), len(levels))
        self.levels = tuple(levels)
        self.channels = nn.ModuleList([LGQ(n, 1, **options) for n in levels])
        for channel in self.channels:
            channel.codes.data.copy_(torch.linspace(-1, 1, channel.num_codes)[:, None])
        # Index = sum_c digit_c * basis_c, the last channel fastest.
        basis = [math.prod(levels[c + 1 :]) for c in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    @property
    def bins(self) -> list[Float[Tensor, " n"]]:
        """Each channel's values."""
        return [channel.codes[:, 0] for channel in self.channels]

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        return torch.cartesian_prod(*self.bins).reshape(self.num_codes, self.dim)

    def _lookup(self, indices: Int[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        digits = [indices // base % n for base, n in zip(self.basis, self.levels, strict=True)]
        return torch.stack([v[d] for v, d in zip(self.bins, digits, strict=True)], dim=1)

    def _encode(self, latents: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        return self._index([q.encode(z) for q, z in self._each(latents)])

    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor | None) -> Quantized:
        parts = [q(z, tau) for q, z in self._each(latents)]
        names = parts[0].terms
        return Quantized(
            torch.cat([part.z_q for part in parts], dim=1),
            self._index([part.indices for part in parts]),
            {name: torch.stack([part.terms[name] for part in parts]).mean() for name in names},
        )

    def _start(self, latents: Float[Tensor, "n c"], start: str, prefit: bool) -> None:
        """Start each channel's values, in order, from that channel of real latents."""
        for c, channel in enumerate(self.channels):
            channel.initialize(latents[:, c : c + 1], start=start, prefit=prefit)
            channel.codes.copy_(channel.codes.sort(dim=0).values)

    def after_step(self) -> None:
        for channel in self.channels:
            channel.after_step()

    def _each(self, latents: Float[Tensor, "b c h w"]):
        return zip(self.channels, latents.split(1, dim=1), strict=True)

    def _index(self, digits: list[Int[Tensor, "b h w"]]) -> Int[Tensor, "b h w"]:
        return sum(d * base for d, base in zip(digits, self.basis, strict=True))
