"""What every quantizer is: the contract and the straight-through gradient."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgqlib.quantizers.assignment import nearest
from lgqlib.quantizers.start import anneal, initial_codes


class Quantized(NamedTuple):
    """What every quantizer gives back."""

    z_q: Float[Tensor, "b c h w"]
    """The vectors that the decoder receives."""
    indices: Int[Tensor, "b h w"]
    """Index of the chosen code for each token, int64."""
    terms: dict[str, Tensor]
    """Named, unweighted scalars of the loss; their weights are in `LossConfig`."""


class Quantizer(nn.Module):
    """The contract: `forward` never initializes, and evaluation never writes a weight.

    A subclass gives `forward(latents, tau)` and `codebook`; the rest follows, unless codes are
    chosen in another space than they are decoded from.
    """

    energy = "squared"
    """By which the nearest code is chosen."""

    def __init__(self, num_codes: int, dim: int):
        super().__init__()
        if num_codes < 1 or dim < 1:
            raise ValueError(f"num_codes = {num_codes}, dim = {dim}: both must be at least 1.")
        self.num_codes, self.dim = num_codes, dim

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        """What the decoder receives for each index."""
        raise AttributeError(f"{type(self).__name__} has no codebook.")

    @property
    def sites(self) -> Float[Tensor, "K D"]:
        """Codes where the nearest one is chosen: the codebook, unless a quantizer projects."""
        return self.codebook

    @property
    def start_latents(self) -> int:
        """How many latents `initialize` wants, at least."""
        return 4 * self.num_codes

    @property
    def widths(self) -> Float[Tensor, " K"] | None:
        """Width of each code in the choice of the nearest; None where all are equal."""
        return None

    def points(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w D"]:
        """Give latents in the space of `sites`."""
        return rearrange(latents, "b c h w -> b h w c")

    def lookup(self, indices: Int[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        """Give the vectors of indices, with the channels first."""
        return rearrange(F.embedding(indices, self.codebook), "b h w c -> b c h w")

    def encode(self, latents: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        """Choose the code of each latent, without a softmax."""
        points = self.points(latents)
        flat = rearrange(points, "b h w d -> (b h w) d")
        found = nearest(flat, self.sites, energy=self.energy, widths=self.widths)
        return found.view(points.shape[:-1])

    def initialize(
        self, latents: Float[Tensor, "n c"], *, start: str = "", prefit: bool = False
    ) -> None:
        """Start the codebook from real latents, once, before training.

        `start`: a name in `start.STARTS`, by default the method's own; `prefit`: anneal it on the
        latents. Equal on all ranks when the latents are. Implicit codebooks have nothing to do, and
        raise ValueError where they are asked to.
        """
        if start or prefit:
            name, value, none = ("start", start, "") if start else ("prefit", prefit, False)
            raise ValueError(
                f"quantizer.{name} = {value!r}: it must be {none!r} with {type(self).__name__}, "
                "whose codes are given."
            )

    def after_step(self) -> None:
        """Do what a quantizer does once the optimizer moved its codes."""

    def _started(self, latents: Tensor, start: str, prefit: bool) -> Tensor:
        """Give the codes that `initialize` asks for."""
        latents = self._checked(latents)
        codes = initial_codes(latents, self.num_codes, start or "random")
        return anneal(latents, codes) if prefit else codes

    def _checked(self, latents: Tensor) -> Tensor:
        if latents.ndim != 2 or latents.shape[1] != self.dim or len(latents) == 0:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: expected [n >= 1, {self.dim}]."
            )
        return latents.float()


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, path, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def straight_through(
    path: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Give `path + sg(value - path)`, without its rounding: the decoder receives exactly a code."""
    return _StraightThrough.apply(path, value)


def in_float32(method):
    """Run a method of (latents, ...) in float32, whatever autocast says."""

    @functools.wraps(method)
    def call(self, latents, *args):
        with torch.autocast(latents.device.type, enabled=False):
            return method(self, latents.float(), *args)

    return call
