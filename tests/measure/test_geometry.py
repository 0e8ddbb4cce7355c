"""Geometry of codebooks on sources with known answers: uniform, Gaussian, clusters, grids."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from sklearn.cluster import KMeans

from lgqlib.measure import METRICS
from lgqlib.measure.distortion import cell_shape, partial_distortion, squared_errors
from lgqlib.measure.geometry import drift, measure_geometry
from lgqlib.measure.neighbors import nearest_others


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


@pytest.mark.parametrize(("dim", "tokens", "cells"), [(2, 20, 4000), (4, 60, 600)])
def test_the_shape_test_is_calibrated_on_round_cells_and_sees_long_ones(dim, tokens, cells):
    rng = np.random.default_rng(0)
    indices = rng.permutation(np.repeat(np.arange(cells), tokens))
    latents = rng.standard_normal((len(indices), dim)) + indices[:, None]  # wherever a cell lies
    null = cell_shape(latents, indices, cells, dim=dim)
    assert null.share_long == pytest.approx(0.05, abs=0.02)
    assert np.median(null.p_value) == pytest.approx(0.5, abs=0.06)
    long = cell_shape(latents * [3, *[1] * (dim - 1)], indices, cells, dim=dim)
    assert long.share_long > 0.95


@pytest.mark.parametrize("dim", [2, 40])
def test_neighbors_equal_brute_force_also_among_twins(dim):
    points = np.random.default_rng(dim).standard_normal((400, dim)).astype(np.float32)
    points[:30] = points[30:60]
    distances, indices = nearest_others(points, 5)
    brute = np.linalg.norm(points[:, None].astype(float) - points, axis=2)
    np.fill_diagonal(brute, np.inf)
    assert distances == pytest.approx(np.sort(brute, 1)[:, :5], abs=1e-5)
    assert np.take_along_axis(brute, indices, 1) == pytest.approx(distances, abs=1e-5)


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
    assert grid["geometry_efficiency"] < best["geometry_efficiency"] < 1
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
