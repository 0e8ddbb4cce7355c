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
from drawn import named, pixels, texts
from plotly.callbacks import LassoSelector

from lgqlib.config import Config
from lgqlib.data import to_model, to_uint8
from lgqlib.explorers.codes import Codes
from lgqlib.explorers.controls import Throttled
from lgqlib.explorers.entropy import EntropyExplorer
from lgqlib.explorers.explorer import CodebookExplorer
from lgqlib.explorers.live import LiveCurves
from lgqlib.explorers.map import codebook_map
from lgqlib.explorers.moving import moving
from lgqlib.explorers.plane import PlaneExplorer
from lgqlib.explorers.quantities import CodeValues, clickable, small_multiples
from lgqlib.explorers.runs import open_runs, record
from lgqlib.explorers.selection import enclosed
from lgqlib.explorers.sent import SentWhole
from lgqlib.explorers.softness import Softness
from lgqlib.explorers.temperature import TemperatureExplorer
from lgqlib.explorers.view import View
from lgqlib.figures.plane import clusters
from lgqlib.files import read_json
from lgqlib.measure.annealing import anneal
from lgqlib.measure.projection import project
from lgqlib.quantizers.assignment import probabilities, soft_assign
from lgqlib.run import Run


@pytest.fixture(scope="module")
def view(trained, cache):
    return View.open(trained("lgq"), cache=cache, num_images=16)


@pytest.fixture(scope="module")
def codes(trained, view):
    return Codes(view, trained("lgq").snapshots())


@pytest.fixture
def explorer(codes, tmp_path):
    return CodebookExplorer(codes, folder=tmp_path)


@pytest.mark.parametrize("method", ["lgq", "fsq", "vq"])
def test_a_view_holds_the_codes_that_the_tokenizer_gives(method, trained, cache):
    view = View.open(trained(method), cache=cache, num_images=4)
    with torch.no_grad():
        indices = view.tokenizer.encode(to_model(view.images))
        decoded = to_uint8(view.tokenizer(to_model(view.images[:1])).images)[0]
    assert (view.indices == indices.flatten().numpy()).all()
    rows = np.square(view.points[:, None] - view.sites).sum(2)
    nearest = rows[np.arange(len(rows)), view.indices]
    assert np.allclose(nearest, rows.min(1), atol=1e-5), "codes are nearest in this space"
    assert (view.reconstruction(0) == decoded.permute(1, 2, 0).numpy()).all()
    assert view.has_temperature == (method == "lgq") == ("lens" not in view.tau_label)
    assert Codes(view, trained(method).snapshots()).evidence(0).shape[2] == 4


def test_softness_and_shares_are_the_library_s(view):
    rows, e = view.tokens(3), torch.tensor(view.sites)
    for tau in (view.tau, view.scale):
        soft, truth = view.soft(3, tau), soft_assign(torch.tensor(view.points[rows]), e, tau)
        for name in ("entropy", "free_energy", "average"):
            assert np.allclose(getattr(soft, name), getattr(truth, name), atol=1e-4)
    best, shares = view.shares(70, view.scale, top=5)
    p = probabilities(torch.tensor(view.points[[70]]), e, view.scale)[0]
    assert np.allclose(shares, p.topk(5).values) and np.allclose(p[torch.tensor(best)], shares)
    cold = view.decode(view.soft(0, 1e-5 * view.scale).average).astype(int)
    assert np.abs(cold - view.reconstruction(0)).max() <= 1, "a cold soft code is the hard one"


def test_a_code_s_patches_are_those_of_its_tokens_nearest_first(view, codes):
    code = int(np.bincount(view.indices).argmax())
    tokens, contexts = codes.tokens_of(code), view.contexts(code)
    assert (view.indices[tokens] == code).all() and (view.indices[contexts] == code).all()
    assert (np.diff(np.square(view.points[tokens] - view.sites[code]).sum(1)) >= 0).all()
    side, crops = view.images.shape[-1] // view.grid[0], []
    for image, place in zip(*divmod(contexts, view.num_tokens), strict=True):
        y, x = side * np.array(divmod(place, view.grid[1]))
        crops.append(view.reconstruction(image)[y : y + side, x : x + side].astype(float))
    assert np.abs(view.code_patches(np.array([code]))[0] - np.mean(crops, 0)).max() <= 1


def test_a_selection_is_exported_with_its_places_beside_earlier_ones(codes, view, tmp_path):
    code = int(np.bincount(view.indices).argmax())
    paths = [codes.export(chosen, tmp_path / "s.csv") for chosen in ([5, 3, 3], [code])]
    assert [p.name for p in paths] == ["s.csv", "s-2.csv"]
    first, second = (pandas.read_csv(path, index_col="code") for path in paths)
    assert np.allclose(first["usage, tokens"], view.counts[[3, 5]])
    for place in second["places, image:row:column"][code].split():
        image, row, col = map(int, place.split(":"))
        assert view.indices[view.tokens(image)].reshape(view.grid)[row, col] == code


