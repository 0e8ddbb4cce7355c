"""Figures of a codebook's geometry show the numbers that they are given, each beside its law."""

import numpy as np
import pytest
from drawn import starting, texts

from lgqlib.figures import geometry
from lgqlib.measure.geometry import drift, measure_geometry

DRAWINGS = (geometry.partial_distortion, geometry.bounds)


@pytest.fixture(scope="module")
def geometries():
    rng = np.random.default_rng(0)
    latents, codes = (rng.standard_normal((n, 3)).astype("float32") for n in (2000, 32))
    indices = np.square(latents[:, None] - codes).sum(2).argmin(1)
    few = measure_geometry(codes[:16], latents, indices % 16)
    return {"lgq": measure_geometry(codes, latents, indices), "fsq 2": few}


def test_partial_distortion_draws_the_cells_and_the_fitted_slope(geometries):
    fig, p = geometry.partial_distortion(geometries), geometries["lgq"].partial
    for name, slope in ((f"slope {p.slope:.2f}", p.slope), ("slope −1", -1)):
        line = starting(fig, name)
        assert np.allclose(np.diff(np.log(line.y)) / np.diff(np.log(line.x)), slope)
    assert len(fig.data[0].x) == p.num_cells
    assert f"LGQ {p.slope:.2f} [{p.low:.2f}, {p.high:.2f}]; FSQ 2" in texts(fig)[0]


def test_bounds_mark_each_run_on_its_rate_and_beside_the_mass_law(geometries):
    fig, g = geometry.bounds(geometries), geometries["lgq"]
    point = starting(fig, "LGQ: efficiency")
    assert (point.x[0], point.y[0]) == (g.rate / np.log(2), g.distortion / g.latents.total)
    assert starting(fig, "measured").y[0] == pytest.approx(g.numbers["perplexity"] / 32)
    assert starting(fig, "mass law").y[0] == pytest.approx(g.numbers["mass_law_perplexity"] / 32)
    bound = starting(fig, "bound for LGQ")
    assert bound.y[0] == pytest.approx(1) and (np.diff(bound.y) < 0).all()


@pytest.mark.parametrize("draw", DRAWINGS)
def test_runs_of_one_method_share_a_color_and_differ_in_a_mark(draw, geometries):
    one = geometries["lgq"]
    fig = draw({"lgq": one, "fsq": one, "lgq 2": one})
    found = {"LGQ": [], "LGQ 2": [], "FSQ": []}
    for trace in fig.data:
        run = next((r for r in ("LGQ 2", "LGQ", "FSQ") if trace.name.startswith(r)), None)
        if run and trace.type == "scatter":
            found[run].append((trace.marker.color or trace.line.color, trace.marker.symbol))
    first, again, other = (found[run][0] for run in ("LGQ", "LGQ 2", "FSQ"))
    assert first[0] == again[0] != other[0]
    assert first[1] != again[1] and first[1] == other[1]
    axes = [*fig.select_xaxes(), *fig.select_yaxes()]
    named = sum(bool(axis.title.text) for axis in axes)
    assert named >= len(axes) - (draw is geometry.bounds)  # below its bars stand the runs' names
    assert len(texts(fig)[1]) > 10 and "$" not in fig.to_json()


def test_drift_draws_medians_and_leaves_the_births_of_the_start_out():
    codes, indices = np.zeros((4, 3), np.float32), np.zeros(8, int)
    counts = [np.zeros(4, int), np.ones(4, int), np.array([1, 0, 1, 1])]
    d = drift([1, 5, 9], [codes, codes + 1, codes + 1], [indices, indices, indices + 1], counts)
    fig = geometry.drifts({"lgq": d})
    moved, churn = (t for t in fig.data if t.name == "LGQ")
    assert np.allclose(moved.y, [np.sqrt(3), 0], atol=1e-6)
    assert np.allclose(churn.y, [0, 100]) and "LGQ 100 %" in texts(fig)[0]
    assert list(starting(fig, "LGQ, born").y) == [0] and list(starting(fig, "LGQ, died").y) == [1]
