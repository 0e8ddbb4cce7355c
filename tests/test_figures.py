"""Figures show what they are given: points, axes, marks and findings, not pixels."""

import base64
import io

import numpy as np
import pandas
import plotly.graph_objects as go
import pytest
from PIL import Image

from lgqlib.figures import facets, geometry, ground, strips, style
from lgqlib.figures.codebook import clickable, codebook_map, sizes
from lgqlib.figures.evaluation import (
    code_colors,
    code_map,
    metric_table,
    reconstructions,
    usage_histogram,
)
from lgqlib.figures.pictures import data_uri, enlarge, sheet
from lgqlib.figures.quantity import CLASS_COLORS, Quantity
from lgqlib.figures.training import training_curves
from lgqlib.measure.drift import drift
from lgqlib.measure.portrait import portrait
from lgqlib.measure.projection import project
from lgqlib.quantizers import METHODS


def named(fig: go.Figure, name: str):
    return next(trace for trace in fig.data if trace.name == name)


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2000, 3)).astype("float32")
    codes = rng.standard_normal((32, 3)).astype("float32")
    indices = np.square(latents[:, None] - codes).sum(2).argmin(1)
    return latents, codes, indices


@pytest.fixture(scope="module")
def portraits(cloud):
    latents, codes, indices = cloud
    one = portrait(codes, latents, indices)
    return {"lgq": one, "fsq 2": portrait(codes[:16], latents, indices % 16)}


class TestStyle:
    def test_every_method_has_a_name_a_color_and_a_dash_of_its_own(self):
        assert set(style.NAMES) == set(style.METHOD_COLORS) == set(style.METHOD_DASHES)
        assert set(style.NAMES) == set(METHODS)
        assert len(set(style.METHOD_COLORS.values())) == len(METHODS)

    def test_colors_are_seen_on_white_and_on_dark(self):
        def luminance(color):
            rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
            linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            return linear @ [0.2126, 0.7152, 0.0722]

        for color in [style.INK, *style.METHOD_COLORS.values(), *style.COLORS]:
            light = 1.05 / (luminance(color) + 0.05)
            dark = (luminance(color) + 0.05) / (luminance("#111111") + 0.05)
            assert light > 1.9 and dark > 3, (color, light, dark)

    def test_the_paper_is_clear_so_that_both_themes_show_through(self):
        layout = style.figure().layout.template.layout
        assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert layout.uirevision == "keep"

    def test_a_title_wraps_and_its_margin_grows(self):
        short = style.titled(style.figure(), "short")
        long = style.titled(style.figure(), "word " * 60, "look " * 80)
        assert "<br>" in long.layout.title.text
        assert long.layout.margin.t > short.layout.margin.t + 60

    def test_shown_figures_carry_both_the_figure_and_a_picture(self, monkeypatch):
        shown = []
        monkeypatch.setattr(style, "display", lambda bundle, raw: shown.append(bundle))
        monkeypatch.setattr(style._BROWSER, "draw", lambda fig: b"picture")
        style.show(style.titled(style.figure(), "a finding"))
        bundle = shown[0]
        assert bundle["image/png"] == b"picture"
        assert bundle["text/plain"] == "a finding"
        assert "data" in bundle["application/vnd.plotly.v1+json"]

    def test_without_a_browser_a_warning_and_the_figure_alone(self, monkeypatch):
        shown = []
        monkeypatch.setattr(style, "display", lambda bundle, raw: shown.append(bundle))
        monkeypatch.setattr(style.Chromium, "find_browser", lambda **_: None)
        with pytest.warns(UserWarning, match="Install Chromium"):
            style.show(style.figure())
        assert "image/png" not in shown[0]


class TestPixels:
    def test_a_data_uri_is_the_pixels_exactly(self):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        assert (decoded(data_uri(pixels)) == pixels).all()

    def test_enlarging_repeats_and_never_blurs(self):
        pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        grown = enlarge(pixels, 9)
        assert grown.shape == (8, 8, 3)
        assert (grown[::4, ::4] == pixels).all()

    def test_a_sheet_has_every_tile_and_clear_ground(self):
        tiles = [np.full((4, 4, 3), i, np.uint8) for i in range(5)]
        out = sheet(tiles, cols=3, gap=1, tile=4)
        assert out.shape == (10, 15, 4)
        assert out[0, 10, 0] == 2 and out[5, 5, 0] == 4
        assert out[6, 12, 3] == 0, "no tile, nothing to see"


