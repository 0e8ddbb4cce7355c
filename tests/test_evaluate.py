"""The evaluation pass: numbers of decode(encode(x)), and nothing in the tokenizer changes."""

import numpy as np
import pytest
import torch
from einops import rearrange
from lgqlib.measure.coding import coded_rate
from skimage.metrics import peak_signal_noise_ratio

from lgqlib.config import BackboneConfig, Config, QuantizerConfig
from lgqlib.data import to_model, to_uint8
from lgqlib.evaluate import evaluate, reference_features
from lgqlib.measure import images as metrics
from lgqlib.measure.features import LiteFeatures
from lgqlib.tokenizer import Tokenizer

NUM_CODES = 64


def make_tokenizer(method="lgq"):
    """A small tokenizer whose codes lie among its latents, so that several are used."""
    torch.manual_seed(0)
    levels = (8, 8) if method == "fsq" else ()
    config = Config(
        backbone=BackboneConfig(downsample=4, width=16, depth=1, dim=4),
        quantizer=QuantizerConfig(method=method, num_codes=NUM_CODES, levels=levels),
    )
    tokenizer = Tokenizer(config)
    with torch.no_grad():
        latents = tokenizer.latents(to_model(images(32, seed=5)))
        tokenizer.quantizer.initialize(rearrange(latents, "b c h w -> (b h w) c"))
    return tokenizer.eval()


def images(num, side=32, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def extractor():
    return LiteFeatures("lite0", side=32)


@pytest.fixture(scope="module")
def train_counts(tokenizer):
    indices = tokenizer.encode(to_model(images(32, seed=9)))
    return torch.bincount(indices.flatten(), minlength=NUM_CODES)


@pytest.fixture(scope="module")
def whole(tokenizer, extractor, train_counts):
    return evaluate(
        tokenizer,
        images(20),
        extractor=extractor,
        train_counts=train_counts,
        batch_size=20,
        seed=3,
        progress=False,
    )


def test_numbers_are_those_of_decoding_the_code(tokenizer, extractor, train_counts, whole):
    x = images(20)
    with torch.no_grad():
        indices = tokenizer.encode(to_model(x))
        decoded = to_uint8(tokenizer.decode(indices))
        original, features = (extractor.pooled(z.float() / 255) for z in (x, decoded))
        perceptual = extractor.perceptual(decoded.float() / 255, x.float() / 255)
    pairs = list(zip(x.numpy(), decoded.numpy(), strict=True))
    psnr = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]
    numbers = whole.numbers
    assert np.array_equal(whole.indices, indices)
    assert np.allclose(whole.per_image["psnr"], psnr, rtol=1e-12)
    assert numbers["psnr"] == pytest.approx(np.mean(psnr), rel=1e-12)
    l1 = np.mean([np.abs(a.astype(float) - b).mean() / 255 for a, b in pairs])
    assert numbers["l1"] == pytest.approx(l1, rel=1e-12)
    assert numbers["perceptual"] == pytest.approx(perceptual.mean().item(), rel=1e-5)
    kid = metrics.kernel_distance(original, features, paired=True)
    assert (numbers["kid"], numbers["kid_se"]) == pytest.approx(kid, rel=1e-3, abs=1e-9)
    counts = np.bincount(indices.flatten().numpy(), minlength=NUM_CODES)
    assert np.array_equal(whole.counts, counts)
    assert numbers["active"] == np.count_nonzero(counts) > 3
    assert numbers["bits_per_token_nominal"] == 6
    assert numbers["bits_per_token_entropy"] == numbers["entropy"]
    assert numbers["bits_per_token_coded"] == coded_rate(indices, train_counts).bits_per_token
    for rate in ("nominal", "entropy", "coded"):
        per_token = numbers[f"bits_per_token_{rate}"]
        assert numbers[f"bits_per_pixel_{rate}"] == pytest.approx(per_token * 64 / 32**2)


def test_its_protocol_stands_beside_the_numbers(whole, extractor):
    expected = {
        "num_images": 20,
        "num_tokens": 20 * 64,
        "tokens_per_image": 64,
        "num_codes": NUM_CODES,
        "seed": 3,
        "extractor": extractor.name,
        "preprocessing": extractor.preprocessing,
    }
    assert expected.items() <= whole.numbers.items()
    assert all(type(value) in (float, int, str) for value in whole.numbers.values())
    assert whole.per_image["image"].tolist() == list(range(20))
    assert {len(values) for values in whole.per_image.values()} == {20}
    assert "ms_ssim" not in whole.numbers  # 32 pixels are too few for its scales


@pytest.mark.parametrize("batch_size", [1, 7])
def test_no_number_depends_on_the_batches(tokenizer, extractor, train_counts, whole, batch_size):
    parts = evaluate(
        tokenizer,
        images(20),
        extractor=extractor,
        train_counts=train_counts,
        batch_size=batch_size,
        seed=3,
        progress=False,
    )
    assert parts.numbers.keys() == whole.numbers.keys()
    for name, value in parts.numbers.items():
        if isinstance(value, str):
            assert value == whole.numbers[name]
        else:
            # float32 features differ in their last digits; the Frechet distance takes square roots.
            assert value == pytest.approx(whole.numbers[name], rel=1e-3, abs=1e-5), name
    assert np.array_equal(parts.indices, whole.indices)


