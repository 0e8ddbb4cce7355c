"""Projections, their alignment over checkpoints, their faithfulness."""

import numpy as np
import pytest
import torch

from lgqlib.measure import projection
from lgqlib.measure.projection import faithfulness, project


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((300, 5)).astype(np.float32) * [3, 2, 1, 1, 1]
    return latents[:40].copy(), latents


@pytest.fixture
def fake_umap(monkeypatch):
    """Replace the fit by two channels, turned and scaled by what no seed fixes; keep the starts."""
    starts = []

    def fit(points, init, seed, label):
        starts.append(init)
        turn = np.linalg.qr(np.random.default_rng(len(starts)).standard_normal((2, 2)))[0]
        return (points[:, :2] @ turn * len(starts) + 7).astype(np.float32)

    monkeypatch.setattr(projection, "_fit_umap", fit)
    return starts


def test_pca_is_the_leading_plane_with_a_fixed_sign(points):
    codes, latents = points
    (result,), (again,) = (project([codes], [z]) for z in (latents, latents[::-1]))
    leading = np.linalg.eigvalsh(np.cov(latents.T))[:2:-1]
    assert result.latents.var(0) == pytest.approx(leading, 0.01)
    assert result.explained.sum() == pytest.approx(13 / 16, abs=0.03)
    axes = result.basis.axes
    assert np.abs(axes).max(0) == pytest.approx(axes.max(0))
    assert again.codes == pytest.approx(result.codes, abs=1e-4), "the order of latents is nothing"


def test_two_channels_are_shown_as_they_are_and_one_lies_on_a_line(points):
    codes, latents = points
    (plane,) = project([codes[:, :2]], [latents[:, :2]], method="plane")
    assert np.array_equal(plane.codes, codes[:, :2].astype(np.float32))
    (line,) = project([codes[:, :1]], [latents[:, :1]])
    assert (line.latents[:, 1] == 0).all() and line.latents[:, 0].std() > 1
    assert line.explained.tolist() == [1.0]
    for method in ("plane", "tsne"):
        with pytest.raises(ValueError, match=f"'{method}' of 5 channels: give pca"):
            project([codes], [latents], method=method)


def test_checkpoints_share_one_frame_and_umap_starts_from_the_one_before(points, fake_umap):
    first, last = project([points[0], points[0] + 1], [points[1], points[1] + 1])
    assert last.latents.mean(0) == pytest.approx(0, abs=1e-4), "that of the last"
    assert np.allclose(last.codes - first.codes, last.basis.axes[:, :2].sum(0), atol=1e-4)

    chain = project(*([x] * 3 for x in points), method="umap")
    assert fake_umap[0] == "pca" and np.array_equal(fake_umap[2][:40], chain[1].codes)
    for step in chain[1:]:
        assert step.latents == pytest.approx(chain[0].latents, abs=1e-3)


def test_the_cache_answers_instead_of_a_fit_until_something_differs(points, fake_umap, tmp_path):
    def run(shift=0.0, **options):
        both = [points[0] + shift], [points[1]]
        return project(*both, method="umap", cache=tmp_path / "c", **options)[0].codes

    assert np.array_equal(run(), run()) and len(fake_umap) == 1
    run(seed=1)
    run(shift=1e-3)
    assert len(fake_umap) == 3
    names = [path.suffix for path in (tmp_path / "c").iterdir()]
    assert names == [".npy"] * 3  # nothing half-written is left


def test_umap_keeps_clusters_apart_is_repeatable_and_shows_its_progress(capsys):
    rng = np.random.default_rng(2)
    label = np.arange(90) % 2
    latents = (rng.standard_normal((90, 6)) + 20 * label[:, None]).astype(np.float32)
    threads = torch.get_num_threads()
    result, again = (project([latents[:8]], [latents], method="umap")[0].latents for _ in range(2))
    assert "UMAP 1 of 1" in capsys.readouterr().err
    centers = np.stack([result[label == k].mean(0) for k in (0, 1)])
    assert (np.linalg.norm(result[:, None] - centers, axis=2).argmin(1) == label).all()
    assert torch.get_num_threads() == threads  # numba would leave its own count behind
    assert np.array_equal(again, result)


def test_a_projection_loses_neighbors_and_a_turn_loses_none():
    points = np.random.default_rng(3).standard_normal((600, 5))
    kept = faithfulness(points, points[:, :2], num_neighbors=10)
    assert 0.1 < kept.recall < kept.trustworthiness < kept.continuity < 0.99
    assert np.isnan(faithfulness(points[:2], points[:2, :2], num_neighbors=0).recall)
    sampled = faithfulness(points, points[:, :2], num_neighbors=10, limit=300)
    assert sampled.num_points == 300
    assert sampled.trustworthiness == pytest.approx(kept.trustworthiness, abs=0.04)
    plane = points[:, :2]
    marks = faithfulness(3 * plane @ np.array([[0, 1], [-1, 0]]), plane)
    assert (marks.trustworthiness, marks.continuity, marks.recall) == (1, 1, 1)
    with pytest.raises(ValueError, match="less than"):
        faithfulness(plane, plane, num_neighbors=300)
