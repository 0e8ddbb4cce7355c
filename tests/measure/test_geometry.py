"""Geometry of codebooks on sources with known answers: uniform, Gaussian, clusters, grids."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from sklearn.cluster import KMeans

from lgqlib.measure import METRICS, neighbors
from lgqlib.measure.distortion import (
    cell_shape,
    log_volumes,
    partial_distortion,
    squared_errors,
)
from lgqlib.measure.geometry import (
    count_codes,
    dominant_class,
    drift,
    geometry_table,
    lorenz,
    measure_geometry,
    occupancy,
    spacing,
    spectrum,
    two_nn,
)
from lgqlib.measure.theory import (
    gersho_constant,
    mass_law_perplexity,
    water_filling,
    zador_distortion,
)


def assign(latents, codes):
    return KDTree(codes).query(latents)[1]


def kmeans(latents, num_codes):
    return KMeans(num_codes, n_init=1, random_state=0).fit(latents).cluster_centers_


def square_grid(low, high, count):
    axis = np.linspace(low, high, count)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)


@pytest.fixture(scope="module")
def gaussian():
    """Fresh latents of a Gaussian in the plane, and codes that k-means fitted to others."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((30000, 2)), kmeans(rng.standard_normal((20000, 2)), 64)


def partial_of(latents, codes, **options):
    indices = assign(latents, codes)
    errors = squared_errors(latents, codes, indices)
    return partial_distortion(errors, indices, len(codes), **options)


def test_occupancy_counts_every_token_and_code():
    usage = occupancy(np.array([0, 5, 5, 0]))
    assert (usage.num_tokens, usage.active) == (10, 2)
    assert usage.perplexity == pytest.approx(2) and usage.gini == pytest.approx(0.5)
    assert usage.entropy_corrected == pytest.approx(math.log(2) + 1 / 20)
    assert occupancy(np.full(7, 3)).entropy_corrected <= math.log(7)
    counts = np.random.default_rng(0).geometric(0.05, 500)
    codes, mass = lorenz(counts)
    assert (mass <= codes + 1e-12).all() and mass[-1] == 1
    assert 1 - 2 * np.trapezoid(mass, codes) == pytest.approx(occupancy(counts).gini)
    with pytest.raises(ValueError, match="token"):
        occupancy(np.zeros(4, int))
    with pytest.raises(ValueError, match=r"0\.\.3"):
        count_codes(np.array([4]), 4)


def test_the_dominant_class_is_the_most_frequent_and_of_equals_the_lower():
    labels = dominant_class(np.array([0, 0, 0, 2, 2]), np.array([7, 7, 1, 4, 3]), 3)
    assert labels.tolist() == [7, -1, 3]


def test_the_slope_is_minus_one_for_kmeans_on_a_gaussian_and_zero_for_a_grid(gaussian):
    best, grid = partial_of(*gaussian), partial_of(gaussian[0], square_grid(-3, 3, 13))
    assert best.low < best.slope < best.high
    assert best.slope == pytest.approx(-1, abs=0.25) and best.evenness > 0.97
    assert grid.slope == pytest.approx(0, abs=0.15) and grid.evenness < 0.8


def test_the_slope_survives_few_tokens_and_its_interval_covers(gaussian):
    latents, codes = gaussian
    many = partial_of(latents, codes).slope
    few = [partial_of(part, codes, seed=i) for i, part in enumerate(np.split(latents, 10))]
    assert np.mean([p.low <= many <= p.high for p in few]) >= 0.8
    assert np.median([p.slope for p in few]) == pytest.approx(many, abs=0.15)
    assert np.isnan(partial_of(latents[:40], codes).slope), "no cell has tokens enough"
    one = partial_of(latents[:3000], codes, groups=np.zeros(3000, int))
    assert np.isnan([one.slope, one.low, one.high]).all(), "of one image there are no halves"


def test_resampling_whole_images_widens_the_interval(gaussian):
    latents, codes = gaussian
    copies = np.repeat(latents[:3000], 8, axis=0)  # eight equal tokens an image know less
    images = np.repeat(np.arange(3000), 8)
    alone, together = partial_of(copies, codes), partial_of(copies, codes, groups=images)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_kmeans_on_the_uniform_square_reaches_the_hexagon_and_the_law_of_its_dimension():
    rng = np.random.default_rng(1)
    latents, fresh = rng.random((16000, 2)), rng.random((30000, 2))
    errors = []
    for size in (8, 64):
        codes = kmeans(latents, size)
        errors.append(squared_errors(fresh, codes, assign(fresh, codes)).mean())
    # D = d G_d (area / K)^{2/d}; cells at the border are a little worse than hexagons
    assert gersho_constant(2) < errors[1] * 64 / 2 < 1.08 * gersho_constant(2)
    assert math.log(errors[1] / errors[0]) / math.log(8) == pytest.approx(-2 / 2, abs=0.05)


