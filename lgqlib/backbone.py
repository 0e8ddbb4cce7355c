"""Encoder and decoder: `patch` for a laptop, `vqgan` as in the paper.

Both map images [B, 3, S, S] in [-1, 1] to latents [B, C, S/f, S/f] and back, f the downsampling
factor.
"""

import math

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def _groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 32), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Apply (GroupNorm, SiLU, 3x3 convolution) twice around a skip connection."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1, self.conv1 = _groups(in_channels), nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        self.norm2 = _groups(out_channels)
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
    """Normalize latents before the quantizer: over channels of each token, over the whole map,
    both, or not.

    Without it the scale of latents and codes drifts, and latents collapse to a few dimensions.
    """

    def __init__(self, kind: str, channels: int):
        super().__init__()
        self.group = nn.GroupNorm(1, channels) if "group" in kind else nn.Identity()
        self.layer = nn.LayerNorm(channels) if "layer" in kind else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = rearrange(self.group(x), "b c h w -> b h w c")
        return rearrange(self.layer(x), "b h w c -> b c h w")


class PatchEncoder(nn.Module):
    """Fold each f x f patch into channels, then work at the latent resolution, where the tokens
    are.
    """

    def __init__(self, *, downsample: int, width: int, depth: int, dim: int, norm: str):
        super().__init__()
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(downsample), nn.Conv2d(3 * downsample**2, width, 1)
        )
        self.blocks = nn.Sequential(*[ResidualBlock(width, width) for _ in range(depth)])
        self.head = nn.Sequential(_groups(width), nn.SiLU(), nn.Conv2d(width, dim, 1))
        self.norm = LatentNorm(norm, dim)

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> Float[Tensor, "b c h w"]:
        return self.norm(self.head(self.blocks(self.stem(images))))


class PatchDecoder(nn.Module):
    """Undo `PatchEncoder`: work at the latent resolution, then unfold channels into patches."""

    def __init__(self, *, downsample: int, width: int, depth: int, dim: int):
        super().__init__()
        self.stem = nn.Conv2d(dim, width, 3, 1, 1)
        self.blocks = nn.Sequential(*[ResidualBlock(width, width) for _ in range(depth)])
        self.norm = _groups(width)
        self.last = nn.Conv2d(width, 3 * downsample**2, 1)
        self.shuffle = nn.PixelShuffle(downsample)

    def forward(self, z_q: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 S S"]:
        return self.shuffle(self.last(F.silu(self.norm(self.blocks(self.stem(z_q))))))


def _multipliers(downsample: int) -> list[int]:
    """Widths of the stages, in units of the first: 1, 1, 2, 2, 4 for a factor of 16, as VQGAN has
    them.
    """
    num_stages = int(math.log2(downsample)) + 1
    return [min(2 ** (stage // 2), 4) for stage in range(num_stages)]


class VQGANEncoder(nn.Module):
    """Halve the side stage by stage; attention at the lowest resolution (Esser et al. 2021)."""

    def __init__(self, *, downsample: int, width: int, depth: int, dim: int, norm: str):
        super().__init__()
        channels = [width * m for m in _multipliers(downsample)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, 1, 1)]
        last = channels[0]
        for stage, out in enumerate(channels):
            if stage > 0:
                layers.append(nn.Conv2d(last, last, 3, 2, 1))
            for _ in range(depth):
                layers.append(ResidualBlock(last, out))
                last = out
        layers += [ResidualBlock(last, last), Attention(last), ResidualBlock(last, last)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(_groups(last), nn.SiLU(), nn.Conv2d(last, dim, 3, 1, 1))
        self.norm = LatentNorm(norm, dim)

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> Float[Tensor, "b c h w"]:
        return self.norm(self.head(self.layers(images)))


class VQGANDecoder(nn.Module):
    """Mirror `VQGANEncoder`: double the side stage by stage, nearest neighbor, a convolution."""

    def __init__(self, *, downsample: int, width: int, depth: int, dim: int):
        super().__init__()
        channels = [width * m for m in reversed(_multipliers(downsample))]
        last = channels[0]
        layers: list[nn.Module] = [nn.Conv2d(dim, last, 3, 1, 1)]
        layers += [ResidualBlock(last, last), Attention(last), ResidualBlock(last, last)]
        for stage, out in enumerate(channels):
            if stage > 0:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(last, last, 3, 1, 1)]
            for _ in range(depth):
                layers.append(ResidualBlock(last, out))
                last = out
        self.layers, self.norm = nn.Sequential(*layers), _groups(last)
        self.last = nn.Conv2d(last, 3, 3, 1, 1)

    def forward(self, z_q: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 S S"]:
        return self.last(F.silu(self.norm(self.layers(z_q))))


FAMILIES = {"patch": (PatchEncoder, PatchDecoder), "vqgan": (VQGANEncoder, VQGANDecoder)}


def build_backbone(
    family: str, *, downsample: int, width: int, depth: int, dim: int, norm: str
) -> tuple[nn.Module, nn.Module]:
    """Build encoder and decoder; `decoder.last` is the layer whose gradient the adaptive weight
    compares.

    Raises ValueError for an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family = {family!r}: it must be one of {', '.join(FAMILIES)}.")
    encoder, decoder = FAMILIES[family]
    shape = dict(downsample=downsample, width=width, depth=depth, dim=dim)
    return encoder(**shape, norm=norm), decoder(**shape)


def count_parameters(module: nn.Module) -> int:
    """Count trainable numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
