"""Figures of training and evaluation show the numbers that they are given."""

import numpy as np
import pandas
import pytest
from drawn import named, pixels

from lgqlib.figures.evaluation import (
    code_colors,
    code_map,
    codes_side_by_side,
    metric_table,
    reconstructions,
    usage_histogram,
)
from lgqlib.figures.training import training_curves


def test_every_term_keeps_its_name_and_its_values():
    steps = np.arange(10, 60, 10)
    row = {"step": steps, "split": "train", "loss": 1 / steps, "commit": 0.5}
    row |= {"psnr": 20.0, "active": 7, "tau": 0.5}
    val = pandas.DataFrame({"step": [50], "split": "val", "psnr": [21.5]})
    metrics = pandas.concat([pandas.DataFrame(row), val], ignore_index=True)
    fig = training_curves(metrics, method="lgq", num_codes=64)
    assert np.allclose(named(fig, "loss").y, 1 / steps)
    assert list(named(fig, "commit").x) == list(steps)
    assert "21.5 dB" in fig.layout.title.text and "LGQ" in fig.layout.title.text
    assert fig.layout.shapes[0].y0 == 64
    empty = training_curves(pandas.DataFrame(columns=["step", "split"]))
    assert len(empty.data) == 0 and "nothing logged" in empty.layout.title.text


def test_reconstructions_show_the_error_they_have():
    x = np.full((3, 3, 8, 8), 0.5)
    fig = reconstructions(x, x + 0.1)
    assert "Mean error 0.100" in fig.layout.title.text and "20.0 dB" in fig.layout.title.text
    assert list(fig.layout.yaxis.ticktext) == ["original", "decoded", "error, 0 to 0.10"]
    sheet = pixels(fig.data[0].source)
    original, decoded = (sheet[len(sheet) * at // 6, 10, :3].tolist() for at in (1, 3))
    assert original == [128] * 3 and decoded == [153] * 3
    with pytest.raises(ValueError, match="expected one shape"):
        reconstructions(np.zeros((2, 3, 8, 8)), np.zeros((1, 3, 8, 8)))


def test_equal_codes_have_equal_colors_whatever_their_unit():
    codes = np.random.default_rng(0).standard_normal((10, 4))
    indices = np.array([[1, 2], [1, 9]])
    fig = code_map(np.zeros((3, 8, 8)), indices, codes)
    z = pixels(fig.data[1].source)
    assert (z[0, 0] == z[1, 0]).all() and (z[0, 0] != z[0, 1]).any()
    assert np.asarray(fig.data[1].customdata)[..., 0].tolist() == indices.tolist()
    assert "3 distinct codes in the 4 tokens" in fig.layout.title.text
    assert (code_colors(codes) == code_colors(3 * codes + 1)).all()


def test_methods_side_by_side_have_an_image_and_their_codes_each():
    codes = np.random.default_rng(0).standard_normal((10, 4))
    image, tokens = np.zeros((3, 8, 8)), np.array([[1, 2], [1, 9]])
    fig = codes_side_by_side(image, {"LGQ": image}, {"LGQ": (tokens, codes)})
    assert "LGQ 3" in fig.layout.title.text
    assert list(fig.layout.xaxis.ticktext) == ["original", "LGQ"]
    with pytest.raises(ValueError, match="give both"):
        codes_side_by_side(image, {"LGQ": image}, {})


def test_usage_counts_active_codes():
    fig = usage_histogram(np.array([4, 4, 0, 0]), method="fsq")
    assert "2 of 4 codes used by 8 tokens; perplexity 2, 50 %" in fig.layout.title.text
    assert sum(trace.y.sum() for trace in fig.data if trace.type == "bar") == 4


def test_a_table_has_intervals_and_leaves_out_what_is_not_there():
    numbers = {"psnr": 20.0, "kid": 0.01, "kid_se": 0.001, "ms_ssim": None, "extractor": "mine"}
    table = metric_table(numbers)
    assert list(table["value"]) == ["20.00", "0.01000 ± 0.00100", "mine"]
    assert list(table["better"]) == ["higher", "lower", ""]
