"""Encoder and decoder: `patch` for a laptop, `vqgan` as in the paper.

Both map images [B, 3, H, W] in [-1, 1] to latents [B, C, H/f, W/f] and back. Beside the network
runs a linear path: latents = W patch + b + network. It starts at the principal components of
training patches and the network's last layer at zero: training starts from the best linear one.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

EPS = 0.1
"""Added to a group's variance: near-equal latents stay near equal, and are not blown up."""


def _groups(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 32), channels, eps=eps)


class ResidualBlock(nn.Module):
    """Apply (GroupNorm, SiLU, 3x3 convolution) twice around a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, eps: float = 1e-6):
        super().__init__()
        self.norm1 = _groups(in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        self.norm2 = _groups(out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.skip(x) + y


class Attention(nn.Module):
    """Attend over all positions of a map, one head, around a skip connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _groups(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        qkv = rearrange(self.qkv(self.norm(x)), "b (n c) h w -> n b 1 (h w) c", n=3)
        y = F.scaled_dot_product_attention(*qkv)
        return x + self.out(rearrange(y, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class LatentNorm(nn.Module):
    """Normalize latents over channels of each token, over the whole map, both, or not.

    Without it the scale of latents and codes drifts, and latents collapse to a few dimensions.
    """

    def __init__(self, kind: str, channels: int):
        super().__init__()
        self.group = nn.GroupNorm(1, channels) if "group" in kind else nn.Identity()
        self.layer = nn.LayerNorm(channels) if "layer" in kind else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = rearrange(self.group(x), "b c h w -> b h w c")
        return rearrange(self.layer(x), "b h w c -> b c h w")


class PatchNetwork(nn.Module):
    """Fold f x f patches into channels and work at the latent resolution, where the tokens are."""

    def __init__(self, *, downsample: int, width: int, depth: int, dim: int, eps: float):
        super().__init__()
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(downsample), nn.Conv2d(3 * downsample**2, width, 1)
        )
        self.blocks = nn.Sequential(*[ResidualBlock(width, width, eps) for _ in range(depth)])
        self.head = nn.Sequential(_groups(width, eps), nn.SiLU(), nn.Conv2d(width, dim, 1))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return self.head(self.blocks(self.stem(images)))


class PatchUnfolding(nn.Module):
    """Undo `PatchNetwork`: work at the latent resolution, then unfold channels into patches."""

    def __init__(self, *, downsample: int, width: int, depth: int, dim: int, eps: float):
        super().__init__()
        self.stem = nn.Conv2d(dim, width, 3, 1, 1)
        self.blocks = nn.Sequential(*[ResidualBlock(width, width, eps) for _ in range(depth)])
        self.norm = _groups(width, eps)
        self.last = nn.Conv2d(width, 3 * downsample**2, 1)
        self.shuffle = nn.PixelShuffle(downsample)

    def forward(self, z_q: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.shuffle(self.last(F.silu(self.norm(self.blocks(self.stem(z_q))))))


def _channels(width: int, downsample: int) -> list[int]:
    """Channels of the stages as VQGAN has them: width x 1, 1, 2, 2, 4 for a factor of 16."""
    return [width * min(2 ** (stage // 2), 4) for stage in range(downsample.bit_length())]


def _middle(channels: int, eps: float) -> tuple[nn.Module, ...]:
    first = ResidualBlock(channels, channels, eps)
    return first, Attention(channels), ResidualBlock(channels, channels, eps)


class VQGANNetwork(nn.Module):
    """Halve the side stage by stage; attention at the lowest resolution (Esser et al. 2021)."""

    def __init__(self, *, downsample: int, width: int, depth: int, dim: int, eps: float):
        super().__init__()
        channels = _channels(width, downsample)
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, 1, 1)]
        last = channels[0]
        for stage, out in enumerate(channels):
            layers += [nn.Conv2d(last, last, 3, 2, 1)] if stage else []
            layers += [ResidualBlock(out if i else last, out, eps) for i in range(depth)]
            last = out
        self.layers = nn.Sequential(*layers, *_middle(last, eps))
        self.head = nn.Sequential(_groups(last, eps), nn.SiLU(), nn.Conv2d(last, dim, 3, 1, 1))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return self.head(self.layers(images))


class VQGANUnfolding(nn.Module):
    """Mirror `VQGANNetwork`: double the side stage by stage, nearest neighbor, a convolution."""

    def __init__(self, *, downsample: int, width: int, depth: int, dim: int, eps: float):
        super().__init__()
        channels = _channels(width, downsample)[::-1]
        last = channels[0]
        layers: list[nn.Module] = [nn.Conv2d(dim, last, 3, 1, 1), *_middle(last, eps)]
        for stage, out in enumerate(channels):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(last, last, 3, 1, 1)] if stage else []
            layers += [ResidualBlock(out if i else last, out, eps) for i in range(depth)]
            last = out
        self.layers, self.norm = nn.Sequential(*layers), _groups(last, eps)
        self.last = nn.Conv2d(last, 3, 3, 1, 1)

    def forward(self, z_q: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.last(F.silu(self.norm(self.layers(z_q))))


NETWORKS = {
    "linear": (None, None),
    "patch": (PatchNetwork, PatchUnfolding),
    "vqgan": (VQGANNetwork, VQGANUnfolding),
}
"""By family: what encodes and what decodes beside the linear path."""


class _Paths(nn.Module):
    """A linear path and a network beside it, which begins at zero; one of them may be missing."""

    def __init__(self, path: tuple[nn.Module, ...], network: type | None, shape: dict[str, int]):
        super().__init__()
        self.linear = nn.Sequential(*path) if path else None
        self.network = network(**shape, eps=EPS if path else 1e-6) if network else None
        if path and network:
            last = getattr(self.network, "last", None) or self.network.head[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def _sum(self, x: Tensor) -> Tensor:
        if self.linear is None:
            return self.network(x)
        return self.linear(x) if self.network is None else self.linear(x) + self.network(x)


class Encoder(_Paths):
    """The linear path and the network beside it, then the norm of the latents."""

    def __init__(self, family: str, start: str, *, norm: str, **shape: int):
        f, dim = shape["downsample"], shape["dim"]
        path = () if start == "random" else (nn.PixelUnshuffle(f), nn.Conv2d(3 * f * f, dim, 1))
        super().__init__(path, NETWORKS[family][0], shape)
        self.norm = LatentNorm(norm, dim)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return self.norm(self._sum(images))


class Decoder(_Paths):
    """The linear path back and the network beside it."""

    def __init__(self, family: str, start: str, **shape: int):
        f, dim = shape["downsample"], shape["dim"]
        path = () if start == "random" else (nn.Conv2d(dim, 3 * f * f, 1), nn.PixelShuffle(f))
        super().__init__(path, NETWORKS[family][1], shape)

    @property
    def last(self) -> nn.Conv2d:
        """The layer at whose weight the adaptive loss compares gradients (VQGAN, equation 7)."""
        return self.network.last if self.network is not None else self.linear[0]

    def forward(self, z_q: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return self._sum(z_q)


def build_backbone(family: str, start: str, *, norm: str, **shape: int) -> tuple[Encoder, Decoder]:
    """Build encoder and decoder of a shape; ValueError for an unknown family, or no path at all."""
    if family not in NETWORKS:
        raise ValueError(f"family = {family!r}: it must be one of {', '.join(NETWORKS)}.")
    if family == "linear" and start == "random":
        raise ValueError("start = 'random': it must be 'pca' or 'whitened' with family 'linear'.")
    return Encoder(family, start, norm=norm, **shape), Decoder(family, start, **shape)


@torch.no_grad()
def start_linear(
    encoder: Encoder, decoder: Decoder, images: Float[Tensor, "n 3 H W"], *, whiten: bool
) -> None:
    """Start the linear path at the principal components of the images' patches.

    Latents have unit variance, each channel on its own with `whiten`; otherwise all are scaled by
    the mean of the kept eigenvalues' roots, so that distances stay those of patches. Channels
    beyond the patches' dimension, or without variance, start at zero.
    """
    fold, encode = encoder.linear
    decode = decoder.linear[0]
    patches = rearrange(fold(images), "n p h w -> (n h w) p").double()
    mean = patches.mean(0)
    centered = patches - mean
    values, axes = torch.linalg.eigh(centered.T @ centered / len(patches))
    values, axes = values.flip(0).clamp(min=0), axes.flip(1)  # descending
    kept = min(len(encode.bias), int((values > 1e-9 * values[0]).sum()) if values[0] > 0 else 0)
    values, axes = values[:kept], axes[:, :kept]
    axes = axes * axes.sum(0).sign().where(axes.sum(0) != 0, 1)  # a sign that no library decides
    roots = values.sqrt()
    scale = roots if whiten else roots.mean().expand(kept)
    for parameter in (encode.weight, encode.bias, decode.weight):
        parameter.zero_()
    encode.weight[:kept, :, 0, 0] = (axes / scale).T.float()
    encode.bias[:kept] = -(mean @ (axes / scale)).float()
    decode.weight[:, :kept, 0, 0] = (axes * scale).float()
    decode.bias.copy_(mean.float())


@torch.no_grad()
def fit_linear(
    decoder: Decoder, z_q: Float[Tensor, "n c h w"], images: Float[Tensor, "n 3 H W"]
) -> None:
    """Fit the decoder's linear path to quantized latents of images, by least squares.

    Where a quantizer bounds or scales what it is given (FSQ), this undoes it as far as it can.
    """
    layer, factor = decoder.linear[0], decoder.linear[1].upscale_factor
    inputs = rearrange(z_q, "n c h w -> (n h w) c").double()
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    patches = rearrange(F.pixel_unshuffle(images, factor), "n p h w -> (n h w) p").double()
    gram = inputs.T @ inputs / len(inputs)
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)  # for unused channels
    solved = torch.linalg.solve(gram + ridge, inputs.T @ patches / len(inputs))
    layer.weight.copy_(solved[:-1].T[:, :, None, None])
    layer.bias.copy_(solved[-1])
