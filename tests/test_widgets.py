"""Explorers without a browser: plain state, small messages, the same numbers as the library."""

import asyncio
import copy
import json
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
from lgqlib.explorers.temperature import TemperatureLaboratory
from lgqlib.explorers.view import View
from lgqlib.figures.plane import clusters
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
        entropies = softness.entropies
        truth = soft_assign(
            torch.tensor(softness.view.points[softness.tokens]),
            torch.tensor(softness.view.sites),
            float(softness.taus[5]),
        ).entropy
        assert np.allclose(entropies[5], truth, atol=1e-3)
        assert (np.diff(entropies.mean(1)) <= 1e-6).all(), "temperatures fall"
        assert entropies[0].mean() > 0.8 * math.log(softness.view.num_codes)

    def test_the_curve_is_of_the_same_tokens(self, softness):
        assert np.allclose(softness.curve.entropy, softness.entropies.mean(1), atol=1e-3)

    def test_peak_makes_surer_and_usage_makes_more_even(self, softness):
        effects = {e.term: e for e in softness.effects(0.1 * softness.view.scale)}
        assert effects["peak"].token < 0
        assert effects["usage"].usage > 0 and effects["usage, entropy form"].usage > 0

    def test_deciles_are_ordered_and_cover(self, softness):
        entropy = softness.view.entropies(softness.view.tau)
        tops = [entropy[tokens].max() for tokens in softness.deciles(softness.view.tau)]
        assert len(tops) == 10 and (np.diff(tops) >= 0).all()

    def test_the_least_sure_codes_come_with_their_own_tokens_and_where_they_are(self, softness):
        view, tau = softness.view, softness.view.tau
        entropy = view.entropies(tau)
        codes, means, tokens = softness.least_sure(tau, count=4, each=3)
        assert len(codes) == 4 and (np.diff(means) <= 0).all()
        for code, mean, own in zip(codes, means, tokens, strict=True):
            assert 1 <= len(own) <= 3 and (view.indices[own] == code).all()
            assert (np.diff(entropy[own]) <= 0).all()
            assert mean == pytest.approx(entropy[view.indices == code].mean(), abs=1e-6)
        token = 3 * view.num_tokens + 2 * view.grid[1] + 5
        assert softness.place_of(token, tau).startswith("image 3, row 2, column 5: ")

    def test_a_tie_keeps_one_half_when_cold(self, softness):
        _, shares = softness.tie()
        assert shares[-1] == pytest.approx(0.5, abs=1e-3)

    @pytest.mark.parametrize("energy", ["squared", "norm"])
    def test_a_tie_of_codes_with_widths_keeps_one_half_too(self, view, energy):
        wide = copy.copy(view)
        wide.energy = energy
        order = torch.randperm(view.num_codes, generator=torch.Generator().manual_seed(0))
        wide.widths = torch.linspace(0.5, 3, view.num_codes)[order]
        _, shares = Softness(wide, num_taus=16).tie()
        assert shares[-1] == pytest.approx(0.5, abs=1e-3)

    def test_no_history_is_made_up_for_codes_with_widths(self, softness):
        wide = copy.copy(softness.view)
        wide.widths = torch.full((wide.num_codes,), 2.0)
        soft = Softness(wide, softness.snapshots, num_taus=16)
        assert soft.history == [] and "widths" in soft.no_history
        assert softness.no_history == "" and len(softness.history)
        assert "no snapshots" in Softness(softness.view).no_history

    def test_a_method_without_a_temperature_has_a_history_through_the_lens(self, trained, cache):
        run = trained("fsq")
        soft = Softness(View.open(run, cache=cache, num_images=4), run.snapshots(), num_taus=4)
        assert soft.no_history == "" and len(soft.history) == len(run.snapshots())

    def test_soft_codes_come_to_the_hard_ones(self, softness):
        assert softness.soft_to_hard[-1] < 0.1 * softness.soft_to_hard[0]

    def test_history_leaves_out_the_start_which_has_no_temperature(self, softness):
        steps = [moment.step for moment in softness.history]
        assert steps and 0 not in steps
        for moment in softness.history:
            assert 0 <= moment.information <= math.log(softness.view.num_codes) + 1e-6

    def test_a_large_codebook_s_bits_are_not_those_of_a_few_tokens(self, view):
        generator = torch.Generator().manual_seed(0)
        large = copy.copy(view)
        large._points = torch.randn(6000, 4, generator=generator)
        large._sites = torch.randn(16384, 4, generator=generator)
        codes, probe = large.sites, large.points[:4096]
        snapshot = Snapshot(9, 1e-3 * view.scale, view.scale, codes, probe, *[np.zeros(1, int)] * 3)
        soft = Softness(large, [snapshot], num_taus=4)
        curve = soft.curve
        assert curve.num_tokens == 4096
        cold = curve.mutual_information[-1] / math.log(2)
        assert 11 < cold <= 12, "256 tokens tell at most 8 bits"
        assert soft.curve is curve, "a slider that moves computes nothing again"
        moment = soft.history[0]
        assert moment.num_tokens == 4096 and 11 < moment.information / math.log(2) <= 12

    @pytest.mark.parametrize("share", [1.0, 0.0123, 3e-4, 40.0])
    def test_the_run_s_own_temperature_is_among_those_looked_at(self, view, share):
        other = copy.copy(view)
        other.tau = share * view.scale
        soft = Softness(other, num_taus=16)
        assert soft.taus[soft.start] == other.tau
        assert (np.diff(soft.taus) < 0).all() and len(soft.taus) == 16 + (not 1e-3 < share < 10)
        there = soft_assign(torch.tensor(soft.latents), torch.tensor(view.sites), other.tau)
        assert soft.curve.entropy[soft.start] == pytest.approx(
            float(there.entropy.mean()), abs=1e-3
        )

    def test_a_stop_in_the_middle_of_a_curve_is_heard_and_spoils_nothing(self, view, monkeypatch):
        soft = Softness(view, num_taus=16)

        def stopped(tiles, **options):
            assert options["desc"] == "free energy"
            yield tiles[0]
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("lgqlib.measure.temperature.tqdm", stopped)
            with pytest.raises(KeyboardInterrupt):
                _ = soft.curve
        assert len(soft.curve.entropy) == len(soft.entropies) == 16

    def test_work_is_bounded_for_any_codebook(self):
        assert num_counted(65536, 50_000) == 2048 and num_counted(1024, 50_000) == 4096
        assert num_counted(16384, 50_000) == 4096 and num_counted(1024, 100) == 100
        assert num_looked_at(65536, 50_000) == 256
        assert num_looked_at(1024, 50_000) == 2048
        assert num_looked_at(1024, 100) == 100


