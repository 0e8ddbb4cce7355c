"""The linear path is principal components at the start, and back the best linear map."""

import pytest
import torch
from einops import rearrange

from lgqlib.backbone import build_backbone, fit_linear, start_linear

F = 4


def images(n=16, height=16, width=32, seed=0):
    """Smooth color images with a little noise: spectra like a photograph's."""
    make = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, height // 4, width // 4, generator=make)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return 2 * smooth - 1 + 0.05 * torch.randn(n, 3, height, width, generator=make)


def patches(x):
    return rearrange(x, "n c (h i) (w j) -> (n h w) (c i j)", i=F, j=F).double()


def built(family="patch", start="pca", dim=5, norm="none", downsample=F):
    torch.manual_seed(0)
    shape = dict(downsample=downsample, width=8, depth=1, dim=dim)
    return build_backbone(family, start, norm=norm, **shape)


def principal(x, dim):
    """Give patches as their first principal components have them."""
    p = patches(x)
    _, _, axes = torch.linalg.svd(p - p.mean(0), full_matrices=False)
    return p.mean(0) + (p - p.mean(0)) @ axes[:dim].T @ axes[:dim]


@pytest.mark.parametrize("family", ["linear", "patch", "vqgan"])
@pytest.mark.parametrize("whiten", [False, True])
def test_at_the_start_the_decoder_of_the_encoder_is_the_principal_components(family, whiten):
    (encoder, decoder), again = (built(family, "whitened" if whiten else "pca") for _ in range(2))
    x = images()
    for pair in ((encoder, decoder), again):
        start_linear(*pair, x, whiten=whiten)
    z = encoder(x)
    assert torch.equal(z, again[0](x))
    torch.testing.assert_close(patches(decoder(z)), principal(x, 5), atol=1e-4, rtol=0)
    deviations = z.std((0, 2, 3), correction=0)
    if whiten:
        torch.testing.assert_close(deviations, torch.ones(5), atol=1e-3, rtol=0)
    else:  # distances stay those of patches, in units of the mean of the roots
        p, scale = principal(x, 5)[:50], patches(x).T.cov(correction=0)
        scale = torch.linalg.eigvalsh(scale).flip(0)[:5].sqrt().mean()
        flat = rearrange(z, "n c h w -> (n h w) c")[:50].double()
        apart = torch.cdist(p, p) / scale
        torch.testing.assert_close(torch.cdist(flat, flat), apart, atol=1e-3, rtol=0)


def test_the_linear_path_back_is_the_least_squares_optimum():
    encoder, decoder = built("linear")
    x, z = images(), torch.randn(16, 5, 4, 8)
    z[:, 0] = 3 + rearrange(patches(x).mean(1).float(), "(n h w) -> n h w", n=16, h=4)
    start_linear(encoder, decoder, x, whiten=False)
    fit_linear(decoder, z, x)
    inputs = rearrange(z, "n c h w -> (n h w) c").double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    best = inputs @ torch.linalg.lstsq(inputs, patches(x)).solution
    torch.testing.assert_close(patches(decoder(z)), best, atol=1e-3, rtol=0)  # for its ridge


@pytest.mark.parametrize("family, start", [("patch", "pca"), ("vqgan", "random")])
@pytest.mark.parametrize("norm", ["layer", "group", "group+layer", "none"])
def test_backbones_fold_by_their_factor_and_back(family, start, norm):
    encoder, decoder = built(family, start, dim=6, norm=norm, downsample=8)
    z = encoder(images(2))
    assert z.shape == (2, 6, 2, 4) and decoder(z).shape == (2, 3, 16, 32)
    if norm.endswith("layer"):
        torch.testing.assert_close(z.mean(1), torch.zeros(2, 2, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.var(1, correction=0), torch.ones(2, 2, 4), atol=1e-2, rtol=0)
    if norm == "group":
        assert abs(z.mean()) < 1e-5
