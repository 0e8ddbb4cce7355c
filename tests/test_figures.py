"""Figures show what they are given: points, axes, marks and findings, not pixels."""

import base64
import io
import warnings
from types import SimpleNamespace

import numpy as np
import pandas
import plotly.graph_objects as go
import pytest
from PIL import Image

from lgqlib.figures import (
    entropy,
    information,
    plane,
    style,
    temperature,
)
from lgqlib.figures import laboratory as laboratories
from lgqlib.figures.evaluation import (
    code_colors,
    code_map,
    metric_table,
    reconstructions,
    usage_histogram,
)
from lgqlib.figures.pictures import data_uri, enlarge, sheet
from lgqlib.figures.staircase import staircase
from lgqlib.figures.training import training_curves
from lgqlib.measure.annealing import anneal
from lgqlib.measure.temperature import free_energy_curve
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
def curve(cloud):
    latents, codes, _ = cloud
    return free_energy_curve(latents[:400], codes, np.geomspace(20, 0.01, 48))


@pytest.fixture(scope="module")
def annealing():
    points = plane.clusters(200)
    return points, anneal(points, 4, np.geomspace(12, 0.5, 12))


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

    def test_no_text_needs_mathjax(self, curve):
        fig = temperature.free_energy(curve, scale=1.0, schedule=[1.0, 0.1])
        assert "$" not in fig.to_json()

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


class TestPlane:
    def test_points_are_the_same_for_a_seed(self):
        assert (plane.clusters(50) == plane.clusters(50)).all()
        assert (plane.clusters(50) != plane.clusters(50, seed=1)).any()

    def test_a_view_shows_codes_points_and_where_the_staircase_is(self, annealing):
        points, a = annealing
        fig = plane.plane_view(points, a, 7, size=16)
        assert len(named(fig, "points").x) == 200
        assert np.allclose(named(fig, "codes").x, a.codebooks[7][:, 0])
        assert named(fig, "here").y[0] == a.num_distinct[7]
        assert f"{a.num_distinct[7]} place" in fig.layout.title.text

    def test_cold_cells_have_the_nearest_code_s_tint(self, annealing):
        points, a = annealing
        codes = a.codebooks[-1]
        tints = plane.code_tints(codes)
        cells = plane.soft_cells(points, codes, tints, 1e-6, size=16)
        found = {tuple(c) for c in cells[..., :3].reshape(-1, 3)}
        assert found <= {tuple(t) for t in tints} and len(found) == 4

    def test_hot_cells_are_one_blend(self, annealing):
        points, a = annealing
        tints = plane.code_tints(a.codebooks[-1])
        cells = plane.soft_cells(points, a.codebooks[-1], tints, 1e6, size=8)
        assert np.ptp(cells[..., :3].astype(int), axis=(0, 1)).max() <= 1

    def test_frames_draw_each_temperature_once(self, annealing):
        points, a = annealing
        fig = plane.annealing_frames(points, a, [0, 4, 8, 11], size=8)
        assert sum(trace.name == "codes" for trace in fig.data) == 4

    def test_the_staircase_marks_the_predicted_temperature(self, annealing):
        _, a = annealing
        fig = staircase(a)
        assert list(named(fig, "τ<sub>c</sub> = 2 λ<sub>max</sub>").x) == [a.predicted] * 2

    def test_the_soft_code_ends_at_the_nearest(self, annealing):
        points, a = annealing
        point = np.array([1.9, 1.4])
        _, path = plane.soft_average(point, points, a.codebooks[-1], np.geomspace(1e4, 1e-3, 20))
        nearest = a.codebooks[-1][np.square(a.codebooks[-1] - point).sum(1).argmin()]
        assert np.allclose(path[-1], nearest, atol=1e-6)
        assert np.allclose(path[0], a.codebooks[-1].mean(0), atol=1e-2)

    def test_distance_and_its_square_share_their_cells(self, annealing):
        _, a = annealing
        taus = {"squared": 0.3, "norm": 0.15, "cosine": 0.1, "dot": 0.3}
        fig = plane.energy_cells(np.unique(a.codebooks[-1].round(6), axis=0), taus, size=16)
        assert fig.layout.title.text.startswith("Of the plane, 100 %")


