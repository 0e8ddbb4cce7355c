"""The evaluation pass: numbers of decode(encode(x)), and nothing in the tokenizer changes."""

import numpy as np
import pytest
import torch
from einops import rearrange
from skimage.metrics import peak_signal_noise_ratio

from lgqlib.config import BackboneConfig, Config, QuantizerConfig
from lgqlib.data.batches import to_model, to_uint8
from lgqlib.evaluate import OCTAVES, evaluate, evaluate_whole, reference_features
from lgqlib.measure import METRICS
from lgqlib.measure.distances import kernel_distance
from lgqlib.measure.features import LiteFeatures
from lgqlib.measure.usage import coded_rate
from lgqlib.quantizers import METHODS
from lgqlib.tokenizer import Tokenizer

NUM_CODES = 64


def images(num, side=32, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)


def make_tokenizer(method="lgq"):
    """A small tokenizer whose codes lie among its latents, so that several are used."""
    torch.manual_seed(0)
    config = Config(
        backbone=BackboneConfig(downsample=4, width=16, depth=1, dim=4),
        quantizer=QuantizerConfig(method=method, num_codes=NUM_CODES),
    )
    tokenizer = Tokenizer(config)
    with torch.no_grad():
        latents = tokenizer.latents(to_model(images(32, seed=5)))
        tokenizer.quantizer.initialize(rearrange(latents, "b c h w -> (b h w) c"))
    return tokenizer.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def extractor():
    return LiteFeatures("lite0", side=32)


@pytest.fixture(scope="module")
def everything(tokenizer, extractor):
    """Give what an evaluation with all metrics is called with."""
    indices = tokenizer.encode(to_model(images(32, seed=9)))
    counts = torch.bincount(indices.flatten(), minlength=NUM_CODES)
    return dict(extractor=extractor, train_counts=counts, progress=False)


@pytest.fixture(scope="module")
def whole(tokenizer, everything):
    return evaluate(tokenizer, images(20), batch_size=20, **everything)


def test_numbers_are_those_of_decoding_the_code(tokenizer, extractor, everything, whole):
    x, numbers = images(20), whole.numbers
    with torch.no_grad():
        indices = tokenizer.encode(to_model(x))
        decoded = to_uint8(tokenizer.decode(indices))
        original, features = (extractor.pooled(z.float() / 255) for z in (x, decoded))
        perceptual = extractor.perceptual(decoded.float() / 255, x.float() / 255)
    pairs = list(zip(x.numpy(), decoded.numpy(), strict=True))
    psnr = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]
    assert np.array_equal(whole.indices, indices)
    assert np.allclose(whole.per_image["psnr"], psnr, rtol=1e-12)
    assert numbers["psnr"] == pytest.approx(np.mean(psnr), rel=1e-12)
    assert numbers["perceptual"] == pytest.approx(perceptual.mean().item(), rel=1e-5)
    kid = kernel_distance(original, features, paired=True)
    assert (numbers["kid"], numbers["kid_se"]) == pytest.approx(kid, rel=1e-3, abs=1e-9)
    counts = np.bincount(indices.flatten().numpy(), minlength=NUM_CODES)
    assert np.array_equal(whole.counts, counts)
    assert numbers["active"] == np.count_nonzero(counts) > 3
    coded = coded_rate(indices, everything["train_counts"]).bits_per_token
    for rate, bits in {"nominal": 6, "entropy": numbers["entropy"], "coded": coded}.items():
        assert numbers[f"bits_per_token_{rate}"] == bits
        assert numbers[f"bits_per_pixel_{rate}"] == pytest.approx(bits * 64 / 32**2)
    about = {"num_images": 20, "num_tokens": 20 * 64, "extractor": extractor.name}
    assert about.items() <= numbers.items(), "the protocol stands beside the numbers"