def test_log_volume_of_square_cells_is_their_area():
    latents = np.random.default_rng(2).random((40000, 2)) * 8
    mse = partial_of(latents, square_grid(1, 7, 4)).mse
    # a square has 1/12 a channel, where a hexagon of the same area has 0.0802
    expected = math.log(4 / 12 / gersho_constant(2))
    assert log_volumes(mse, 2) == pytest.approx(expected, abs=0.1)
    assert np.isnan(log_volumes(np.array([0.0, np.nan]), 2)).all()


@pytest.mark.parametrize(("dim", "tokens", "cells"), [(2, 20, 4000), (4, 60, 600)])
def test_the_shape_test_is_calibrated_on_round_cells_and_sees_long_ones(dim, tokens, cells):
    rng = np.random.default_rng(0)
    indices = rng.permutation(np.repeat(np.arange(cells), tokens))
    latents = rng.standard_normal((len(indices), dim)) + indices[:, None]  # wherever a cell lies
    null = cell_shape(latents, indices, cells, dim=dim)
    assert null.share_long == pytest.approx(0.05, abs=0.02)
    assert np.mean(null.excess) == pytest.approx(0, abs=0.002)
    assert np.median(null.p_value) == pytest.approx(0.5, abs=0.06)
    long = cell_shape(latents * [3, *[1] * (dim - 1)], indices, cells, dim=dim)
    assert long.share_long > 0.95


def test_small_cells_and_one_dimension_are_not_judged():
    latents = np.random.default_rng(5).standard_normal((39, 2))
    shape = cell_shape(latents, np.repeat([0, 1], [20, 19]), 3, dim=2)
    assert np.isnan(shape.p_value).tolist() == [False, True, True]
    assert np.isnan(cell_shape(latents, np.zeros(39, int), 1, dim=1).share_long)


@pytest.mark.parametrize("dim", [2, 8, 9, 40])
def test_neighbors_equal_brute_force_also_among_twins(dim, monkeypatch):
    monkeypatch.setattr(neighbors, "ROWS", 128)  # several chunks, the last a part of one
    points = np.random.default_rng(dim).standard_normal((400, dim)).astype(np.float32)
    points[:30] = points[30:60]
    points.setflags(write=False)
    distances, indices = neighbors.nearest(points, points, 5, exclude=np.arange(400))
    brute = np.linalg.norm(points[:, None].astype(float) - points, axis=2)
    np.fill_diagonal(brute, np.inf)
    assert distances == pytest.approx(np.sort(brute, 1)[:, :5], abs=1e-5)
    assert np.take_along_axis(brute, indices, 1) == pytest.approx(distances, abs=1e-5)
    twins = neighbors.nearest(np.ones((9, dim)), np.ones((9, dim)), 2, exclude=np.arange(9))
    assert not (twins[1] == np.arange(9)[:, None]).any() and not twins[0].any()
    with pytest.raises(ValueError, match="between 1 and 399"):
        neighbors.nearest(points, points, 400, exclude=np.arange(400))


def test_spacing_of_a_grid_of_twins_and_of_hubs():
    grid = square_grid(0, 4, 5)
    measured = spacing(grid, num_neighbors=2)
    assert measured.distance == pytest.approx(1) and measured.twins == 0
    assert measured.neighbors.shape == (25, 2)
    assert spacing(np.concatenate([grid, grid[:3]])).twins == 6
    assert spacing(grid[:2]).neighbors.tolist() == [[1], [0]]
    with pytest.raises(ValueError, match="at least 2"):
        spacing(grid[:1])
    rng = np.random.default_rng(3)
    low, high = (spacing(rng.standard_normal((1000, d))).hubness for d in (2, 64))
    assert low < 0.5 and high > 2, "hubs appear in many dimensions"


