"""Runs open with their training, or the tokenizer that ships; live figures follow."""

import math
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from lgqlib.config import Config
from lgqlib.explorers.live import LiveCurves
from lgqlib.explorers.runs import (
    curve,
    entropies,
    geometry_of,
    history,
    open_runs,
    some,
    surroundings,
)
from lgqlib.quantizers.assignment import soft_assign


@pytest.fixture(scope="module")
def runs(trained, cache):
    lgq, fsq = trained("lgq"), trained("fsq")
    others, root = f"{fsq.path} {lgq.name}", lgq.path.parent
    return open_runs(str(lgq.path), others, runs=root, cache=cache, num_images=2)


def test_runs_are_keyed_by_method_and_numbered(runs):
    assert list(runs) == ["lgq", "fsq", "lgq 2"]
    assert math.isfinite(runs["lgq"].tau) and math.isnan(runs["fsq"].tau)
    first, *others = runs.values()
    assert all(each.names == first.names for each in others), "all see the same photographs"


def test_entropies_curves_and_histories_are_the_library_s(runs):
    o = runs["lgq"]
    rows = some(o, 300)
    exact = soft_assign(o.latents[rows], o.sites, o.width, energy=o.energy, widths=o.widths)
    assert entropies(o, rows) * math.log(2) == pytest.approx(exact.entropy.numpy(), abs=1e-4)
    found = curve(o)
    assert o.width in found.taus and (np.diff(found.taus) < 0).all()
    assert (np.diff(found.entropy) < 1e-9).all(), "colder is surer"
    moments = history(o)
    assert [m.step for m in moments] == [s.step for s in o.snapshots]
    assert all(0 <= m.token <= m.usage <= math.log(64) + 1e-6 for m in moments)


def test_geometry_counts_all_tokens_and_surroundings_are_cut_around_the_token(runs):
    o = runs["lgq"]
    assert geometry_of(o).numbers["num_tokens"] == o.num_tokens == o.crop_of.bincount().sum()
    wide = o.indices[0].shape[1]
    corner, inner = surroundings(o, some(o, o.num_tokens)[[0, wide + 1]])
    assert (corner[: o.factor] == 128).all(), "outside of the photograph"
    assert (inner == o.images[0][:, : 3 * o.factor, : 3 * o.factor].permute(1, 2, 0).numpy()).all()


def test_curves_follow_the_log_and_no_failure_to_draw_reaches_the_training():
    run, columns = SimpleNamespace(config=Config(), rows=[]), ["step", "split", "loss", "tau"]
    run.metrics = lambda: pandas.DataFrame(run.rows, columns=columns)
    with LiveCurves(run, interval=0.001) as live:
        run.rows += [(1, "train", 1.0, 0.5), (2, "train", 0.5, 0.5)]
    assert live.failure is None
    assert list(next(t for t in live.widget.data if t.name == "loss").x) == [1, 2]
    with LiveCurves(run, interval=0.001) as live:
        rows = vars(run).pop("rows")
        live._thread.join(timeout=5)
        run.rows = rows
    assert isinstance(live.failure, AttributeError)
    with pytest.raises(KeyboardInterrupt), LiveCurves(run, interval=0.01):
        raise KeyboardInterrupt
