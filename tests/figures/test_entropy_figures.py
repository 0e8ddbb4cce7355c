"""Figures of entropy show what they are given: maps, patches, bits and the tokens counted."""

from types import SimpleNamespace

import numpy as np
import pytest
from drawn import named, pixels, texts

from lgqlib.figures import entropy, temperature
from lgqlib.measure.temperature import free_energy_curve

MOMENT = {"step": 3, "tau": 0.1, "token": 0.5, "usage": 2.0, "num_tokens": 400}
MOMENT = SimpleNamespace(**MOMENT, deciles=range(1, 10))


@pytest.fixture(scope="module")
def curve():
    """Give the curve of 400 tokens and some codes."""
    rng = np.random.default_rng(0)
    latents, codes = rng.standard_normal((400, 3)), rng.standard_normal((64, 3))
    taus = np.geomspace(20, 0.01, 48)
    return lambda num_codes: free_energy_curve(latents, codes[:num_codes], taus)


def test_each_map_is_below_its_image_on_a_scale_of_its_own():
    images = [np.full((8, 8, 3), i, np.uint8) for i in (10, 200)]
    maps = {"hot": [np.eye(2), 3 * np.eye(2)], "cold": [np.zeros((2, 2))] * 2}
    fig = entropy.entropy_maps(images, maps)
    assert list(fig.layout.yaxis.ticktext) == ["image", "hot", "cold"]
    picture = pixels(fig.data[0].source)[..., :3]
    side = (picture.shape[1] - 2) // 2  # two pixels lie between pictures
    assert (picture[0, 0] == 10).all() and (picture[0, -1] == 200).all()
    left, right = picture[side + 2 : 2 * side + 2, :side], picture[side + 2 : 2 * side + 2, -side:]
    assert (left == right).all() and (left[0, 0] != left[0, -1]).any(), "unsure, and sure"
    assert fig.data[1].text[1] == "hot: mean 1.5, at most 3 nats"


def test_patches_of_codes_and_deciles_say_where_they_are_from():
    patch = np.full((4, 4, 3), 9, np.uint8)
    rows, places = [[patch, patch], [patch]], [["a", "b"], ["c"]]
    codes = entropy.uncertain_examples(rows, [7, 2, 5], [1.5, 0.5, 0.1], places=places)
    deciles = entropy.decile_examples(rows, [(0.0, 1e-6), (0.1, 0.2)], places=places)
    assert list(codes.layout.yaxis.ticktext) == ["code 7: 1.5", "code 2: 0.5"]
    assert list(deciles.layout.yaxis.ticktext) == ["1: below 10⁻⁴", "2: 0.1 to 0.2"]
    assert list(codes.data[1].text) == list(deciles.data[1].text) == ["a", "b", "c"]


def test_the_least_sure_codes_are_named():
    fig = entropy.uncertain_codes(np.array([2, 0]), np.array([1.0, 0.0]), np.array([2, 6]))
    assert texts(fig)[0].startswith("Least sure are codes 2, 0")
    assert (list(named(fig, "codes").x), list(named(fig, "codes").y)) == ([2, 6], [1, 0])
    assert fig.layout.shapes[0].y0 == 0.25, "the mean over tokens, not over codes"


def test_what_a_code_tells_is_usage_less_doubt_in_bits(curve):
    fig = entropy.information({"lgq": curve(32)}, {"lgq": 0.01}, {"lgq": 2.0})
    usage, doubt, known = (np.asarray(trace.y) for trace in fig.data[:3])
    assert np.allclose(usage - doubt, known)
    assert usage[0] == pytest.approx(5, abs=0.02), "hot, all 32 codes are used alike: 5 bits"
    assert fig.layout.shapes[0].x0 == 0.01 / 2.0, "the run's own temperature, in units of tau_c"
    assert f"LGQ {known[-1]:.2f} of {usage[-1]:.2f} bits" in texts(fig)[0]


@pytest.mark.parametrize(("num_codes", "caps"), [(32, []), (64, [np.log2(400)])])
def test_where_tokens_are_few_their_cap_is_drawn_and_written(curve, num_codes, caps):
    for fig in (
        entropy.information({"lgq": curve(num_codes)}, {"lgq": 0.1}, {"lgq": 1.0}),
        entropy.entropy_history({"lgq": [MOMENT]}, num_codes={"lgq": num_codes}),
        temperature.rate_distortion(curve(num_codes), np.ones(3), index=20),
    ):
        drawn = [shape for shape in fig.layout.shapes if shape.name == "log2 N"]
        assert [s.y0 if s.y0 == s.y1 else s.x0 for s in drawn] == pytest.approx(caps)
        caption = texts(fig)[1]
        assert "400 tokens" in caption and ("8.6 bits (dashed line)" in caption) == bool(caps)


def test_the_spread_counts_the_tokens_that_are_sure():
    entropies = np.array([[0.05, 0.05, 0.5, 1.0], [0.0, 0.0, 0.05, 0.2]])
    taus, histories = {"lgq": np.array([1.0, 0.1])}, {"lgq": [MOMENT]}
    fig = entropy.spread({"lgq": entropies}, taus, {"lgq": 1}, histories)
    assert "LGQ 75 %" in texts(fig)[0]
    assert list(named(fig, "LGQ, 4 tokens").x) == [0.0, 0.0, 0.05, 0.2]
    shade, median = (trace.y for trace in fig.data if trace.xaxis == "x3")
    assert list(shade) == [9, 1] and list(median) == [5]


def test_a_history_that_cannot_be_shown_says_why():
    missing, one = {"lgq": "codes have learned widths"}, {"lgq": np.ones(1)}
    history = entropy.entropy_history({"lgq": []}, num_codes={"lgq": 32}, missing=missing)
    spread = entropy.spread({"lgq": np.ones((1, 4))}, one, {"lgq": 0}, {"lgq": []}, missing=missing)
    assert "LGQ cannot be shown: codes have learned widths" in texts(history)[0]
    assert "LGQ has no history: codes have learned widths" in texts(spread)[1]


def test_even_use_is_a_straight_line_with_gini_zero():
    fig = entropy.evenness({"lgq": np.full(8, 5), "fsq": np.array([40, 0, 0, 10])})
    assert np.allclose(named(fig, "LGQ, Gini 0.00").y, np.linspace(0, 100, 9))
    assert np.allclose(named(fig, "FSQ, Gini 0.65").y, [0, 0, 0, 20, 100])
    assert list(named(fig, "FSQ, 2 active").y) == [0.8, 0.2]
    assert "LGQ 0.00; FSQ 0.65" in texts(fig)[0]


def test_terms_point_where_they_move_doubt_and_evenness():
    effects = [SimpleNamespace(term="peak", token=-0.1, usage=0.02)]
    fig = entropy.term_effects(effects, tau_label="τ = 1")
    assert (list(named(fig, "peak").x), list(named(fig, "peak").y)) == ([0, -0.1], [0, 0.02])
    assert "peak: doubt -0.100, evenness +0.020" in texts(fig)[0] and "τ = 1" in texts(fig)[1]
