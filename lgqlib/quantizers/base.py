"""What every quantizer is: the contract and the straight-through gradient."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgqlib.quantizers.assignment import nearest
from lgqlib.quantizers.start import anneal, initial_codes


class Quantized(NamedTuple):
    """What every quantizer gives back."""

    z_q: Float[Tensor, "b c h w"]  # the vectors that the decoder receives
    indices: Int[Tensor, "b h w"]  # index of the chosen code for each token, int64
    terms: dict[str, Tensor]  # named, unweighted scalars of the loss; weights are in `LossConfig`


class NonFinite(ValueError):
    """Latents with NaN or infinity, which have no nearest code."""


class Quantizer(nn.Module):
    """The contract: `forward` never initializes, and evaluation never writes a weight.

    A subclass gives `forward(latents, tau)` and `codebook`. Called, and in `encode` and `lookup`,
    it takes latents of any rank, [N, C] or [B, C, ...] (or the channels last), in any floating
    dtype; its own weights and statistics are float32 at least, whatever `.to` or autocast say.
    """

    energy = "squared"  # by which the nearest code is chosen
    bounded = False  # whether codes are given, so that a decoder has to undo their bounds

    def __init__(self, num_codes: int, dim: int):
        super().__init__()
        if num_codes < 1 or dim < 1:
            raise ValueError(f"num_codes = {num_codes}, dim = {dim}: both must be at least 1.")
        self.num_codes, self.dim = num_codes, dim

    def __call__(
        self,
        latents: Float[Tensor, "*given"],
        tau: float | Tensor | None = None,
        *,
        channels_last: bool = False,
    ) -> Quantized:
        """Quantize latents, at `tau` where there is one; ValueError for a shape, `NonFinite`."""
        z, given = self._as_map(latents, channels_last)
        found = super().__call__(z, tau)
        return Quantized(given(found.z_q).to(latents.dtype), given(found.indices), found.terms)

    def _apply(self, fn, recurse: bool = True):
        return super()._apply(float32_at_least(fn), recurse)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and statistics: float32, or float64 after `.double()`."""
        tensors = (*self.parameters(), *self.buffers())
        return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)

    def _as_map(self, latents: Tensor, channels_last: bool) -> tuple[Tensor, Callable]:
        """Give latents as [B, C, h, w], and the way back for them and for their indices."""
        z = latents.movedim(-1, 1) if channels_last else latents
        if latents.ndim < 2 or z.shape[1] != self.dim or not z.is_floating_point():
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} and {latents.dtype}: floats of shape "
                f"[N, C] or [B, C, ...] with C = {self.dim}, or with C last and channels_last=True."
            )
        waits = z.is_cuda and not self.bounded  # a GPU is waited for only where it would fail
        if not (waits or torch.compiler.is_exporting() or bool(z.isfinite().all())):
            count = int((~z.isfinite()).sum())
            raise NonFinite(f"latents hold {count} values that are NaN or infinite.")

        def given(found: Tensor) -> Tensor:
            shaped = found.reshape(z.shape if found.ndim == 4 else (len(z), *z.shape[2:]))
            return shaped.movedim(1, -1) if channels_last and found.ndim == 4 else shaped

        area = z.shape[2:] if z.ndim == 4 else (math.prod(z.shape[2:]), 1)
        return z.reshape(len(z), self.dim, *area).to(self.dtype), given

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

    def lookup(self, indices: Any) -> Float[Tensor, "b c *space"]:
        """Give the vectors of indices, of any integer type, with the channels second."""
        found = as_indices(indices).to(self.codebook.device)
        return self._lookup(found) if found.ndim != 1 else self._lookup(found[:, None])[..., 0]

    def _lookup(self, indices: Int[Tensor, "b *space"]) -> Float[Tensor, "b c *space"]:
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    def encode(
        self, latents: Float[Tensor, "*given"], *, channels_last: bool = False
    ) -> Int[Tensor, "*tokens"]:
        """Choose the code of each latent, without a softmax."""
        z, given = self._as_map(latents, channels_last)
        return given(self._encode(z))

    def _encode(self, latents: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        points = self.points(latents)
        flat = rearrange(points, "b h w d -> (b h w) d")
        found = nearest(flat, self.sites, energy=self.energy, widths=self.widths)
        return found.view(points.shape[:-1])

    @torch.no_grad()
    def initialize(
        self, latents: Float[Tensor, "n c"], *, start: str = "", prefit: bool = False
    ) -> None:
        """Start the codebook from real latents [n, C], once, before training.

        `start`: of `start.STARTS`, by default the method's own; `prefit`: anneal it on the latents.
        Equal on all ranks when the latents are. ValueError for given codes, or another shape.
        """
        if latents.ndim != 2 or latents.shape[1] != self.dim or len(latents) == 0:
            right = f"expected [n >= 1, {self.dim}]"
            raise ValueError(f"latents of shape {tuple(latents.shape)}: {right}.")
        self._start(latents.float(), start, prefit)

    def _start(self, latents: Float[Tensor, "n c"], start: str, prefit: bool) -> None:
        if start or prefit:
            name, value, none = ("start", start, "") if start else ("prefit", prefit, False)
            right = f"{none!r} with {type(self).__name__}, whose codes are given"
            raise ValueError(f"quantizer.{name} = {value!r}: it must be {right}.")

    def _started(self, latents: Tensor, start: str, prefit: bool) -> Tensor:
        """Give the codes that `initialize` asks for."""
        codes = initial_codes(latents, self.num_codes, start or "random")
        return anneal(latents, codes) if prefit else codes

    def after_step(self) -> None:
        """Do what a quantizer does once the optimizer moved its codes."""


class Table(Quantizer):
    """A quantizer whose codes are free parameters, a row each."""

    def __init__(self, num_codes: int, dim: int):
        super().__init__(num_codes, dim)
        self.codes = nn.Parameter(torch.randn(num_codes, dim))

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        return self.codes

    def _start(self, latents: Float[Tensor, "n c"], start: str, prefit: bool) -> None:
        self.codes.copy_(self._started(latents, start, prefit))


def straight_through(
    path: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Give `path + sg(value - path)`, without its rounding: the decoder receives exactly a code."""
    return value.detach() + (path - path.detach())


def in_float32(method):
    """Run a method of (latents, ...) in the dtype of its weights, whatever autocast says."""

    @functools.wraps(method)
    def call(self, latents, *args):
        with torch.autocast(latents.device.type, enabled=False):
            return method(self, latents.to(self.dtype), *args)

    return call


def float32_at_least(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let what `nn.Module.to` does to a tensor leave its dtype where it would be a smaller one."""

    def kept(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        smaller = moved.is_floating_point() and moved.dtype.itemsize < 4
        return tensor.to(moved.device) if smaller else moved

    return kept


def as_indices(indices: Any) -> Int[Tensor, "*shape"]:
    """Give indices or counts of any integer type, NumPy's too, as int64; ValueError for others."""
    found = torch.as_tensor(indices)
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise ValueError(f"{found.dtype} of shape {tuple(found.shape)}: they must be integers.")
    return found.long()
