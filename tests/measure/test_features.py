"""The extractors: the network of the installed package, made cheaper but not different."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from lgqlib.evaluate import evaluate_run
from lgqlib.measure import features
from lgqlib.measure.features import LiteFeatures, build_extractor

scripted = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def images(num, side, *, seed=0):
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(seed))


def installed_network(variant):
    network = EfficientNet.from_name(f"efficientnet-{variant}", image_size=None)
    network.load_state_dict(torch.load(features.WEIGHT_FILES[variant](), weights_only=True))
    return network.eval()


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
def test_folding_changes_no_feature_and_no_mode_matters(variant):
    x, extractor = images(2, 75), LiteFeatures(variant, side=75)
    with torch.no_grad():
        expected = installed_network(variant).extract_features((x * 255 - 127) / 128).mean((2, 3))
    for result in (extractor.train().pooled(x), extractor.eval().pooled(x)):
        assert torch.allclose(result, expected, atol=1e-4)


def test_perceptual_distance_equals_its_definition_also_under_mixed_precision():
    lite0 = LiteFeatures("lite0", side=64)
    x, y = images(3, 64), images(3, 64, seed=1)
    network, taps = installed_network("lite0"), {}
    for i in (0, 2, 4, 8, 15):
        keep = lambda _, __, output, i=i: taps.setdefault(i, []).append(output)  # noqa: E731
        network._blocks[i].register_forward_hook(keep)
    with torch.no_grad():
        for z in (x, y):
            network.extract_features((z * 255 - 127) / 128)
    expected = torch.zeros(3)
    for pair in taps.values():
        u, v = (F.normalize(z, dim=1) for z in pair)
        expected += (u - v).square().sum(1).mean((1, 2)) / len(taps)
    assert torch.allclose(lite0.perceptual(x, y), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = lite0.perceptual(x, y)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, expected, rtol=0.05)


POOL = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Distance(nn.Module):
    def forward(self, x, y):
        return (x - y).square().mean((1, 2, 3), keepdim=True)


def saved(module, path):
    torch.jit.script(module).save(str(path))
    return path


@scripted
def test_a_run_is_evaluated_with_the_networks_of_its_config(
    tiny_config, trained_in, tmp_path, cache
):
    own, distance = saved(POOL, tmp_path / "own.pt"), saved(Distance(), tmp_path / "lpips.pt")
    more = f"evaluation.extractor={own} evaluation.distance={distance} train.num_steps=1"
    run = trained_in("runs", tiny_config("fsq", more))
    per_image = evaluate_run(run, cache=cache, train_batches=1, progress=False).evaluation.per_image
    numbers = run.evaluation()
    assert numbers["extractor"] == build_extractor(str(own), str(distance)).name
    assert numbers["extractor"].startswith("own-") and " + lpips-" in numbers["extractor"]
    # This distance is the mean squared error, which PSNR also knows.
    mse = 10 ** (-per_image["psnr"] / 10)
    np.testing.assert_allclose(per_image["perceptual"], mse, rtol=0.05, atol=1e-4)
