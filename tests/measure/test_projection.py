"""Projections, their alignment over checkpoints, their faithfulness."""

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness

from lgqlib.measure import projection
from lgqlib.measure.projection import (
    faithfulness,
    in_plane,
    project,
    project_snapshots,
    register,
    stratified_sample,
)


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((300, 5)).astype(np.float32) * [3, 2, 1, 1, 1]
    return latents[:40].copy(), latents


@pytest.fixture
def fake_umap(monkeypatch):
    """Replace the fit by two channels, turned and scaled by what no seed fixes; count the calls."""
    calls = []

    def fit(points, before, seed, label):
        calls.append(before)
        turn = np.linalg.qr(np.random.default_rng(len(calls)).standard_normal((2, 2)))[0]
        return (points[:, :2] @ turn * len(calls) + 7).astype(np.float32)

    monkeypatch.setattr(projection, "_fit_umap", fit)
    return calls


def test_pca_is_the_leading_plane_with_a_fixed_sign(points):
    codes, latents = points
    result = project(codes, latents)
    leading = np.linalg.eigvalsh(np.cov(latents.T))[:2:-1]
    assert result.latents.var(0) == pytest.approx(leading, 0.01)
    assert result.explained.sum() == pytest.approx(13 / 16, abs=0.03)
    axes = result.basis.axes
    assert np.abs(axes).max(0) == pytest.approx(axes.max(0))
    again = project(codes, latents[::-1])  # the same latents in another order
    assert again.codes == pytest.approx(result.codes, abs=1e-4)


def test_two_channels_are_shown_as_they_are_and_one_lies_on_a_line(points):
    codes, latents = points
    plane = project(codes[:, :2], latents[:, :2], method="plane")
    assert np.array_equal(plane.codes, codes[:, :2].astype(np.float32))
    assert plane.explained == pytest.approx([9 / 13, 4 / 13], abs=0.05)
    line = project(codes[:, :1], latents[:, :1])
    assert (line.latents[:, 1] == 0).all() and line.latents[:, 0].std() > 1
    assert line.explained.tolist() == [1.0]


@pytest.mark.parametrize(
    ("num_latents", "method", "message"),
    [(9, "plane", "2 channels"), (9, "tsne", "unknown method"), (20001, "umap", "stratified_s")],
)
def test_what_cannot_be_projected_is_refused_with_the_way_out(num_latents, method, message, points):
    with pytest.raises(ValueError, match=message):
        project(points[0], np.zeros((num_latents, 5), np.float32), method=method)


def test_checkpoints_share_one_pca_frame(points):
    codes, latents = points
    first, last = project_snapshots([codes, codes + 1], [latents, latents + 1])
    assert first.basis is last.basis
    assert in_plane(last.basis, codes) == pytest.approx(first.codes)
    shift = last.codes - first.codes
    expected = last.basis.axes[:, :2].sum(0)
    assert shift == pytest.approx(np.broadcast_to(expected, shift.shape), abs=1e-4)


@pytest.mark.parametrize("mirror", [1, -1])
def test_registration_removes_turn_mirror_scale_and_shift(mirror):
    rng = np.random.default_rng(1)
    fixed = rng.standard_normal((50, 2))
    turn = np.linalg.qr(rng.standard_normal((2, 2)))[0] @ np.diag([1, mirror])
    assert register(3 * fixed @ turn + 5, fixed) == pytest.approx(fixed, abs=1e-9)
    assert register(np.ones((50, 2)), fixed) == pytest.approx(np.tile(fixed.mean(0), (50, 1)))


def test_the_umap_chain_starts_from_the_checkpoint_before_and_stays_in_its_frame(points, fake_umap):
    codes, latents = points
    chain = project_snapshots([codes] * 3, [latents] * 3, method="umap")
    assert fake_umap[0] is None
    assert np.array_equal(fake_umap[2][:40], chain[1].codes)
    for step in chain[1:]:
        assert step.latents == pytest.approx(chain[0].latents, abs=1e-3)


def test_the_cache_answers_instead_of_a_fit_until_something_differs(points, fake_umap, tmp_path):
    codes, latents = points

    def run(shift=0.0, **options):
        return project(codes + shift, latents, method="umap", cache=tmp_path / "c", **options)

    first = run()
    assert np.array_equal(run().codes, first.codes) and len(fake_umap) == 1
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
    result = project(latents[:8], latents, method="umap")
    assert "UMAP 1 of 1" in capsys.readouterr().err
    centers = np.stack([result.latents[label == k].mean(0) for k in (0, 1)])
    nearest = np.linalg.norm(result.latents[:, None] - centers, axis=2).argmin(1)
    assert (nearest == label).all()
    assert torch.get_num_threads() == threads  # numba would leave its own count behind
    assert np.array_equal(project(latents[:8], latents, method="umap").latents, result.latents)


def test_the_sample_keeps_every_code_and_the_density_of_the_rest():
    indices = np.concatenate([np.zeros(9000, int), np.ones(1000, int), np.arange(2, 52)])
    chosen = stratified_sample(indices, 1000)
    assert len(chosen) == 1000 and (np.diff(chosen) > 0).all()
    kept = indices[chosen]
    assert set(kept) == set(range(52))
    assert (kept == 0).sum() / (kept == 1).sum() == pytest.approx(9, rel=0.3)
    assert np.array_equal(chosen, stratified_sample(indices, 1000))
    assert len(set(indices[stratified_sample(indices, 20)])) == 20
    assert np.array_equal(stratified_sample(indices, 20000), np.arange(len(indices)))


def test_faithfulness_equals_scikit_learn_and_sampling_comes_close():
    rng = np.random.default_rng(3)
    points = rng.standard_normal((600, 5))
    plane = points[:, :2] + 0.1 * rng.standard_normal((600, 2))
    exact = faithfulness(points, plane, num_neighbors=10, num_queries=600)
    assert exact.trustworthiness == pytest.approx(trustworthiness(points, plane, n_neighbors=10))
    assert exact.continuity == pytest.approx(trustworthiness(plane, points, n_neighbors=10))
    sampled = faithfulness(points, plane, num_neighbors=10, num_queries=200)
    assert sampled.num_queries == 200
    assert sampled.trustworthiness == pytest.approx(exact.trustworthiness, abs=0.02)
    assert sampled.recall == pytest.approx(exact.recall, abs=0.03)


def test_a_perfect_picture_has_full_marks():
    plane = np.random.default_rng(4).standard_normal((200, 2))
    marks = faithfulness(3 * plane @ np.array([[0, 1], [-1, 0]]), plane)
    assert (marks.trustworthiness, marks.continuity, marks.recall) == (1, 1, 1)
    with pytest.raises(ValueError, match="below half"):
        faithfulness(plane, plane, num_neighbors=100)
