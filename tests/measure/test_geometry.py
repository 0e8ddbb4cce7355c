"""Geometry of codebooks on sources with known answers: uniform, Gaussian, clusters, grids."""

import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from sklearn.cluster import KMeans

from lgqlib.measure import METRICS, projection
from lgqlib.measure.geometry import drift, measure_geometry, partial_distortion, squared_errors
from lgqlib.measure.projection import project
from lgqlib.measure.theory import mass_law_perplexity, water_filling


def assign(latents, codes):
    return KDTree(codes).query(latents)[1]


def square_grid(low, high, count):
    axis = np.linspace(low, high, count)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)


@pytest.fixture(scope="module")
def gaussian():
    """Fresh latents of a Gaussian in the plane, and codes that k-means fitted to others."""
    rng = np.random.default_rng(0)
    latents, others = rng.standard_normal((30000, 2)), rng.standard_normal((20000, 2))
    return latents, KMeans(64, n_init=1, random_state=0).fit(others).cluster_centers_


def partial_of(latents, codes, **options):
    indices = assign(latents, codes)
    errors = squared_errors(latents, codes, indices)
    return partial_distortion(errors, indices, len(codes), **options)


def test_the_slope_is_minus_one_for_kmeans_on_a_gaussian_and_zero_for_a_grid(gaussian):
    best, grid = partial_of(*gaussian), partial_of(gaussian[0], square_grid(-3, 3, 13))
    assert best.slope == pytest.approx(-1, abs=0.25) and best.evenness > 0.97
    assert grid.slope == pytest.approx(0, abs=0.15) and grid.evenness < 0.8


def test_the_slope_survives_few_tokens_and_its_interval_covers_and_is_over_images(gaussian):
    latents, codes = gaussian
    many = partial_of(latents, codes).slope
    few = [partial_of(part, codes, seed=i) for i, part in enumerate(np.split(latents, 10))]
    assert np.mean([p.low <= many <= p.high for p in few]) >= 0.8
    assert np.median([p.slope for p in few]) == pytest.approx(many, abs=0.15)
    assert np.isnan(partial_of(latents[:40], codes).slope), "no cell has tokens enough"
    copies = np.repeat(latents[:3000], 8, axis=0)  # eight equal tokens an image know less
    images = np.repeat(np.arange(3000), 8)
    alone, together = partial_of(copies, codes), partial_of(copies, codes, groups=images)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_drift_of_known_displacement():
    codes = np.zeros((4, 3), np.float32)
    moved = codes + np.array([[3, 4, 0]], np.float32)
    counts, indices = [[1, 0, 2, 0], [0, 1, 2, 0]], [[0, 2, 2], [1, 2, 2]]
    result = drift([0, 10], [codes, moved], *([*map(np.array, x)] for x in (indices, counts)))
    assert result.displacement == pytest.approx(np.full((1, 4), 5.0))
    assert (result.births.tolist(), result.deaths.tolist()) == ([1], [1])
    assert result.churn == pytest.approx([1 / 3]) and result.active.tolist() == [2, 2]


def test_numbers_tell_an_optimal_codebook_from_a_grid(gaussian):
    latents, codes = gaussian
    best, grid = (
        measure_geometry(c, latents, assign(latents, c)).numbers
        for c in (codes, square_grid(-3, 3, 8))
    )
    # the laws of many codes hold for 64 within some percent
    assert best["perplexity_of_mass_law"] == pytest.approx(1, abs=0.08)
    assert best["latent_error"] < grid["latent_error"]
    assert 0.5 < best["geometry_efficiency"] < 1
    assert best["effective_dim"] == pytest.approx(2, abs=0.01)
    assert set(best) <= set(METRICS)


