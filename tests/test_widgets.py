"""Explorers without a browser: plain state, small messages, the same numbers as the library."""

import asyncio
import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import comm
import numpy as np
import pandas
import plotly.graph_objects as go
import pytest
import torch
from plotly.callbacks import BoxSelector, LassoSelector

from lgqlib.config import Config
from lgqlib.data import to_model, to_uint8
from lgqlib.explorers.codes import Codes
from lgqlib.explorers.controls import Throttled
from lgqlib.explorers.entropy import EntropyExplorer
from lgqlib.explorers.explorer import CodebookExplorer
from lgqlib.explorers.live import LiveCurves
from lgqlib.explorers.moving import moving
from lgqlib.explorers.plane import PlaneExplorer
from lgqlib.explorers.runs import open_runs, record
from lgqlib.explorers.selection import enclosed, parse
from lgqlib.explorers.sent import SentWhole
from lgqlib.explorers.softness import Softness, num_counted, num_looked_at
from lgqlib.explorers.temperature import TemperatureLaboratory
from lgqlib.explorers.view import View
from lgqlib.figures.facets import codebook_facets
from lgqlib.figures.plane import clusters
from lgqlib.measure.annealing import anneal
from lgqlib.measure.faithfulness import faithfulness
from lgqlib.quantizers.assignment import probabilities, soft_assign
from lgqlib.run import Run, Snapshot
from lgqlib.train import train


@pytest.fixture(scope="module")
def view(trained, cache):
    return View.open(trained("lgq"), cache=cache, num_images=16)


@pytest.fixture(scope="module")
def sharp_view(tmp_path_factory, cache, tiny_config):
    """A view of a run that trained long enough for its patches to look like something."""
    more = (
        "train.num_steps=100 train.eval_every=100 train.checkpoint_every=100 evaluation.extractor="
    )
    config = tiny_config("lgq", more)
    run = Run.create(tmp_path_factory.mktemp("sharp"), config)
    train(config, run, cache=cache, progress=False)
    return View.open(run, cache=cache, num_images=16)


@pytest.fixture(scope="module")
def codes(trained, view):
    return Codes(view, trained("lgq").snapshots())


@pytest.fixture(scope="module")
def softness(trained, view):
    return Softness(view, trained("lgq").snapshots(), num_taus=16)


@pytest.fixture
def explorer(codes, tmp_path):
    return CodebookExplorer(codes, folder=tmp_path)


def point(*indices, xs=(), ys=()):
    """A browser's event, as plotly hands it on."""
    return SimpleNamespace(point_inds=list(indices), xs=list(xs), ys=list(ys))


def touched(figure, change) -> set[str]:
    """Names of the traces that a change of a figure sends to the browser."""
    names = set()

    def note(event):
        message = event["new"] or {}
        indices = message.get("style_traces") or message.get("restyle_traces") or []
        names.update(figure.data[i].name for i in indices)

    messages = ["_py2js_restyle", "_py2js_update"]
    figure.observe(note, names=messages)
    change()
    figure.unobserve(note, names=messages)
    return names


