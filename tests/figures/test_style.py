"""One template, one color a method, panels to draw on; pictures are the pixels exactly."""

import numpy as np
import pytest
from drawn import pixels as decoded

from lgqlib.figures import style
from lgqlib.figures.pictures import as_pixels, colored, data_uri, picture_grid
from lgqlib.quantizers import METHODS


def pixels(height, width, *, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_every_method_has_a_name_and_a_color_seen_on_white_and_on_dark():
    assert len({style.name_of(name) for name in METHODS}) == len(METHODS)
    assert len({style.color_of(name) for name in METHODS}) == len(METHODS)
    assert [name for name in METHODS if style.dash_of(name) == "solid"] == ["lgq"]
    assert style.name_of("lgq seed 1") == "LGQ seed 1"
    assert style.color_of("lgq seed 1") == METHODS["lgq"].color
    assert (style.name_of("pq"), style.color_of("pq")) == ("pq", style.INK)

    def luminance(color):
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for color in [style.INK, *(row.color for row in METHODS.values()), *style.COLORS]:
        light = 1.05 / (luminance(color) + 0.05)
        dark = (luminance(color) + 0.05) / (luminance("#111111") + 0.05)
        assert light > 1.9 and dark > 3, (color, light, dark)
    layout = style.panels()[0].layout.template.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"  # both show through
    assert layout.xaxis.automargin and layout.yaxis.automargin


def test_panels_draw_what_they_are_given_where_they_stand():
    fig, (left, right) = style.panels(cols=2)
    left.line([1, 2], [3, 4], "a line", style.RED)
    right.legend().dots([1, 2], [3, 4], "dots", error_y=([2, np.nan], [5, 9]))
    right.bars([1], [2])
    left.axes("steps", "dB", log="x", y_range=[0, 9])
    line, dots, bars = fig.data
    assert (line.name, tuple(line.y), line.line.color) == ("a line", (3, 4), style.RED)
    assert dots.xaxis == bars.xaxis == "x2" and dots.legend == "legend3"
    assert (list(dots.error_y.array), list(dots.error_y.arrayminus)) == ([2, 0], [1, 0])
    assert not bars.showlegend
    axis = fig.layout.xaxis
    assert (axis.type, axis.title.text, fig.layout.yaxis.range) == ("log", "steps", (0, 9))
    assert fig.layout.xaxis2.type is None


def test_shown_figures_are_data_with_a_text(monkeypatch):
    shown = []
    monkeypatch.setattr(style, "display", lambda bundle, raw: shown.append(bundle))
    style.show(style.titled(style.panels()[0], "a finding"))
    assert shown[0]["text/plain"] == "a finding"
    assert "data" in shown[0]["application/vnd.plotly.v1+json"]


def test_pictures_are_the_pixels_exactly():
    picture = pixels(5, 7)
    assert (decoded(data_uri(picture)) == picture).all()
    images = np.moveaxis(picture / 255, -1, 0)[None]
    assert (as_pixels(images) == picture).all() and (as_pixels(images * 0 + 1.4) == 255).all()
    found = colored(np.array([0.0, 1.0, 5.0, np.nan]), high=1.0)
    assert (found[1] == found[2]).all() and (found[0] != found[1]).any()
    assert found[3].tolist() == [128] * 3, "nan is grey"


def test_a_grid_has_every_picture_in_its_place_on_clear_ground():
    rows = {"a": [pixels(4, 6, seed=i) for i in range(3)], "b": [pixels(4, 6, seed=9)]}
    fig = picture_grid(rows, columns="xyz", hover=[["1", "2", "3"], ["4"]], tile=6, gap=2)
    image, points = fig.data
    out = decoded(image.source)
    assert out.shape == (4 + 2 + 4, 3 * (6 + 2) - 2, 4)
    assert (out[:4, 16:22, :3] == rows["a"][2]).all() and (out[6:, :6, :3] == rows["b"][0]).all()
    assert not out[6:, 8:, 3].any()
    assert (points.text[3], points.x[3], points.y[3]) == ("4", 4, 9)
    assert list(fig.layout.yaxis.ticktext) == ["a", "b"]
    with pytest.raises(ValueError, match="expected one shape"):
        picture_grid({"a": [pixels(4, 6), pixels(4, 5)]})