def test_geometry_with_dead_codes_a_larger_set_and_latents_on_their_codes():
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    codes = torch.cat([z[:16], torch.full((2, 3), 50.0)])
    indices = assign(z.numpy(), codes.numpy())
    counts = 10 * np.bincount(indices, minlength=18)
    measured = measure_geometry(codes, z, indices, counts=counts, groups=np.arange(500) // 5)
    assert measured.usage["num_tokens"] == 5000 and measured.usage["active"] == 16
    plug_in = math.log(measured.usage["perplexity"])
    assert measured.rate == pytest.approx(plug_in + 15 / 10000), "Miller and Madow's correction"
    exact = measure_geometry(np.eye(3), np.repeat(np.eye(3), 30, 0), np.repeat(np.arange(3), 30))
    assert exact.distortion == 0 and np.isnan(exact.efficiency) and np.isnan(exact.intrinsic_dim)
    assert exact.rate == pytest.approx(math.log(3)), "a correction does not lead beyond log K"


def test_water_filling_against_closed_form_and_definition():
    assert water_filling(np.ones(4), 2.0) == pytest.approx(4 * math.exp(-1), rel=1e-12)
    spectrum = np.array([4.0, 1.0, 0.25, 0.0])
    level = np.array([3.0, 0.9, 0.3, 0.01])
    rates = np.array([np.log(np.maximum(spectrum[:3] / t, 1)).sum() / 2 for t in level])
    distortions = np.array([np.minimum(spectrum, t).sum() for t in level])
    assert water_filling(spectrum, rates) == pytest.approx(distortions, rel=1e-12)
    assert water_filling(spectrum, 0.0) == pytest.approx(spectrum.sum())


def test_the_mass_law_has_the_known_shares():
    shares = [mass_law_perplexity(d) for d in (1, 2, 4, 8, 16, 64)]
    assert shares == pytest.approx([0.806, 0.824, 0.866, 0.912, 0.948, 0.985], abs=5e-4)


def test_pca_is_the_leading_plane_with_a_fixed_sign_and_one_frame_for_all_checkpoints():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((300, 5)).astype(np.float32) * [3, 2, 1, 1, 1]
    codes = latents[:40].copy()
    (result,), (again,) = (project([codes], [z]) for z in (latents, latents[::-1]))
    leading = np.linalg.eigvalsh(np.cov(latents.T))[:2:-1]
    assert result.latents.var(0) == pytest.approx(leading, 0.01)
    assert result.explained.sum() == pytest.approx(13 / 16, abs=0.03)
    assert again.codes == pytest.approx(result.codes, abs=1e-4), "the order of latents is nothing"
    largest = np.abs(result.basis.axes).argmax(0)
    assert (np.diag(result.basis.axes[largest]) > 0).all(), "each axis to where it is longest"
    first, last = project([codes, codes + 1], [latents, latents + 1])
    assert last.latents.mean(0) == pytest.approx(0, abs=1e-4), "that of the last"
    assert np.allclose(last.codes - first.codes, last.basis.axes[:, :2].sum(0), atol=1e-4)
    (plane,) = project([codes[:, :2]], [latents[:, :2]], method="plane")
    assert np.array_equal(plane.codes, codes[:, :2].astype(np.float32))
    (line,) = project([codes[:, :1]], [latents[:, :1]])
    assert (line.latents[:, 1] == 0).all() and line.explained.tolist() == [1.0]


def test_umap_keeps_clusters_apart_and_is_cached(tmp_path, monkeypatch):
    label, rng = np.arange(90) % 2, np.random.default_rng(2)
    latents = (rng.standard_normal((90, 6)) + 20 * label[:, None]).astype(np.float32)
    threads = torch.get_num_threads()
    (result,) = project([latents[:8]], [latents], method="umap", cache=tmp_path)
    centers = np.stack([result.latents[label == k].mean(0) for k in (0, 1)])
    nearest = np.linalg.norm(result.latents[:, None] - centers, axis=2).argmin(1)
    assert (nearest == label).all()
    assert torch.get_num_threads() == threads  # numba would leave its own count behind
    fit = Mock(side_effect=RuntimeError("fitted again"))
    monkeypatch.setattr(projection, "_fit_umap", fit)
    (again,) = project([latents[:8]], [latents], method="umap", cache=tmp_path)
    assert np.array_equal(again.codes, result.codes)
    with pytest.raises(RuntimeError, match="fitted again"):
        project([latents[:8] + 1], [latents], method="umap", cache=tmp_path)
