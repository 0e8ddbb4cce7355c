"""A config is a value: it survives JSON, refuses what cannot run, and names its run."""

from itertools import pairwise

import pytest

from lgqlib.config import Config, TemperatureConfig, TrainConfig
from lgqlib.presets import AUTHORS_LGQ, PRESETS, preset
from lgqlib.quantizers import METHODS
from lgqlib.quantizers.assignment import ENERGIES
from lgqlib.quantizers.start import STARTS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train.lrr=1", "unknown field 'train.lrr'"),
        ("train.lr=fast", "train.lr = 'fast': it must be a number"),
        ("train.lr=nan", "train.lr = nan: it must be a finite number > 0"),
        ("data.flip=1", "data.flip = '1': it must be true or false"),
        ("data.name=imagefolder", "data.root = '': it must be a folder of images"),
        ("quantizer.levels=8,8,4", "quantizer.levels = (8, 8, 4): it must be levels whose product"),
        ("quantizer.lgq.per_channel=true", "quantizer.levels = (): it must be given"),
        ("quantizer.lgq.energy=cosine", "temperature.unit = 'self': it must be 'absolute'"),
        ("backbone.start=xyz", "backbone.start = 'xyz': it must be one of 'pca', 'whitened'"),
        ("backbone.family=linear backbone.start=random", "it must be 'pca' or 'whitened' with"),
        ("train.ema=1", "train.ema = 1.0: it must be a finite number >= 0 and <= 0.999999"),
        ("lonely", "override 'lonely': write it as name=value"),
        ({"seed": 1.5}, "seed = 1.5: it must be a whole number"),
        ({"data.name": 3}, "data.name = 3: it must be text"),
    ],
)
def test_what_cannot_run_is_refused_by_its_name(change, says):
    with pytest.raises(ValueError) as refusal:
        preset("laptop").override(change)
    assert says in str(refusal.value)


def test_from_dict_misses_nothing_and_ignores_nothing():
    whole = Config().to_dict()
    for change, says in (
        ({"version": 0}, "version = 0: this lgqlib reads configs of version 1"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"train": {}}, r"lacks .*train\.lr"),
    ):
        with pytest.raises(ValueError, match=says):
            Config.from_dict(whole | change)


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
def test_schedules_go_from_start_to_end_monotonically(kind):
    whole = TemperatureConfig(kind=kind, start=2.0, end=0.01)
    assert whole.at(99, 101) > whole.at(100, 101) == pytest.approx(0.01)
    schedule = TemperatureConfig(kind=kind, start=2.0, end=0.01, span=0.5)
    taus = [schedule.at(step, 101) for step in range(101)]
    assert taus[0] == pytest.approx(2.0) and taus[49] > taus[50] == pytest.approx(0.01)
    assert taus[100] == taus[50] and all(a >= b for a, b in pairwise(taus))
    middle = {"linear": 1.005, "cosine": 1.005, "exponential": 0.02**0.5}[kind]
    assert taus[25] == pytest.approx(middle)


def test_learning_rate_warms_up_then_decays_to_nothing():
    train = TrainConfig(num_steps=100, lr=1.0, warmup=0.1)
    rates = [train.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and rates[-1] < 0.001
    assert all(a > b for a, b in pairwise(rates[10:]))
    constant = TrainConfig(num_steps=100, lr=1.0, warmup=0.1, decay="constant")
    assert [constant.lr_at(step) for step in (0, 9, 99)] == pytest.approx([0.1, 1.0, 1.0])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_and_recipe_is_a_valid_config(name):
    for method in METHODS:
        config = preset(name, method=method, seed=3)
        assert (config.quantizer.method, config.seed) == (method, 3)
        changes = METHODS[method].weights | PRESETS[name][1].get(method, {})
        assert config.override(changes) == config
        assert (config.train.num_steps == 0) == METHODS[method].baseline
    for energy in ENERGIES:
        config.override(f"quantizer.lgq.energy={energy}")
    for start in STARTS:
        config.override(f"quantizer.start={start}")


def test_the_authors_preset_is_the_published_setting():
    config = preset("authors")
    assert (config.quantizer.num_codes, config.backbone.dim, config.data.size) == (16384, 64, 128)
    loss, temperature = config.loss, config.temperature
    assert (loss.commit, loss.peak, loss.usage) == (1.0, 0.005, 0.005)
    assert loss.perceptual == loss.adversarial == 0
    assert (temperature.kind, temperature.start, temperature.end) == ("linear", 1.0, 0.1)
    laptop = preset("laptop").override(AUTHORS_LGQ)
    assert laptop.temperature.unit == "absolute" and laptop.quantizer.lgq.codebook_loss == "commit"
