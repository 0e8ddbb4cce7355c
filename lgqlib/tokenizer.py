"""A tokenizer: images to indices and back, with any quantizer between encoder and decoder."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgqlib.backbone import build_backbone, fit_linear, start_linear
from lgqlib.config import Config
from lgqlib.measure.temperature import critical_moments, tau_c_from_moments
from lgqlib.quantizers import build
from lgqlib.quantizers.assignment import mean_over_ranks
from lgqlib.quantizers.base import Quantized, as_indices, float32_at_least

SHIPPED = Path(__file__).parent / "pretrained"  # a folder for each that comes along
MOMENTUM = 0.98  # of the running moments behind tau_c: about fifty steps of memory
DISTORTION_MOMENTUM = 0.9  # of the running error D, which falls while the codebook learns


class Reconstruction(NamedTuple):
    """What a forward pass of the tokenizer gives."""

    images: Float[Tensor, "b 3 H W"]  # in [-1, 1], up to what the decoder overshoots
    quantized: Quantized
    latents: Float[Tensor, "b c h w"]


class Tokenizer(nn.Module, PyTorchModelHubMixin, library_name="lgqlib"):
    """Encode images into a map of indices, decode indices into images.

    `config` is the run's, or the dict that `Config.to_dict` gives. `save_pretrained(folder)` and
    `Tokenizer.from_pretrained(folder_or_hub_name)` write and read it. ValueError for bad sizes.
    """

    def __init__(self, config: Config | dict):
        super().__init__()
        config = Config.from_dict(config) if isinstance(config, dict) else config
        self.config = config
        dim = config.backbone.dim
        self.encoder, self.decoder = build_backbone(**asdict(config.backbone))
        try:
            self.quantizer = build(config.quantizer, dim)
        except ValueError as error:  # it begins with the name of the field: num_codes, levels
            raise ValueError(f"quantizer.{error}") from None
        # Running E[grad grad'] and E[Hessian] of the energy at the mean code: both give tau_c.
        self.register_buffer("moments", torch.zeros(2, dim, dim))
        self.register_buffer("observed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("distortion", torch.zeros(()))  # running D, summed over channels
        self.register_buffer("trained_tau", torch.full((), math.nan))

    @classmethod
    def from_pretrained(cls, name: str | Path, **options) -> "Tokenizer":
        """Open a tokenizer: one that ships (`SHIPPED`), a folder, or a name on the Hub.

        `options` are `huggingface_hub`'s. ValueError names what tensor is missing or does not fit.
        """
        shipped = SHIPPED / name
        folder = shipped if (shipped / "config.json").exists() else Path(name)
        for file in ("config.json", "model.safetensors") if folder.is_dir() else ():
            if not (folder / file).is_file():
                raise ValueError(f"{folder} has no {file}: save_pretrained writes it.")
        try:
            where = str(folder if folder.is_dir() else name)
            return super().from_pretrained(where, **{"strict": True, **options})
        except OSError as error:
            known = ", ".join(sorted(path.name for path in SHIPPED.glob("*/")))
            said = f"neither one that ships ({known}) nor a folder, and the Hub: {error}"
            raise ValueError(f"{name!r} is {said}") from None
        except RuntimeError as error:  # of load_state_dict, which lists the tensors
            raise ValueError(f"{name} does not hold the weights of its config: {error}") from None

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        """What the decoder receives for each index."""
        return self.quantizer.codebook

    @property
    def num_codes(self) -> int:
        """K."""
        return self.quantizer.num_codes

    @property
    def tau_c(self) -> float:
        """First critical temperature of the latents seen in training; NaN where there is none."""
        if self.observed == 0 or not self._has_tau_c:
            return math.nan
        weight = 1 - MOMENTUM ** int(self.observed)
        return tau_c_from_moments(*(self.moments / weight))

    @property
    def width(self) -> float:
        """2 D / C, the natural unit of a temperature; NaN before the first batch."""
        return 2 * self.distortion.item() / self.quantizer.sites.shape[1] or math.nan

    @property
    def _has_tau_c(self) -> bool:
        return self.quantizer.energy in ("squared", "norm")

    @torch.no_grad()
    def initialize(self, images: Float[Tensor, "n 3 H W"], *, chunk: int = 64) -> None:
        """Start backbone and codebook from real training images in [-1, 1], once, before training.

        First the linear path, at the principal components of their patches; then the quantizer,
        from their latents; then the linear path back, where it bounds them. The same on all ranks.
        """
        start = self.config.backbone.start
        if start != "random":
            start_linear(self.encoder, self.decoder, images, whiten=start == "whitened")
        latents = torch.cat([self.latents(part) for part in images.split(chunk)])
        q = self.config.quantizer
        flat = latents.movedim(1, -1).flatten(0, -2)
        self.quantizer.initialize(flat, start=q.start, prefit=q.prefit)
        indices = self.quantizer.encode(latents)
        if start != "random" and self.quantizer.bounded:
            fit_linear(self.decoder, self.quantizer.lookup(indices), images)
        self.observe(latents, indices)

    @torch.no_grad()
    def observe(self, latents: Float[Tensor, "b c h w"], indices: Int[Tensor, "b h w"]) -> None:
        """Add a training batch to the running moments and error of the latents, over all ranks."""
        errors = self.quantizer.points(latents) - F.embedding(indices, self.quantizer.sites)
        now = mean_over_ranks(errors.square().sum(-1).mean()).to(self.distortion)
        self.distortion.lerp_(now, 1 - (DISTORTION_MOMENTUM if self.distortion > 0 else 0))
        if self._has_tau_c:
            flat = latents.detach().float().movedim(1, -1).flatten(0, -2)
            center = mean_over_ranks(flat.mean(0))
            now = torch.stack(critical_moments(flat, self.quantizer.energy, center=center))
            self.moments.lerp_(mean_over_ranks(now), 1 - MOMENTUM)
            self.observed += 1

    def latents(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Encode images in [-1, 1] into float32 latents; ValueError for sides that do not fit."""
        factor, sides = self.config.backbone.downsample, tuple(images.shape[-2:])
        if any(side % factor for side in sides):
            raise ValueError(f"images of {sides} pixels: sides must be multiples of {factor}.")
        return self.encoder(images.to(self._dtype)).float()

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        """Encode images in [-1, 1] into indices."""
        return self.quantizer.encode(self.latents(images))

    def decode(self, indices: Any) -> Float[Tensor, "b 3 H W"]:
        """Decode integer indices [B, h, w] into images in [-1, 1]; ValueError outside [0, K)."""
        indices = as_indices(indices)
        if not torch.compiler.is_exporting() and indices.numel():
            low, high = int(indices.min()), int(indices.max())
            if not 0 <= low <= high < self.num_codes:
                said = f"indices from {low} to {high}: they must be in [0, {self.num_codes})."
                raise ValueError(said)
        return self.decode_latents(self.quantizer.lookup(indices))

    def decode_latents(self, z_q: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Decode vectors, codes or any others (a soft average, say), into images in [-1, 1]."""
        return self.decoder(z_q.to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    def _apply(self, fn, recurse: bool = True):
        for child in self.children() if recurse else ():
            child._apply(fn)
        return super()._apply(float32_at_least(fn), recurse=False)  # the running statistics

    def forward(
        self, images: Float[Tensor, "b 3 H W"], tau: float | Tensor | None = None
    ) -> Reconstruction:
        """Reconstruct images: in training at temperature tau, else as `decode(encode(x))`."""
        latents = self.latents(images)  # (B, C, h, w)
        if self.training:
            quantized = self.quantizer(latents, tau)
        else:
            indices = self.quantizer.encode(latents)
            quantized = Quantized(self.quantizer.lookup(indices), indices, {})
        return Reconstruction(self.decode_latents(quantized.z_q), quantized, latents)
