"""The extractors: the network of the installed package, made cheaper but not different."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from skimage import data
from torch import nn

from lgqlib.evaluate import evaluate_run
from lgqlib.measure import features
from lgqlib.measure.features import LiteFeatures, ScriptedFeatures, build_extractor
from lgqlib.run import Run
from lgqlib.train import train


def images(num, side, *, seed=0):
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(seed))


def photograph(name, side=224):
    pixels = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] / 255
    short = min(pixels.shape[-2:])
    return F.interpolate(pixels[..., :short, :short], (side, side), mode="bilinear", antialias=True)


@pytest.fixture(scope="module")
def lite0():
    return LiteFeatures("lite0", side=64)


def installed_network(variant):
    network = EfficientNet.from_name(f"efficientnet-{variant}", image_size=None)
    path = features.WEIGHT_FILES[variant]()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
@pytest.mark.parametrize("side", [64, 75])
def test_folding_changes_no_feature(variant, side):
    x = images(2, side)
    network = installed_network(variant)
    with torch.no_grad():
        expected = network.extract_features((x * 255 - 127) / 128).mean((2, 3))
        result = LiteFeatures(variant, side=side).pooled(x)
    assert result.shape == (2, 1280)
    assert torch.allclose(result, expected, atol=1e-4)


def test_the_weights_know_what_is_in_a_photograph():
    cat = photograph("chelsea")
    network = installed_network("lite2")
    with torch.no_grad():
        classes = network._fc(LiteFeatures("lite2").pooled(cat)).softmax(1)[0]
    cats = [281, 282, 283, 284, 285]  # ImageNet's tabby, tiger cat, Persian, Siamese, Egyptian
    assert classes[cats].sum() > 0.5


def test_nothing_can_be_trained_and_no_mode_matters(lite0):
    x = images(2, 32)
    assert not any(p.requires_grad for p in lite0.parameters())
    before = lite0.eval().pooled(x)
    assert torch.equal(lite0.train().pooled(x), before)
    assert torch.equal(lite0.pooled(x), before)


@pytest.mark.parametrize("batch", [1, 7])
def test_features_do_not_depend_on_the_batches(lite0, batch):
    x, y = images(9, 32), images(9, 32, seed=1)
    whole = lite0.compare(x, y)
    parts = [lite0.compare(a, b) for a, b in zip(x.split(batch), y.split(batch), strict=True)]
    for name in ("perceptual", "original", "reconstruction"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.allclose(joined, getattr(whole, name), atol=1e-5)


def test_chunks_on_the_processor_change_nothing(lite0, monkeypatch):
    x = images(5, 32)
    whole = lite0.pooled(x)
    monkeypatch.setattr(features, "CHUNK_PIXELS", 2 * 64 * 64)
    assert len(lite0._chunks(x)) == 3
    assert torch.allclose(lite0.pooled(x), whole, atol=1e-5)


def test_comparison_agrees_with_each_part(lite0):
    x, y = images(3, 32), images(3, 32, seed=1)
    comparison = lite0.compare(x, y)
    assert torch.allclose(comparison.original, lite0.pooled(x), atol=1e-5)
    assert torch.allclose(comparison.reconstruction, lite0.pooled(y), atol=1e-5)
    assert torch.allclose(comparison.perceptual, lite0.perceptual(y, x), atol=1e-6)
    assert lite0.compare(x, y, with_original=False).original is None


def test_perceptual_distance_equals_its_definition(lite0):
    x, y = images(3, 64), images(3, 64, seed=1)
    network = installed_network("lite0")
    taps = {}
    for i in features.TAPS:
        network._blocks[i].register_forward_hook(
            lambda _, __, output, i=i: taps.setdefault(i, []).append(output)
        )
    with torch.no_grad():
        for z in (x, y):
            network.extract_features((z * 255 - 127) / 128)
    expected = torch.zeros(3)
    for u, v in taps.values():
        u, v = F.normalize(u, dim=1), F.normalize(v, dim=1)
        expected += (u - v).square().sum(1).mean((1, 2)) / len(taps)
    assert sorted(taps) == [0, 2, 4, 8, 15]
    assert torch.allclose(lite0.perceptual(x, y), expected, atol=1e-5)


def test_perceptual_distance_is_zero_for_equal_images_and_grows_with_damage(lite0):
    x = photograph("astronaut", 32)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    damaged = [(x + scale * noise).clamp(0, 1) for scale in (0.0, 0.03, 0.1, 0.3)]
    distances = [lite0.perceptual(z, x).item() for z in damaged]
    assert distances[0] == 0
    assert distances == sorted(distances) and distances[-1] < 4


def test_perceptual_gradient_reaches_the_images_only(lite0):
    x, y = images(2, 32).requires_grad_(), images(2, 32, seed=1).requires_grad_()
    lite0.perceptual(x, y).sum().backward()
    assert y.grad is None
    assert x.grad.isfinite().all() and x.grad.abs().amax((1, 2, 3)).min() > 0
    step = 3e-3 * x.grad / x.grad.norm()
    with torch.no_grad():
        predicted = (x.grad * step).sum() * 2
        change = lite0.perceptual(x + step, y).sum() - lite0.perceptual(x - step, y).sum()
    assert change.item() == pytest.approx(predicted.item(), rel=0.05)


def test_gradient_at_a_uniform_image_is_finite(lite0):
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    lite0.perceptual(x, torch.zeros_like(x)).sum().backward()
    assert x.grad.isfinite().all()


def test_perceptual_distance_stops_at_its_last_block():
    lite2, calls = LiteFeatures("lite2", side=32), []
    for i, block in enumerate(lite2.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    lite2.perceptual(images(1, 32), images(1, 32))
    assert max(calls) == 15 < len(lite2.blocks) - 1


def test_mixed_precision_keeps_distances_in_float32(lite0):
    x, y = images(2, 32), images(2, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = lite0.perceptual(x, y)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, lite0.perceptual(x, y), rtol=0.05)


def test_what_was_given_wrong_is_named():
    with pytest.raises(ValueError, match=r"'lite7'.*lite0.*lite2"):
        LiteFeatures("lite7")
    with pytest.raises(ValueError, match="side is 16"):
        LiteFeatures("lite0", side=16)


class Pool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Distance(nn.Module):
    def forward(self, x, y):
        return (x - y).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def save(tmp_path):
    def save_script(module, name):
        torch.jit.script(module).save(str(tmp_path / name))
        return tmp_path / name

    return save_script


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_features_run_what_the_user_gives(save):
    x, y = images(3, 16), images(3, 16, seed=1)
    extractor = ScriptedFeatures(save(Pool(), "inception.pt"))
    comparison = extractor.compare(x, y)
    assert torch.allclose(comparison.reconstruction, y.mean((2, 3)))
    assert torch.allclose(comparison.original, x.mean((2, 3)))
    assert comparison.perceptual is None
    assert extractor.name.startswith("inception-")

    both = ScriptedFeatures(
        save(Pool(), "inception.pt"), distance_path=save(Distance(), "lpips.pt")
    )
    expected = (x - y).square().mean((1, 2, 3))
    assert np.allclose(both.compare(x, y).perceptual, expected)
    assert both.name != extractor.name


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_run_is_evaluated_with_the_networks_that_its_config_names(
    save, tiny_config, tmp_path, cache
):
    own, distance = save(Pool(), "inception.pt"), save(Distance(), "lpips.pt")
    config = tiny_config(
        "fsq", f"evaluation.extractor={own} evaluation.distance={distance} train.num_steps=1"
    )
    run = Run.create(tmp_path / "runs", config)
    train(config, run, cache=cache, progress=False)
    assessment = evaluate_run(run, cache=cache, train_batches=1, progress=False)
    numbers = run.evaluation()
    assert numbers["extractor"] == build_extractor(str(own), str(distance)).name
    assert numbers["preprocessing"] == "8 bits, then inside the scripted module"
    # This distance is the mean squared error, which PSNR also knows.
    per_image = assessment.evaluation.per_image
    np.testing.assert_allclose(
        per_image["perceptual"], 10 ** (-per_image["psnr"] / 10), rtol=0.05, atol=1e-4
    )
    with pytest.raises(ValueError, match=r"evaluation\.distance = 'lpips\.pt'.*lite2"):
        tiny_config("fsq", "evaluation.distance=lpips.pt")
    with pytest.raises(ValueError, match=r"evaluation\.extractor = 'vgg'.*a file\.pt"):
        tiny_config("fsq", "evaluation.extractor=vgg")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_features_explain_what_is_wrong(save, tmp_path):
    with pytest.raises(ValueError, match=r"no feature extractor at .*missing\.pt.*LiteFeatures"):
        ScriptedFeatures(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match=r"text\.pt is not a TorchScript file"):
        ScriptedFeatures(tmp_path / "text.pt")
    maps = ScriptedFeatures(save(nn.Identity(), "maps.pt"))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 8, 8\).*\[B, D\]"):
        maps.pooled(images(2, 8))