class TestView:
    @pytest.mark.parametrize("method", ["lgq", "fsq", "vq"])
    def test_it_holds_the_codes_that_the_tokenizer_gives(self, method, trained, cache):
        view = View.open(trained(method), cache=cache, num_images=4)
        with torch.no_grad():
            indices = view.tokenizer.encode(to_model(view.images))
        assert (view.indices == indices.flatten().numpy()).all()
        rows = np.square(view.points[:, None] - view.sites).sum(2)
        nearest = rows[np.arange(len(rows)), view.indices]
        assert np.allclose(nearest, rows.min(1), atol=1e-5), "codes are nearest in this space"

    def test_one_image_s_softness_is_the_library_s(self, view):
        for tau in (view.tau, view.scale):
            soft = view.soft(3, tau)
            rows = view.tokens(3)
            truth = soft_assign(torch.tensor(view.points[rows]), torch.tensor(view.sites), tau)
            assert np.allclose(soft.entropy, truth.entropy, atol=1e-4)
            assert np.allclose(soft.free_energy, truth.free_energy, atol=1e-4)
            assert np.allclose(soft.average, truth.average, atol=1e-4)
            assert np.allclose(
                soft.free_energy, soft.mean_energy - tau * soft.entropy, atol=1e-4
            ), "F = <d> - tau H"

    def test_shares_are_the_largest_probabilities(self, view):
        best, shares = view.shares(70, view.scale, top=5)
        p = probabilities(torch.tensor(view.points[[70]]), torch.tensor(view.sites), view.scale)[0]
        assert np.allclose(shares, p.topk(5).values, atol=1e-6)
        assert np.allclose(p[torch.tensor(best)], shares, atol=1e-6)

    def test_a_reconstruction_is_decode_of_encode(self, view):
        with torch.no_grad():
            truth = to_uint8(view.tokenizer(to_model(view.images[:1])).images)[0]
        assert (view.reconstruction(0) == truth.permute(1, 2, 0).numpy()).all()

    def test_a_patch_is_cut_from_its_place(self, view):
        token = view.num_tokens + view.grid[1] + 2
        side = view.images.shape[-1] // view.grid[0]
        truth = view.images[1, :, side : 2 * side, 2 * side : 3 * side].permute(1, 2, 0)
        assert (view.patch(token) == truth.numpy()).all()

    def test_a_code_s_patch_is_what_the_decoder_gives_in_real_images(self, view):
        code = int(np.bincount(view.indices).argmax())
        tokens = view.contexts(code)
        assert len(tokens) == 4 and (view.indices[tokens] == code).all()
        side = view.images.shape[-1] // view.grid[0]
        crops = []
        for image, place in zip(*divmod(tokens, view.num_tokens), strict=True):
            y, x = side * (np.array(divmod(place, view.grid[1])))
            crops.append(view.reconstruction(image)[y : y + side, x : x + side].astype(float))
        assert np.abs(view.code_patches(np.array([code]))[0] - np.mean(crops, 0)).max() <= 1

    def test_a_code_that_is_never_used_takes_the_place_of_the_token_nearest_to_it(
        self, sharp_view, monkeypatch
    ):
        view = sharp_view
        monkeypatch.setattr("lgqlib.explorers.view.MAX_CONTEXTS", 1)
        monkeypatch.setattr(view, "_code_patch", view._code_patch_of)  # what is kept has four
        code = int(np.flatnonzero(np.bincount(view.indices, minlength=view.num_codes) == 0)[0])
        (token,) = view.contexts(code)
        away = np.square(view.points - view.sites[code]).sum(1)
        assert np.isclose(away[token], away.min())
        image, place = divmod(token, view.num_tokens)
        map_of_image = view.indices[view.tokens(image)].copy()
        map_of_image[place] = code
        decoded = view.decode(view.codebook[map_of_image]).astype(int)
        y, x = 4 * np.array(divmod(place, view.grid[1]))
        patch = view.code_patches(np.array([code]))[0]
        assert np.abs(decoded[y : y + 4, x : x + 4] - patch).max() <= 1
        assert code not in view.indices, "the image keeps its own codes"

    def test_decoded_patches_are_nearer_to_real_ones_than_without_an_image_around(self, sharp_view):
        view = sharp_view
        used = np.flatnonzero(np.bincount(view.indices, minlength=view.num_codes) >= 8)
        alone = torch.as_tensor(used)[:, None, None].expand(-1, 3, 3)
        with torch.no_grad():
            middle = to_uint8(view.tokenizer.decode(alone))[:, :, 4:8, 4:8].permute(0, 2, 3, 1)
        real = np.stack(
            [
                np.mean([view.patch(t) for t in np.flatnonzero(view.indices == k)], axis=0)
                for k in used
            ]
        )
        in_place = np.abs(view.code_patches(used) - real).mean()
        assert in_place < 0.85 * np.abs(middle.numpy() - real).mean()

    def test_a_cold_soft_code_is_the_hard_one(self, view):
        cold = view.decode(view.soft(0, 1e-5 * view.scale).average).astype(int)
        assert np.abs(cold - view.reconstruction(0)).max() <= 1

    def test_a_method_without_a_temperature_is_seen_through_a_lens(self, view, trained, cache):
        other = View.open(trained("fsq"), cache=cache, num_images=4)
        assert not other.has_temperature and "lens" in other.tau_label
        assert other.tau == pytest.approx(0.01 * other.tau_c)
        assert view.has_temperature and view.tau == trained("lgq").tau


