"""The codebook's map: codes in order, colors that say what they should, and its static twins."""

import numpy as np
import pytest

from lgqlib.figures.codebook import (
    CLASS_COLORS,
    CodeValues,
    clickable,
    code_examples,
    sizes,
    small_multiples,
    timeline,
)
from lgqlib.measure.projection import project


def plain(text):
    return text.replace("<br>", " ")


@pytest.fixture(scope="module")
def at():
    """32 codes and 2000 latents in three channels, in their plane."""
    rng = np.random.default_rng(0)
    return project(*(rng.standard_normal((n, 3)).astype("float32") for n in (32, 2000)))


@pytest.fixture
def values():
    """Numbers of things, that of code 3 unknown."""
    return CodeValues(np.where(np.arange(32) == 3, np.nan, np.arange(32.0)), "things")


def test_an_unknown_value_is_grey_and_below_all_others(values):
    marker = values.coloring()
    assert marker["color"][3] == np.float32(marker["cmin"])
    assert (np.delete(marker["color"], 3) > marker["cmin"]).all()
    place = (0 - marker["cmin"]) / (marker["cmax"] - marker["cmin"])
    assert place > marker["colorscale"][1][0], "the smallest known value is not grey"


def test_logarithms_leave_zero_unknown():
    shown = CodeValues(np.array([0.0, 1.0, 100.0]), "tokens", log=True).shown
    assert np.isnan(shown[0]) and list(shown[1:]) == [0, 2]


def test_each_of_ten_classes_has_a_color_and_a_name_beside_it():
    values = np.append(np.arange(10.0).repeat(2), np.nan)
    names = [f"kind {k}" for k in range(10)]
    marker = CodeValues(values, "class", names=names).coloring()
    assert marker["colorbar"]["ticktext"] == names
    place = (marker["color"] - marker["cmin"]) / (marker["cmax"] - marker["cmin"])
    scale = marker["colorscale"]
    drawn = [next(c for edge, c in scale[1::2] if p < edge) for p in place]
    assert tuple(drawn[0:20:2]) == CLASS_COLORS and drawn[-1] not in CLASS_COLORS


def test_classes_beyond_ten_share_a_color_that_says_so():
    values = np.append(np.arange(13.0), np.arange(3.0, 13.0))
    classes = CodeValues(values, "class", names=[f"kind {k}" for k in range(13)])
    marker = classes.coloring()
    assert marker["colorbar"]["ticktext"][-1] == "3 others"
    assert "10 of 13" in marker["colorbar"]["title"]["text"]
    assert len(set(marker["color"][:3])) == 1, "the classes of the fewest codes"
    assert len(set(marker["color"][3:13])) == 10
    assert classes.hover(np.array([2])) == ["class kind 2"]


def test_area_follows_usage_and_a_large_codebook_keeps_its_busiest_codes():
    grown = sizes(np.array([0, 25, 100])) - 4
    assert grown[0] == 0 and np.isclose(grown[2], 2 * grown[1])
    kept = clickable(np.arange(5000), limit=1500)
    assert len(kept) <= 1500 and set(range(4250, 5000)) <= set(kept)


def test_small_multiples_draw_each_quantity_once_and_say_how_many_codes(at, values):
    quantities = {"one": values, "two": CodeValues(np.zeros(32), "class", names=["cat"])}
    fig = small_multiples(at, quantities, np.arange(32), name="LGQ")
    assert len(fig.data) == 2 and len(fig.data[0].x) == 32
    assert "hovertext" in fig.data[1].hovertemplate and fig.data[1].hovertext[0] == "class cat"
    assert plain(fig.layout.title.text).startswith("LGQ: 31 of 32 codes used; principal plane")


def test_the_timeline_keeps_one_frame():
    places = [np.random.default_rng(i).standard_normal((8, 2)) for i in range(9)]
    fig = timeline(places, range(9), [8] * 9, births=1, deaths=2)
    assert len(fig.data) == 6 and fig.layout.annotations[-1].text == "step 8: 8 active"
    (low, high), last = fig.layout.xaxis.range, fig.layout.xaxis6.range
    assert last == (low, high) and all(low < x < high for trace in fig.data for x in trace.x)
    assert np.allclose(fig.data[-1].y, places[-1][:, 1])


def test_examples_have_a_label_for_each_code():
    rows = [[np.zeros((4, 4, 3), np.uint8)] * n for n in (3, 1)]
    fig = code_examples(rows, [7, 9], [30, 2], total=100)
    assert list(fig.layout.yaxis.ticktext) == ["code 7: 30", "code 9: 2"]
    assert "30.0 % of 100 tokens" in fig.layout.title.text
