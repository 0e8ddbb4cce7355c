"""Every metric against an independent implementation, and none depends on the batches."""

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.stats
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lgqlib.measure import images as metrics


def image_pair(num, height, width, *, noise=0.1):
    generator = torch.Generator().manual_seed(num + height)
    smooth = torch.rand(num, 3, height // 4 + 1, width // 4 + 1, generator=generator)
    x = nn.functional.interpolate(smooth, (height, width), mode="bilinear")
    scales = torch.linspace(0.2, 1, num)[:, None, None, None] * noise
    y = x + scales * torch.randn(x.shape, generator=generator)
    return metrics.quantize_8bit(x), metrics.quantize_8bit(y)


def hwc(image):
    return image.permute(1, 2, 0).numpy()


def features(num, dim, *, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5
    return torch.randn(num, dim, generator=generator) @ mixing + shift


def moments(x, batch=7):
    result = metrics.FeatureMoments(x.shape[1])
    for part in x.split(batch):
        result.update(part)
    return result


class Flatten(nn.Module):
    """Stands in for Inception in torchmetrics: the image is the feature vector."""

    def forward(self, images):
        return images.flatten(1)


def as_images(x):
    return x[:, :, None, None]


# Images


def test_rounding_is_that_of_a_saved_file():
    images = torch.linspace(-0.2, 1.2, 3 * 40).reshape(1, 3, 8, 5)
    saved = np.rint(np.clip(images.double().numpy(), 0, 1) * 255).astype(np.uint8)
    rounded = metrics.quantize_8bit(images)
    assert rounded.dtype == torch.float64
    assert np.array_equal((rounded * 255).round().numpy(), saved)
    assert torch.equal(metrics.quantize_8bit(rounded), rounded)


def test_image_metrics_round_to_8_bits_before_they_compare():
    x, y = image_pair(3, 24, 24)
    nudge = 0.4 / 255
    for metric in (metrics.l1, metrics.psnr, metrics.ssim):
        assert torch.equal(metric(x, y), metric(x + nudge, y - nudge))


def test_l1_is_the_mean_absolute_difference():
    x, y = image_pair(4, 16, 20)
    assert np.allclose(metrics.l1(x, y), np.abs(x.numpy() - y.numpy()).mean((1, 2, 3)), atol=1e-15)


def test_psnr_equals_scikit_image_for_each_image():
    x, y = image_pair(4, 16, 20)
    expected = [
        peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1)
        for a, b in zip(x, y, strict=True)
    ]
    assert np.allclose(metrics.psnr(x, y), expected, rtol=1e-12)
    pooled = -10 * (x - y).square().mean().log10()
    assert abs(np.mean(expected) - pooled) > 0.5  # of the batch's error it would be another number


def test_psnr_of_equal_images_is_the_cap():
    x, _ = image_pair(2, 16, 16)
    assert metrics.psnr(x, x).tolist() == [metrics.PSNR_CAP] * 2
    one_step = x.clone()
    one_step[:, 0, 0, 0] = (x[:, 0, 0, 0] - 1 / 255).abs()
    assert (metrics.psnr(x, one_step) < metrics.PSNR_CAP).all()


def scikit_ssim(x, y):
    return structural_similarity(
        hwc(x),
        hwc(y),
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def scipy_contrast(x, y):
    """The contrast-structure factor of SSIM, by two-dimensional convolution."""
    line = scipy.signal.windows.gaussian(11, 1.5)
    window = np.outer(line, line) / line.sum() ** 2

    def smooth(z):
        return np.stack([scipy.signal.convolve2d(channel, window, "valid") for channel in z])

    x, y = x.numpy(), y.numpy()
    covariance = smooth(x * y) - smooth(x) * smooth(y)
    variances = smooth(x * x) - smooth(x) ** 2 + smooth(y * y) - smooth(y) ** 2
    return ((2 * covariance + 0.0009) / (variances + 0.0009)).mean()


@pytest.mark.parametrize("height,width", [(32, 32), (11, 30), (64, 48)])
def test_ssim_equals_scikit_image(height, width):
    x, y = image_pair(3, height, width)
    expected = [scikit_ssim(a, b) for a, b in zip(x, y, strict=True)]
    assert np.allclose(metrics.ssim(x, y), expected, rtol=1e-10)


def test_ssim_of_many_images_is_that_of_few_at_a_time(monkeypatch):
    x, y = image_pair(7, 24, 24)
    whole = metrics.ssim(x, y)
    monkeypatch.setattr(metrics, "CHUNK_VALUES", 2 * x[0].numel())
    assert torch.equal(metrics.ssim(x, y), whole)


def test_ms_ssim_is_the_product_over_scales():
    x, y = image_pair(2, 180, 176, noise=0.5)
    for a, b in zip(x, y, strict=True):
        expected, u, v = 1.0, a, b
        for weight in (0.0448, 0.2856, 0.3001, 0.2363):
            expected *= scipy_contrast(u, v) ** weight
            u, v = (nn.functional.avg_pool2d(z, 2) for z in (u, v))
        expected *= scikit_ssim(u, v) ** 0.1333
        assert metrics.ms_ssim(a[None], b[None]).item() == pytest.approx(expected, rel=1e-9)


def test_ms_ssim_differs_from_torchmetrics_only_at_the_border():
    # torchmetrics pads the coarsest scale by reflection, and crops the others as we do.
    x, y = image_pair(3, 180, 176, noise=0.5)
    theirs = multiscale_structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
    assert np.allclose(metrics.ms_ssim(x, y), theirs, atol=3e-3)


def test_similarity_refuses_images_smaller_than_its_window():
    small, _ = image_pair(1, 10, 32)
    with pytest.raises(ValueError, match=r"10 x 32.* 11 pixels"):
        metrics.ssim(small, small)
    medium, _ = image_pair(1, 175, 200)
    with pytest.raises(ValueError, match=r"175 x 200.* 176 pixels"):
        metrics.ms_ssim(medium, medium)


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_means_do_not_depend_on_the_batches(batch):
    x, y = image_pair(16, 24, 24)
    mean = metrics.Mean()
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        mean.update(psnr=metrics.psnr(a, b), ssim=metrics.ssim(a, b))
    expected = {"psnr": metrics.psnr(x, y).mean(), "ssim": metrics.ssim(x, y).mean()}
    assert mean.compute() == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-13)


# Codes


def counted(indices, num_codes, batch=1000):
    usage = metrics.CodeUsage(num_codes)
    for part in indices.split(batch):
        usage.update(part)
    return usage.compute()


def test_usage_equals_scipy_and_direct_formulas():
    share = np.random.default_rng(0).dirichlet(np.full(250, 0.3))
    indices = torch.from_numpy(np.random.default_rng(1).choice(250, size=5000, p=share))
    usage = counted(indices, 250)
    counts = np.bincount(indices.numpy(), minlength=250)

    assert usage["num_tokens"] == 5000 and usage["num_codes"] == 250
    assert usage["active"] == np.count_nonzero(counts) < 250
    assert usage["entropy"] == pytest.approx(scipy.stats.entropy(counts, base=2), rel=1e-12)
    assert usage["entropy_2"] == pytest.approx(-np.log2(((counts / 5000) ** 2).sum()), rel=1e-12)
    assert usage["perplexity"] == pytest.approx(np.exp(scipy.stats.entropy(counts)), rel=1e-12)
    assert usage["perplexity_share"] == pytest.approx(usage["perplexity"] / 250)
    gini = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert usage["gini"] == pytest.approx(gini, rel=1e-12)
    largest = np.sort(counts)[::-1] / 5000
    assert usage["top_1_percent"] == pytest.approx(largest[:3].sum(), rel=1e-12)
    assert usage["top_10_percent"] == pytest.approx(largest[:25].sum(), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 400])
