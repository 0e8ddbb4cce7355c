"""Laws of rate, distortion and code density against closed forms and known constants."""

import math

import numpy as np
import pytest

from lgqlib.measure.theory import gersho_constant, mass_law_perplexity, water_filling


def test_water_filling_against_closed_form_and_definition():
    assert water_filling(np.ones(4), 2.0) == pytest.approx(4 * math.exp(-1), rel=1e-12)
    spectrum = np.array([4.0, 1.0, 0.25, 0.0])
    level = np.array([3.0, 0.9, 0.3, 0.01])
    rates = np.array([np.log(np.maximum(spectrum[:3] / t, 1)).sum() / 2 for t in level])
    distortions = np.array([np.minimum(spectrum, t).sum() for t in level])
    assert water_filling(spectrum, rates) == pytest.approx(distortions, rel=1e-12)
    assert water_filling(spectrum, 0.0) == pytest.approx(spectrum.sum())


def test_constants_of_many_codes_are_the_known_ones():
    known = {1: 1 / 12, 2: 0.0802, 4: 0.0766, 1e5: 1 / (2 * math.pi * math.e)}
    assert [gersho_constant(d) for d in known] == pytest.approx(list(known.values()), rel=1e-3)
    shares = [mass_law_perplexity(d) for d in (1, 2, 4, 8, 16, 64)]
    assert shares == pytest.approx([0.806, 0.824, 0.866, 0.912, 0.948, 0.985], abs=5e-4)
