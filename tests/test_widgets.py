"""Explorers without a browser: plain state, small messages, the same numbers as the library."""

import asyncio
import copy
import math
from types import SimpleNamespace

import comm
import numpy as np
import pandas
import plotly.graph_objects as go
import pytest
import torch

from lgqlib.config import Config
from lgqlib.explorers.controls import Throttled
from lgqlib.explorers.entropy import EntropyExplorer
from lgqlib.explorers.live import LiveCurves
from lgqlib.explorers.plane import PlaneExplorer
from lgqlib.explorers.runs import open_runs, record
from lgqlib.explorers.sent import SentWhole
from lgqlib.explorers.softness import Softness, num_counted, num_looked_at
from lgqlib.explorers.temperature import TemperatureExplorer
from lgqlib.explorers.view import View
from lgqlib.figures.plane import clusters
from lgqlib.files import read_json
from lgqlib.measure.annealing import anneal
from lgqlib.quantizers.assignment import soft_assign
from lgqlib.run import Run, Snapshot


@pytest.fixture(scope="module")
def view(trained, cache):
    return View.open(trained("lgq"), cache=cache, num_images=16)


@pytest.fixture(scope="module")
def softness(trained, view):
    return Softness(view, trained("lgq").snapshots(), num_taus=16)


def point(*indices, xs=(), ys=()):
    """A browser's event, as plotly hands it on."""
    return SimpleNamespace(point_inds=list(indices), xs=list(xs), ys=list(ys))


class TestSoftness:
    def test_entropies_are_the_library_s_and_grow_with_temperature(self, softness):
        view, entropies = softness.view, softness.entropies
        z, e = torch.tensor(view.points[softness.tokens]), torch.tensor(view.sites)
        truth = soft_assign(z, e, float(softness.taus[5])).entropy
        assert np.allclose(entropies[5], truth, atol=1e-3)
        assert np.allclose(softness.curve.entropy, entropies.mean(1), atol=1e-3), "the same tokens"
        assert (np.diff(entropies.mean(1)) <= 1e-6).all(), "temperatures fall"
        assert entropies[0].mean() > 0.8 * math.log(view.num_codes)

    def test_peak_makes_surer_and_usage_makes_more_even(self, softness):
        effects = {e.term: e for e in softness.effects(0.1 * softness.view.scale)}
        assert effects["peak"].token < 0
        assert effects["usage"].usage > 0 and effects["usage, entropy form"].usage > 0

    def test_deciles_and_least_sure_codes_come_with_their_own_tokens(self, softness):
        view, tau = softness.view, softness.view.tau
        entropy = view.entropies(tau)
        tops = [entropy[tokens].max() for tokens in softness.deciles(tau)]
        assert len(tops) == 10 and (np.diff(tops) >= 0).all()
        codes, means, tokens = softness.least_sure(tau, count=4, each=3)
        assert len(codes) == 4 and (np.diff(means) <= 0).all()
        for code, mean, own in zip(codes, means, tokens, strict=True):
            assert 1 <= len(own) <= 3 and (view.indices[own] == code).all()
            assert mean == pytest.approx(entropy[view.indices == code].mean(), abs=1e-6)
        token = 3 * view.num_tokens + 2 * view.grid[1] + 5
        assert softness.place_of(token, tau).startswith("image 3, row 2, column 5: ")

    def test_between_two_codes_of_the_run_one_half_stays_when_cold(self, softness):
        (a, b), shares = softness.between()
        assert a != b and softness.view.counts[[a, b]].all()
        assert shares[-1] == pytest.approx(0.5, abs=1e-3)

    def test_a_history_is_of_trained_steps_and_none_is_made_up(self, softness, trained, cache):
        assert softness.no_history == "" and len(softness.history)
        for moment in softness.history:
            assert moment.step > 0, "the start has no temperature"
            assert 0 <= moment.information <= math.log(softness.view.num_codes) + 1e-6
        wide = copy.copy(softness.view)
        wide.widths = torch.full((wide.num_codes,), 2.0)
        other = Softness(wide, softness.snapshots, num_taus=16)
        assert other.history == [] and "widths" in other.no_history
        assert "no snapshots" in Softness(softness.view).no_history
        run = trained("fsq")
        lens = Softness(View.open(run, cache=cache, num_images=4), run.snapshots(), num_taus=4)
        assert len(lens.history) == len(run.snapshots()), "through a lens, at every step"

    def test_a_large_codebook_s_bits_are_not_those_of_a_few_tokens(self, view):
        generator = torch.Generator().manual_seed(0)
        large = copy.copy(view)
        large._points = torch.randn(6000, 4, generator=generator)
        large._sites = torch.randn(16384, 4, generator=generator)
        codes, probe = large.sites, large.points[:4096]
        snapshot = Snapshot(9, 1e-3 * view.scale, view.scale, codes, probe, *[np.zeros(1, int)] * 3)
        soft = Softness(large, [snapshot], num_taus=4)
        for found, nats in (
            (soft.curve, soft.curve.mutual_information[-1]),
            (soft.history[0], soft.history[0].information),
        ):
            assert found.num_tokens == 4096
            assert 11 < nats / math.log(2) <= 12, "256 tokens tell at most 8 bits"
        assert num_counted(65536, 50_000) == 2048 and num_looked_at(65536, 50_000) == 256
        assert num_counted(1024, 100) == num_looked_at(1024, 100) == 100

    @pytest.mark.parametrize("share", [1.0, 0.0123, 3e-4, 40.0])
    def test_the_run_s_own_temperature_is_among_those_looked_at(self, view, share):
        other = copy.copy(view)
        other.tau = share * view.scale
        soft = Softness(other, num_taus=16)
        assert soft.taus[soft.start] == other.tau
        assert (np.diff(soft.taus) < 0).all() and len(soft.taus) == 16 + (not 1e-3 < share < 10)


