"""Annealing: the first split, the staircase, and where each place of codes comes apart."""

import numpy as np
import pytest

from lgqlib.measure.annealing import anneal


def test_two_clusters_make_two_places_at_the_predicted_temperature():
    axis, side = np.array([0.6, 0.8]), np.where(np.arange(1000) % 2, 1.0, -1.0)
    noise = np.random.default_rng(6).standard_normal((1000, 2))
    predicted = 2 * (1 + 0.05**2)
    result = anneal(
        0.05 * noise + side[:, None] * axis, 16, predicted * np.geomspace(1.3, 0.02, 30)
    )
    assert (result.predicted, result.observed) == pytest.approx((predicted, predicted), rel=0.02)
    assert set(result.num_distinct) == {1, 2}
    (split,) = result.splits
    assert split.low < predicted < 1.1 * split.high
    assert split.predicted == pytest.approx(predicted, rel=0.01)
    places, sizes = np.unique(result.codebooks[-1].round(6), axis=0, return_counts=True)
    assert places == pytest.approx(np.stack([-axis, axis]), abs=0.03)
    assert sizes.tolist() == [8, 8], "half of the codes went each way"
