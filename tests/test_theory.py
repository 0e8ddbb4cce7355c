"""Free energy and critical temperature, on sources whose answers are known."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from lgqlib.measure.temperature import (
    critical_moments,
    critical_temperature,
    energies,
    free_energy,
    free_energy_curve,
    geometric_median,
    tau_c_from_covariance,
    tau_c_from_moments,
)


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 3)), rng.standard_normal((16, 3))


def dense(latents, codebook, tau, energy):
    """The definitions, written out."""
    d = energies(torch.from_numpy(latents), torch.from_numpy(codebook), energy=energy)
    p = torch.softmax(-d / tau, 1)
    u = p.mean(0)
    return {
        "free_energy": (-tau * torch.logsumexp(-d / tau, 1)).mean(),
        "mean_energy": (p * d).sum(1).mean(),
        "entropy": torch.special.entr(p).sum(1).mean(),
        "usage_entropy": torch.special.entr(u).sum(),
        "mutual_information": (p * (p / u).log()).sum(1).mean(),
        "doubt": (1 - p.amax(1)).mean(),
        "soft_distortion": (torch.from_numpy(latents) - p @ torch.from_numpy(codebook))
        .square()
        .sum(1)
        .mean(),
    }


@pytest.mark.parametrize("energy", ["squared", "norm", "cosine", "dot"])
def test_the_tiled_curve_equals_the_dense_definitions(cloud, energy):
    taus = [0.05, 0.7, 5.0]
    curve = free_energy_curve(*cloud, taus, energy=energy, tile_elements=200)
    for t, tau in enumerate(taus):
        for name, value in dense(*cloud, tau, energy).items():
            assert getattr(curve, name)[t] == pytest.approx(value.item(), rel=1e-9), name


def test_thermodynamic_identities(cloud):
    tau, h = 0.5, 1e-4
    below, at, above = (free_energy_curve(*cloud, [t]) for t in (tau - h, tau, tau + h))

    def slope(name):
        return (getattr(above, name)[0] - getattr(below, name)[0]) / (2 * h)

    assert slope("free_energy") == pytest.approx(-at.entropy[0], abs=1e-6)
    assert slope("entropy") == pytest.approx(at.entropy_slope[0], abs=1e-6)
    assert slope("mean_energy") == pytest.approx(tau * at.entropy_slope[0], abs=1e-6)
    total, energy, entropy = free_energy(*cloud, tau)
    assert total == pytest.approx(energy - tau * entropy, abs=1e-12)
    mixed = energy + tau * at.mutual_information[0] - tau * at.usage_entropy[0]
    assert total == pytest.approx(mixed, abs=1e-12)


def test_any_other_assignment_has_more_free_energy_by_tau_times_its_divergence(cloud):
    latents, codebook = map(torch.from_numpy, cloud)
    tau, d = 0.5, energies(*map(torch.from_numpy, cloud))
    p = torch.softmax(-d / tau, 1)
    q = torch.softmax(torch.randn(d.shape, generator=torch.Generator().manual_seed(0)), 1)
    energy = ((q * d).sum(1) - tau * torch.special.entr(q).sum(1)).mean()
    gap = energy - free_energy(latents, codebook, tau).total
    assert gap.item() == pytest.approx(tau * (q * (q / p).log()).sum(1).mean().item(), rel=1e-9)


def test_the_cold_limit_is_nearest_neighbor_and_a_tie_never_resolves():
    codebook = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    untied = free_energy_curve(np.array([[0.2, 0.0]]), codebook, [1e-3])
    assert untied.entropy[0] == pytest.approx(0, abs=1e-9)
    assert untied.soft_distortion[0] == pytest.approx(untied.hard_distortion, abs=1e-9)
    tied = free_energy_curve(np.array([[0.5, 0.0]]), codebook, [1e-3])
    assert tied.entropy[0] == pytest.approx(math.log(2), abs=1e-9)
    assert tied.doubt[0] == pytest.approx(0.5, abs=1e-9)


def test_doubt_and_entropy_grow_linearly_from_zero_temperature():
    grid = np.arange(-8, 9, dtype=np.float64)[:, None]  # the gap density at zero is known
    latents = (np.arange(20000)[:, None] + 0.5) / 20000
    tau = 0.01
    curve = free_energy_curve(latents, grid, [tau])
    density = 1.0  # gap = |1 - 2x| is uniform on [0, 1]
    assert curve.doubt[0] == pytest.approx(density * math.log(2) * tau, rel=1e-3)
    assert curve.entropy[0] == pytest.approx(density * math.pi**2 / 6 * tau, rel=1e-3)


def test_widths_divide_the_energy(cloud):
    widths = np.full(16, 2.0)
    wide = free_energy_curve(*cloud, [0.5], widths=widths)
    assert wide.entropy[0] == pytest.approx(free_energy_curve(*cloud, [1.0]).entropy[0], rel=1e-12)


def test_bad_arguments_are_refused(cloud):
    with pytest.raises(ValueError, match="positive"):
        free_energy_curve(*cloud, [0.0])
    with pytest.raises((ValueError, TypeCheckError), match="channels|codebook"):
        free_energy_curve(cloud[0], cloud[1][:, :2], [1.0])
    with pytest.raises(ValueError, match="unknown energy"):
        free_energy_curve(*cloud, [1.0], energy="manhattan")
    for energy in ("cosine", "dot"):
        with pytest.raises(ValueError, match="no critical temperature"):
            critical_temperature(cloud[0], energy=energy)


@pytest.mark.parametrize("energy", ["squared", "norm"])
def test_codes_at_the_center_are_unstable_exactly_below_tau_c(energy):
    scales = np.array([2.0, 1.0, 0.5, 0.5])
    latents = np.random.default_rng(1).standard_normal((20000, 4)) * scales
    tau_c = critical_temperature(latents, energy=energy)
    center = latents.mean(0)
    if energy == "norm":
        center = geometric_median(latents).numpy()

    def change(tau):
        """Return how much F changes when two codes part along the first channel."""
        step = np.array([[0.05, 0, 0, 0]])
        together, apart = np.stack([center] * 2), np.concatenate([center - step, center + step])
        parts = (free_energy(latents, c, tau, energy=energy).total for c in (apart, together))
        return next(parts) - next(parts)

    assert change(1.02 * tau_c) > 0 > change(0.98 * tau_c)


def test_tau_c_of_known_covariances():
    rng = np.random.default_rng(2)
    gaussian = rng.standard_normal((40000, 3)) * [3, 1, 1]
    assert critical_temperature(gaussian) == pytest.approx(18, rel=0.02)
    assert tau_c_from_covariance(np.diag([9.0, 1.0])) == 18
    clusters = np.concatenate([rng.normal(-1, 0.1, (9999, 2)), rng.normal(1, 0.1, (9999, 2))])
    # two clusters at (-1, -1) and (1, 1): variance 2 + 0.01 along the axis between them
    assert critical_temperature(clusters) == pytest.approx(2 * 2.01, rel=0.01)


def test_moments_of_batches_average_to_those_of_the_whole():
    z = torch.randn(4096, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad, hess = critical_moments(z)
    assert torch.allclose(grad, 4 * torch.cov(z.T, correction=0))
    assert torch.equal(hess, 2 * torch.eye(5, dtype=torch.float64))
    center = z.mean(0)
    halves = [critical_moments(half, "norm", center=center) for half in z.chunk(2)]
    averages = [sum(m) / 2 for m in zip(*halves, strict=True)]
    whole = critical_temperature(z, energy="norm")
    assert tau_c_from_moments(*averages) == pytest.approx(whole, rel=1e-3)


def test_moments_stay_float32_under_autocast_and_refuse_one_channel_with_the_norm():
    z = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grad, _ = critical_moments(z)
    assert grad.dtype == torch.float32 and torch.equal(grad, critical_moments(z)[0])
    with pytest.raises(ValueError, match="at least 2 channels"):
        critical_moments(z[:, :1], "norm")
    with pytest.raises(ValueError, match="positive definite"):
        tau_c_from_moments(np.eye(2), np.zeros((2, 2)))