def test_usage_does_not_depend_on_the_batches(batch):
    indices = torch.randint(0, 30, (400,), generator=torch.Generator().manual_seed(0)) ** 2 // 30
    assert counted(indices, 30, batch) == counted(indices, 30)


def test_usage_of_even_and_of_collapsed_codebooks():
    even = metrics.code_usage(torch.full((64,), 5))
    assert (even["entropy"], even["perplexity"], even["gini"]) == pytest.approx((6, 64, 0))
    one = metrics.code_usage(torch.tensor([0, 9, 0, 0]))
    assert (one["entropy"], one["entropy_2"], one["gini"]) == (0, 0, 0.75)
    assert (one["active"], one["perplexity"], one["top_1_percent"]) == (1, 1, 1)


def test_miller_madow_takes_most_of_the_bias_away():
    share = np.random.default_rng(0).dirichlet(np.ones(50))
    truth = scipy.stats.entropy(share, base=2)
    draws = np.random.default_rng(1).multinomial(200, share, size=200)
    usages = [metrics.code_usage(torch.from_numpy(counts)) for counts in draws]
    bias = np.mean([u["entropy"] for u in usages]) - truth
    corrected = np.mean([u["entropy_miller_madow"] for u in usages]) - truth
    assert bias < -0.1
    assert abs(corrected) < abs(bias) / 3


def test_usage_refuses_indices_outside_the_codebook():
    with pytest.raises(ValueError, match="from 0 to 8; they must lie in \\[0, 8\\)"):
        metrics.CodeUsage(8).update(torch.tensor([0, 8]))
    with pytest.raises(ValueError, match="from -1"):
        metrics.CodeUsage(8).update(torch.tensor([-1, 3]))
    with pytest.raises(ValueError, match="no token"):
        metrics.CodeUsage(8).compute()


# Distributions of features


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_moments_equal_numpy_for_any_batches_even_far_from_zero(batch):
    x = features(60, 5, seed=0).double() + 1e6
    result = moments(x, batch)
    assert result.num == 60
    assert np.allclose(result.mean, x.mean(0), rtol=1e-15)
    assert np.allclose(result.covariance, np.cov((x - 1e6).numpy().T), rtol=1e-7)