class TestEntropy:
    def test_the_view_shows_the_map_and_the_population(self):
        map_ = np.linspace(0, 1, 16).reshape(4, 4)
        fig = entropy.entropy_view(np.zeros((8, 8, 3), np.uint8), map_, np.linspace(0, 2, 50))
        assert np.allclose(named(fig, "map").z, map_) and named(fig, "map").zmax == 1
        assert np.isclose(named(fig, "population").y.sum(), 100)

    def test_maps_have_an_image_and_a_map_for_each_temperature(self):
        images = [np.zeros((8, 8, 3), np.uint8)] * 2
        fig = entropy.entropy_maps(images, [[np.ones((2, 2)), np.zeros((2, 2))]] * 2, ["a", "b"])
        assert sum(t.type == "heatmap" for t in fig.data) == 4
        assert "1 nats at a; 0 nats at b" in fig.layout.title.text

    def test_information_is_usage_less_doubt(self, curve):
        fig = information.information(
            {"lgq": curve}, {"lgq": 0.1}, {"lgq": 1.0}, num_codes={"lgq": 32}
        )
        usage, doubt, known = (np.asarray(t.y) for t in fig.data[:3])
        assert np.allclose(usage - doubt, known)

    def test_where_tokens_are_few_their_cap_is_drawn_and_told(self, curve):
        numbers = {"token": 0.5, "usage": 2.0, "information": 1.5, "num_tokens": 400}
        moment = SimpleNamespace(step=3, tau=0.1, **numbers)
        for num_codes, caps in ((32, []), (512, [np.log2(400)])):
            figures = (
                information.information(
                    {"lgq": curve}, {"lgq": 0.1}, {"lgq": 1.0}, num_codes={"lgq": num_codes}
                ),
                information.entropy_history({"lgq": [moment]}, num_codes={"lgq": num_codes}),
                temperature.rate_distortion(curve, np.ones(3), index=20, num_codes=num_codes),
            )
            for fig in figures:
                drawn = [s for s in fig.layout.shapes if s.name == "log2 N"]
                at = [s.y0 if s.y0 == s.y1 else s.x0 for s in drawn]
                assert np.allclose(at, caps) and len(at) == len(caps)
                caption = fig.layout.title.subtitle.text.replace("<br>", " ")
                assert "400 tokens" in caption and ("8.6 bits" in caption) == bool(caps)

    def test_even_use_has_gini_zero(self):
        fig = information.evenness({"lgq": np.full(8, 5), "fsq": np.array([40, 0, 0, 0])})
        assert "LGQ 0.00; FSQ 0.75" in fig.layout.title.text

    def test_the_spread_counts_the_tokens_that_are_sure(self):
        entropies = np.array([[0.05, 0.05, 0.5, 1.0], [0.0, 0.0, 0.05, 0.2]])
        moment = SimpleNamespace(step=3, deciles=tuple(np.arange(1, 10) / 10))
        fig = information.spread(
            {"lgq": entropies}, {"lgq": np.array([1.0, 0.1])}, {"lgq": 1}, {"lgq": [moment]}
        )
        assert "LGQ 75 %" in fig.layout.title.text
        assert list(named(fig, "LGQ, 4 tokens").x) == [0.0, 0.0, 0.05, 0.2]
        assert [t.y[0] for t in fig.data if t.xaxis == "x3"] == [0.9, 0.5]

    def test_a_history_that_cannot_be_shown_says_why(self):
        missing = {"lgq": "codes have learned widths"}
        fig = information.entropy_history({"lgq": []}, num_codes={"lgq": 32}, missing=missing)
        assert "LGQ cannot be shown: codes have learned widths" in fig.layout.title.text
        fig = information.spread(
            {"lgq": np.ones((1, 4))}, {"lgq": np.ones(1)}, {"lgq": 0}, {"lgq": []}, missing=missing
        )
        caption = fig.layout.title.subtitle.text.replace("<br>", " ")
        assert "Not over training: LGQ: codes have learned widths." in caption

    def test_patches_of_codes_and_deciles_say_where_they_are_from(self):
        patch = np.full((4, 4, 3), 9, np.uint8)
        rows, places = [[patch, patch], [patch]], [["a", "b"], ["c"]]
        for fig in (
            entropy.uncertain_examples(rows, [7, 2], [1.5, 0.5], places=places),
            entropy.decile_examples(rows, [(0.0, 0.1), (0.1, 0.2)], places=places),
        ):
            marks, picture = fig.data[1], decoded(fig.data[0].source)
            assert list(marks.text) == ["a", "b", "c"]
            for x, y in zip(marks.x, marks.y, strict=True):
                assert picture[int(y), int(x)].tolist() == [9, 9, 9, 255], "on its own tile"
            assert marks.x[0] == marks.x[2] < marks.x[1] and marks.y[0] == marks.y[1] < marks.y[2]
        fig = entropy.uncertain_examples(rows, [7, 2], [1.5, 0.5], places=places)
        assert list(fig.layout.yaxis.ticktext) == ["code 7: 1.5", "code 2: 0.5"]

    def test_uncertain_codes_are_named(self):
        indices, doubt = np.array([0, 0, 2, 2]), np.array([0.0, 0.0, 1.0, 1.0])
        fig = entropy.uncertain_codes(indices, doubt, 4)
        assert fig.layout.title.text.startswith("Least sure are codes 2, 0")