def test_no_number_depends_on_the_batches(tokenizer, everything, whole):
    parts = evaluate(tokenizer, images(20), batch_size=7, **everything)
    assert np.array_equal(parts.indices, whole.indices)
    assert parts.numbers.keys() == whole.numbers.keys()
    for name, value in parts.numbers.items():
        # float32 features differ in their last digits; the Frechet distance takes square roots.
        close = value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-5)
        assert whole.numbers[name] == close, name


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_writes_no_weight_no_buffer_and_no_mode(method):
    tokenizer = make_tokenizer(method).train()
    tokenizer.encoder.eval()  # a part that its owner keeps in another mode
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    modes = [module.training for module in tokenizer.modules()]
    seen = []
    tokenizer.decoder.register_forward_hook(lambda module, *_: seen.append(module.training))
    first, second = (evaluate(tokenizer, images(6), batch_size=4, progress=False) for _ in range(2))
    assert seen == [False] * 4 and first.numbers == second.numbers
    assert modes == [module.training for module in tokenizer.modules()]
    after = tokenizer.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)
    tokenizer(to_model(images(4)), 1.0).images.square().mean().backward()  # training goes on
    assert all(p.grad is not None for p in tokenizer.decoder.parameters())


def test_photographs_of_any_sides_are_measured_whole(tokenizer, everything):
    photographs = {f"{w}": images(1, 48, seed=w)[0, :, :, :w].contiguous() for w in (48, 28)}
    counts = everything["train_counts"]
    numbers, arrays = evaluate_whole(tokenizer, photographs, train_counts=counts)
    psnr, errors, streams = [], [], []
    for name, x in photographs.items():
        with torch.no_grad():
            streams.append(tokenizer.encode(to_model(x[None])))
            y = to_uint8(tokenizer.decode(streams[-1]))[0]
        assert np.array_equal(arrays[f"decoded.{name}"], y.permute(1, 2, 0))
        psnr.append(peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=255))
        errors.append((x.double() - y).square().mean() / 255**2)
    assert arrays["whole.psnr"] == pytest.approx(psnr, rel=1e-12)
    assert numbers["whole_psnr"] == pytest.approx(np.mean(psnr), rel=1e-12)
    assert sum(numbers[name] for name in OCTAVES) == pytest.approx(np.mean(errors), rel=1e-9)
    coded = coded_rate(torch.cat([stream.flatten() for stream in streams]), counts)
    assert numbers["whole_bits_per_pixel"] == coded.num_bytes * 8 / (48 * 48 + 48 * 28)
    assert numbers["num_photographs"] == 2 and set(numbers) <= set(METRICS)
    with pytest.raises(ValueError, match="sides must be multiples of 4"):
        evaluate_whole(tokenizer, {"odd": images(1, 30)[0]}, train_counts=counts)


def test_features_of_originals_are_computed_once_and_never_confused_or_torn(
    extractor, tmp_path, monkeypatch
):
    x, calls, compute = images(20), [], extractor.pooled
    monkeypatch.setattr(extractor, "pooled", lambda z: calls.append(len(z)) or compute(z))
    options = dict(cache=tmp_path, progress=False)
    reference = reference_features(x, extractor, **options)
    assert np.array_equal(reference_features(x, extractor, batch_size=3, **options), reference)
    assert calls == [20]
    (path,) = tmp_path.iterdir()
    for damage in (path.read_bytes()[:200], b"not an array"):
        path.write_bytes(damage)
        assert np.array_equal(reference_features(x, extractor, **options), reference)
    other = x.clone()
    other[7, 1, 2, 3] ^= 1
    reference_features(other, extractor, **options)
    assert calls == [20] * 4
    larger = reference_features(x, LiteFeatures("lite0", side=48), **options)
    assert not np.allclose(larger, reference) and len(list(tmp_path.iterdir())) == 3


def test_what_does_not_fit_is_named(tokenizer, extractor):
    x, three = images(4), np.zeros((3, 8), np.float32)
    for given, options, says in (
        (x, {"extractor": extractor, "reference": three}, "reference has 3 rows for 4 images"),
        (x, {"train_counts": torch.ones(9).long()}, "train_counts has 9 codes, the tokenizer 64"),
        (x[:0], {}, r"uint8 of shape \(0, 3, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate(tokenizer, given, **options)
