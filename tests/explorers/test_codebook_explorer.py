"""The codebook explorer without a browser: plain state, the library's numbers, small messages."""

import base64
import copy
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from plotly.callbacks import BoxSelector, LassoSelector

from lgqlib.data import to_model, to_uint8
from lgqlib.explorers.codes import Codes
from lgqlib.explorers.explorer import CodebookExplorer
from lgqlib.explorers.map import OVERLAYS, codebook_map, codes_picture
from lgqlib.explorers.moving import moving
from lgqlib.explorers.selection import enclosed, parse
from lgqlib.explorers.view import View
from lgqlib.figures.codebook import CLASS_COLORS, CodeValues
from lgqlib.measure.projection import faithfulness, project
from lgqlib.quantizers.assignment import probabilities, soft_assign


@pytest.fixture(scope="module")
def view(trained, cache):
    return View.open(trained("lgq"), cache=cache, num_images=16)


@pytest.fixture(scope="module")
def codes(trained, view):
    return Codes(view, trained("lgq").snapshots())


@pytest.fixture
def explorer(codes, tmp_path):
    return CodebookExplorer(codes, folder=tmp_path)


def point(*indices):
    """A browser's event, as plotly hands it on."""
    return SimpleNamespace(point_inds=list(indices))


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


# The view of a run, and what is known of its codes


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
        assert np.allclose(soft.free_energy, soft.mean_energy - tau * soft.entropy, atol=1e-4)
    best, shares = view.shares(70, view.scale, top=5)
    p = probabilities(torch.tensor(view.points[[70]]), e, view.scale)[0]
    assert np.allclose(shares, p.topk(5).values) and np.allclose(p[torch.tensor(best)], shares)
    cold = view.decode(view.soft(0, 1e-5 * view.scale).average).astype(int)
    assert np.abs(cold - view.reconstruction(0)).max() <= 1, "a cold soft code is the hard one"


def test_a_code_s_patches_are_those_of_its_tokens_nearest_first(view, codes):
    code = int(np.bincount(view.indices).argmax())
    tokens, contexts = codes.tokens_of(code), view.contexts(code)
    assert (view.indices[tokens] == code).all() and (view.indices[contexts] == code).all()
    away = np.square(view.points[tokens] - view.sites[code]).sum(1)
    assert (np.diff(away) >= 0).all()
    side, crops = view.images.shape[-1] // view.grid[0], []
    for image, place in zip(*divmod(contexts, view.num_tokens), strict=True):
        y, x = side * np.array(divmod(place, view.grid[1]))
        crops.append(view.reconstruction(image)[y : y + side, x : x + side].astype(float))
    assert np.abs(view.code_patches(np.array([code]))[0] - np.mean(crops, 0)).max() <= 1
    truth = view.images[1, :, side : 2 * side, 2 * side : 3 * side].permute(1, 2, 0)
    assert (view.patch(view.num_tokens + view.grid[1] + 2) == truth.numpy()).all()


def test_a_code_without_tokens_is_decoded_at_the_token_nearest_to_it(view):
    away = copy.copy(view)
    away.indices = np.where(view.indices == 5, 6, view.indices)
    distance = np.square(view.points - view.sites[5]).sum(1)
    assert set(away.contexts(5)) <= set(np.argsort(distance)[:8])


def test_a_selection_is_exported_whole_with_its_places_beside_earlier_ones(codes, view, tmp_path):
    code = int(np.bincount(view.indices).argmax())
    paths = [codes.export(chosen, tmp_path / "s.csv") for chosen in ([5, 3, 3], [code])]
    assert [p.name for p in paths] == ["s.csv", "s-2.csv"]
    first, second = (pandas.read_csv(path, index_col="code") for path in paths)
    assert list(first.index) == [3, 5]
    assert np.allclose(first["usage, tokens"], view.counts[[3, 5]])
    for place in second["places, image:row:column"][code].split():
        image, row, col = map(int, place.split(":"))
        assert view.indices[view.tokens(image)].reshape(view.grid)[row, col] == code


def test_all_snapshots_share_the_map_s_frame_and_trails_break_between_codes(codes):
    last = len(codes.frames) - 1
    assert np.allclose(codes.frames[-1], codes.map.codes, atol=1e-5)
    trail = codes.trails([4, 7], last).reshape(2, -1, 2)
    assert np.isnan(trail[:, -1]).all()
    assert np.allclose(trail[:, -2], codes.frames[last][[4, 7]])