class TestTraining:
    def metrics(self):
        steps = np.arange(10, 60, 10)
        common = {"step": steps, "split": "train"}
        train = pandas.DataFrame(
            common | {"loss": 1 / steps, "commit": 0.5, "psnr": 20.0, "active": 7, "tau": 0.5}
        )
        val = pandas.DataFrame({"step": [50], "split": "val", "psnr": [21.5]})
        return pandas.concat([train, val], ignore_index=True)

    def test_every_term_keeps_its_name_and_its_values(self):
        fig = training_curves(self.metrics(), method="lgq", num_codes=64)
        assert np.allclose(named(fig, "loss").y, 1 / np.arange(10, 60, 10))
        assert list(named(fig, "commit").x) == [10, 20, 30, 40, 50]
        assert "21.5 dB" in fig.layout.title.text and "LGQ" in fig.layout.title.text

    def test_an_empty_log_is_an_empty_figure(self):
        fig = training_curves(pandas.DataFrame(columns=["step", "split"]))
        assert len(fig.data) == 0
        assert "nothing logged" in fig.layout.title.text


class TestEvaluation:
    def test_reconstructions_show_the_error_they_have(self):
        x = np.full((3, 3, 8, 8), 0.5)
        fig = reconstructions(x, x + 0.1)
        errors = [trace.z for trace in fig.data if trace.type == "heatmap"]
        assert len(errors) == 3
        assert np.allclose(errors, 0.1)
        assert "20.0 dB" in fig.layout.title.text

    def test_images_of_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match="expected one shape"):
            reconstructions(np.zeros((2, 3, 8, 8)), np.zeros((1, 3, 8, 8)))

    def test_a_code_map_gives_equal_codes_equal_colors(self):
        codes = np.random.default_rng(0).standard_normal((10, 4))
        indices = np.array([[1, 2], [1, 9]])
        fig = code_map(np.zeros((3, 8, 8)), indices, codes)
        z = np.asarray(fig.data[1].z)
        assert (z[0, 0] == z[1, 0]).all() and (z[0, 0] != z[0, 1]).any()
        assert "3 distinct codes in the 4 tokens" in fig.layout.title.text

    def test_code_colors_do_not_depend_on_units(self):
        codes = np.random.default_rng(0).standard_normal((10, 2))
        assert (code_colors(codes) == code_colors(3 * codes + 1)).all()

    def test_usage_counts_active_codes(self):
        fig = usage_histogram(np.array([4, 4, 0, 0]), method="fsq")
        assert "2 of 4 codes used by 8 tokens; perplexity 2, 50 %" in fig.layout.title.text
        assert sum(trace.y.sum() for trace in fig.data if trace.type == "bar") == 4

    def test_a_table_has_intervals_and_leaves_out_what_is_not_there(self):
        table = metric_table({"psnr": 20.0, "kid": 0.01, "kid_se": 0.001, "ms_ssim": None})
        assert list(table["value"]) == ["20.00", "0.01000 ± 0.00100"]
        assert (
            list(metric_table({"kid": 0.01, "extractor": "inception"})["value"])[1] == "inception"
        )


