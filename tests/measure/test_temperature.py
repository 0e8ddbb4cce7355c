"""Free energy and critical temperature, on sources whose answers are known."""

import numpy as np
import pytest
import torch

from lgqlib.measure.temperature import (
    critical_temperature,
    free_energy_curve,
    geometric_median,
)
from lgqlib.quantizers.assignment import ENERGIES, dense, energies, probabilities


@pytest.fixture
def pair():
    """Latents and a codebook."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 3)), rng.standard_normal((16, 3))


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
def test_the_curve_over_tiles_equals_the_definitions(pair, energy):
    taus, widths = [0.05, 0.7, 5.0], np.linspace(0.5, 2, 16)
    curve = free_energy_curve(*pair, taus, energy=energy, widths=widths, tile_elements=200)
    assert (curve.num_tokens, curve.num_codes) == (300, 16)
    for t, tau in enumerate(taus):
        for name, value in definitions(*pair, tau, energy, widths).items():
            assert getattr(curve, name)[t] == pytest.approx(value.item(), rel=1e-9), name


@pytest.mark.parametrize("energy", ["squared", "norm"])
def test_codes_at_the_center_are_unstable_exactly_below_tau_c(energy):
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((20000, 4)) * [2, 1, 0.5, 0.5]
    latents[:, 0] = rng.exponential(2, 20000)  # skew: mean and geometric median differ
    tau_c = critical_temperature(latents, energy=energy)
    center = latents.mean(0) if energy == "squared" else geometric_median(latents).numpy()
    step = np.array([[0.05, 0, 0, 0]])
    apart, together = np.concatenate([center - step, center + step]), np.stack([center] * 2)

    def change(codes, share):
        return free_energy_curve(latents, codes, [share * tau_c], energy=energy).free_energy[0]

    for share, sign in ((0.9, -1), (0.98, -1), (1.02, 1), (1.1, 1)):
        assert np.sign(change(apart, share) - change(together, share)) == sign


def test_tau_c_is_twice_the_largest_eigenvalue_and_a_latent_at_the_center_is_finite():
    gaussian = np.random.default_rng(2).standard_normal((40000, 3)) * [3, 1, 1]
    assert critical_temperature(gaussian + 100) == pytest.approx(2 * 9, rel=0.02)
    latents = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert geometric_median(latents).tolist() == [0, 0]
    assert critical_temperature(latents, energy="norm") == pytest.approx(2)
