"""A tokenizer's three calls agree, for every method; it saves, loads and refuses."""

import math

import pytest
import torch

from lgqlib.quantizers import METHODS
from lgqlib.tokenizer import Tokenizer


def images(n=2, size=32, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


BINS = "quantizer.lgq.per_channel=true quantizer.levels=4,4,4 backbone.dim=3 train.eval_every=0"


@pytest.fixture(params=[*METHODS, "bins"])
def tokenizer(request, tiny_config):
    torch.manual_seed(0)
    bins = request.param == "bins"
    return Tokenizer(tiny_config("lgq", BINS) if bins else tiny_config(request.param)).eval()


@torch.no_grad()
def test_forward_is_decode_of_encode_bit_for_bit_also_saved_and_loaded(tokenizer, tmp_path):
    x = images()
    indices = tokenizer.encode(x)
    assert indices.shape == (2, 8, 8)
    assert torch.equal(tokenizer(x).images, tokenizer.decode(indices))
    assert tokenizer(x[..., :24]).images.shape == (2, 3, 32, 24)
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path).eval()
    assert again.config == tokenizer.config
    assert torch.equal(again.encode(x), indices)
    assert torch.equal(again.decode(indices), tokenizer.decode(indices))
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}


def test_what_does_not_fit_is_refused(tiny_config):
    tokenizer = Tokenizer(tiny_config("fsq"))
    with pytest.raises(ValueError, match=r"they must be in \[0, 64\)"):
        tokenizer.decode(torch.full((1, 8, 8), 64))
    with pytest.raises(ValueError, match=r"images of \(32, 30\) pixels: sides must be multiples"):
        tokenizer.encode(images()[..., :30])


def test_tau_c_follows_the_latents_that_were_observed(tiny_config):
    tokenizer = Tokenizer(tiny_config("lgq"))
    assert math.isnan(tokenizer.tau_c)
    torch.manual_seed(0)
    z = torch.randn(4, 5, 50, 50) * torch.tensor([3.0, 1, 1, 1, 1]).reshape(5, 1, 1)
    indices = torch.zeros(4, 50, 50, dtype=torch.int64)
    for _ in range(20):
        tokenizer.observe(z, indices)
        assert tokenizer.tau_c == pytest.approx(2 * 9, rel=0.05)
    tokenizer.observe(3 * z, indices)
    assert 18 < tokenizer.tau_c < 9.1 * 18


def test_the_width_is_twice_the_running_error_a_channel(tiny_config):
    tokenizer, errors = Tokenizer(tiny_config("lgq")).train(), []
    assert math.isnan(tokenizer.width)
    for seed in range(2):
        z = tokenizer.latents(images(seed=seed))
        out = tokenizer.quantizer(z, 0.5)
        tokenizer.observe(z, out.indices)
        errors.append((z - out.z_q).square().sum(1).mean().item())
    assert tokenizer.width == pytest.approx(2 * (0.9 * errors[0] + 0.1 * errors[1]) / 5, rel=1e-5)
