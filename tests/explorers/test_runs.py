"""Runs open with their training, or the tokenizer that ships; live figures follow."""

import math
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from lgqlib.config import Config
from lgqlib.explorers.live import LiveCurves
from lgqlib.explorers.runs import curve, entropies, history, open_runs, some
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
