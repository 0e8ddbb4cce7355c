"""Runs open with their training, or the tokenizer that ships; live figures follow."""

import math
from types import SimpleNamespace

import comm
import numpy as np
import pandas
import plotly.graph_objects as go
import pytest

from lgqlib.config import Config
from lgqlib.explorers.live import LiveCurves, SentWhole
from lgqlib.explorers.runs import (
    curve,
    drift_of,
    entropies,
    geometry_of,
    history,
    open_runs,
    record,
    some,
    surroundings,
)
from lgqlib.files import read_json
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


def test_without_a_run_the_tokenizer_that_ships_opens_on_embedded_photographs(tmp_path, cache):
    (only,) = open_runs("", runs=tmp_path, cache=cache, num_images=1).values()
    assert "which ships" in only.about and only.num_codes == 1024 and len(only.images) == 1
    path = record(only, "03_geometry", {"a": np.float32(0.5), "b": math.nan, "c": 3})
    assert path.is_relative_to(tmp_path)
    assert read_json(path).items() >= {"a": 0.5, "b": None, "c": 3}.items(), "JSON has no NaN"
    assert history(only) == [] and drift_of(only) is None


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


def test_a_live_figure_is_created_in_the_browser_with_its_data(monkeypatch):
    """Data sent after the figure's creation can miss a busy browser, which then shows nothing."""
    sent, create = [], comm.create_comm
    monkeypatch.setattr(comm, "create_comm", lambda **message: sent.append(message) or create())
    SentWhole(go.Figure(go.Scatter(y=[3, 1, 2], name="three")))
    assert len(sent) == 1, "one channel is opened, once"
    assert [t["name"] for t in sent[0]["data"]["state"]["_widget_data"]] == ["three"]