class TestGeometry:
    def test_partial_distortion_draws_the_cells_and_the_fitted_slope(self, portraits):
        fig = geometry.partial_distortion(portraits)
        p = portraits["lgq"].partial
        line = next(t for t in fig.data if t.name.startswith(f"slope {p.slope:.2f}"))
        rise = np.diff(np.log(line.y)) / np.diff(np.log(line.x))
        assert np.allclose(rise, p.slope)
        assert len(fig.data[0].x) == p.num_cells
        assert f"LGQ {p.slope:.2f}" in fig.layout.title.text and "FSQ 2" in fig.layout.title.text

    def test_bounds_mark_each_run_on_its_rate(self, portraits):
        fig = geometry.bounds(portraits)
        p = portraits["lgq"]
        point = next(t for t in fig.data if t.name.startswith("LGQ: efficiency"))
        assert np.isclose(point.x[0], p.occupancy.entropy_corrected / np.log(2))
        assert np.isclose(point.y[0], p.distortion / p.latents.total)

    def test_spacing_shape_and_spectra_have_a_trace_for_each_run(self, portraits):
        for draw in (geometry.spacing_and_shape, geometry.spectra):
            names = " ".join(t.name for t in draw(portraits).data)
            assert "LGQ" in names and "FSQ 2" in names

    @pytest.mark.parametrize(
        "draw",
        [
            geometry.partial_distortion,
            geometry.bounds,
            geometry.spacing_and_shape,
            geometry.spectra,
        ],
    )
    def test_runs_of_one_method_share_a_color_and_differ_in_a_mark(self, draw, portraits):
        one = portraits["lgq"]
        fig = draw({"lgq": one, "fsq": one, "lgq 2": one})
        looks = {"LGQ": [], "LGQ 2": [], "FSQ": []}
        for trace in fig.data:
            run = next((r for r in ("LGQ 2", "LGQ", "FSQ") if trace.name.startswith(r)), None)
            if run and trace.type == "scatter":
                looks[run].append((trace.marker.color or trace.line.color, trace.marker.symbol))
        first, again, other = (looks[run][0] for run in ("LGQ", "LGQ 2", "FSQ"))
        assert first[0] == again[0] != other[0]
        assert first[1] != again[1] and first[1] == other[1]

    def test_drift_draws_medians(self, cloud):
        _, codes, indices = cloud
        counts = np.ones(32, int)
        d = drift([1, 5, 9], [codes, codes + 1, codes + 1], [indices] * 3, [counts] * 3)
        fig = geometry.drifts({"lgq": d})
        assert np.allclose(named(fig, "LGQ").y, [np.sqrt(3), 0], atol=1e-6)


