"""Annealing: the first split, the staircase, and where each cell comes apart."""

import numpy as np
import pytest

from lgqlib.measure.annealing import anneal, first_split
from lgqlib.measure.temperature import critical_temperature, free_energy


@pytest.mark.parametrize("scales", [(1, 1), (2, 1, 1, 0.5)])
def test_codes_at_the_mean_of_a_gaussian_part_at_tau_c(scales):
    latents = np.random.default_rng(5).standard_normal((2048, len(scales))) * scales
    assert first_split(latents) == pytest.approx(critical_temperature(latents), rel=0.02)


def test_two_clusters_make_two_places_at_the_predicted_temperature():
    rng = np.random.default_rng(6)
    axis = np.array([0.6, 0.8])
    side = np.where(np.arange(1000) % 2, 1.0, -1.0)
    latents = 0.05 * rng.standard_normal((1000, 2)) + side[:, None] * axis
    predicted = 2 * (1 + 0.05**2)
    taus = predicted * np.geomspace(1.3, 0.02, 30)
    result = anneal(latents, 16, taus)
    assert result.predicted == pytest.approx(predicted, rel=0.01)
    assert result.observed == pytest.approx(predicted, rel=0.02)
    assert set(result.num_distinct) == {1, 2}
    (split,) = result.splits
    assert split.low < predicted < 1.1 * split.high and split.parts == 2
    places = np.unique(result.codebooks[-1].round(2), axis=0)
    assert places == pytest.approx(np.stack([-axis, axis]), abs=0.03)


def test_every_split_comes_near_the_limit_of_its_own_cell():
    latents = np.random.default_rng(7).standard_normal((1024, 2)) * [2, 1]
    tau_c = critical_temperature(latents)
    taus = tau_c * np.geomspace(1.2, 0.03, 60)
    result = anneal(latents, 16, taus)
    assert (np.diff(result.num_distinct) >= 0).mean() > 0.9
    assert result.num_distinct[0] == 1 and result.num_distinct[-1] == 16
    ratios = [split.predicted / np.sqrt(split.high * split.low) for split in result.splits]
    assert np.median(ratios) == pytest.approx(1, abs=0.12)
    assert min(ratios) > 0.9  # a cell never splits well above its own limit


def test_annealed_codes_are_a_fixed_point_of_low_free_energy():
    rng = np.random.default_rng(8)
    latents = rng.standard_normal((1024, 3))
    taus = critical_temperature(latents) * np.geomspace(1.2, 0.02, 25)
    result = anneal(latents, 32, taus)
    for t in (3, 24):
        recomputed = free_energy(latents, result.codebooks[t], float(taus[t])).total
        assert recomputed == pytest.approx(result.free_energy[t], rel=5e-3)
    drawn = latents[rng.choice(1024, 32, replace=False)]
    assert result.free_energy[-1] < 0.8 * free_energy(latents, drawn, float(taus[-1])).total


def test_annealing_refuses_what_it_cannot_do():
    latents = np.random.default_rng(9).standard_normal((64, 2))
    with pytest.raises(ValueError, match="fall"):
        anneal(latents, 4, [1.0, 2.0])
    with pytest.raises(ValueError, match="do not vary"):
        anneal(np.ones((64, 2)), 4, [1.0])
    with pytest.raises(ValueError, match="num_codes"):
        anneal(latents, 0, [1.0])


def test_progress_shows_over_the_temperatures(monkeypatch):
    seen = []

    def bar(taus, **options):
        seen.append((len(taus), options["unit"]))
        return taus

    monkeypatch.setattr("lgqlib.measure.annealing.tqdm", bar)
    latents = np.random.default_rng(0).standard_normal((64, 2))
    anneal(latents, 2, np.geomspace(4, 1, 5))
    assert seen == [(5, "temperature")]
