"""Geometry of codebooks on sources with known answers: uniform, Gaussian, clusters, grids."""

import math

import numpy as np
import pytest
import torch
from laws import zador_distortion
from scipy.spatial import KDTree
from sklearn.cluster import KMeans

from lgqlib.measure import METRICS, geometry
from lgqlib.measure.distances import nearest_others
from lgqlib.measure.geometry import (
    drift,
    measure_geometry,
    partial_distortion,
    roundness,
    spacing,
    squared_errors,
)
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
    one = partial_of(latents[:3000], codes, groups=np.zeros(3000, int))
    assert np.isnan([one.slope, one.low, one.high]).all(), "of one image there are no halves"
    copies = np.repeat(latents[:3000], 8, axis=0)  # eight equal tokens an image know less
    images = np.repeat(np.arange(3000), 8)
    alone, together = partial_of(copies, codes), partial_of(copies, codes, groups=images)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize(("dim", "tokens", "cells"), [(2, 20, 4000), (4, 60, 600)])
def test_the_shape_test_is_calibrated_on_round_cells_and_sees_long_ones(dim, tokens, cells):
    rng = np.random.default_rng(0)
    indices = rng.permutation(np.repeat(np.arange(cells), tokens))
    latents = rng.standard_normal((len(indices), dim)) + indices[:, None]  # wherever a cell lies
    null = roundness(latents, indices, cells, dim=dim)
    assert np.mean(null < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.median(null) == pytest.approx(0.5, abs=0.06)
    long = roundness(latents * [3, *[1] * (dim - 1)], indices, cells, dim=dim)
    assert np.mean(long < 0.05) > 0.95
    few = roundness(latents[: 10 * dim - 1], np.zeros(10 * dim - 1, int), 2, dim=dim)
    assert np.isnan(few).all(), "small cells are not judged"


@pytest.mark.parametrize("dim", [2, 40])
def test_neighbors_equal_brute_force_also_among_twins(dim):
    points = np.random.default_rng(dim).standard_normal((400, dim)).astype(np.float32)
    points[:30] = points[30:60]
    distances, indices = nearest_others(points, 5)
    brute = np.linalg.norm(points[:, None].astype(float) - points, axis=2)
    np.fill_diagonal(brute, np.inf)
    assert distances == pytest.approx(np.sort(brute, 1)[:, :5], abs=1e-5)
    assert np.take_along_axis(brute, indices, 1) == pytest.approx(distances, abs=1e-5)
    assert (distances[:60, 0] == 0).all(), "twins are at no distance at all"


def test_spacing_of_a_grid_of_twins_and_of_hubs():
    grid = square_grid(0, 4, 5)
    measured = spacing(grid, num_neighbors=2)
    assert measured.distance == pytest.approx(1) and measured.twins == 0
    assert spacing(np.concatenate([grid, grid[:3]])).twins == 6
    assert spacing(grid[:2]).neighbors.tolist() == [[1], [0]]
    rng = np.random.default_rng(3)
    low, high = (spacing(rng.standard_normal((1000, d))).hubness for d in (2, 64))
    assert low < 0.5 and high > 2, "hubs appear in many dimensions"


def test_spectrum_and_dimensions_of_flat_points_in_a_larger_space():
    rng = np.random.default_rng(7)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0][:, :3]
    points = rng.standard_normal((4000, 3)) @ turn.T + 5
    measured = geometry.spectrum(points)
    assert measured.participation == pytest.approx(3, abs=0.1)
    assert measured.eigenvalues[3:] == pytest.approx(0, abs=1e-10)
    assert measured.total == pytest.approx(points.var(0).sum())
    assert measured.coordinates(points).var(0) == pytest.approx(measured.eigenvalues, abs=1e-9)
    assert geometry.two_nn(points) == pytest.approx(3, abs=0.2)


def test_drift_of_known_displacement():
    codes = np.zeros((4, 3), np.float32)
    moved = codes + np.array([[3, 4, 0]], np.float32)
    counts = np.array([[1, 0, 2, 0], [0, 1, 2, 0], [0, 1, 1, 0]])
    indices = np.array([[0, 2, 2], [1, 2, 2], [1, 2, 2]])
    result = drift([0, 10, 100], [codes, moved, moved], list(indices), list(counts))
    assert result.displacement == pytest.approx(np.repeat([[5.0], [0.0]], 4, 1))
    assert result.births.tolist() == [1, 0] and result.deaths.tolist() == [1, 0]
    assert result.churn == pytest.approx([1 / 3, 0])
    assert result.active.tolist() == [2, 2, 2]


def test_numbers_tell_an_optimal_codebook_from_a_grid(gaussian):
    latents, codes = gaussian
    best, grid = (
        measure_geometry(c, latents, assign(latents, c)) for c in (codes, square_grid(-3, 3, 8))
    )
    table = geometry.geometry_table({"grid": grid})
    assert table["grid"]["active codes"] == str(grid.numbers["active"])
    best, grid = best.numbers, grid.numbers
    # the laws of many codes hold for 64 within some percent
    assert best["perplexity_of_mass_law"] == pytest.approx(1, abs=0.08)
    bound = water_filling(np.ones(2), math.log(64 * mass_law_perplexity(2)))
    expected = bound / zador_distortion(np.ones(2), 64)
    assert best["geometry_efficiency"] == pytest.approx(expected, rel=0.08)
    assert best["latent_error"] < grid["latent_error"]
    assert best["effective_dim"] == pytest.approx(2, abs=0.01)
    assert set(best) <= set(METRICS)


def test_geometry_of_tensors_with_dead_codes_and_usage_of_a_larger_set():
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    codes = torch.cat([z[:16], torch.full((2, 3), 50.0)])
    indices = assign(z.numpy(), codes.numpy())
    counts = 10 * np.bincount(indices, minlength=18)
    measured = measure_geometry(codes, z, indices, counts=counts, groups=np.arange(500) // 5)
    assert measured.usage["num_tokens"] == 5000 and measured.usage["active"] == 16
    plug_in = math.log(measured.usage["perplexity"])
    assert measured.rate == pytest.approx(plug_in + 15 / 10000), "Miller and Madow's correction"
    assert measured.partial.counts.sum() == 500 and measured.spacing.twins == 2


def test_codes_on_their_latents_and_latents_that_do_not_vary_are_measured():
    latents = np.repeat(np.eye(3), 30, axis=0)
    exact = measure_geometry(np.eye(3), latents, np.repeat(np.arange(3), 30))
    assert exact.distortion == 0 and np.isnan(exact.efficiency) and np.isnan(exact.intrinsic_dim)
    assert exact.rate == pytest.approx(math.log(3)), "a correction does not lead beyond log K"
    still = measure_geometry(np.eye(3)[:2], np.ones((30, 3)), np.zeros(30, int))
    assert np.isnan(still.numbers["latent_error"]) and still.numbers["effective_dim"] == 0