def test_deaths_and_births_are_among_the_codes_that_move_and_counted():
    before, after = np.ones((2, 100), dtype=int)
    after[90:96], before[96:] = 0, 0
    found = moving(np.arange(100)[::-1], [0 * before, before, after], limit=20)
    assert len(found.codes) == 20 and {*range(10), 96, 97, 98, 99} <= set(found.codes)
    assert "5 of 6 that died" in found.note and "4 of 4 that were born" in found.note


def test_what_is_unknown_is_grey_and_below_all_others():
    marker = CodeValues(np.array([0, np.nan, 1, 100]), "things", log=True).marker()
    assert list(marker["color"][2:]) == [0, 2]
    assert (marker["color"][:2] == np.float32(marker["cmin"])).all(), "zero has no logarithm"
    place = (0 - marker["cmin"]) / (marker["cmax"] - marker["cmin"])
    assert place > marker["colorscale"][1][0], "the smallest known value is not grey"


@pytest.mark.parametrize(("count", "caption"), [(32, "All 32"), (20, "20 of 32 codes are points")])
def test_the_map_has_every_code_as_a_point_or_a_dot(count, caption):
    rng, things = np.random.default_rng(0), CodeValues(np.arange(32.0), "things")
    (at,) = project(*([rng.standard_normal((n, 3)).astype("float32")] for n in (32, 2000)))
    options = {"image": np.zeros((16, 16, 3), np.uint8), "grid": (4, 4), "drawn": np.arange(count)}
    fig = codebook_map(at, things, np.arange(32), **options)
    assert np.allclose(named(fig, "codes").x, at.codes[:count, 0]) and caption in texts(fig)[1]
    others = [pixels(trace.source) for trace in fig.data if trace.name == "rest"]
    assert len(others) == (count < 32) and all(picture[..., 3].any() for picture in others)
    still = small_multiples(at, {"one": things}, np.arange(32), name="LGQ")
    assert len(still.data[0].x) == 32 and texts(still)[0].startswith("LGQ: 31 of 32 codes used")
    kept = clickable(np.arange(5000), limit=1500)
    assert len(kept) <= 1500 and set(range(4250, 5000)) <= set(kept), "the busiest are points"


def test_a_hover_or_a_written_number_chooses_and_a_lasso_selects_codes(explorer, codes):
    before = explorer.evidence.value, explorer.gallery.value
    explorer._pointed(None, SimpleNamespace(point_inds=[9]), None)
    assert explorer.code == 9 and explorer.traces["chosen"].x[0] == codes.map.codes[9, 0]
    assert explorer.evidence.value != before[0] and "Code 9:" in explorer.headline.value
    explorer._lassoed(None, SimpleNamespace(point_inds=[2, 8]), None)
    explorer._lassoed(None, SimpleNamespace(point_inds=[]), LassoSelector(type="lasso"))
    assert list(explorer.selection) == [2, 8] and explorer.gallery.value != before[1]
    explorer.export_button.click()
    assert (explorer.folder / "selection.csv").exists()
    explorer.numbers_field.value = "3, x, 60-99, -2, 7-5"
    assert list(explorer.selection) == [3, 60, 61, 62, 63]
    points = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), 2).reshape(-1, 2)
    lasso = SimpleNamespace(xs=(-0.5, 2.5, -0.5), ys=(-0.5, -0.5, 2.5))
    assert enclosed(points, lasso).tolist() == [0, 1, 5]


def test_a_token_a_step_and_a_quantity_change_the_map(explorer, view, codes):
    explorer.image_field.value = 3
    explorer._token_clicked(None, SimpleNamespace(point_inds=[12]), None)
    used = np.unique(view.indices[view.tokens(3)])
    assert np.allclose(explorer.traces["tokens"].x, codes.map.codes[used, 0])
    assert np.allclose(explorer.traces["bars"].y, view.shares(int(view.tokens(3)[12]), view.tau)[1])
    explorer.scrubber.index = 1
    assert np.allclose(explorer.traces["moved"].x, codes.frames[1][:, 0])
    explorer.color.value = "quantization error"
    wanted = codes.quantities["quantization error"].marker()["color"]
    assert np.allclose(explorer.traces["codes"].marker.color, wanted)


@pytest.fixture(scope="module")
def softness(trained, view):
    return Softness(view, trained("lgq").snapshots(), num_taus=16)


def test_entropies_are_the_library_s(softness):
    view, entropies = softness.view, softness.entropies
    z, e = torch.tensor(view.points[softness.tokens]), torch.tensor(view.sites)
    truth = soft_assign(z, e, float(softness.taus[5])).entropy
    assert np.allclose(entropies[5], truth, atol=1e-3)
    assert np.allclose(softness.curve.entropy, entropies.mean(1), atol=1e-3), "the same tokens"


