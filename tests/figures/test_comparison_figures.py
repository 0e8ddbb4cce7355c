"""Figures of the comparison show what the tables say."""

import numpy as np
import pandas
import pytest

from lgqlib.figures import comparison as figures
from lgqlib.figures.evaluation import codes_side_by_side
from lgqlib.figures.style import color_of


@pytest.fixture
def points():
    rows = []
    for method, gain in (("lgq", 1.0), ("fsq", 0.0)):
        for num_codes in (1024, 4096):
            bits = np.log2(num_codes)
            row = {"name": method, "method": method, "variant": "", "ablation": False}
            row |= {"num_codes": num_codes, "seeds": 3, "runs": f"{method}-{num_codes}"}
            row |= {"psnr": bits + gain, "psnr.low": bits + gain - 0.5}
            row |= {"psnr.high": bits + gain + 0.25, "kid": 0.1 - 0.01 * gain}
            row |= {"active": num_codes / 2, "active_share": 0.5}
            row |= {"perplexity": num_codes / (4 if method == "lgq" else 2**bits / 64)}
            row |= {"bits_per_token_prior": bits - 5, "bits_per_token_coded": bits - 0.5}
            rows.append(row | {"images_per_second": 100.0 - 20 * gain})
    return pandas.DataFrame(rows)


def named(fig, name):
    return [trace for trace in fig.data if trace.name == name]


def test_rate_distortion_has_a_line_a_method_in_each_meaning_of_rate_and_marks_for_variants(points):
    variant = points.iloc[[0]].assign(variant="x", ablation=True, psnr=3.0)
    fig = figures.rate_distortion(pandas.concat([points, variant], ignore_index=True))
    lines = named(fig, "LGQ")
    assert len(lines) == 6 and len(named(fig, "FSQ")) == 6
    assert list(lines[1].x) == [9.5, 11.5] and list(lines[1].y) == [11.0, 13.0]
    assert list(lines[1].error_y.array) == [0.25] * 2
    assert list(lines[1].error_y.arrayminus) == [0.5] * 2
    assert lines[1].marker.color == color_of("lgq") and lines[1].mode == "lines+markers"
    best = "At K = 4,096 the best means are of LGQ in PSNR (13) and LGQ in KID (0.09)"
    assert fig.layout.title.text.startswith(best)
    assert sum(bool(t.showlegend) for t in lines) == 1
    marks = named(fig, "variants (see the ablations)")
    assert len(marks) == 6 and list(marks[0].y) == [3.0]


def test_codes_over_sizes_says_who_grows(points):
    fig = figures.codes_over_sizes(points)
    assert "LGQ 4.0, FSQ 1.0" in fig.layout.title.text
    assert list(named(fig, "LGQ")[0].y) == [512, 2048]
    assert list(named(fig, "all K")[0].y) == [1024, 4096]


def test_cost_is_a_ratio_and_several_variants_of_a_method_are_their_mean(points):
    fig = figures.cost(points)
    assert fig.layout.title.text == "At K = 4,096 LGQ trains at 0.80 of FSQ's speed"
    assert [list(bar.y) for bar in fig.data] == [[80, 80], [100, 100]]
    variants = points.assign(variant="b", images_per_second=40.0)
    both = pandas.concat([points.assign(variant="a"), variants], ignore_index=True)
    assert "LGQ trains at 0.86 of FSQ's speed" in figures.cost(both).layout.title.text  # 60 / 70


def test_a_forest_fills_what_is_decided():
    keys = ["at", "a", "b", "metric", "difference", "low", "high", "seeds", "verdict"]
    rows = [
        ("K = 1,024", "lgq", "fsq", "psnr", 0.7, 0.6, 0.8, 3, "better"),
        ("K = 1,024", "lgq", "vq", "psnr", 0.1, -np.inf, np.inf, 1, "undecided"),
        ("K = 1,024", "lgq", "fsq", "kid", 0.0, -0.1, 0.1, 3, "undecided"),
    ]
    found = pandas.DataFrame(rows, columns=keys)
    fig = figures.forest(found, ["psnr", "kid", "active"], of="LGQ to its peers")
    marks = [t for t in fig.data if t.mode == "markers"]
    assert list(marks[0].marker.symbol) == ["circle", "circle-open"]
    assert list(marks[0].marker.color) == [color_of("fsq"), color_of("vq")]
    assert list(marks[0].error_x.array) == pytest.approx([0.1, 0]), "none for one seed"
    assert fig.layout.title.text == "3 differences of LGQ to its peers: 2 undecided, 1 better"
    assert marks[0].y[0] == "lgq less fsq, K = 1,024"
    empty = figures.forest(found[:0], ["psnr"], of="variants to LGQ")
    assert "No difference" in empty.layout.title.text and not empty.data


def test_one_image_and_its_codes_through_every_method():
    image, sites = np.full((3, 8, 8), 0.5), np.eye(4)
    codes = {"LGQ": (np.array([[0, 1], [2, 3]]), sites), "FSQ": (np.zeros((2, 2), int), sites)}
    fig = codes_side_by_side(image, {"LGQ": image, "FSQ": image}, codes)
    assert fig.layout.title.text.endswith("LGQ 4, FSQ 1")
    with pytest.raises(ValueError, match="give both"):
        codes_side_by_side(image, {"LGQ": image}, codes)
