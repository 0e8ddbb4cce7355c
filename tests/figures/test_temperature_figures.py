"""Figures of the temperature show what they are given, and hold the theory against the curve."""

import numpy as np
import pytest
from drawn import marks, named, pixels, texts

from lgqlib.figures import temperature
from lgqlib.measure.temperature import free_energy_curve

BLACK = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def curve():
    rng = np.random.default_rng(0)
    taus = np.geomspace(20, 0.01, 48)
    return free_energy_curve(rng.standard_normal((400, 3)), rng.standard_normal((32, 3)), taus)


@pytest.fixture(scope="module")
def draw(curve):
    """Give each figure over tau as a function of the run's schedule; tau_c is 2."""
    between = np.full(48, 0.5)
    return {
        "free energy": lambda s: temperature.free_energy(curve, scale=2.0, schedule=s),
        "slope": lambda s: temperature.entropy_slope(curve, scale=2.0, schedule=s),
        "soft": lambda s: temperature.soft_to_hard(curve, between, scale=2.0, schedule=s),
    }


@pytest.mark.parametrize(("name", "num_panels"), [("free energy", 1), ("slope", 1), ("soft", 2)])
def test_the_schedule_is_marked_in_units_of_tau_c(draw, name, num_panels):
    found = marks(draw[name]([np.nan, 4.0, 0.2]))
    assert found["training starts"] == [(2.0, 2.0)] * num_panels
    assert found["training ends"] == [(0.1, 0.1)] * num_panels
    assert found["schedule"] == [(0.1, 2.0)] * num_panels
    fig = draw[name]([])
    assert set(marks(fig)) <= {"τ<sub>c</sub>"}, "a method without a temperature"
    assert min(map(len, texts(fig))) > 20 and "$" not in fig.to_json()
    assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text


def test_identities_hold_on_the_curves(draw, curve):
    fig = draw["free energy"]([])
    total, energy, entropy = (np.asarray(named(fig, part).y) for part in temperature.PARTS)
    assert np.allclose(total, energy - entropy)
    assert "no temperature" in texts(fig)[0] and "dF/dτ = −H holds to 0" in texts(fig)[0]
    predicted, measured = (np.asarray(trace.y)[2:-2] for trace in draw["slope"]([]).data)
    assert np.abs(predicted - measured).max() < 0.02 * predicted.max()
    assert f"{curve.soft_to_hard[-1]:.2g} from the hard one" in texts(draw["soft"]([]))[0]


def test_the_run_is_on_its_rate_distortion_curve_in_bits(curve):
    schedule = [np.nan, curve.taus[10], curve.taus[30]]
    fig = temperature.rate_distortion(curve, np.ones(3), index=30, schedule=schedule)
    own, rates = named(fig, "the run's temperature"), curve.mutual_information / np.log(2)
    assert (own.x[0], own.y[0]) == pytest.approx((rates[30], curve.mean_energy[30]))
    assert np.allclose(marks(fig)["schedule"], [(rates[10], rates[30])])
    assert named(fig, "bound for a Gaussian").y[0] == pytest.approx(3), "all of the variance"


def test_decoded_pictures_stand_above_the_entropy_of_their_tokens():
    soft, maps = {"hot": BLACK + 51, "cold": BLACK}, [np.ones((2, 2)), np.zeros((2, 2))]
    fig = temperature.decoded_frames(BLACK + 9, soft, maps, BLACK + 1)
    assert list(fig.layout.xaxis.ticktext) == ["hot", "cold", "hard codes", "original"]
    picture = pixels(fig.data[0].source)
    assert picture[0, :: picture.shape[1] // 4 + 1, 0].tolist() == [51, 0, 1, 9]
    assert (picture[-1, -1] == 0).all(), "no map below the original"
    assert "0.196 of the range at hot, by 0.004 at cold" in texts(fig)[0]


def test_one_token_is_marked_beside_its_likeliest_codes():
    shares = {
        "its own": (np.array([5, 3]), np.array([0.9, 0.1])),
        "1 τc": (np.array([3, 7]), np.array([0.2, 0.1])),
    }
    fig = temperature.one_token(BLACK, (1, 0), shares, grid=(2, 2))
    _, square, *bars = fig.data
    assert (set(square.x), set(square.y)) == ({-0.5, 3.5}, {3.5, 7.5})
    assert [list(bar.x) for bar in bars] == [["k5", "k3"], ["k3", "k7"]]
    assert np.allclose([bar.y for bar in bars], [weights for _, weights in shares.values()])
    assert "0.9 at its own; 0.2 at 1 τc" in texts(fig)[0]
