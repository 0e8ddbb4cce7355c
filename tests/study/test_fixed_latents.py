"""Quantizers on fixed latents: known geometry, fits that reach k-means, honest verdicts."""

import numpy as np
import pandas as pd
import pytest
import torch
from laws import zador_distortion

from lgqlib.measure.geometry import spectrum
from lgqlib.measure.temperature import critical_temperature
from lgqlib.measure.theory import participation_ratio, water_filling
from lgqlib.study.fixed_latents import (
    CHANGES,
    PEERS,
    QUESTIONS,
    WHOLE,
    compare,
    effects,
    fit,
    gaussian_latents,
    geometric_spectrum,
    kmeans,
    lgq_settings,
    measure,
)

COMMON = {"quantizer.num_codes": 16, "train.batch_size": 64, "train.lr": 0.05}
QUICK = COMMON | {"train.num_steps": 3}
LGQ = lgq_settings()


def least_error(latents, num_codes):
    basis = spectrum(latents.held_out)
    return water_filling(basis.eigenvalues, np.log(num_codes)) / basis.total


@pytest.fixture(scope="module")
def latents():
    return gaussian_latents(2048, geometric_spectrum(6, 4), seed=0)


def test_latents_have_the_spectrum_asked_for_and_two_clusters_are_two():
    values = geometric_spectrum(8, 5)
    assert participation_ratio(values) == pytest.approx(5) and values.sum() == pytest.approx(8)
    measured = spectrum(gaussian_latents(20_000, values).held_out).eigenvalues
    assert measured == pytest.approx(values, rel=0.08)
    drawn = gaussian_latents(20_000, np.ones(3), seed=2, separation=4.0)
    basis = spectrum(drawn.points)
    along = drawn.points @ basis.axes[:, 0].astype(np.float32)
    assert basis.total == pytest.approx(3, rel=0.03) and abs((along > 0).mean() - 0.5) < 0.03
    assert (np.abs(along) < 0.5 * np.abs(along).mean()).mean() < 0.05


def test_kmeans_lies_between_the_bounds():
    values = geometric_spectrum(2, 1.8)
    drawn = gaussian_latents(16_384, values, seed=4)
    found = kmeans(drawn, 128)
    zador = zador_distortion(values, 128) / values.sum()
    assert max(0.97 * zador, least_error(drawn, 128)) < found["distortion"] < 1.15 * zador
    assert found["efficiency"] < 1


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


def test_a_seed_gives_the_same_fit_and_leaves_the_global_stream(latents):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    setting = QUICK | LGQ["authors"]
    fits = [fit(setting, latents, start="random", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    a, b, c = (measure(bench, latents) for bench in fits)
    assert a == b != c


def test_every_setting_of_a_seed_starts_from_the_same_codes(latents):
    still = COMMON | {"train.num_steps": 1, "train.lr": 1e-12}
    settings = LGQ["authors"], PEERS["VQ"], PEERS["VQ-EMA"]
    fits = [fit(still | s, latents, start="gaussian", seed=3) for s in settings]
    first, *rest = (bench.quantizer.codebook.sort(0).values for bench in fits)
    assert torch.allclose(rest[0], first, atol=1e-6)


def test_a_linear_encoder_learns_and_keeps_rows_of_norm_one(latents):
    errors = []
    for num_steps in (1, 20):
        setting = QUICK | LGQ[WHOLE] | {"train.num_steps": num_steps}
        bench = fit(setting, latents, start="random", seed=0, encoder_dim=2)
        assert bench.encoder.weight.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1])
        errors.append(measure(bench, latents)["distortion"])
    assert bench.quantizer.codebook.shape == (16, 2) and errors[1] < errors[0]


def test_every_setting_runs_and_none_passes_the_bound(latents):
    trials = compare({0: latents}, LGQ | PEERS, QUICK, encoder_dim=6)
    assert len(trials) == 1 + 2 + 2 * len(CHANGES) + len(PEERS)
    assert (trials["distortion"] > least_error(latents, 16)).all()


def test_each_hypothesis_is_asked_alone_and_last_paired_by_seed():
    authors = np.array([1.0, 2.0, 3.0])  # seeds differ by far more than the settings do
    errors = {"authors": authors, "+ self-tempering": 0.9 * authors}
    errors[WHOLE] = authors - [0.5, -0.6, 0.2]
    errors["all but self-tempering"] = 0.5 * errors[WHOLE]
    rows = [
        {"setting": name, "start": "random", "seed": seed, "distortion": value}
        for name, values in errors.items()
        for seed, value in enumerate(values)
    ]
    trials = pd.DataFrame(rows).sample(frac=1, random_state=0)
    table = effects(trials).set_index("question")
    assert {*table.index} < {*QUESTIONS} and len(table) == 3
    alone = table.loc["self-tempering, added to the authors'"]
    assert alone["change"] == pytest.approx(-10) and alone["verdict"] == "better"
    assert table.loc[WHOLE, "verdict"] == "undecided"
    assert table.loc["self-tempering, added to all the others", "verdict"] == "worse"