def test_spectrum_and_dimensions_of_flat_points_in_a_larger_space():
    rng = np.random.default_rng(7)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0][:, :3]
    points = rng.standard_normal((4000, 3)) @ turn.T + 5
    measured = spectrum(points)
    assert measured.participation == pytest.approx(3, abs=0.1)
    assert measured.eigenvalues[3:] == pytest.approx(0, abs=1e-10)
    assert measured.total == pytest.approx(points.var(0).sum())
    assert measured.coordinates(points).var(0) == pytest.approx(measured.eigenvalues, abs=1e-9)
    assert two_nn(points) == pytest.approx(3, abs=0.2)
    assert np.isnan(two_nn(np.zeros((50, 2))))


def test_drift_of_known_displacement():
    codes = np.zeros((4, 3), np.float32)
    moved = codes + np.array([[3, 4, 0]], np.float32)
    counts = [[1, 0, 2, 0], [0, 1, 2, 0], [0, 1, 1, 0]]
    indices = [[0, 2, 2], [1, 2, 2], [1, 2, 2]]
    all_three = [codes, moved, moved], [*map(np.array, indices)], [*map(np.array, counts)]
    result = drift([0, 10, 100], *all_three)
    assert result.displacement == pytest.approx(np.repeat([[5.0], [0.0]], 4, 1))
    assert result.births.tolist() == [1, 0] and result.deaths.tolist() == [1, 0]
    assert result.churn == pytest.approx([1 / 3, 0])
    assert result.active.tolist() == [2, 2, 2]
    assert drift([5], *(x[:1] for x in all_three)).displacement.shape == (0, 4)
    with pytest.raises(ValueError, match="increase"):
        drift([0, 10, 10], *all_three)


def test_numbers_tell_an_optimal_codebook_from_a_grid(gaussian):
    latents, codes = gaussian
    named = {"k-means": codes, "grid": square_grid(-3, 3, 8)}
    geometries = {n: measure_geometry(c, latents, assign(latents, c)) for n, c in named.items()}
    best, grid = (g.numbers for g in geometries.values())
    # the laws of many codes hold for 64 within some percent
    assert best["perplexity_of_mass_law"] == pytest.approx(1, abs=0.08)
    bound = water_filling(np.ones(2), math.log(64 * mass_law_perplexity(2)))
    expected = bound / zador_distortion(np.ones(2), 64)
    assert best["geometry_efficiency"] == pytest.approx(expected, rel=0.08)
    assert best["partial_slope"] < -0.7 < grid["partial_slope"]
    assert best["latent_error"] < grid["latent_error"]
    assert best["effective_dim"] == pytest.approx(2, abs=0.01)
    assert set(best) <= set(METRICS)
    table = geometry_table(geometries)
    assert list(table.columns) == ["k-means", "grid"]
    assert table["grid"]["active codes"] == str(grid["active"])


def test_geometry_of_tensors_with_dead_codes_and_usage_of_a_larger_set():
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    codes = torch.cat([z[:16], torch.full((2, 3), 50.0)])
    indices = assign(z.numpy(), codes.numpy())
    counts = 10 * np.bincount(indices, minlength=18)
    measured = measure_geometry(codes, z, indices, counts=counts, groups=np.arange(500) // 5)
    assert measured.occupancy.num_tokens == 5000 and measured.occupancy.active == 16
    assert measured.partial.counts.sum() == 500 and measured.spacing.twins == 2
    assert np.isnan(measured.log_volume[-2:]).all()


def test_codes_on_their_latents_and_latents_that_do_not_vary_are_measured():
    latents = np.repeat(np.eye(3), 30, axis=0)
    exact = measure_geometry(np.eye(3), latents, np.repeat(np.arange(3), 30))
    assert exact.distortion == 0 and np.isnan(exact.efficiency)
    still = measure_geometry(np.eye(3)[:2], np.ones((30, 3)), np.zeros(30, int))
    assert np.isnan(still.numbers["latent_error"]) and still.numbers["effective_dim"] == 0


@pytest.mark.parametrize("dim", [4, 16])
def test_large_codebooks_take_seconds(dim):
    rng = np.random.default_rng(8)
    codes = rng.standard_normal((16384, dim)).astype(np.float32)
    latents = rng.standard_normal((20000, dim)).astype(np.float32)
    measured = measure_geometry(codes, latents, rng.integers(0, 16384, 20000))
    assert measured.partial.num_cells == 0 and np.isnan(measured.partial.slope)
    assert measured.occupancy.active < 20000 and len(measured.spacing.distance) == 16384
