"""What every quantizer is: the contract, the straight-through gradient, and initial codes."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgqlib.quantizers.assignment import nearest

STARTS = ("random", "kmeans", "gaussian", "uniform")
"""How a codebook may start from real latents."""
LLOYD_STEPS = 10


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

    def initialize(self, latents: Float[Tensor, "n c"]) -> None:
        """Start the codebook from real latents, once, before training.

        Equal on all ranks when the latents are; implicit codebooks have nothing to do.
        """

    def _check_latents(self, latents: Tensor) -> Tensor:
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


def initial_codes(latents: Float[Tensor, "n c"], num_codes: int, how: str) -> Float[Tensor, "K c"]:
    """Draw a codebook from latents, in one of the ways of `STARTS`.

    `random`: latents themselves, each at most once where there are enough. `kmeans`: the same,
    moved by Lloyd's algorithm. `gaussian`: the normal with the latents' mean and per-channel
    deviation. `uniform`: their box, every channel on its own. Raises ValueError for another name.
    """
    shape = (num_codes, latents.shape[1])
    if how == "random" or (how == "kmeans" and len(latents) <= num_codes):
        return _drawn(latents, num_codes)
    if how == "kmeans":
        return _lloyd(latents, _drawn(latents, num_codes))
    if how == "gaussian":
        noise = torch.randn(shape, device=latents.device, dtype=latents.dtype)
        return latents.mean(0) + latents.std(0, correction=0) * noise
    if how == "uniform":
        low, high = latents.amin(0), latents.amax(0)
        return low + (high - low) * torch.rand(shape, device=latents.device, dtype=latents.dtype)
    raise ValueError(f"initialization = {how!r}: it must be one of {', '.join(STARTS)}.")


def _drawn(latents: Tensor, num_codes: int) -> Tensor:
    rounds = -(-num_codes // len(latents))  # more than one only where latents are fewer than codes
    order = torch.cat([torch.randperm(len(latents)) for _ in range(rounds)])[:num_codes]
    codes = latents[order.to(latents.device)].clone()
    if rounds > 1:  # equal codes would never part: a hundredth of the spread tells them apart
        codes += 0.01 * latents.std(0, correction=0) * torch.randn_like(codes)
    return codes


def _lloyd(latents: Tensor, codes: Tensor) -> Tensor:
    for _ in range(LLOYD_STEPS):
        indices = nearest(latents, codes)[:, 0]
        counts = torch.bincount(indices, minlength=len(codes))
        sums = torch.zeros_like(codes).index_add_(0, indices, latents)
        codes = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], codes)
        dead = torch.nonzero(counts == 0).flatten()
        if len(dead):  # an empty cell takes a latent, so that no code is wasted
            again = torch.randint(len(latents), (len(dead),)).to(latents.device)
            codes[dead] = latents[again]
    return codes
