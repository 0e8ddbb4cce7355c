"""Metrics of images against scikit-image and scipy; none depends on the batches."""

import numpy as np
import pytest
import scipy.signal
import torch
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from lgqlib.measure import images as metrics
from lgqlib.measure.codecs import CODECS, QUALITIES, at_rate, coded, curve
from lgqlib.measure.images import psnr


def image_pair(num, height, width, *, noise=0.1):
    generator = torch.Generator().manual_seed(num + height)
    smooth = torch.rand(num, 3, height // 4 + 1, width // 4 + 1, generator=generator)
    x = nn.functional.interpolate(smooth, (height, width), mode="bilinear")
    scales = torch.linspace(0.2, 1, num)[:, None, None, None] * noise
    y = x + scales * torch.randn(x.shape, generator=generator)
    return metrics.quantize_8bit(x), metrics.quantize_8bit(y)


def scikit_ssim(x, y):
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    x, y = (z.permute(1, 2, 0).numpy() for z in (x, y))
    return structural_similarity(x, y, data_range=1, channel_axis=-1, **options)


def test_rounding_is_that_of_a_saved_file():
    images = torch.linspace(-0.2, 1.2, 3 * 40).reshape(1, 3, 8, 5)
    saved = np.rint(np.clip(images.double().numpy(), 0, 1) * 255).astype(np.uint8)
    rounded = metrics.quantize_8bit(images)
    assert np.array_equal((rounded * 255).round().numpy(), saved)
    x, y = image_pair(3, 24, 24)
    for metric in (metrics.l1, metrics.psnr, metrics.ssim):
        assert torch.equal(metric(x, y), metric(x + 0.4 / 255, y - 0.4 / 255))
        assert torch.equal(metric(x, y - 9), metric(x, 0 * y)), "clamped"


def test_l1_and_psnr_are_those_of_each_image():
    x, y = image_pair(4, 16, 20)
    assert np.allclose(metrics.l1(x, y), np.abs(x.numpy() - y.numpy()).mean((1, 2, 3)), atol=1e-15)
    pairs = zip(x.numpy(), y.numpy(), strict=True)
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]
    assert np.allclose(metrics.psnr(x, y), expected, rtol=1e-12)
    assert metrics.psnr(x, x).tolist() == [metrics.PSNR_CAP] * 4


@pytest.mark.parametrize("height, width", [(32, 32), (11, 30), (64, 48)])
def test_ssim_equals_scikit_image(height, width, monkeypatch):
    x, y = image_pair(7, height, width)
    expected = [scikit_ssim(a, b) for a, b in zip(x, y, strict=True)]
    whole = metrics.ssim(x, y)
    assert np.allclose(whole, expected, rtol=1e-10)
    monkeypatch.setattr(metrics, "CHUNK_VALUES", 2 * x[0].numel())
    assert torch.equal(metrics.ssim(x, y), whole)
    for metric, sides, least in ((metrics.ssim, (10, 32), 11), (metrics.ms_ssim, (175, 200), 176)):
        with pytest.raises(ValueError, match=f"{sides[0]} x {sides[1]}.* {least} pixels"):
            metric(*image_pair(1, *sides))


def test_ms_ssim_is_the_product_over_scales():
    window = np.outer(*2 * [scipy.signal.windows.gaussian(11, 1.5)])

    def smooth(z):
        return np.stack([scipy.signal.convolve2d(c, window / window.sum(), "valid") for c in z])

    def contrast(x, y):
        covariance = smooth(x * y) - smooth(x) * smooth(y)
        variances = smooth(x * x) - smooth(x) ** 2 + smooth(y * y) - smooth(y) ** 2
        return ((2 * covariance + 0.0009) / (variances + 0.0009)).mean()

    x, y = image_pair(2, 180, 176, noise=0.5)
    for a, b in zip(x, y, strict=True):
        expected, u, v = 1.0, a, b
        for weight in (0.0448, 0.2856, 0.3001, 0.2363):
            expected *= contrast(u.numpy(), v.numpy()) ** weight
            u, v = (nn.functional.avg_pool2d(z, 2) for z in (u, v))
        expected *= scikit_ssim(u, v) ** 0.1333
        assert metrics.ms_ssim(a[None], b[None]).item() == pytest.approx(expected, rel=1e-9)


IMAGE = np.ascontiguousarray(astronaut()[64:192, 128:288])


@pytest.mark.parametrize("codec", CODECS)
def test_a_curve_rises_and_the_best_file_of_a_rate_is_found(codec):
    points = curve(IMAGE, codec)
    assert points.shape == (len(QUALITIES), 2)
    more_bits, better = np.diff(points, axis=0).T
    assert (better > 0).all() and (more_bits >= 0).all()
    bits, decoded = coded(IMAGE, codec, QUALITIES[5])
    x, y = (torch.from_numpy(z).permute(2, 0, 1)[None] / 255 for z in (decoded, IMAGE))
    assert points[5] == pytest.approx([bits, psnr(x, y).item()], rel=1e-6)
    sizes = [coded(IMAGE, codec, quality)[0] for quality in range(1, 96)]
    for rate in (points[8, 0] + 1e-9, 1.0):
        assert at_rate(IMAGE, codec, rate)[0] == max(size for size in sizes if size <= rate)


def test_octaves_share_the_error_by_the_period_of_its_waves():
    x = torch.full((1, 3, 48, 96), 0.5)
    column = torch.arange(96.0)
    for i, period in enumerate((3, 6, 12, 48)):
        wave = x + 0.2 * torch.sin(2 * torch.pi * column / period)
        found = metrics.octave_errors(x, wave)[0]
        assert found[i] > 0.99 * found.sum()
        square = (metrics.quantize_8bit(x) - metrics.quantize_8bit(wave)).square().mean()
        torch.testing.assert_close(found.sum(), square)


def test_errors_at_edges_and_in_flat_regions_are_told_apart():
    x = torch.zeros(2, 3, 20, 20)
    x[..., 10:] = 1  # the edge is two columns of twenty: a tenth of the pixels
    y = x.clone()
    y[0, :, :, 9:11] = 0.5
    y[1, :, :, :4] = 0.5
    found = metrics.edge_errors(x, y, share=0.1)
    near, far = 0.25, 0.25 * 4 / 18
    assert found.numpy() == pytest.approx(np.array([[near, 0], [0, far]]), abs=2e-3)
