"""Free energy and critical temperature, on sources whose answers are known."""

import numpy as np
import pytest
import torch

from lgqlib.measure.annealing import anneal
from lgqlib.measure.temperature import critical_temperature, free_energy_curve, geometric_median
from lgqlib.quantizers.assignment import ENERGIES, dense, energies, probabilities


def definitions(latents, codebook, tau, energy, widths):
    """What a curve holds at one temperature, by the dense assignment."""
    z, e, s = map(torch.from_numpy, (latents, codebook, widths))
    a, p = (f(z, e, tau, energy=energy, widths=s) for f in (dense, probabilities))
    d = energies(z, e, energy=energy) / s
    mean = (p * d).sum(1)
    return {
        "free_energy": a.free_energy.mean(),
        "mean_energy": mean.mean(),
        "entropy": a.entropy.mean(),
        "usage_entropy": torch.special.entr(a.usage).sum(),
        "mutual_information": torch.xlogy(p, p / a.usage).sum(1).mean(),
        "entropy_slope": ((p * d.square()).sum(1) - mean.square()).mean() / tau**3,
        "doubt": (1 - p.amax(1)).mean(),
    }


@pytest.mark.parametrize("energy", ENERGIES)
def test_the_curve_over_tiles_equals_the_definitions(energy):
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((300, 3)), rng.standard_normal((16, 3))
    taus, widths = [0.05, 0.7, 5.0], np.linspace(0.5, 2, 16)
    curve = free_energy_curve(*pair, taus, energy=energy, widths=widths, tile_elements=200)
    assert (curve.num_tokens, curve.num_codes) == (300, 16)
    for t, tau in enumerate(taus):
        for name, value in definitions(*pair, tau, energy, widths).items():
            assert getattr(curve, name)[t] == pytest.approx(value.item(), rel=1e-9), name


def test_tau_c_is_twice_the_largest_eigenvalue_and_a_latent_at_the_center_is_finite():
    gaussian = np.random.default_rng(2).standard_normal((40000, 3)) * [3, 1, 1]
    assert critical_temperature(gaussian + 100) == pytest.approx(2 * 9, rel=0.02)
    latents = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert geometric_median(latents).tolist() == [0, 0]
    assert critical_temperature(latents, energy="norm") == pytest.approx(2)


def test_two_clusters_make_two_places_at_the_predicted_temperature():
    axis, side = np.array([0.6, 0.8]), np.where(np.arange(1000) % 2, 1.0, -1.0)
    noise = np.random.default_rng(6).standard_normal((1000, 2))
    predicted = 2 * (1 + 0.05**2)
    result = anneal(
        0.05 * noise + side[:, None] * axis, 16, predicted * np.geomspace(1.3, 0.02, 30)
    )
    assert (result.predicted, result.observed) == pytest.approx((predicted, predicted), rel=0.02)
    assert set(result.num_distinct) == {1, 2}
    (split,) = result.splits
    assert split.low < predicted < 1.1 * split.high
    assert split.predicted == pytest.approx(predicted, rel=0.01)
    places, sizes = np.unique(result.codebooks[-1].round(6), axis=0, return_counts=True)
    assert places == pytest.approx(np.stack([-axis, axis]), abs=0.03)
    assert sizes.tolist() == [8, 8], "half of the codes went each way"