class TestCodes:
    def test_quantities_have_a_value_for_each_code(self, codes, view):
        for quantity in codes.quantities.values():
            assert quantity.values.shape == (view.num_codes,)
        wanted = {"usage", "assignment entropy", "quantization error", "cell volume", "anisotropy"}
        assert wanted | {"distance to nearest code", "age of last use"} <= set(codes.quantities)

    def test_tokens_of_a_code_have_it_nearest_first(self, codes, view):
        code = int(np.bincount(view.indices).argmax())
        tokens = codes.tokens_of(code)
        assert (view.indices[tokens] == code).all()
        away = np.square(view.points[tokens] - view.sites[code]).sum(1)
        assert (np.diff(away) >= 0).all()

    def test_a_selection_is_exported_whole(self, codes, tmp_path):
        path = codes.export([5, 3, 3], tmp_path / "selection.csv")
        table = pandas.read_csv(path, index_col="code")
        assert list(table.index) == [3, 5]
        assert np.allclose(table["usage, tokens"], codes.view.counts[[3, 5]])

    def test_an_exported_code_names_the_places_where_it_occurs(self, codes, view, tmp_path):
        code = int(np.bincount(view.indices).argmax())
        table = pandas.read_csv(codes.export([code], tmp_path / "a.csv"), index_col="code")
        places = table["places, image:row:column"][code].split()
        assert len(places) == 8
        for place in places:
            image, row, col = map(int, place.split(":"))
            assert view.indices[view.tokens(image)].reshape(view.grid)[row, col] == code

    def test_an_export_leaves_the_ones_before_it(self, codes, tmp_path):
        paths = [codes.export([k], tmp_path / "selection.csv") for k in (3, 4, 5)]
        assert [p.name for p in paths] == ["selection.csv", "selection-2.csv", "selection-3.csv"]
        assert [pandas.read_csv(p)["code"][0] for p in paths] == [3, 4, 5]

    def test_image_counts_sum_to_the_tokens(self, codes, view):
        chosen = np.arange(10)
        assert codes.image_counts(chosen).sum() == np.isin(view.indices, chosen).sum()

    def test_a_trail_ends_where_the_code_is_and_breaks_between_codes(self, codes):
        last = len(codes.frames) - 1
        trail = codes.trails([4, 7], last).reshape(2, -1, 2)
        assert np.isnan(trail[:, -1]).all()
        assert np.allclose(trail[:, -2], codes.frames[last][[4, 7]])

    def test_the_last_snapshot_is_the_trained_codebook_in_one_frame(self, codes):
        assert np.allclose(codes.frames[-1], codes.map.codes, atol=1e-5)

    @pytest.mark.parametrize("method", ["fsq", "vq"])
    def test_every_method_has_a_map(self, method, trained, cache):
        run = trained(method)
        other = Codes(View.open(run, cache=cache, num_images=16), run.snapshots())
        assert other.map.codes.shape == (other.view.num_codes, 2)
        assert other.evidence(0).shape[2] == 4


class TestTheMapSaysWhatItIs:
    def test_two_channels_are_shown_as_they_are(self, trained, cache, tmp_path, tiny_config):
        run = Run.create(
            tmp_path, tiny_config("vq", "backbone.dim=2 backbone.norm=group evaluation.extractor=")
        )
        train(run.config, run, cache=cache, progress=False)
        flat = Codes(View.open(run, cache=cache, num_images=4), run.snapshots())
        assert flat.map.method == "plane" and np.allclose(flat.map.codes, flat.view.sites)
        assert np.allclose(flat.frames[-1], flat.view.sites, atol=1e-5)

    def test_more_channels_are_shown_by_their_principal_plane(self, codes):
        assert codes.map.method == "pca" and "% of the variance" in codes.frame

    def test_a_umap_says_how_far_to_trust_it_above_the_map(self, codes, view, tmp_path):
        bent = copy.copy(codes)
        bent.map = replace(codes.map, method="umap")
        trust = faithfulness(view.sites, codes.map.codes, num_neighbors=15)
        wanted = f"trustworthiness {trust.trustworthiness:.3f}, continuity {trust.continuity:.3f}"
        vars(bent).pop("frame", None)
        explorer = CodebookExplorer(bent, folder=tmp_path)
        assert wanted in explorer.figure.layout.annotations[0].text
        fig = codebook_facets(bent.map, bent.quantities, view.counts, frame=bent.frame)
        assert wanted in fig.layout.title.text.replace("<br>", " ")


