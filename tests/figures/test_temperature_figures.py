"""Figures of the temperature show what they are given, and hold the theory against the curve."""

import numpy as np
import pytest
from drawn import marks, named, texts

from lgqlib.figures import temperature
from lgqlib.measure.temperature import free_energy_curve


@pytest.fixture(scope="module")
def curve():
    rng = np.random.default_rng(0)
    taus = np.geomspace(20, 0.01, 48)
    return free_energy_curve(rng.standard_normal((400, 3)), rng.standard_normal((32, 3)), taus)


@pytest.fixture(scope="module")
def draw(curve):
    """Give each figure over tau as a function of the run's schedule; 2 D / C is 2."""
    return {
        "energy": lambda s: temperature.energy_and_rate(
            curve, np.ones(3), unit=2.0, tau_c=6.0, schedule=s
        ),
        "slope": lambda s: temperature.entropy_slope(curve, unit=2.0, schedule=s),
    }


@pytest.mark.parametrize("name", ["energy", "slope"])
def test_the_schedule_is_marked_in_units_of_2d_over_c(draw, name):
    found = marks(draw[name]([np.nan, 4.0, 0.2]))
    assert found["training starts"] == [(2.0, 2.0)]
    assert found["training ends"] == [(0.1, 0.1)]
    assert found["schedule"] == [(0.1, 2.0)]
    fig = draw[name]([])
    assert not {"schedule", "training ends"} & set(marks(fig)), "a method without a temperature"
    assert min(map(len, texts(fig))) > 20 and "$" not in fig.to_json()
    assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text


def test_identities_hold_on_the_curves(draw):
    fig = draw["energy"]([])
    total, energy, entropy = (np.asarray(named(fig, part).y) for part in temperature.PARTS)
    assert np.allclose(total, energy - entropy) and marks(fig)["τ<sub>c</sub>"] == [(3.0, 3.0)]
    predicted, measured = (np.asarray(trace.y)[2:-2] for trace in draw["slope"]([]).data)
    assert np.abs(predicted - measured).max() < 0.02 * predicted.max()


def test_the_temperature_is_on_both_curves_and_moves(curve, draw):
    fig, rates = draw["energy"]([]), curve.mutual_information / np.log(2)
    assert named(fig, "bound for a Gaussian").y[0] == pytest.approx(3), "all of the variance"
    at = temperature.here(curve, curve.taus[30] / 2.0, unit=2.0)
    assert set(at) <= {trace.name for trace in fig.data}
    assert at["temperature"]["y"] == pytest.approx([curve.free_energy[30]])
    point = at["rate and distortion"]
    assert (point["x"][0], point["y"][0]) == pytest.approx((rates[30], curve.mean_energy[30]))
