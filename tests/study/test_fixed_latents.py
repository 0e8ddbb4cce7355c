"""Quantizers on fixed latents: known geometry, fits that reach k-means, honest verdicts."""

import numpy as np
import pytest

from lgqlib.measure.geometry import spectrum
from lgqlib.measure.temperature import critical_temperature
from lgqlib.measure.theory import water_filling
from lgqlib.study.fixed_latents import (
    CHANGES,
    PEERS,
    WHOLE,
    compare,
    gaussian_latents,
    geometric_spectrum,
    lgq_settings,
)

COMMON = {"train.batch_size": 64, "train.lr": 0.05}
LGQ = lgq_settings()


def test_annealed_free_energy_forgets_a_bad_start_and_the_authors_setting_does_not():
    drawn = gaussian_latents(2048, geometric_spectrum(32, 4), seed=0)
    assert critical_temperature(drawn.points) > 20  # so that tau = 1 is cold
    common = {"quantizer.num_codes": 32, "train.num_steps": 150, "train.lr": 0.2}
    common = COMMON | common | {"train.batch_size": 256}
    settings = {n: LGQ[n] for n in ("authors", WHOLE)}
    trials = compare({0: drawn}, settings, common, starts=["cluster"]).set_index("setting")
    error = trials["distortion"]
    assert error[WHOLE] < 1.03 * error["k-means"] and error["authors"] > 1.1 * error["k-means"]
    assert trials["active_share"][WHOLE] == 1


def test_every_setting_runs_and_none_passes_the_bound():
    values = geometric_spectrum(6, 4)
    latents = gaussian_latents(2048, values, seed=0)
    basis = spectrum(latents.held_out)
    assert basis.eigenvalues == pytest.approx(values, rel=0.25)
    few = COMMON | {"quantizer.num_codes": 16, "train.num_steps": 3}
    trials = compare({0: latents}, LGQ | PEERS, few)
    assert len(trials) == 1 + 2 + 2 * len(CHANGES) + len(PEERS)
    bound = water_filling(basis.eigenvalues, np.log(16)) / basis.total
    assert (trials["distortion"] > bound).all() and (trials["efficiency"] < 1).all()