def test_deaths_and_births_are_among_the_codes_that_move_and_counted():
    counts = np.arange(100)[::-1]  # code 0 is the busiest
    always = np.ones(100, dtype=int)
    before, after = always.copy(), always.copy()
    after[90:96], before[96:] = 0, 0
    found = moving(counts, [0 * always, before, after], limit=20)
    assert len(found.codes) == 20 and set(range(10)) <= set(found.codes), "the busiest half"
    assert len(set(found.codes) & set(range(90, 96))) == 5, "a quarter of those that died"
    assert {96, 97, 98, 99} <= set(found.codes), "all that were born"
    assert "5 of 6 that died" in found.note and "4 of 4 that were born" in found.note
    assert "All 100" in moving(counts, [], limit=100).note


# The map


@pytest.fixture(scope="module")
def at():
    """32 codes and 2000 latents in three channels, in their plane."""
    rng = np.random.default_rng(0)
    return project(*(rng.standard_normal((n, 3)).astype("float32") for n in (32, 2000)))


@pytest.mark.parametrize(("count", "caption"), [(32, "All 32"), (20, "20 of 32 codes are points")])
def test_the_map_has_every_code_as_a_point_or_a_dot_and_empty_overlays(count, caption, at):
    fig = codebook_map(
        at,
        CodeValues(np.arange(32.0), "things"),
        np.arange(32),
        image=np.zeros((16, 16, 3), np.uint8),
        grid=(4, 4),
        drawn=np.arange(count),
    )
    traces = {trace.name: trace for trace in fig.data}
    assert np.allclose(traces["codes"].x, at.codes[:count, 0])
    assert traces["codes"].unselected.marker.opacity == 1
    assert len(traces["grid"].x) == 16 and traces["token"].x[0] == 1.5
    assert not any(len(traces[name].x) for name in OVERLAYS)
    assert caption in fig.layout.title.subtitle.text.replace("<br>", " ")
    assert ("rest" in traces) == (count < 32)
    if count < 32:
        pixels = Image.open(io.BytesIO(base64.b64decode(traces["rest"].source.split(",")[1])))
        assert np.asarray(pixels)[..., 3].any()


def test_dots_have_the_mean_s_color_or_that_of_the_class_of_most():
    corners = np.array([[0, 0], [0, 0], [9, 0], [0, 9], [9, 9], [0, 0]], dtype=np.float32)
    there, every = project(corners, corners, method="plane"), np.arange(6)
    values = np.array([1.0, 3.0, 2.0, np.nan, 5.0, 2.0])
    picture = codes_picture(there, CodeValues(values, "things"), every)
    assert (picture[0, 0] == picture[0, -1]).all() and picture[0, 0, 3] == 255
    assert tuple(picture[-1, 0]) == (128, 128, 128, 110), "unknown"
    assert tuple(picture[-1, -1][:3]) == (253, 231, 37), "the top of viridis"
    assert not picture[100, 100].any()
    classes = CodeValues(np.array([1.0, 0, 0, 0, 0, 1]), "class", names=["a", "b"])
    picture = codes_picture(there, classes, every)
    for pixel, color in ((picture[0, 0], CLASS_COLORS[1]), (picture[-1, -1], CLASS_COLORS[0])):
        assert "#" + bytes(pixel[:3]).hex().upper() == color


def test_a_umap_says_how_far_to_trust_it_above_the_map(codes, view, tmp_path):
    bent = copy.copy(codes)
    bent.map = replace(codes.map, method="umap")
    vars(bent).pop("frame", None)
    trust = faithfulness(view.sites, codes.map.codes, num_neighbors=15)
    wanted = f"trustworthiness {trust.trustworthiness:.3f}, continuity {trust.continuity:.3f}"
    assert wanted in CodebookExplorer(bent, folder=tmp_path).figure.layout.annotations[0].text


# By hand


