"""Geometry of codebooks on sources with known answers: uniform, Gaussian, clusters, grids."""

import math

import numpy as np
import pytest
import torch
from lgqlib.measure.cells import cell_shape, density_law, dominant_class, log_volumes
from lgqlib.measure.drift import drift
from lgqlib.measure.portrait import compare, portrait
from scipy.spatial import KDTree
from scipy.stats import norm

from lgqlib.measure import neighbors
from lgqlib.measure.geometry import (
    count_codes,
    lorenz,
    occupancy,
    partial_distortion,
    spacing,
    spectrum,
    squared_errors,
    two_nn,
)
from lgqlib.measure.neighbors import nearest
from lgqlib.measure.theory import (
    gersho_constant,
    mass_law_perplexity,
    rate_slope_dimension,
    water_filling,
    zador_distortion,
)


def assign(latents, codes):
    return KDTree(codes).query(latents)[1]


def kmeans(latents, num_codes, *, num_iterations=40, seed=0):
    """Lloyd's algorithm from random latents."""
    rng = np.random.default_rng(seed)
    codes = latents[rng.choice(len(latents), num_codes, replace=False)].copy()
    for _ in range(num_iterations):
        indices = assign(latents, codes)
        counts = np.bincount(indices, minlength=num_codes)
        for channel in range(latents.shape[1]):
            sums = np.bincount(indices, latents[:, channel], num_codes)
            codes[:, channel] = np.where(counts, sums / np.maximum(counts, 1), codes[:, channel])
    return codes