class TestMoving:
    def test_deaths_and_births_are_among_the_codes_that_move_and_counted(self):
        counts = np.arange(100)[::-1]  # code 0 is the busiest
        always = np.ones(100, dtype=int)
        before, after = always.copy(), always.copy()
        after[90:96], before[96:] = 0, 0
        found = moving(counts, [0 * always, before, after], limit=20)
        assert len(found.codes) == 20 and (np.diff(found.codes) > 0).all()
        assert set(range(10)) <= set(found.codes), "the busiest half"
        assert len(set(found.codes) & set(range(90, 96))) == 5, "a quarter of those that died"
        assert {96, 97, 98, 99} <= set(found.codes), "all that were born"
        assert "20 of 100" in found.note and "5 of 6 that died" in found.note
        assert "4 of 4 that were born" in found.note

    def test_a_small_codebook_moves_whole_and_an_unwatched_one_by_use(self):
        counts = np.arange(100)
        assert "All 100" in moving(counts, [], limit=100).note
        assert list(moving(counts, [counts], limit=4).codes) == [96, 97, 98, 99]


class TestCodebookExplorer:
    def test_a_click_chooses_a_code_and_shows_its_evidence(self, explorer, codes):
        before = explorer.evidence.value
        explorer._pointed(None, point(9), None)
        assert explorer.code == explorer.code_field.value == 9
        assert explorer.traces["chosen"].x[0] == codes.map.codes[9, 0]
        assert np.allclose(explorer.traces["neighbors"].x, codes.map.codes[codes.neighbors(9), 0])
        assert explorer.evidence.value != before and "Code 9:" in explorer.headline.value

    def test_the_same_choice_by_keyboard(self, explorer, codes):
        explorer.code_field.value = 11
        assert explorer.code == 11
        explorer.numbers_field.value = "3, 5-7"
        assert list(explorer.selection) == [3, 5, 6, 7]

    def test_a_repeated_hover_does_nothing(self, explorer, monkeypatch):
        calls = []
        monkeypatch.setattr(explorer, "choose", calls.append)
        explorer._pointed(None, point(explorer.code), None)
        assert not calls

    def test_a_click_and_a_written_number_choose_once(self, explorer, codes, monkeypatch):
        looked_at, evidence = [], codes.evidence
        monkeypatch.setattr(codes, "evidence", lambda k: looked_at.append(k) or evidence(k))
        explorer._pointed(None, point(9), None)
        explorer.code_field.value = 12
        assert looked_at == [9, 12]

    def test_a_lasso_selects_and_is_cleared(self, explorer, monkeypatch):
        cleared = []
        monkeypatch.setattr(explorer.figure, "plotly_relayout", cleared.append)
        explorer._lassoed(None, point(), None)
        assert not len(explorer.selection), "a lasso fires on every trace, empty on the others"
        explorer._lassoed(None, point(2, 8), None)
        assert list(explorer.selection) == [2, 8] and cleared == [{"selections": []}]
        assert len(explorer.traces["selected"].x) == 2
        assert "2 codes selected" in explorer.selected.value

    def test_a_token_lights_up_its_codes(self, explorer, view):
        explorer._token_clicked(None, point(12), None)
        best, shares = view.shares(int(view.tokens(explorer.image)[12]), view.tau)
        assert list(explorer.traces["bars"].x) == [f"k{k}" for k in best]
        assert np.allclose(explorer.traces["bars"].y, shares)
        assert explorer.traces["token"].x[0] == explorer.traces["grid"].x[12]

    def test_an_image_lights_up_its_tokens(self, explorer, view, codes):
        explorer.image_field.value = 3
        used = np.unique(view.indices[view.tokens(3)])
        assert np.allclose(explorer.traces["tokens"].x, codes.map.codes[used, 0])

    def test_the_scrubber_moves_codes_and_counts(self, explorer, codes):
        explorer.scrubber.index = 1
        assert np.allclose(explorer.traces["moved"].x, codes.frames[1][:, 0])
        assert "born" in explorer.happened.value and "All 64 codes" in explorer.happened.value
        explorer.scrubber.index = 0
        assert "the start" in explorer.happened.value

    def test_opening_leaves_the_scrubber_at_the_end(self, explorer, codes):
        assert explorer.scrubber.index == len(codes.frames) - 1
        assert len(explorer.traces["moved"].x) == 0

    def test_coloring_changes_colors_and_nothing_else(self, explorer, codes):
        x = explorer.traces["codes"].x
        explorer.color.value = "quantization error"
        wanted = codes.quantities["quantization error"].coloring()["color"]
        assert np.allclose(explorer.traces["codes"].marker.color, wanted)
        assert explorer.traces["codes"].x is x or np.array_equal(explorer.traces["codes"].x, x)

    def test_a_code_s_class_is_named_on_hover_and_only_then(self, explorer, codes, view):
        explorer.color.value = "dominant class"
        trace, class_of = explorer.traces["codes"], codes.quantities["dominant class"].values
        code = int(np.flatnonzero(np.isfinite(class_of))[0])
        assert trace.hovertext[code] == f"class {view.classes[int(class_of[code])]}"
        assert "hovertext" in trace.hovertemplate and trace.marker.colorbar.ticktext
        explorer.color.value = "usage"
        assert "hovertext" not in trace.hovertemplate
        assert trace.marker.colorbar.tickmode == "auto"

    def test_coloring_changes_the_dots_of_codes_that_are_no_points(
        self, codes, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("lgqlib.explorers.explorer.clickable", lambda counts: np.arange(20))
        explorer = CodebookExplorer(codes, folder=tmp_path)
        before = explorer.traces["rest"].source
        explorer.color.value = "quantization error"
        assert explorer.traces["rest"].source != before

    def test_export_writes_into_the_folder(self, explorer, tmp_path):
        explorer.select([1, 2])
        explorer.export_button.click()
        assert (tmp_path / "selection.csv").exists()

    def test_only_overlays_are_sent_never_the_base_map(self, explorer):
        assert touched(explorer.figure, lambda: explorer.color_by("cell volume")) == {"codes"}
        for change, wanted in (
            (lambda: explorer.choose(3), "chosen"),
            (lambda: explorer.look_at(2, 5), "tokens"),
            (lambda: explorer.select([1, 4]), "selected"),
            (lambda: explorer.scrub(1), "moved"),
        ):
            names = touched(explorer.figure, change)
            assert wanted in names and not names & {"codes", "latents", "grid"}

    def test_every_control_is_a_widget_that_takes_focus(self, explorer):
        rows = [row.children for row in explorer.box.children if hasattr(row, "children")]
        kinds = {type(w).__name__ for row in rows for w in row}
        assert {"Dropdown", "BoundedIntText", "Text", "Button", "SelectionSlider", "Play"} <= kinds

    def test_numbers_that_are_none_are_left_out(self, view):
        assert parse("3, x, 60-99, -2, 7-5", view.num_codes) == [3, *range(60, view.num_codes)]

    def test_a_line_encloses_what_lies_inside_drawn_as_a_point_or_not(self):
        points = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), 2).reshape(-1, 2)
        lasso = SimpleNamespace(xs=(-0.5, 2.5, -0.5), ys=(-0.5, -0.5, 2.5))
        assert enclosed(points, lasso).tolist() == [0, 1, 5]
        box = SimpleNamespace(xrange=(2.5, 0.5), yrange=(3.5, 4.5))
        assert enclosed(points, box).tolist() == [21, 22]

    @pytest.mark.parametrize(
        "selector",
        [LassoSelector(type="lasso"), BoxSelector(type="box"), LassoSelector(xs=None, ys=None)],
    )
    def test_a_line_around_the_image_selects_nothing(self, explorer, selector):
        explorer.select([4])
        explorer._lassoed(None, point(), selector)
        assert list(explorer.selection) == [4]

    def test_a_selection_shows_its_looks_its_places_and_its_trails(self, explorer, codes, view):
        empty = explorer.looks.value
        chosen = np.argsort(-np.bincount(view.indices, minlength=view.num_codes))[:3]
        explorer.select(chosen)
        assert explorer.looks.value != empty and explorer.gallery.value != empty
        trails = np.asarray(explorer.traces["trails"].x)
        assert np.isnan(trails).sum() == 4, "the chosen code and the three selected"
        assert explorer.image == explorer.image_field.value == codes.image_counts(chosen).argmax()
        assert len(explorer.traces["hits"].x) == codes.image_counts(chosen).max()


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