def test_frechet_distance_equals_the_formula_with_sqrtm():
    x, y = features(200, 12, seed=0), features(150, 12, seed=1, shift=0.3)
    a, b = np.cov(x.double().numpy().T), np.cov(y.double().numpy().T)
    shift = (x.double().mean(0) - y.double().mean(0)).numpy()
    expected = shift @ shift + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert metrics.frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_equals_torchmetrics():
    x, y = features(80, 12, seed=0), features(80, 12, seed=1, shift=0.3)
    reference = FrechetInceptionDistance(Flatten(), input_img_size=(12, 1, 1), normalize=True)
    reference.set_dtype(torch.float64)
    reference.update(as_images(x), real=True)
    reference.update(as_images(y), real=False)
    expected = reference.compute().item()
    assert metrics.frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_singular_covariances():
    x, y = features(10, 40, seed=0).double(), features(10, 40, seed=1).double()
    # tr (A^(1/2) B A^(1/2))^(1/2) is the nuclear norm of X Y' for A = X'X and B = Y'Y.
    p, q = (x - x.mean(0)) / 3, (y - y.mean(0)) / 3
    nuclear = np.linalg.svd((p @ q.T).numpy(), compute_uv=False).sum()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    expected = (shift + p.square().sum() + q.square().sum()).item() - 2 * nuclear
    assert metrics.frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-5)


def kernel_loop(x, y, *, paired):
    """KID as its definition reads, one pair after another."""

    def kernel(u, v):
        return (float(u @ v) / len(u) + 1) ** 3

    def mean(u, v, *, off_diagonal):
        values = [
            kernel(a, b)
            for i, a in enumerate(u)
            for j, b in enumerate(v)
            if not (off_diagonal and i == j)
        ]
        return sum(values) / len(values)

    x, y = x.double(), y.double()
    cross = mean(x, y, off_diagonal=paired)
    return mean(x, x, off_diagonal=True) + mean(y, y, off_diagonal=True) - 2 * cross


def leave_one_out(x, y, *, paired):
    def spread(values):
        values = np.asarray(values)
        return (len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()

    def drop(z, i):
        return torch.cat([z[:i], z[i + 1 :]])

    if paired:
        return (
            spread([kernel_loop(drop(x, i), drop(y, i), paired=True) for i in range(len(x))]) ** 0.5
        )
    by_x = spread([kernel_loop(drop(x, i), y, paired=False) for i in range(len(x))])
    by_y = spread([kernel_loop(x, drop(y, i), paired=False) for i in range(len(y))])
    return (by_x + by_y) ** 0.5


@pytest.mark.parametrize("paired,num_y", [(False, 8), (False, 11), (True, 8)])
@pytest.mark.parametrize("block", [1, 3, 1024])
def test_kernel_distance_equals_the_double_loop_and_the_explicit_jackknife(paired, num_y, block):
    x, y = features(8, 6, seed=0), features(num_y, 6, seed=1, shift=0.5)
    result = metrics.kernel_distance(x, y, paired=paired, block=block)
    assert result.value == pytest.approx(kernel_loop(x, y, paired=paired), rel=1e-10)
    assert result.standard_error == pytest.approx(leave_one_out(x, y, paired=paired), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_torchmetrics():
    x, y = features(40, 12, seed=0), features(40, 12, seed=1, shift=0.3)
    reference = KernelInceptionDistance(Flatten(), subsets=1, subset_size=40, normalize=True)
    reference.update(as_images(x), real=True)
    reference.update(as_images(y), real=False)
    expected = reference.compute()[0].item()
    assert metrics.kernel_distance(x, y).value == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_is_unbiased_and_its_standard_error_honest():
    generator = torch.Generator().manual_seed(0)
    pairs = (torch.randn(2, 30, 4, generator=generator) for _ in range(400))
    draws = [metrics.kernel_distance(x, y + 0.5) for x, y in pairs]
    values = np.array([d.value for d in draws])
    x, y = torch.randn(2, 4000, 4, generator=generator)
    truth = metrics.kernel_distance(x, y + 0.5).value
    assert abs(values.mean() - truth) < 4 * values.std() / len(values) ** 0.5 + 0.02 * truth
    errors = np.array([d.standard_error for d in draws])
    assert (errors**2).mean() ** 0.5 == pytest.approx(values.std(), rel=0.25)


def test_pairs_of_an_image_and_its_reconstruction_do_not_bias_the_kernel_distance():
    x = features(20, 6, seed=0)
    assert metrics.kernel_distance(x, x, paired=True) == pytest.approx((0, 0), abs=1e-12)
    assert metrics.kernel_distance(x, x, paired=False).value < -0.1


def test_kernel_distance_refuses_too_few_or_unpaired_rows():
    x = features(5, 3, seed=0)
    with pytest.raises(ValueError, match="x has 5 rows and y 2"):
        metrics.kernel_distance(x, x[:2])
    with pytest.raises(ValueError, match="equally many when paired"):
        metrics.kernel_distance(x, x[:4], paired=True)