@pytest.fixture(scope="module")
def gaussian():
    """Fresh latents of a Gaussian in the plane, and codes that k-means fitted to others."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((30000, 2)), kmeans(rng.standard_normal((20000, 2)), 64)


def slope_of(latents, codes, **options):
    indices = assign(latents, codes)
    errors = squared_errors(latents, codes, indices)
    return partial_distortion(errors, indices, len(codes), **options)


def test_occupancy_counts_every_token_and_code():
    usage = occupancy(np.array([0, 5, 5, 0]))
    assert (usage.num_tokens, usage.active, usage.dead) == (10, 2, 2)
    assert usage.perplexity == pytest.approx(2)
    assert usage.entropy_corrected == pytest.approx(math.log(2) + 1 / 20)
    assert usage.gini == pytest.approx(0.5)
    assert occupancy(np.full(7, 3)).gini == pytest.approx(0, abs=1e-12)
    assert occupancy(np.full(7, 3)).entropy_corrected <= math.log(7)
    with pytest.raises(ValueError, match="token"):
        occupancy(np.zeros(4, int))
    with pytest.raises(ValueError, match=r"0\.\.3"):
        count_codes(np.array([4]), 4)


def test_lorenz_curve_runs_below_the_diagonal_with_area_of_gini():
    counts = np.random.default_rng(0).geometric(0.05, 500)
    codes, mass = lorenz(counts)
    assert (mass <= codes + 1e-12).all() and mass[-1] == 1
    assert 1 - 2 * np.trapezoid(mass, codes) == pytest.approx(occupancy(counts).gini)


def test_kmeans_on_a_gaussian_has_partial_distortion_slope_minus_one(gaussian):
    partial = slope_of(*gaussian)
    assert partial.low < partial.slope < partial.high
    assert partial.slope == pytest.approx(-1, abs=0.25)
    assert partial.evenness > 0.97


def test_a_uniform_grid_has_partial_distortion_slope_zero(gaussian):
    axis = np.linspace(-3, 3, 13)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    partial = slope_of(gaussian[0], grid)
    assert partial.slope == pytest.approx(0, abs=0.15)
    assert partial.evenness < 0.8


def test_the_slope_survives_few_tokens_and_its_interval_covers(gaussian):
    latents, codes = gaussian
    many = slope_of(latents, codes).slope
    few = [slope_of(part, codes, seed=i) for i, part in enumerate(np.split(latents, 10))]
    assert np.mean([p.low <= many <= p.high for p in few]) >= 0.8
    assert np.median([p.slope for p in few]) == pytest.approx(many, abs=0.15)


def test_resampling_whole_images_widens_the_interval(gaussian):
    latents, codes = gaussian
    copies = np.repeat(latents[:3000], 8, axis=0)  # eight equal tokens an image know less
    images = np.repeat(np.arange(3000), 8)
    alone, together = slope_of(copies, codes), slope_of(copies, codes, groups=images)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_kmeans_on_the_uniform_square_reaches_the_hexagon_and_the_law_of_its_dimension():
    rng = np.random.default_rng(1)
    latents, fresh = rng.random((16000, 2)), rng.random((30000, 2))
    sizes, distortions = np.array([8.0, 16.0, 32.0, 64.0]), []
    for size in sizes:
        codes = kmeans(latents, int(size), num_iterations=80)
        distortions.append(squared_errors(fresh, codes, assign(fresh, codes)).mean())
    # D = d G_d (area / K)^{2/d}; cells at the border are a little worse than hexagons
    constant = distortions[-1] * sizes[-1] / 2
    assert gersho_constant(2) < constant < 1.08 * gersho_constant(2)
    assert rate_slope_dimension(sizes, np.array(distortions)) == pytest.approx(2, abs=0.1)


def test_log_volume_of_square_cells_is_their_area():
    axis = np.arange(4) + 0.5
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    latents = np.random.default_rng(2).random((40000, 2)) * 4
    mse = slope_of(latents, grid).mse
    # a square has 1/12 a channel, where a hexagon of the same area has 0.0802
    expected = math.log(1 / 12 / gersho_constant(2))
    assert log_volumes(mse, 2) == pytest.approx(expected, abs=0.1)
    assert np.isnan(log_volumes(np.array([0.0, np.nan]), 2)).all()


def test_spacing_of_a_grid_and_of_twins():
    axis = np.arange(5.0)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    measured = spacing(grid, num_neighbors=2)
    assert measured.distance == pytest.approx(1) and measured.twins == 0
    assert measured.neighbors.shape == (25, 2)
    assert spacing(np.concatenate([grid, grid[:3]])).twins == 6
    assert spacing(grid[:2]).neighbors.tolist() == [[1], [0]]
    with pytest.raises(ValueError, match="at least 2"):
        spacing(grid[:1])


def test_hubs_appear_in_many_dimensions():
    rng = np.random.default_rng(3)
    low, high = (spacing(rng.standard_normal((1000, d))).hubness for d in (2, 64))
    assert low < 0.5 and high > 2


@pytest.mark.parametrize("dim", [2, 8, 9, 40])
def test_neighbors_equal_brute_force_also_among_twins(dim, monkeypatch):
    monkeypatch.setattr(neighbors, "COLUMNS", 128)  # several tiles, the last a part of one
    rng = np.random.default_rng(dim)
    points = rng.standard_normal((400, dim)).astype(np.float32)
    points[:30] = points[30:60]
    distances, indices = nearest(points, points, 5, exclude=np.arange(400))
    brute = np.linalg.norm(points[:, None].astype(float) - points, axis=2)
    np.fill_diagonal(brute, np.inf)
    assert distances == pytest.approx(np.sort(brute, 1)[:, :5], abs=1e-5)
    assert np.take_along_axis(brute, indices, 1) == pytest.approx(distances, abs=1e-5)
    with pytest.raises(ValueError, match="between 1 and 399"):
        nearest(points, points, 400, exclude=np.arange(400))


def test_neighbors_read_memory_that_cannot_be_written():
    points = np.eye(3)
    points.setflags(write=False)
    assert nearest(points, points)[1][:, 0].tolist() == [0, 1, 2]


def test_the_shape_test_is_calibrated_on_round_cells_and_sees_long_ones():
    rng = np.random.default_rng(4)
    num_codes, dim = 600, 4
    indices = rng.integers(0, num_codes, 60 * num_codes)
    round_ = rng.standard_normal((len(indices), dim))
    basis = spectrum(round_)
    null = cell_shape(round_, indices, num_codes, basis=basis, dim=dim)
    assert null.share_long == pytest.approx(0.05, abs=0.025)
    assert np.nanmean(null.excess) == pytest.approx(0, abs=0.002)
    assert np.nanmedian(null.p_value) == pytest.approx(0.5, abs=0.06)
    long = round_ * [2, 1, 1, 1]
    assert cell_shape(long, indices, num_codes, basis=spectrum(long), dim=dim).share_long > 0.95


def test_small_cells_and_one_dimension_are_not_judged():
    rng = np.random.default_rng(5)
    latents, indices = rng.standard_normal((39, 2)), np.repeat([0, 1], [20, 19])
    shape = cell_shape(latents, indices, 3, basis=spectrum(latents), dim=2)
    assert np.isnan(shape.p_value).tolist() == [False, True, True] and shape.min_count == 20
    line = latents[:, :1]
    shape = cell_shape(line, np.zeros(39, int), 1, basis=spectrum(line), dim=1)
    assert np.isnan(shape.share_long)


def test_optimal_codes_follow_the_density_to_its_exponent():
    rng = np.random.default_rng(6)
    latents = rng.standard_normal((30000, 1))
    quantiles = (np.arange(64) + 0.5) / 64
    for width, slope in ((math.sqrt(3), 1 / 3), (1.0, 1.0)):  # d / (d + 2), and codes like data
        codes = width * norm.ppf(quantiles)
        partial = slope_of(latents, codes[:, None])
        law = density_law(partial.counts, partial.mse, dim=1)
        assert law.slope == pytest.approx(slope, abs=0.1)
    plane = rng.standard_normal((30000, 2))
    partial = slope_of(plane, math.sqrt(2) * rng.standard_normal((256, 2)))
    assert density_law(partial.counts, partial.mse, dim=2).slope == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="at most 4"):
        density_law(np.ones(9, int), np.ones(9), dim=5)


def test_spectrum_and_dimensions_of_a_flat_cloud_in_a_larger_space():
    rng = np.random.default_rng(7)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0][:, :3]
    cloud = rng.standard_normal((4000, 3)) @ turn.T
    measured = spectrum(cloud)
    assert measured.participation == pytest.approx(3, abs=0.1)
    assert measured.eigenvalues[3:] == pytest.approx(0, abs=1e-10)
    assert two_nn(cloud) == pytest.approx(3, abs=0.2)
    weights = np.arange(1.0, 4001)
    assert spectrum(cloud, weights=weights).total == pytest.approx(
        np.trace(np.cov(cloud.T, aweights=weights, ddof=0))
    )
    assert np.isnan(two_nn(np.zeros((50, 2))))


def test_drift_of_known_displacement():
    codes = np.zeros((4, 3), np.float32)
    moved = codes + np.array([[3, 4, 0]], np.float32)
    counts = [[1, 0, 2, 0], [0, 1, 2, 0], [0, 1, 1, 0]]
    indices = [[0, 2, 2], [1, 2, 2], [1, 2, 2]]
    result = drift([0, 10, 100], [codes, moved, moved], *map(np.array, (indices, counts)))
    assert result.displacement == pytest.approx(np.repeat([[5.0], [0.0]], 4, 1))
    assert result.births.tolist() == [1, 0] and result.deaths.tolist() == [1, 0]
    assert result.churn == pytest.approx([1 / 3, 0])
    assert result.active.tolist() == [2, 2, 2]
    assert result.age.tolist() == [100, 0, 0, -1]
    assert drift([5], [codes], [np.zeros(3, int)], [np.ones(4, int)]).displacement.shape == (0, 4)
    with pytest.raises(ValueError, match="increase"):
        drift([1, 1], [codes] * 2, [np.zeros(3, int)] * 2, [np.ones(4, int)] * 2)


def test_dominant_class_counts_and_breaks_ties_to_the_lower_label():
    label, share = dominant_class(np.array([0, 0, 0, 2, 2]), np.array([7, 7, 1, 4, 3]), 3)
    assert label.tolist() == [7, -1, 3]
    assert share[[0, 2]] == pytest.approx([2 / 3, 1 / 2]) and np.isnan(share[1])


def test_portraits_tell_an_optimal_codebook_from_a_grid(gaussian):
    latents, codes = gaussian
    axis = np.linspace(-3, 3, 8)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    named = {"k-means": codes, "grid": grid}
    table = compare({n: portrait(c, latents, assign(latents, c)) for n, c in named.items()})
    assert list(table.index) == ["k-means", "grid"]
    best = table.loc["k-means"]
    # the laws of many codes hold for 64 within some percent
    assert best["perplexity / ceiling"] == pytest.approx(1, abs=0.08)
    bound = water_filling(np.ones(2), math.log(64 * mass_law_perplexity(2)))
    expected = bound / zador_distortion(np.ones(2), 64)
    assert best["geometry efficiency"] == pytest.approx(expected, rel=0.08)
    assert best["partial distortion slope"] < -0.7 < table.loc["grid", "partial distortion slope"]
    assert best["distortion / variance"] < table.loc["grid", "distortion / variance"]
    assert best["effective dimension of latents"] == pytest.approx(2, abs=0.01)


def test_a_portrait_takes_tensors_dead_codes_and_usage_of_a_larger_set():
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    codes = torch.cat([z[:16], torch.full((2, 3), 50.0)])
    indices = assign(z.numpy(), codes.numpy())
    counts = 10 * np.bincount(indices, minlength=18)
    measured = portrait(codes, z, indices, counts=counts, groups=np.arange(500) // 5)
    assert measured.occupancy.num_tokens == 5000 and measured.occupancy.dead == 2
    assert measured.partial.counts.sum() == 500 and measured.spacing.twins == 2
    assert np.isnan(measured.log_volume[-2:]).all()


def test_large_codebooks_take_seconds():
    rng = np.random.default_rng(8)
    codes = rng.standard_normal((65536, 4)).astype(np.float32)
    latents = rng.standard_normal((50000, 4)).astype(np.float32)
    measured = portrait(codes, latents, rng.integers(0, 65536, 50000))
    assert measured.partial.num_cells == 0 and np.isnan(measured.partial.slope)
    assert measured.occupancy.active < 50000 and len(measured.spacing.distance) == 65536
