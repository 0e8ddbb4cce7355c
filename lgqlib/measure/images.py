"""Metrics of images, of code usage and of feature distributions: one definition each, in float64.

Image metrics take [B, 3, H, W] in [0, 1], round to 8 bits like a saved file, and return one number
an image. Everything streams, so that no value depends on the size of a batch.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PSNR_CAP = 100.0
WINDOW_SIDE, WINDOW_SIGMA = 11, 1.5
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = WINDOW_SIDE * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
CHUNK_VALUES = 2**18  # SSIM holds a dozen maps of this size: they stay in a CPU's cache


# Images


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


class Mean:
    """Average named per-example values over any number of batches: float64 sums, one division."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def update(self, **values: Float[Tensor, " B"]) -> None:
        """Add one value an example under each name."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double().sum().item()
            self.counts[name] = self.counts.get(name, 0) + len(value)

    def compute(self) -> dict[str, float]:
        """Return the mean under each name."""
        return {name: self.sums[name] / self.counts[name] for name in self.sums}


# Codes


class CodeUsage:
    """Count how often each of `num_codes` codes is used, over any number of batches."""

    def __init__(self, num_codes: int):
        if num_codes < 1:
            raise ValueError(f"num_codes is {num_codes}; a codebook has at least one code")
        self.counts = torch.zeros(num_codes, dtype=torch.int64)

    def update(self, indices: Int[Tensor, "*shape"]) -> None:
        """Count the indices of a batch, which must lie in [0, num_codes)."""
        flat = indices.detach().flatten().cpu()
        low, high = flat.aminmax()
        if low < 0 or high >= len(self.counts):
            raise ValueError(
                f"indices run from {low.item()} to {high.item()}; they must lie in"
                f" [0, {len(self.counts)})"
            )
        self.counts += torch.bincount(flat, minlength=len(self.counts))

    def compute(self) -> dict[str, float | int]:
        """Return `code_usage` of all that was counted."""
        return code_usage(self.counts)


def code_usage(counts: Int[Tensor, " K"]) -> dict[str, float | int]:
    """Return how many codes work and how evenly, from the tokens counted on each of K codes.

    Entropies are in bits a token: `entropy` is the plug-in estimate, low by about
    (A - 1) / (2 N ln 2) bits for A active codes and N tokens, which `entropy_miller_madow` adds
    (Miller 1955); `entropy_2` is Renyi's of order two. `perplexity` is 2 ** entropy. `gini` is 0
    for even use and 1 - 1/K for a single code. `top_1_percent` and `top_10_percent` are the shares
    of tokens on the ceil(K/100) and ceil(K/10) most used codes.
    """
    num_tokens, num_codes = int(counts.sum()), len(counts)
    if num_tokens == 0:
        raise ValueError("counts has no token; count at least one before asking for usage")
    ordered = counts.double().cpu().sort().values
    share = ordered / num_tokens
    entropy = 0.0 - torch.special.xlogy(share, share).sum().item() / math.log(2)
    active = int((counts > 0).sum())
    rank = torch.arange(1, num_codes + 1, dtype=torch.float64)
    return {
        "num_codes": num_codes,
        "num_tokens": num_tokens,
        "active": active,
        "active_share": active / num_codes,
        "entropy": entropy,
        "entropy_miller_madow": entropy + (active - 1) / (2 * num_tokens * math.log(2)),
        "entropy_2": 0.0 - math.log2(share.square().sum().item()),
        "perplexity": 2**entropy,
        "perplexity_share": 2**entropy / num_codes,
        "gini": ((2 * rank - num_codes - 1) * share).sum().item() / num_codes,
        "top_1_percent": share[-math.ceil(num_codes / 100) :].sum().item(),
        "top_10_percent": share[-math.ceil(num_codes / 10) :].sum().item(),
    }


# Distributions of features


class FeatureMoments:
    """Accumulate the mean and covariance of feature vectors over any number of batches."""

    def __init__(self, dim: int):
        self.num = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Float[Tensor, "B D"]) -> None:
        """Add a batch by the pairwise formula of Chan et al. (1983), which loses no digits."""
        features = features.detach().double().cpu()
        num, mean = len(features), features.mean(0)
        centered, shift = features - mean, mean - self.mean
        total = self.num + num
        self.scatter += centered.T @ centered + torch.outer(shift, shift) * (self.num * num / total)
        self.mean = self.mean + shift * (num / total)
        self.num = total

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """The unbiased covariance, from at least two vectors."""
        if self.num < 2:
            raise ValueError(f"{self.num} feature vectors have no covariance; give at least 2")
        return self.scatter / (self.num - 1)


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Return |mu_a - mu_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)) (Dowson and Landau 1982).

    Eigenvalues of symmetric matrices in float64, so that singular covariances do no harm. Biased
    upwards by the number of vectors, which must far exceed the dimension: compare at equal numbers.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ b.covariance @ root)
    traces = a.covariance.trace() + b.covariance.trace() - 2 * product.clamp(min=0).sqrt().sum()
    return (traces + (a.mean - b.mean).square().sum()).item()


class KernelDistance(NamedTuple):
    """An unbiased squared distance, which may be negative, and its jackknife standard error."""

    value: float
    standard_error: float


def kernel_distance(
    x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], *, paired: bool = False, block: int = 1024
) -> KernelDistance:
    """Return the unbiased squared MMD with kernel (x.y / D + 1)^3: KID (Binkowski et al. 2018).

    Over all pairs rather than random subsets, so that the value is a function of the features.
    With `paired`, row n of y is the reconstruction of row n of x: the two are not independent, and
    the pairs (n, n) would bias the cross term, so they are left out (the U-statistic of Gretton et
    al. 2012, equation 4, exactly 0 for y = x). At least three rows each.
    """
    n, m = len(x), len(y)
    if min(n, m) < 3 or (paired and n != m):
        raise ValueError(f"x has {n} rows and y {m}; take at least 3, and equally many when paired")
    x, y = x.detach().double().cpu(), y.detach().double().cpu()
    xx, _ = _kernel_sums(x, x, block=block, off_diagonal=True)
    yy, _ = _kernel_sums(y, y, block=block, off_diagonal=True)
    xy, yx = _kernel_sums(x, y, block=block, off_diagonal=paired)
    if paired:
        pull = xx + yy - xy - yx
        value = pull.sum() / (n * (n - 1))
        without = (pull.sum() - 2 * pull) / ((n - 1) * (n - 2))
        return KernelDistance(value.item(), _jackknife_variance(without).sqrt().item())

    within_x, within_y = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1))
    cross = xy.sum()
    without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (cross - xy) / ((n - 1) * m)
    without_y = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (cross - yx) / (n * (m - 1))
    variance = _jackknife_variance(without_x) + _jackknife_variance(without_y)
    return KernelDistance(
        (within_x + within_y - 2 * cross / (n * m)).item(), variance.sqrt().item()
    )


def _kernel_sums(x: Tensor, y: Tensor, *, block: int, off_diagonal: bool) -> tuple[Tensor, Tensor]:
    """Return row and column sums of the kernel matrix, a block of rows at a time."""
    rows, columns = [], torch.zeros(len(y), dtype=torch.float64)
    for start in range(0, len(x), block):
        kernel = (x[start : start + block] @ y.T / x.shape[1] + 1) ** 3
        if off_diagonal:
            kernel.diagonal(start).zero_()
        rows.append(kernel.sum(1))
        columns += kernel.sum(0)
    return torch.cat(rows), columns


def _jackknife_variance(values: Tensor) -> Tensor:
    """Return the variance of a statistic from its values with one example left out."""
    return (len(values) - 1) / len(values) * (values - values.mean()).square().sum()
