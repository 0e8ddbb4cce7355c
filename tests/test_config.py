"""A config is a value: it survives JSON, refuses what cannot run, and names its run."""

import json
import math
from itertools import pairwise

import pytest

from lgqlib.config import TERMS, Config, LossConfig, TemperatureConfig, TrainConfig
from lgqlib.presets import AUTHORS_LGQ, PRESETS, preset
from lgqlib.quantizers import METHODS
from lgqlib.quantizers.assignment import ENERGIES
from lgqlib.quantizers.start import STARTS


def test_json_round_trip_keeps_every_field():
    config = preset("laptop").override("quantizer.levels=8,8,4,4 train.lr=3e-4 data.flip=false")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train.lrr=1", "unknown field 'train.lrr'"),
        ("train=1", "train = '1': it holds fields"),
        ("train.lr=fast", "train.lr = 'fast': it must be a number"),
        ("train.lr=nan", "train.lr = nan: it must be a finite number > 0"),
        ("train.num_steps=2.5", "train.num_steps = '2.5': it must be a whole number"),
        ("train.num_steps=-1", "train.num_steps = -1: it must be a finite number >= 0"),
        ("data.flip=1", "data.flip = '1': it must be true or false"),
        ("quantizer.lgq.energy=cubed", "quantizer.lgq.energy = 'cubed': it must be one of"),
        ("data.size=30 backbone.downsample=4", "data.size = 30: it must be a multiple of"),
        ("data.resize=16", "data.resize = 16: it must be 0 or at least data.size"),
        ("data.name=imagefolder", "data.root = '': it must be a folder of images"),
        ("quantizer.levels=8,8,4", "quantizer.levels = (8, 8, 4): it must be levels whose product"),
        ("backbone.dim=2 backbone.norm=layer", "backbone.norm = 'layer': it must be 'group' or"),
        ("quantizer.lgq.per_channel=true", "quantizer.levels = (): it must be given"),
        ("quantizer.lgq.energy=cosine", "temperature.unit = 'self': it must be 'absolute'"),
        ("backbone.start=xyz", "backbone.start = 'xyz': it must be one of 'pca', 'whitened'"),
        ("backbone.family=linear backbone.start=random", "it must be 'pca' or 'whitened' with"),
        ("quantizer.start=best", "quantizer.start = 'best': it must be one of '', 'random'"),
        ("quantizer.scale=0", "quantizer.scale = 0.0: it must be a finite number > 0"),
        ("evaluation.distance=lpips.pt", "evaluation.distance = 'lpips.pt': it must be empty"),
        ("evaluation.extractor=vgg", "evaluation.extractor = 'vgg': it must be one of 'lite2'"),
        ("seed=-1", "seed = -1: it must be between 0"),
        ("train.ema=1", "train.ema = 1.0: it must be a finite number >= 0 and <= 0.999999"),
        ("lonely", "override 'lonely': write it as name=value"),
        ({"seed": 1.5}, "seed = 1.5: it must be a whole number"),
        ({"seed": True}, "seed = True: it must be a whole number"),
        ({"data.name": 3}, "data.name = 3: it must be text"),
    ],
)
def test_what_cannot_run_is_refused_by_its_name(change, says):
    with pytest.raises(ValueError) as refusal:
        preset("laptop").override(change)
    assert says in str(refusal.value)


def test_a_quoted_value_may_hold_a_space():
    config = Config().override("data.name=imagefolder data.root='/my images' seed=4")
    assert (config.data.root, config.seed) == ("/my images", 4)


def test_from_dict_misses_nothing_and_ignores_nothing():
    whole = Config().to_dict()
    del whole["train"]["lr"]
    with pytest.raises(ValueError, match=r"lacks train\.lr"):
        Config.from_dict(whole)
    with pytest.raises(ValueError, match="version = 0: this lgqlib reads configs of version 1"):
        Config.from_dict(Config().to_dict() | {"version": 0})
    with pytest.raises(ValueError, match="unknown field 'extra'"):
        Config.from_dict(Config().to_dict() | {"extra": 1})


def test_run_name_is_equal_for_equal_configs_only():
    config = preset("laptop")
    assert config.run_name == preset("laptop").run_name
    names = {config.override({f"loss.{term}": 0.123}).run_name for term in TERMS}
    assert len(names) == len(TERMS)
    assert config.run_name not in names


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
def test_schedules_go_from_start_to_end_monotonically(kind):
    whole = TemperatureConfig(kind=kind, start=2.0, end=0.01)
    assert whole.at(99, 101) > whole.at(100, 101) == pytest.approx(0.01)
    schedule = TemperatureConfig(kind=kind, start=2.0, end=0.01, span=0.5)
    taus = [schedule.at(step, 101) for step in range(101)]
    assert taus[0] == pytest.approx(2.0)
    assert taus[49] > taus[50] == pytest.approx(0.01)
    assert taus[100] == taus[50]
    assert all(a >= b for a, b in pairwise(taus))
    middle = {"linear": 1.005, "cosine": 1.005, "exponential": 0.02**0.5}[kind]
    assert schedule.at(25, 101) == pytest.approx(middle)
    assert TemperatureConfig(kind="constant", start=0.3).at(77, 101) == 0.3


def test_learning_rate_warms_up_then_decays_to_nothing():
    train = TrainConfig(num_steps=100, lr=1.0, warmup=0.1)
    rates = [train.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and rates[-1] < 0.001
    assert all(a > b for a, b in pairwise(rates[10:]))
    constant = TrainConfig(num_steps=100, lr=1.0, warmup=0.1, decay="constant")
    assert [constant.lr_at(step) for step in (0, 9, 99)] == pytest.approx([0.1, 1.0, 1.0])


def test_names_of_the_config_are_those_of_the_library():
    config = Config()
    for term in TERMS:
        assert math.isfinite(getattr(LossConfig(), term))
    for energy in ENERGIES:
        config.override(f"quantizer.lgq.energy={energy}")
    for start in STARTS:
        config.override(f"quantizer.start={start}")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_and_recipe_is_a_valid_config(name, method):
    config = preset(name, method=method, seed=3)
    assert (config.quantizer.method, config.seed) == (method, 3)
    changes = METHODS[method].weights | PRESETS[name][1].get(method, {})
    assert config.override(changes) == config
    assert (config.train.num_steps == 0) == METHODS[method].baseline


def test_unknown_presets_and_methods_are_refused():
    with pytest.raises(ValueError, match="one of laptop, paper, authors"):
        preset("desktop")
    with pytest.raises(ValueError, match="method = .pq."):
        preset("laptop", method="pq")


def test_authors_preset_is_the_published_setting():
    config = preset("authors")
    assert (config.quantizer.num_codes, config.backbone.dim, config.data.size) == (16384, 64, 128)
    assert (config.loss.commit, config.loss.peak, config.loss.usage) == (1.0, 0.005, 0.005)
    temperature = config.temperature
    assert (temperature.kind, temperature.start, temperature.end) == ("linear", 1.0, 0.1)
    assert config.loss.perceptual == config.loss.adversarial == 0
    laptop = preset("laptop").override(AUTHORS_LGQ)
    assert laptop.temperature.unit == "absolute"
    assert laptop.quantizer.lgq.codebook_loss == "commit"