@pytest.mark.parametrize("method", ["lgq", "fsq", "vq_ema", "simvq"])
@pytest.mark.parametrize("training", [False, True])
def test_evaluation_writes_no_weight_no_buffer_and_no_mode(method, training):
    tokenizer = make_tokenizer(method).train(training)
    tokenizer.decoder.eval()  # a part that its owner keeps in another mode
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    gradients = [p.requires_grad for p in tokenizer.parameters()]
    modes = [module.training for module in tokenizer.modules()]
    first = evaluate(tokenizer, images(6), extractor=None, batch_size=4, progress=False)
    second = evaluate(tokenizer, images(6), extractor=None, batch_size=4, progress=False)
    after = tokenizer.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.equal(after[name]) or bool((value.isnan() & after[name].isnan()).all()), name
    assert gradients == [p.requires_grad for p in tokenizer.parameters()]
    assert modes == [module.training for module in tokenizer.modules()]
    assert first.numbers == second.numbers


def test_training_goes_on_after_an_evaluation():
    tokenizer = make_tokenizer("fsq").train()
    evaluate(tokenizer, images(4), extractor=None, progress=False)
    tokenizer(to_model(images(4)), 1.0).images.square().mean().backward()
    assert all(p.grad is not None for p in tokenizer.decoder.parameters())


def test_light_evaluation_leaves_features_out(tokenizer, whole):
    light = evaluate(tokenizer, images(20), extractor=None, progress=False)
    heavy = {"perceptual", "kid", "kid_se", "fd", "extractor", "preprocessing"}
    optional = {"seed", "bits_per_token_coded", "bits_per_pixel_coded"}
    assert light.numbers.keys() == whole.numbers.keys() - heavy - optional
    for name, value in light.numbers.items():
        assert value == pytest.approx(whole.numbers[name], rel=1e-9), name


def test_large_images_get_ms_ssim(tokenizer):
    result = evaluate(tokenizer, images(1, 176), extractor=None, progress=False)
    assert result.numbers["ms_ssim"] == result.per_image["ms_ssim"].mean()
    assert result.numbers["tokens_per_image"] == 44 * 44


def test_features_of_originals_are_computed_once(
    tokenizer, extractor, whole, tmp_path, monkeypatch
):
    x = images(20)
    reference = reference_features(x, extractor, cache=tmp_path, progress=False)
    cached = evaluate(
        tokenizer, x, extractor=extractor, reference=reference, batch_size=20, progress=False
    )
    for name in ("kid", "kid_se", "fd", "perceptual"):
        assert cached.numbers[name] == pytest.approx(whole.numbers[name], rel=1e-3, abs=1e-6)

    calls = []
    compute = extractor.pooled
    monkeypatch.setattr(extractor, "pooled", lambda z: calls.append(len(z)) or compute(z))
    again = reference_features(x, extractor, cache=tmp_path, batch_size=3, progress=False)
    assert np.array_equal(again, reference) and not calls
    other = x.clone()
    other[7, 1, 2, 3] ^= 1
    reference_features(other, extractor, cache=tmp_path, progress=False)
    assert calls == [20]
    assert len(list(tmp_path.iterdir())) == 2


def test_another_extractor_or_size_has_other_cached_features(extractor, tmp_path):
    x = images(3)
    first = reference_features(x, extractor, cache=tmp_path, progress=False)
    larger = LiteFeatures("lite0", side=48)
    second = reference_features(x, larger, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert not np.allclose(first, second)


def test_damaged_cached_features_are_computed_again(extractor, tmp_path):
    x = images(3)
    good = reference_features(x, extractor, cache=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    for damage in (b"", path.read_bytes()[:200], b"not an array"):
        path.write_bytes(damage)
        assert np.array_equal(
            reference_features(x, extractor, cache=tmp_path, progress=False), good
        )
        assert np.array_equal(np.load(path), good)


def test_image_ids_stand_beside_the_values(tokenizer):
    ids = torch.tensor([40, 7, 19])
    result = evaluate(tokenizer, images(3), extractor=None, image_ids=ids, progress=False)
    assert result.per_image["image"].tolist() == [40, 7, 19]


def test_what_does_not_fit_is_named(tokenizer, extractor):
    x = images(4)
    with pytest.raises(ValueError, match="reference has 3 rows for 4 images"):
        evaluate(tokenizer, x, extractor=extractor, reference=np.zeros((3, 8), np.float32))
    with pytest.raises(ValueError, match="image_ids has 5 rows for 4 images"):
        evaluate(tokenizer, x, extractor=None, image_ids=torch.arange(5))
    with pytest.raises(ValueError, match="train_counts has 9 codes, the tokenizer 64"):
        evaluate(tokenizer, x, extractor=None, train_counts=torch.ones(9, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"uint8 of shape \(0, 3, 32, 32\)"):
        evaluate(tokenizer, x[:0], extractor=None)