class TestEntropyExplorer:
    def test_it_opens_at_the_run_s_temperature(self, softness):
        explorer = EntropyExplorer(softness)
        assert softness.taus[explorer.tau.value] == softness.view.tau
        entropy = softness.view.soft(softness.view.liveliest, softness.view.tau).entropy
        assert np.allclose(np.ravel(explorer.traces["map"].z), entropy, atol=1e-6)

    def test_a_slider_changes_the_map(self, softness):
        explorer = EntropyExplorer(softness)
        explorer.tau.index = 2
        view = softness.view
        truth = view.soft(view.liveliest, softness.taus[2]).entropy.reshape(view.grid)
        assert np.allclose(explorer.traces["map"].z, truth, atol=1e-5)
        assert np.isclose(np.sum(explorer.traces["population"].y), 100, atol=1e-3)


class TestTemperatureLaboratory:
    @pytest.fixture
    def laboratory(self, softness):
        return TemperatureLaboratory(softness, image=1)

    def test_everything_follows_the_slider(self, laboratory, softness):
        before = laboratory.traces["soft"].source
        laboratory.tau.index = 3
        assert laboratory.traces["soft"].source != before
        assert laboratory.traces["here F"].y[0] == softness.curve.free_energy[3]
        assert laboratory.traces["here"].y[0] == softness.curve.mean_energy[3]
        x = laboratory.traces["here F"].x[0]
        assert x == pytest.approx(softness.taus[3] / softness.view.scale)

    def test_a_click_on_the_map_chooses_the_token(self, laboratory):
        laboratory._clicked(None, point([2, 5], xs=[5], ys=[2]), None)
        assert laboratory.token.value == 2 * laboratory.view.grid[1] + 5
        assert (laboratory.traces["place"].x[0], laboratory.traces["place"].y[0]) == (5, 2)

    def test_another_image_changes_all_three_pictures(self, laboratory):
        names = ("original", "soft", "hard")
        before = [laboratory.traces[name].source for name in names]
        laboratory.image.value = 9
        after = [laboratory.traces[name].source for name in names]
        assert all(a != b for a, b in zip(after, before, strict=True))


class TestPlaneExplorer:
    def test_the_slider_moves_codes_and_field(self):
        points = clusters(100)
        annealing = anneal(points, 4, np.geomspace(12, 0.5, 8))
        explorer = PlaneExplorer(points, annealing)
        before = explorer.traces["field"].source
        explorer.tau.index = 7
        assert np.allclose(explorer.traces["codes"].x, annealing.codebooks[7][:, 0], atol=1e-5)
        assert explorer.traces["field"].source != before
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
        assert json.loads(path.read_text()) == {"a": 0.5, "b": None, "c": 3}


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
