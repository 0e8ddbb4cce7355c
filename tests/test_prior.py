"""A prior is causal and exact, learns what its tokens hold, and writes files that come back."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lgqlib.data import to_uint8
from lgqlib.measure.codecs import curve
from lgqlib.prior import HEADS, Prior, cheaper_tokens, closer_tokens, fit, tokens_of
from lgqlib.prior.codec import HEADER, compress, decompress, pretrained
from lgqlib.prior.encoding import _nats
from lgqlib.prior.model import NEIGHBORS
from lgqlib.prior.rates import count_bits, file_rates, prior_bits

K = 50


def prior_of(head="geometric", num_codes=K, seed=0):
    """Give a prior of random weights, also where they start at zero."""
    torch.manual_seed(seed)
    prior = Prior(torch.randn(num_codes, 3), head=head)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return prior


def walk(*shape, seed=0):
    """Give a map in which every token is near the one to its left."""
    steps = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed))
    return (25 + steps.cumsum(1)).clamp(0, K - 1)


def photograph(height=43, width=61, seed=0):
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, (height, width), mode="bilinear")
    return (smooth[0] * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def pair(trained):
    """Give a tokenizer and a prior that saw a little."""
    tokenizer = trained("lgq").tokenizer()
    maps = [tokens_of(tokenizer, photograph(seed=seed)) for seed in range(1, 9)]
    return tokenizer, fit(tokenizer.codebook, maps, num_steps=30, progress=False)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_and_its_gradient_are_those_of_the_probabilities(head, monkeypatch):
    monkeypatch.setattr("lgqlib.prior.heads.CELLS", {"cpu": 3 * K})  # several chunks
    prior = prior_of(head).double()
    neighbors, tokens = torch.randint(K + 1, (7, 12)), torch.randint(K, (7,))
    probs = prior.probs(neighbors)
    torch.testing.assert_close(probs.sum(-1), torch.ones(7).double())
    dense, ours = -probs[torch.arange(7), tokens].log(), prior(neighbors, tokens)
    torch.testing.assert_close(ours, dense)
    weights, parameters = torch.rand(7).double(), list(prior.parameters())
    grads = [torch.autograd.grad(value @ weights, parameters) for value in (ours, dense)]
    torch.testing.assert_close(*grads)


def test_a_token_changes_the_cost_of_itself_and_of_those_that_see_it():
    assert all(place < (0, 0) for place in NEIGHBORS), "only what was decoded before"
    tokens = torch.randint(K, (9, 10))
    other = tokens.clone()
    other[4, 5] = (tokens[4, 5] + 1) % K
    prior = prior_of()
    changed = (prior.nll(other) - prior.nll(tokens)).abs() > 1e-6
    seeing = {(4, 5), *((4 - i, 5 - j) for i, j in NEIGHBORS)}
    assert {tuple(place) for place in changed.nonzero().tolist()} == seeing


def test_codes_in_another_order_have_the_same_probabilities():
    codebook, order = torch.randn(K, 3), torch.randperm(K)
    maps = [walk(12, 12)]
    first = fit(codebook, maps, num_steps=5, progress=False)
    inverse = order.argsort()
    second = fit(codebook[order], [inverse[m] for m in maps], num_steps=5, progress=False)
    torch.testing.assert_close(second.nll(inverse[maps[0]]), first.nll(maps[0]))


@pytest.mark.parametrize("head", HEADS)
def test_it_learns_what_neighbors_tell_the_same_for_a_seed(head):
    codebook = torch.linspace(-1, 1, K)[:, None]
    maps = [walk(32, 32, seed=seed) for seed in range(1, 5)]
    priors = []
    for seed in (0, 0, 1):
        priors.append(fit(codebook, maps, head=head, num_steps=60, seed=seed, progress=False))
        torch.rand(1)  # whoever draws in between changes nothing
    held_out = walk(32, 32, seed=9)
    costs = [prior.nll(held_out) for prior in priors]
    assert torch.equal(costs[0], costs[1]) and not torch.equal(costs[0], costs[2])
    (counted,) = count_bits(maps, [held_out], codebook)
    assert costs[0].mean() < counted - (1.5 if head == "geometric" else 0.3)


def test_counts_of_codes_and_of_pairs_are_in_bits():
    maps, held_out = [walk(64, 64)], walk(16, 16, seed=3)
    codebook = torch.linspace(-1, 1, K)[:, None]
    n = np.bincount(maps[0].flatten(), minlength=K)
    by_hand = -np.log2((n + 0.5) / (n.sum() + K / 2))[held_out.numpy()].mean()
    (zero_order,) = count_bits(maps, [held_out], codebook)
    assert float(zero_order) == pytest.approx(by_hand, rel=1e-6)
    (left,) = count_bits(maps, [held_out], codebook, clusters=K)
    assert np.log2(3) < float(left) < np.log2(3) + 1  # three steps are equally likely


def test_a_photograph_comes_back_bit_for_bit_from_as_many_bytes_as_the_model_says(pair):
    tokenizer, prior = pair
    image, threads = photograph(203, 301), torch.get_num_threads()  # no multiples of four
    content = compress(*pair, image)
    try:
        torch.set_num_threads(4)
        assert compress(*pair, image) == content, "also with another number of threads"
        decompress(*pair, content)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
    tokens, back = tokens_of(tokenizer, image), decompress(*pair, content)
    whole = to_uint8(tokenizer.decode(tokens[None]))[0]
    assert torch.equal(back, whole[:, :203, :301])
    bits = float(prior.nll(tokens).sum())
    assert bits < 8 * (len(content) - HEADER.size) < 1.005 * bits + 32


def test_another_or_a_damaged_file_is_refused_never_shown(pair, monkeypatch):
    tokenizer, content = pair[0], compress(*pair, photograph())

    def refused(says, content, prior=pair[1]):
        with pytest.raises(ValueError, match=says):
            decompress(tokenizer, prior, bytes(content))

    refused("begin with LGQ1", b"\x89PNG" + content)
    for end in range(0, len(content), 7):
        refused("begin with LGQ1|torn or damaged", content[:end])
    for place in range(4, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 16
        refused("torn or damaged", damaged)
    other = fit(tokenizer.codebook, [tokens_of(tokenizer, photograph())], num_steps=1)
    refused("of another tokenizer or prior, with K = 64", content, other)
    probs = Prior.probs
    monkeypatch.setattr(Prior, "probs", lambda self, x: probs(self, x) ** 1.01)
    refused("floats differ", content)


def test_a_little_error_buys_bits_in_files_held_against_codecs(pair):
    tokenizer, prior = pair
    images = {"a": photograph(64, 64), "b": photograph(50, 70, seed=3)}
    near = file_rates(*pair, images)
    encoders = (
        lambda image: cheaper_tokens(*pair, image, weight=1.0),
        lambda image: closer_tokens(tokenizer, image, candidates=4, sweeps=1),
        lambda image: closer_tokens(tokenizer, image, prior, weight=0.02, candidates=4),
    )
    cheap, closer, both = (file_rates(*pair, images, encode=encode) for encode in encoders)
    assert (cheap["bits_per_token"] < near["bits_per_token"]).all()
    assert (cheap["psnr"] < near["psnr"]).all()
    assert (closer["psnr"] > near["psnr"]).all()
    assert (both["bits_per_token"] < closer["bits_per_token"]).all()
    assert (both["psnr"] > near["psnr"]).all()
    for name, row in near.set_index("name").iterrows():
        content, image = compress(*pair, images[name]), images[name]
        assert row["bits_per_pixel"] == 8 * len(content) / image[0].numel()
        error = (decompress(*pair, content).double() - image).div(255).square().mean()
        assert row["psnr"] == pytest.approx(float(-10 * error.log10()))
        bits = float(prior.nll(tokens_of(tokenizer, image)).mean())
        assert row["bits_per_token"] == pytest.approx(bits)
        points = curve(image.permute(1, 2, 0).numpy(), "JPEG")
        assert points[:, 1].min() <= row["JPEG"] <= points[:, 1].max()


def test_a_search_of_one_candidate_gives_the_nearest_codes_and_counts_who_sees_a_token(pair):
    tokenizer, prior = pair
    for paid in (None, prior):
        found = closer_tokens(tokenizer, photograph(), paid, candidates=1)
        assert torch.equal(found, tokens_of(tokenizer, photograph()))
    tokens, place = walk(6, 7), (slice(1, None, 4), slice(2, None, 4))
    bits = F.pad(prior.nll(tokens), (1, 1, 0, 1))
    seen = bits[:-1, 1:-1] + bits[:-1, 2:] + bits[1:, :-2] + bits[1:, 1:-1] + bits[1:, 2:]
    torch.testing.assert_close(_nats(prior, tokens, place) / np.log(2), seen[place])


def test_from_the_command_line_and_back(pair, tmp_path):
    ours, names = tmp_path / "ours", ("a.png", "a.lgq", "b.png")
    picture, file, back = (tmp_path / name for name in names)
    pair[0].save_pretrained(ours)
    pair[1].save(ours / "prior.safetensors")
    assert compress(*pretrained(ours), photograph()) == compress(*pair, photograph())
    Image.fromarray(photograph().permute(1, 2, 0).numpy()).save(picture)

    def call(*asked):
        command = [sys.executable, "-m", "lgqlib.prior", *map(str, asked), "--folder", str(ours)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "bits a pixel" in call(picture, file).stderr
    assert call(file, back).returncode == 0
    want = decompress(*pair, file.read_bytes()).permute(1, 2, 0)
    assert np.array_equal(np.asarray(Image.open(back)), want.numpy())
    before = file.read_bytes()
    assert call(picture, file, "--weight", 2.0).returncode == 0
    assert len(file.read_bytes()) < len(before)
    file.write_bytes(b"LGQ1")
    assert "no file of tokens" in call(file, back).stderr
    with pytest.raises(ValueError, match="no tokenizer with a prior"):
        pretrained(tmp_path)
    with pytest.raises(ValueError, match="not of this codebook"):
        Prior.load(ours / "prior.safetensors", torch.randn(9, 2))


def test_the_bits_of_a_token_under_a_prior_of_its_own(trained):
    tokenizer = trained("lgq").tokenizer()
    train_images, held_out = [photograph(seed=s) for s in range(4)], [photograph(40, 40, seed=7)]
    numbers, bits = prior_bits(tokenizer, train_images, held_out, num_steps=40, progress=False)
    assert bits.tolist() == pytest.approx([numbers["bits_per_pixel_prior"]])
    assert 0 < numbers["bits_per_token_prior"] < numbers["bits_per_token_counted"] + 1
    assert numbers["bits_per_pixel_prior"] == numbers["bits_per_token_prior"] / 16
    assert numbers["prior_tokens"] == 100
