"""Projections, their alignment over checkpoints, their faithfulness."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from lgqlib.measure import projection
from lgqlib.measure.projection import project


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((300, 5)).astype(np.float32) * [3, 2, 1, 1, 1]
    return latents[:40].copy(), latents


def test_pca_is_the_leading_plane_with_a_fixed_sign_and_one_frame_for_all_checkpoints(points):
    codes, latents = points
    (result,), (again,) = (project([codes], [z]) for z in (latents, latents[::-1]))
    leading = np.linalg.eigvalsh(np.cov(latents.T))[:2:-1]
    assert result.latents.var(0) == pytest.approx(leading, 0.01)
    assert result.explained.sum() == pytest.approx(13 / 16, abs=0.03)
    assert again.codes == pytest.approx(result.codes, abs=1e-4), "the order of latents is nothing"
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