def test_a_click_or_a_written_number_chooses_a_code_and_shows_its_evidence(explorer, codes):
    before = explorer.evidence.value
    explorer._pointed(None, point(9), None)
    assert explorer.code == explorer.code_field.value == 9
    assert explorer.traces["chosen"].x[0] == codes.map.codes[9, 0]
    assert np.allclose(explorer.traces["neighbors"].x, codes.map.codes[codes.neighbors(9), 0])
    assert explorer.evidence.value != before and "Code 9:" in explorer.headline.value
    explorer.code_field.value = 11
    assert explorer.code == 11
    explorer.numbers_field.value = "3, 5-7"
    assert list(explorer.selection) == [3, 5, 6, 7]
    assert parse("3, x, 60-99, -2, 7-5", 64) == [3, 60, 61, 62, 63]


def test_a_lasso_selects_what_it_encloses_shows_it_and_is_cleared(explorer, codes, monkeypatch):
    cleared = []
    monkeypatch.setattr(explorer.figure, "plotly_relayout", cleared.append)
    for selector in (LassoSelector(type="lasso"), BoxSelector(type="box"), None):
        explorer._lassoed(None, point(), selector)  # around the image, or on another trace
    assert not len(explorer.selection) and not cleared
    before = explorer.looks.value, explorer.gallery.value
    explorer._lassoed(None, point(2, 8), None)
    assert list(explorer.selection) == [2, 8] and cleared == [{"selections": []}]
    assert "2 codes selected" in explorer.selected.value
    assert explorer.looks.value != before[0] and explorer.gallery.value != before[1]
    assert np.isnan(explorer.traces["trails"].x).sum() == 3, "the chosen code and the selected"
    assert len(explorer.traces["hits"].x) == codes.image_counts(np.array([2, 8])).max()
    explorer.export_button.click()
    assert (explorer.folder / "selection.csv").exists()
    points = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), 2).reshape(-1, 2)
    lasso = SimpleNamespace(xs=(-0.5, 2.5, -0.5), ys=(-0.5, -0.5, 2.5))
    assert enclosed(points, lasso).tolist() == [0, 1, 5]


def test_an_image_and_a_token_light_up_their_codes(explorer, view, codes):
    explorer.image_field.value = 3
    explorer._token_clicked(None, point(12), None)
    used = np.unique(view.indices[view.tokens(3)])
    assert np.allclose(explorer.traces["tokens"].x, codes.map.codes[used, 0])
    best, shares = view.shares(int(view.tokens(3)[12]), view.tau)
    assert list(explorer.traces["bars"].x) == [f"k{k}" for k in best]
    assert np.allclose(explorer.traces["bars"].y, shares)
    assert explorer.traces["token"].x[0] == explorer.traces["grid"].x[12]


def test_the_timeline_opens_at_the_end_and_moves_codes_and_counts(explorer, codes):
    assert explorer.scrubber.index == len(codes.frames) - 1
    explorer.scrubber.index = 1
    assert np.allclose(explorer.traces["moved"].x, codes.frames[1][:, 0])
    assert "born" in explorer.happened.value and "All 64 codes" in explorer.happened.value
    explorer.scrubber.index = 0
    assert "the start" in explorer.happened.value


def test_coloring_follows_the_quantity_and_names_classes(explorer, codes, view):
    trace, kinds = explorer.traces["codes"], codes.quantities["dominant class"].values
    explorer.color.value = "quantization error"
    wanted = codes.quantities["quantization error"].coloring()["color"]
    assert np.allclose(trace.marker.color, wanted)
    explorer.color.value = "dominant class"
    code = int(np.flatnonzero(np.isfinite(kinds))[0])
    assert trace.hovertext[code] == f"class {view.classes[int(kinds[code])]}"
    assert "hovertext" in trace.hovertemplate and trace.marker.colorbar.ticktext
    explorer.color.value = "usage"
    assert "hovertext" not in trace.hovertemplate


def test_only_overlays_are_sent_never_the_base_map(explorer):
    assert touched(explorer.figure, lambda: explorer.color_by("cell volume")) == {"codes"}
    for change, wanted in (
        (lambda: explorer.choose(3), "chosen"),
        (lambda: explorer.look_at(2, 5), "tokens"),
        (lambda: explorer.select([1, 4]), "selected"),
        (lambda: explorer.scrub(1), "moved"),
    ):
        names = touched(explorer.figure, change)
        assert wanted in names and not names & {"codes", "latents", "grid"}
