"""Figures of entropy show what they are given: maps, patches, bits and the tokens counted."""

import numpy as np
import pytest
from drawn import named, texts

from lgqlib.figures import entropy, temperature
from lgqlib.measure.temperature import Moment, free_energy_curve

MOMENT = Moment(step=3, tau=0.1, token=0.5, usage=2.0, num_tokens=400)


@pytest.fixture(scope="module")
def curve():
    """Give the curve of 400 tokens and some codes."""
    rng = np.random.default_rng(0)
    latents, codes = rng.standard_normal((400, 3)), rng.standard_normal((64, 3))
    taus = np.geomspace(20, 0.01, 48)
    return lambda num_codes: free_energy_curve(latents, codes[:num_codes], taus)


def test_what_a_code_tells_is_usage_less_doubt_in_bits(curve):
    fig = entropy.information({"lgq": curve(32)}, {"lgq": 0.01})
    usage, doubt, known = (np.asarray(trace.y) for trace in fig.data[:3])
    assert np.allclose(usage - doubt, known)
    assert usage[0] == pytest.approx(5, abs=0.02), "hot, all 32 codes are used alike: 5 bits"
    assert fig.layout.shapes[0].x0 == 1, "2 D / C, the unit"
    assert f"LGQ {known[-1]:.2f} of {usage[-1]:.2f} bits" in texts(fig)[0]


@pytest.mark.parametrize(("num_codes", "caps"), [(32, []), (64, [np.log2(400)])])
def test_where_tokens_are_few_their_cap_is_drawn_and_written(curve, num_codes, caps):
    for fig in (
        entropy.information({"lgq": curve(num_codes)}, {"lgq": 1.0}),
        entropy.entropy_history({"lgq": [MOMENT]}, num_codes={"lgq": num_codes}),
        temperature.energy_and_rate(curve(num_codes), np.ones(3), unit=1.0),
    ):
        drawn = [shape for shape in fig.layout.shapes if shape.name == "log2 N"]
        assert [s.y0 if s.y0 == s.y1 else s.x0 for s in drawn] == pytest.approx(caps)
        caption = texts(fig)[1]
        assert "400 tokens" in caption and ("8.6 bits (dashed line)" in caption) == bool(caps)


def test_even_use_is_a_straight_line_with_gini_zero():
    fig = entropy.evenness({"lgq": np.full(8, 5), "fsq": np.array([40, 0, 0, 10])})
    assert np.allclose(named(fig, "LGQ, Gini 0.00").y, np.linspace(0, 100, 9))
    assert np.allclose(named(fig, "FSQ, Gini 0.65").y, [0, 0, 0, 20, 100])
    assert list(named(fig, "FSQ, 2 active").y) == [0.8, 0.2]
    assert "LGQ 0.00; FSQ 0.65" in texts(fig)[0]


def test_a_run_without_snapshots_says_so():
    fig = entropy.entropy_history({"lgq": []}, num_codes={"lgq": 32})
    assert "LGQ has no snapshots of its training" in texts(fig)[0]


def test_the_histogram_counts_tokens_and_those_of_chosen_codes():
    bits = np.array([0.05, 0.05, 0.5, 4.0])
    fig = entropy.histogram(bits, 32)
    assert "50 % of the tokens are sure" in texts(fig)[0] and "25 % hesitate" in texts(fig)[0]
    changes = entropy.bars(bits, bits < 0.3, 5.0)
    assert set(changes) == {trace.name for trace in fig.data}
    assert [change["y"].sum() for change in changes.values()] == [100, 50]


def test_deciles_stand_in_rows_with_their_entropies():
    patch = np.full((12, 12, 3), 9, np.uint8)
    fig = entropy.decile_examples([[patch, patch], [patch]], [(0.0, 0.5), (0.5, 3.0)])
    assert list(fig.layout.yaxis.ticktext) == ["1: 0.00 to 0.50", "2: 0.50 to 3.00"]
