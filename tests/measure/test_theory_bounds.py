"""Laws of rate, distortion and code density against closed forms and known constants."""

import math

import numpy as np
import pytest

from lgqlib.measure.theory import (
    GERSHO_LIMIT,
    geometry_efficiency,
    gersho_constant,
    mass_law_perplexity,
    participation_ratio,
    water_filling,
    zador_distortion,
)


def test_water_filling_against_closed_form_and_definition():
    assert water_filling(np.ones(4), 2.0) == pytest.approx(4 * math.exp(-1), rel=1e-12)
    spectrum = np.array([4.0, 1.0, 0.25, 0.0])
    level = np.array([3.0, 0.9, 0.3, 0.01])
    rates = np.array([np.log(np.maximum(spectrum[:3] / t, 1)).sum() / 2 for t in level])
    distortions = np.array([np.minimum(spectrum, t).sum() for t in level])
    assert water_filling(spectrum, rates) == pytest.approx(distortions, rel=1e-12)
    assert water_filling(spectrum, 0.0) == pytest.approx(spectrum.sum())
    assert water_filling(np.zeros(3), 1.0) == 0
    for bad in ((np.array([-1.0, 1.0]), 1.0), (np.ones(2), -1.0)):
        with pytest.raises(ValueError, match="negative"):
            water_filling(*bad)


def test_efficiency_of_a_scalar_quantizer_is_that_of_its_entropy_code():
    x, step = np.random.default_rng(3).standard_normal(200000), 0.25
    error = x - step * np.round(x / step)
    p = np.unique(np.round(x / step), return_counts=True)[1] / len(x)
    entropy = float(-(p * np.log(p)).sum())
    # fine uniform quantization with entropy coding loses 0.255 bit: a factor pi e / 6 of distortion
    eta = geometry_efficiency(np.ones(1), entropy, float((error**2).mean()))
    assert eta == pytest.approx(6 / (math.pi * math.e), rel=0.01)
    # one bit places two tight clusters nearly exactly; a Gaussian of that variance it does not
    assert geometry_efficiency(np.array([1.01]), math.log(2), 0.01) > 1
    with pytest.raises(ValueError, match="positive"):
        geometry_efficiency(np.ones(1), 1.0, 0.0)


def test_high_resolution_constants():
    known = {1: 1 / 12, 2: 0.0802, 4: 0.0766, math.inf: GERSHO_LIMIT}
    assert [gersho_constant(d) for d in known] == pytest.approx(list(known.values()), abs=5e-5)
    assert pytest.approx(0.0585, abs=1e-4) == GERSHO_LIMIT
    constants = np.array([gersho_constant(d) for d in np.arange(1, 200, 0.5)])
    assert (np.diff(constants) < 0).all() and (constants > GERSHO_LIMIT).all()
    # Panter-Dite: pi sqrt(3) / 2 sigma^2 / K^2
    panter_dite = math.pi * math.sqrt(3) / 2 * 4 / 64**2
    assert zador_distortion(np.array([4.0]), 64) == pytest.approx(panter_dite)
    for bad in (lambda: gersho_constant(0.5), lambda: zador_distortion(np.zeros(2), 4)):
        with pytest.raises(ValueError, match="must be"):
            bad()


def test_mass_law_and_effective_dimension():
    shares = [mass_law_perplexity(d) for d in (1, 2, 4, 8, 16, 64)]
    assert shares == pytest.approx([0.806, 0.824, 0.866, 0.912, 0.948, 0.985], abs=5e-4)
    assert participation_ratio(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert participation_ratio(np.zeros(3)) == 0