class TestTemperature:
    def test_the_identity_of_the_slope_holds_on_the_figure(self, curve):
        fig = temperature.entropy_slope(curve, scale=1.0)
        foretold, seen = (np.asarray(t.y)[2:-2] for t in fig.data)
        assert np.abs(foretold - seen).max() < 0.02 * foretold.max()

    @staticmethod
    def marks(fig) -> dict[str, list]:
        """Ends of each mark along x, by name, one a subplot."""
        found: dict[str, list] = {}
        for shape in fig.layout.shapes:
            found.setdefault(shape.name, []).append((shape.x0, shape.x1))
        return found

    def test_the_schedule_is_marked_in_units_of_tau_c(self, curve):
        schedule, away = [np.nan, 4.0, 0.2], np.linspace(1, 0.25, 48)
        share = np.full(48, 0.5)
        for fig, subplots in (
            (temperature.free_energy(curve, scale=2.0, schedule=schedule), 1),
            (temperature.entropy_slope(curve, scale=2.0, schedule=schedule), 1),
            (temperature.soft_to_hard(curve, away, share, scale=2.0, schedule=schedule), 2),
        ):
            marks = self.marks(fig)
            assert marks["training starts"] == [(2.0, 2.0)] * subplots
            assert marks["training ends"] == [(0.1, 0.1)] * subplots
            assert marks["schedule"] == [(0.1, 2.0)] * subplots

    def test_on_rate_and_distortion_the_schedule_is_marked_at_its_rates(self, curve):
        schedule = [np.nan, curve.taus[10], curve.taus[30]]
        fig = temperature.rate_distortion(
            curve, np.ones(3), index=30, num_codes=32, schedule=schedule
        )
        rates, marks = curve.mutual_information[[10, 30]] / np.log(2), self.marks(fig)
        assert np.allclose(marks["training starts"], rates[0])
        assert np.allclose(marks["training ends"], rates[1])
        assert np.allclose(marks["schedule"], [rates])

    def test_a_method_without_a_temperature_has_no_schedule(self, curve):
        fig = temperature.free_energy(curve, scale=1.0, schedule=[])
        assert "no temperature" in fig.layout.title.text
        assert set(self.marks(fig)) == {"τ<sub>c</sub>"}
        assert not self.marks(temperature.entropy_slope(curve, scale=1.0, schedule=[]))

    def test_the_rate_distortion_point_is_on_the_curve(self, curve):
        fig = temperature.rate_distortion(curve, np.ones(3), index=20, num_codes=32)
        mark = named(fig, "the run's temperature")
        assert np.isclose(mark.y[0], curve.mean_energy[20])

    def test_one_token_stands_still_with_its_codes_at_each_temperature(self):
        shares = [
            (np.array([5, 3]), np.array([0.9, 0.1])),
            (np.array([3, 7]), np.array([0.2, 0.1])),
        ]
        image = np.zeros((8, 8, 3), np.uint8)
        fig = laboratories.one_token(image, (1, 0), shares, ["its own", "1 τc"], grid=(2, 2))
        for name, codes, weights in (
            ("its own", "k5 k3", [0.9, 0.1]),
            ("1 τc", "k3 k7", [0.2, 0.1]),
        ):
            assert list(named(fig, name).x) == codes.split()
            assert np.allclose(named(fig, name).y, weights)
        (square,) = (s for s in fig.layout.shapes if s.name == "token")
        assert (square.x0, square.x1, square.y0, square.y1) == (-0.5, 3.5, 3.5, 7.5)
        assert "0.9 at its own; 0.2 at 1 τc" in fig.layout.title.text.replace("<br>", " ")

    def test_the_laboratory_has_every_trace_that_moves(self, curve):
        image = np.zeros((8, 8, 3), np.uint8)
        fig = laboratories.laboratory(image, curve, np.ones(3), scale=1.0, grid=(2, 2))
        names = {trace.name for trace in fig.data}
        moving = {"original", "soft", "hard", "map", "place", "bars", "here", "here F"}
        assert moving <= names

    def test_frames_and_soft_to_hard_state_their_numbers(self, curve):
        image = np.zeros((8, 8, 3), np.uint8)
        fig = laboratories.laboratory_frames(image, [image + 51], [np.ones((2, 2))], image, ["hot"])
        assert "0.200 of the range at hot" in fig.layout.title.text
        away, tied = np.linspace(1, 0.25, 48), np.full(48, 0.5)
        fig = temperature.soft_to_hard(curve, away, tied, scale=1.0)
        assert "0.25 from the hard one" in fig.layout.title.text


def test_every_figure_says_something_and_has_axes_with_units(curve):
    """The finding is a title, the caption a subtitle, and drawing is free of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fig in (
            temperature.free_energy(curve, scale=1.0, schedule=[1.0]),
            temperature.entropy_slope(curve, scale=1.0),
            information.evenness({"lgq": np.arange(5)}),
            usage_histogram(np.arange(5)),
        ):
            assert len(fig.layout.title.text) > 10 and len(fig.layout.title.subtitle.text) > 10
            assert fig.layout.xaxis.title.text and fig.layout.yaxis.title.text