class TestCodebook:
    def quantity(self):
        values = np.arange(32.0)
        values[3] = np.nan
        return Quantity(values, "things")

    def test_the_map_has_every_code_in_order_and_empty_overlays(self, cloud):
        latents, codes, indices = cloud
        at, counts = project(codes, latents), np.bincount(indices, minlength=32)
        image = np.zeros((16, 16, 3), np.uint8)
        drawn = np.arange(32)
        fig = codebook_map(at, self.quantity(), counts, image=image, grid=(4, 4), drawn=drawn)
        assert np.allclose(named(fig, "codes").x, at.codes[:, 0])
        assert len(named(fig, "grid").x) == 16
        for name in ("moved", "trails", "tokens", "shares", "neighbors", "selected", "chosen"):
            assert len(named(fig, name).x) == 0
        assert named(fig, "codes").unselected.marker.opacity == 1
        assert "% of the variance" in fig.layout.xaxis.title.text

    def test_codes_that_are_no_points_are_dots_below(self, cloud):
        latents, codes, indices = cloud
        at, counts = project(codes, latents), np.bincount(indices, minlength=32)
        image, drawn = np.zeros((16, 16, 3), np.uint8), np.arange(20)
        fig = codebook_map(at, self.quantity(), counts, image=image, grid=(4, 4), drawn=drawn)
        assert list(np.asarray(named(fig, "codes").customdata)[:, 0]) == list(drawn)
        assert decoded(named(fig, "rest").source)[..., 3].any()
        caption = fig.layout.title.subtitle.text.replace("<br>", " ")
        assert "20 of 32 codes are points, the other 12 dots" in caption
        assert f"{len(latents)} latents" in caption

    def test_dots_have_the_color_of_the_mean_that_a_point_would_have(self):
        corners = np.array([[0, 0], [0, 0], [9, 0], [0, 9], [9, 9]], dtype=np.float32)
        at = project(corners, corners, method="plane")
        values = np.array([1.0, 3.0, 2.0, np.nan, 5.0])
        picture = ground.codes_picture(at, Quantity(values, "things"), np.arange(5))
        mean, two = picture[0, 0], picture[0, -1]
        assert (mean == two).all() and mean[3] == 255
        assert tuple(picture[-1, 0]) == (128, 128, 128, 110), "unknown"
        assert tuple(picture[-1, -1][:3]) == (253, 231, 37), "the top of viridis"
        assert not picture[100, 100].any()

    def test_dots_of_classes_have_the_color_of_most(self):
        corners = np.array([[0, 0], [0, 0], [0, 0], [9, 9]], dtype=np.float32)
        at = project(corners, corners, method="plane")
        quantity = Quantity(np.array([1.0, 0.0, 1.0, 0.0]), "class", names=["a", "b"])
        picture = ground.codes_picture(at, quantity, np.arange(4))
        for pixel, color in ((picture[0, 0], CLASS_COLORS[1]), (picture[-1, -1], CLASS_COLORS[0])):
            assert "#" + bytes(pixel[:3]).hex().upper() == color

    def test_an_unknown_value_is_grey_and_below_all_others(self):
        marker = self.quantity().coloring()
        color = marker["color"]
        assert color[3] == marker["cmin"] and (np.delete(color, 3) > marker["cmin"]).all()
        place = (0 - marker["cmin"]) / (marker["cmax"] - marker["cmin"])
        assert place > marker["colorscale"][1][0], "the smallest known value is not grey"

    def test_logarithms_leave_zero_unknown(self):
        shown = Quantity(np.array([0.0, 1.0, 100.0]), "tokens", log=True).shown
        assert np.isnan(shown[0]) and list(shown[1:]) == [0, 2]

    def test_each_of_ten_classes_has_a_color_and_a_name_beside_it(self):
        values = np.append(np.arange(10.0).repeat(2), np.nan)
        names = [f"kind {k}" for k in range(10)]
        marker = Quantity(values, "class", names=names).coloring()
        assert len(set(marker["color"])) == 11
        assert marker["colorbar"]["ticktext"] == names
        place = (marker["color"] - marker["cmin"]) / (marker["cmax"] - marker["cmin"])
        scale = marker["colorscale"]
        drawn = [next(c for edge, c in scale[1::2] if p < edge) for p in place]
        assert tuple(drawn[0:20:2]) == CLASS_COLORS and drawn[-1] not in CLASS_COLORS

    def test_classes_beyond_ten_share_a_color_that_says_so(self):
        values = np.append(np.arange(13.0), np.arange(3.0, 13.0))
        quantity = Quantity(values, "class", names=[f"kind {k}" for k in range(13)])
        marker = quantity.coloring()
        assert marker["colorbar"]["ticktext"][-1] == "3 others"
        assert "10 of 13" in marker["colorbar"]["title"]["text"]
        assert len(set(marker["color"][:3])) == 1, "the classes of the fewest codes"
        assert len(set(marker["color"][3:13])) == 10
        assert quantity.hover(np.array([2])) == ["class kind 2"]

    def test_area_follows_usage(self):
        grown = sizes(np.array([0, 25, 100])) - 4
        assert grown[0] == 0 and np.isclose(grown[2], 2 * grown[1])

    def test_facets_draw_each_quantity_once_and_say_how_many_codes(self, cloud):
        latents, codes, indices = cloud
        counts = np.bincount(indices, minlength=32)
        quantities = {"one": self.quantity(), "two": self.quantity()}
        fig = facets.codebook_facets(project(codes, latents), quantities, counts, name="LGQ")
        assert len(fig.data) == 2 and len(fig.data[0].x) == 32
        assert f"{(counts > 0).sum()} of 32 codes used" in fig.layout.title.text

    def test_a_large_codebook_is_thinned_and_its_busiest_codes_stay(self):
        counts = np.arange(5000)
        kept = clickable(counts, limit=1500)
        assert len(kept) <= 1500 and set(range(4250, 5000)) <= set(kept)

    def test_the_timeline_keeps_one_frame(self):
        places = [np.random.default_rng(i).standard_normal((8, 2)) for i in range(9)]
        fig = facets.timeline(places, range(9), [8] * 9, births=1, deaths=2)
        assert len(fig.data) == 6
        assert fig.layout.xaxis.range == fig.layout.xaxis6.range

    def test_strips_have_a_label_for_each_row(self):
        rows = [[np.zeros((4, 4, 3), np.uint8)] * n for n in (3, 1)]
        fig = strips.code_examples(rows, [7, 9], [30, 2], total=100)
        assert list(fig.layout.yaxis.ticktext) == ["code 7: 30", "code 9: 2"]
        assert "30.0 % of 100 tokens" in fig.layout.title.text