class TestExplorersOfTheTemperature:
    def test_entropy_opens_at_the_run_s_temperature_and_follows_the_slider(self, softness):
        explorer, view = EntropyExplorer(softness), softness.view
        assert softness.taus[explorer.tau.value] == view.tau
        for index in (explorer.tau.index, 2):
            explorer.tau.index = index
            truth = view.soft(view.first_image, softness.taus[index]).entropy.reshape(view.grid)
            assert np.allclose(explorer.traces["map"].z, truth, atol=1e-5)
            assert np.isclose(np.sum(explorer.traces["population"].y), 100, atol=1e-3)

    def test_everything_follows_the_slider_the_click_and_the_image(self, softness):
        explorer, view = TemperatureExplorer(softness, image=1), softness.view
        traces = explorer.traces
        before = {name: traces[name].source for name in ("original", "soft", "hard")}
        explorer.tau.index = 3
        assert traces["soft"].source != before["soft"]
        assert traces["here F"].y[0] == softness.curve.free_energy[3]
        assert traces["here F"].x[0] == pytest.approx(softness.taus[3] / view.scale)
        assert traces["here"].y[0] == softness.curve.mean_energy[3]
        explorer._clicked(None, point([2, 5], xs=[5], ys=[2]), None)
        assert explorer.token.value == 2 * view.grid[1] + 5
        assert (traces["place"].x[0], traces["place"].y[0]) == (5, 2)
        explorer.image.value = 9
        assert all(traces[name].source != source for name, source in before.items())

    def test_the_plane_s_slider_moves_codes_and_picture(self):
        points = clusters(100)
        annealing = anneal(points, 4, np.geomspace(12, 0.5, 8))
        explorer = PlaneExplorer(points, annealing)
        before = explorer.traces["plane"].source
        explorer.tau.index = 7
        assert np.allclose(explorer.traces["codes"].x, annealing.codebooks[7][:, 0], atol=1e-5)
        assert explorer.traces["plane"].source != before
        assert explorer.traces["here"].y[0] == annealing.num_distinct[7]


class TestThrottled:
    def test_without_a_loop_it_acts_at_once(self):
        seen = []
        Throttled(seen.append)(1)
        assert seen == [1]

    def test_of_a_burst_the_newest_counts_once(self):
        seen = []

        async def burst():
            throttled = Throttled(seen.append, seconds=0.01)
            for i in range(50):
                throttled(i)
            await asyncio.sleep(0.05)
            throttled(99)
            await asyncio.sleep(0.05)

        asyncio.run(burst())
        assert seen == [49, 99]


class TestLiveCurves:
    class Log:
        config = Config()

        def __init__(self):
            self.rows = []

        def metrics(self):
            columns = None if self.rows else ["step", "split"]
            return pandas.DataFrame(self.rows, columns=columns)

    def row(self, step):
        return {"step": step, "split": "train", "loss": 1 / step, "tau": 0.5}

    def test_curves_follow_the_log_and_are_whole_at_the_end(self):
        run = self.Log()
        with LiveCurves(run, interval=0.01) as live:
            run.rows += [self.row(1), self.row(2)]
        assert live.failure is None
        loss = next(t for t in live.widget.data if t.name == "loss")
        assert list(loss.x) == [1, 2]

    def test_a_failure_to_draw_never_reaches_the_training(self):
        run = self.Log()
        with LiveCurves(run, interval=0.001) as live:
            run.metrics = lambda: (_ for _ in ()).throw(RuntimeError("no disk"))
            live._thread.join(timeout=5)
            run.metrics = lambda: pandas.DataFrame([self.row(1)])
        assert isinstance(live.failure, RuntimeError)

    def test_an_error_of_the_training_passes_through(self):
        with pytest.raises(KeyboardInterrupt), LiveCurves(self.Log(), interval=0.01):
            raise KeyboardInterrupt


class TestRuns:
    def test_runs_are_keyed_by_method_and_numbered(self, trained):
        lgq, fsq = trained("lgq"), trained("fsq")
        others = f"{fsq.path} {lgq.name}"
        found = open_runs(str(lgq.path), others, runs=lgq.path.parent)
        assert list(found) == ["lgq", "fsq", "lgq 2"]

    def test_without_a_run_the_message_says_what_to_do(self, tmp_path):
        with pytest.raises(ValueError, match="01_train"):
            open_runs("", runs=tmp_path)

    def test_numbers_are_written_and_what_json_lacks_is_null(self, trained, tmp_path):
        config = trained("lgq").config
        run = Run.create(tmp_path, config)
        path = record(run, "03_geometry", {"a": np.float32(0.5), "b": math.nan, "c": 3})
        assert read_json(path) == {"a": 0.5, "b": None, "c": 3}


def test_a_live_figure_is_created_in_the_browser_with_its_data(monkeypatch):
    """Data sent after the figure's creation can miss a busy browser, which then shows nothing."""
    sent = []
    create = comm.create_comm
    monkeypatch.setattr(comm, "create_comm", lambda **message: sent.append(message) or create())
    figure = SentWhole(go.Figure(go.Scatter(y=[3, 1, 2], name="three")))
    assert len(sent) == 1, "one channel is opened, once"
    state = sent[0]["data"]["state"]
    assert [trace["name"] for trace in state["_widget_data"]] == ["three"]
    assert list(figure.data[0].y) == [3, 1, 2]
