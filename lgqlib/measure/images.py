"""Metrics of images, one definition each, in float64.

[B, 3, H, W] in [0, 1], rounded to 8 bits like a saved file: a number an image, whatever the batch.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

PSNR_CAP = 100.0
WINDOW_SIDE, WINDOW_SIGMA = 11, 1.5
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = WINDOW_SIDE * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
CHUNK_VALUES = 2**18  # SSIM holds a dozen maps of this size: they stay in a CPU's cache
Images, Each = Float[Tensor, "B 3 H W"], Float[Tensor, " B"]


def quantize_8bit(images: Float[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """Clamp images to [0, 1] and round them to multiples of 1/255, in float64."""
    return (images.double().clamp(0, 1) * 255).round() / 255


def l1(x: Images, y: Images) -> Each:
    """Return the mean absolute difference of each pair of images."""
    return (quantize_8bit(x) - quantize_8bit(y)).abs().mean((1, 2, 3))


def psnr(x: Images, y: Images) -> Each:
    """Return 10 log10(1 / MSE) of each pair in dB; equal images, or any above 100 dB, count 100."""
    mse = (quantize_8bit(x) - quantize_8bit(y)).square().mean((1, 2, 3))
    return (-10 * mse.log10()).clamp(max=PSNR_CAP)


def psnr_bytes(x: UInt8[np.ndarray, "H W 3"], y: UInt8[np.ndarray, "H W 3"]) -> float:
    """Return the same of two pictures as files have them."""
    mse = float(np.square((x.astype(float) - y) / 255).mean())
    return min(-10 * math.log10(max(mse, 1e-12)), PSNR_CAP)


def ssim(x: Images, y: Images) -> Each:
    """Return the structural similarity of each pair (Wang et al. 2004); sides of 11 pixels or more.

    Gaussian window of sigma 1.5, population covariance, no padding, mean over channels.
    """
    return _similarity_and_contrast(quantize_8bit(x), quantize_8bit(y))[0]


def ms_ssim(x: Images, y: Images) -> Each:
    """Return the five-scale structural similarity of each pair (Wang et al. 2003)."""
    _require_side(x, "MS-SSIM", MS_SSIM_SIDE)
    x, y = quantize_8bit(x), quantize_8bit(y)
    product = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS, start=1):
        similarity, contrast = _similarity_and_contrast(x, y)
        factor = similarity if scale == len(MS_SSIM_WEIGHTS) else contrast
        product = product * factor.clamp(min=0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def _require_side(x: Tensor, name: str, least: int) -> None:
    height, width = x.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"images are {height} x {width}; {name} needs {least} pixels a side")


def _similarity_and_contrast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM and its contrast-structure factor, each [B], a few images at a time."""
    _require_side(x, "SSIM", WINDOW_SIDE)
    few = max(1, CHUNK_VALUES // x[0].numel())
    parts = [_ssim_factors(a, b) for a, b in zip(x.split(few), y.split(few), strict=True)]
    similarity, contrast = zip(*parts, strict=True)
    return torch.cat(similarity), torch.cat(contrast)


def _ssim_factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y, xx, yy, xy = (_smooth(z) for z in (x, y, x * x, y * y, x * y))
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    contrast = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast).mean((1, 2, 3)), contrast.mean((1, 2, 3))


def _smooth(x: Tensor) -> Tensor:
    """Average with the Gaussian window where it lies inside: 10 pixels less a side."""
    offsets = torch.arange(WINDOW_SIDE, dtype=torch.float64) - WINDOW_SIDE // 2
    window = torch.softmax(-0.5 * (offsets / WINDOW_SIGMA) ** 2, 0).tolist()
    for axis in (-2, -1):
        size = x.shape[axis] - WINDOW_SIDE + 1
        total = x.narrow(axis, 0, size) * window[0]
        for shift, weight in enumerate(window[1:], start=1):
            total.add_(x.narrow(axis, shift, size), alpha=weight)
        x = total
    return x


def octave_errors(x: Images, y: Images) -> Float[Tensor, "B 4"]:
    """Return the mean squared error in four octaves of spatial frequency; they add up to the whole.

    The finest first: above 1/4 cycle a pixel, 1/8 to 1/4, 1/16 to 1/8, and coarser (Parseval).
    """
    error = quantize_8bit(x) - quantize_8bit(y)
    height, width = error.shape[-2:]
    power = torch.fft.fft2(error, norm="ortho").abs().square().mean(1)  # (B, H, W)
    fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    radius = torch.hypot(fy[:, None], fx[None]).to(power.device)
    above, parts = torch.zeros_like(radius, dtype=torch.bool), []
    for bound in (1 / 4, 1 / 8, 1 / 16, -1.0):
        inside = (radius > bound) & ~above
        parts.append((power * inside).sum((1, 2)) / (height * width))
        above |= inside
    return torch.stack(parts, 1)


def edge_errors(original: Images, y: Images, *, share: float = 0.2) -> Float[Tensor, "B 2"]:
    """Return the mean squared error at edges, the `share` of steepest pixels, and elsewhere."""
    gray = F.pad(quantize_8bit(original).mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]], dtype=gray.dtype)
    kernels = torch.stack([sobel, sobel.T])[:, None].to(gray.device)
    slope = F.conv2d(gray, kernels).square().sum(1).flatten(1)  # (B, H W)
    error = (quantize_8bit(original) - quantize_8bit(y)).square().mean(1).flatten(1)
    count = max(1, round(share * slope.shape[1]))
    edge = torch.zeros_like(slope).scatter_(1, slope.topk(count, 1).indices, 1.0)
    flat = 1 - edge
    return torch.stack([(error * m).sum(1) / m.sum(1).clamp(min=1) for m in (edge, flat)], 1)
