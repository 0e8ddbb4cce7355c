"""Metrics of images, one definition each, in float64.

They take [B, 3, H, W] in [0, 1], round to 8 bits like a saved file, and return one number an image:
no value depends on the size of a batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PSNR_CAP = 100.0
WINDOW_SIDE, WINDOW_SIGMA = 11, 1.5
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = WINDOW_SIDE * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
CHUNK_VALUES = 2**18  # SSIM holds a dozen maps of this size: they stay in a CPU's cache


def quantize_8bit(images: Float[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """Clamp images to [0, 1] and round them to multiples of 1/255, in float64."""
    return (images.double().clamp(0, 1) * 255).round() / 255


def l1(x: Float[Tensor, "B 3 H W"], y: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the mean absolute difference of each pair of images."""
    return (quantize_8bit(x) - quantize_8bit(y)).abs().mean((1, 2, 3))


def psnr(x: Float[Tensor, "B 3 H W"], y: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return 10 log10(1 / MSE) of each pair in dB; equal images, or any above 100 dB, count 100."""
    mse = (quantize_8bit(x) - quantize_8bit(y)).square().mean((1, 2, 3))
    return (-10 * mse.log10()).clamp(max=PSNR_CAP)


def ssim(x: Float[Tensor, "B 3 H W"], y: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the structural similarity of each pair (Wang et al. 2004).

    Gaussian window of 11 pixels with sigma 1.5, population covariance, mean over channels and over
    the positions where the window lies inside the image: no padding. Sides of 11 pixels or more.
    """
    similarity, _ = _similarity_and_contrast(quantize_8bit(x), quantize_8bit(y))
    return similarity


def ms_ssim(x: Float[Tensor, "B 3 H W"], y: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the five-scale structural similarity of each pair (Wang et al. 2003).

    Negative contrasts count as zero. Sides must be at least 176 pixels, so that the window fits the
    coarsest scale; `MS_SSIM_SIDE` is that bound.
    """
    if min(x.shape[-2:]) < MS_SSIM_SIDE:
        raise ValueError(
            f"images are {x.shape[-2]} x {x.shape[-1]}; MS-SSIM needs {MS_SSIM_SIDE} pixels a side"
        )
    x, y = quantize_8bit(x), quantize_8bit(y)
    product = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS, start=1):
        similarity, contrast = _similarity_and_contrast(x, y)
        factor = similarity if scale == len(MS_SSIM_WEIGHTS) else contrast
        product = product * factor.clamp(min=0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def _similarity_and_contrast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return SSIM and its contrast-structure factor, each [B], a few images at a time."""
    if min(x.shape[-2:]) < WINDOW_SIDE:
        raise ValueError(
            f"images are {x.shape[-2]} x {x.shape[-1]}; SSIM needs {WINDOW_SIDE} pixels a side"
        )
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
