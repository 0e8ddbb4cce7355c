"""Figures of the plane: tints that mix as the assignment does, and splits as predicted."""

import numpy as np
import pytest
from drawn import named, pixels, texts

from lgqlib.figures import plane
from lgqlib.measure.annealing import anneal


@pytest.fixture(scope="module")
def points():
    return plane.clusters(200)


@pytest.fixture(scope="module")
def annealing(points):
    return anneal(points, 4, np.geomspace(12, 0.5, 12))


def test_cold_each_place_has_the_tint_of_its_nearest_code(points, annealing):
    codes = annealing.codebooks[-1]
    picture = plane.soft_partition(points, codes, plane.code_tints(codes), 1e-6, size=16)
    x, y = (picture[f"{axis}0"] + picture[f"d{axis}"] * np.arange(16) for axis in "xy")
    places = np.stack(np.meshgrid(x, y), -1)  # row by row, as the pixels are
    assert (places[0, 0] < points.min(0)).all() and (places[-1, -1] > points.max(0)).all()
    nearest = np.linalg.norm(places[:, :, None] - codes, axis=3).argmin(2)
    assert len(np.unique(nearest)) == 4
    assert (pixels(picture["source"])[..., :3] == plane.code_tints(codes)[nearest]).all()


def test_frames_draw_points_and_codes_at_each_temperature(points, annealing):
    fig = plane.annealing_frames(points, annealing, [0, 4, 8, 11], width=0.1, size=8)
    codes = [trace for trace in fig.data if trace.name == "codes"]
    for trace, i in zip(codes, (0, 4, 8, 11), strict=True):
        assert np.allclose(trace.x, annealing.codebooks[i][:, 0])
    assert len(named(fig, "points").x) == 200
    assert "from 1 place to 4 as τ falls 24-fold" in texts(fig)[0]
    assert fig.layout.yaxis.autorange is True, "up is up, also over a picture"


def test_the_staircase_has_every_split_as_predicted_and_as_seen(points, annealing):
    fig = plane.staircase(annealing)
    assert list(named(fig, "distinct").y) == list(annealing.num_distinct)
    assert list(named(fig, "τ<sub>c</sub> = 2 λ<sub>max</sub>").x) == [annealing.predicted] * 2
    dots = named(fig, "a split (bar: step of the schedule)")
    assert list(dots.x) == [split.predicted for split in annealing.splits]
    assert np.allclose(dots.y + dots.error_y.array, [split.high for split in annealing.splits])
    assert f"predicts {annealing.predicted:.3f}" in texts(fig)[0]
    never = plane.staircase(anneal(points, 1, np.array([12.0, 6.0])))
    assert len(named(never, "a split (bar: step of the schedule)").x) == 0


def test_the_soft_code_goes_from_the_mean_to_the_nearest(points, annealing):
    codes, point = annealing.codebooks[-1], np.array([1.9, 1.4])
    fig, path = plane.soft_code_path(point, points, codes, np.geomspace(1e4, 1e-3, 20))
    nearest = codes[np.square(codes - point).sum(1).argmin()]
    assert np.allclose(path[-1], nearest, atol=1e-6)
    assert np.allclose(path[0], codes.mean(0), atol=1e-2)
    assert np.allclose(named(fig, "soft code, τ falling").x, path[:, 0])


def test_distance_and_its_square_choose_the_same_codes(annealing):
    codes = np.unique(annealing.codebooks[-1].round(6), axis=0)
    taus = {"squared": 0.3, "norm": 0.15, "cosine": 0.1, "dot": 0.3}
    fig = plane.four_energies(codes, taus, size=16)
    assert texts(fig)[0].startswith("Of the plane, 100 %")
    assert len({trace.source for trace in fig.data if trace.type == "image"}) == 4