def test_peak_makes_surer_and_usage_makes_more_even(softness):
    effects = {e.term: e for e in softness.effects(0.1 * softness.view.scale)}
    assert effects["peak"].token < 0
    assert effects["usage"].usage > 0 and effects["usage, entropy form"].usage > 0


def test_deciles_and_least_sure_codes_come_with_their_own_tokens(softness):
    view, tau = softness.view, softness.view.tau
    entropy = view.entropies(tau)
    tops = [entropy[tokens].max() for tokens in softness.deciles(tau)]
    assert len(tops) == 10 and (np.diff(tops) >= 0).all()
    codes, means, tokens = softness.least_sure(tau, count=4, each=3)
    assert sorted(codes) == np.unique(view.indices).tolist() and (np.diff(means) <= 0).all()
    assert len(tokens) == 4
    for code, mean, own in zip(codes, means, tokens, strict=False):
        assert 1 <= len(own) <= 3 and (view.indices[own] == code).all()
        assert mean == pytest.approx(entropy[view.indices == code].mean(), abs=1e-6)
    token = 3 * view.num_tokens + 2 * view.grid[1] + 5
    assert softness.place_of(token, tau).startswith("image 3, row 2, column 5: ")


def test_a_history_is_of_trained_steps_and_none_is_made_up(softness, trained, cache):
    assert softness.no_history == "" and len(softness.history)
    assert min(moment.step for moment in softness.history) > 0, "the start has no temperature"
    wide = copy.copy(softness.view)
    wide.widths = torch.full((wide.num_codes,), 2.0)
    other = Softness(wide, softness.snapshots)
    assert other.history == [] and "widths" in other.no_history
    run = trained("fsq")
    lens = Softness(View.open(run, cache=cache, num_images=4), run.snapshots())
    assert len(lens.history) == len(run.snapshots()), "through a lens, at every step"


@pytest.mark.parametrize("share", [1.0, 0.0123, 3e-4, 40.0])
def test_the_run_s_own_temperature_is_among_those_looked_at(view, share):
    other = copy.copy(view)
    other.tau = share * view.scale
    soft = Softness(other, num_taus=16)
    assert soft.taus[soft.start] == other.tau
    assert (np.diff(soft.taus) < 0).all() and len(soft.taus) == 16 + (not 1e-3 < share < 10)


def test_entropy_opens_at_the_run_s_temperature_and_follows_the_slider(softness):
    explorer, view = EntropyExplorer(softness), softness.view
    assert softness.taus[explorer.tau.value] == view.tau
    explorer.tau.index = 2
    truth = view.soft(view.first_image, softness.taus[2]).entropy.reshape(view.grid)
    assert np.allclose(explorer.traces["map"].z, truth, atol=1e-5)
    points = clusters(100)
    annealing = anneal(points, 4, np.geomspace(12, 0.5, 8))
    explorer = PlaneExplorer(points, annealing)
    explorer.tau.index = 7
    assert np.allclose(explorer.traces["codes"].x, annealing.codebooks[7][:, 0], atol=1e-5)


def test_everything_follows_the_slider_the_click_and_the_image(softness):
    explorer = TemperatureExplorer(softness, image=1)
    traces = explorer.traces
    before = {name: traces[name].source for name in ("original", "soft", "hard")}
    explorer.tau.index = 3
    assert traces["soft"].source != before["soft"]
    assert traces["here F"].y[0] == softness.curve.free_energy[3]
    explorer._clicked(None, SimpleNamespace(xs=[5], ys=[2]), None)
    assert explorer.token.value == 2 * softness.view.grid[1] + 5
    explorer.image.value = 9
    assert all(traces[name].source != source for name, source in before.items())


def test_of_a_burst_the_newest_counts_once_and_without_a_loop_it_acts_at_once():
    seen = []

    async def burst():
        throttled = Throttled(seen.append, seconds=0.01)
        for i in range(50):
            throttled(i)
        await asyncio.sleep(0.05)

    asyncio.run(burst())
    Throttled(seen.append)(1)
    assert seen == [49, 1]


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


def test_runs_are_keyed_by_method_and_numbered(trained, tmp_path):
    lgq, fsq = trained("lgq"), trained("fsq")
    found = open_runs(str(lgq.path), f"{fsq.path} {lgq.name}", runs=lgq.path.parent)
    assert list(found) == ["lgq", "fsq", "lgq 2"]
    with pytest.raises(ValueError, match="01_train"):
        open_runs("", runs=tmp_path)
    run = Run.create(tmp_path, lgq.config)
    path = record(run, "03_geometry", {"a": np.float32(0.5), "b": math.nan, "c": 3})
    assert read_json(path).items() >= {"a": 0.5, "b": None, "c": 3}.items(), "JSON has no NaN"


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
