"""Figures of the prior say the numbers that they are given."""

import numpy as np
import pandas
from drawn import named, pixels, texts

from lgqlib.figures import prior as figures


def test_costs_are_the_means_of_photographs():
    bits = {"counts": np.array([9.0, 10.0]), "prior": np.array([4.0, 5.0])}
    fig = figures.costs(bits, num_codes=1024)
    assert "4.50 bits when its neighbors are known, 9.50 by counts" in texts(fig)[0]
    assert [bar.y[0] for bar in fig.data if bar.type == "bar"] == [9.5, 4.5]
    assert fig.layout.shapes[0].y0 == 10


def test_the_map_has_the_bits_of_every_token():
    bits = np.array([[0.0, 1.0], [1.0, 6.0]])
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    fig = figures.bit_map(image, image, bits)
    assert "A quarter of the tokens takes 75% of the bits; the mean is 2.00" in texts(fig)[0]
    drawn = pixels(fig.data[2].source)
    assert drawn[0, 0].sum() < drawn[0, 1].sum() < drawn[1, 1].sum()


def test_heads_are_compared_at_every_size():
    rows = [(64, "geometric", 5.0), (64, "softmax", 5.5), (128, "geometric", 6.5)]
    rows += [(128, "softmax", 6.0), (64, "embeddings", 7.0), (128, "embeddings", 7.0)]
    table = pandas.DataFrame(rows, columns=["num_codes", "head", "bits"])
    fig = figures.heads(table.assign(steps=10, parameters=1000))
    assert "0.50 below at K = 64, 0.50 above at K = 128" in texts(fig)[0]
    assert list(named(fig, "softmax on vectors").y) == [5.5, 6.0]


def test_files_stand_against_codecs_at_equal_bits():
    plain = pandas.DataFrame(
        {"name": ["a", "b"], "psnr": [28.0, 30.0], "bits_per_pixel": [0.3, 0.5]}
    )
    plain = plain.assign(JPEG=[27.0, 31.0], WebP=[29.0, 30.5])
    cheap = plain.assign(psnr=plain["psnr"] - 1, bits_per_pixel=plain["bits_per_pixel"] / 2)
    points = np.stack([[[0.2, 25.0], [0.6, 30.0]]] * 2)
    files = {0.0: plain, 1.0: cheap}
    fig = figures.rate_distortion(files, {"JPEG": points, "WebP": points + 1})
    assert "+0.00 dB against JPEG (1 of 2), -0.75 dB against WebP (0 of 2)" in texts(fig)[0]
    ours = named(fig, "tokens and prior")
    assert np.allclose(ours.x, [0.4, 0.2]) and np.allclose(ours.y, [29, 28])
    assert np.allclose(named(fig, "JPEG").y, [25, 30])
    assert figures.cheaper(files) == "weight 1: 50% fewer bits for 1.00 dB"


def test_samples_are_called_texture():
    fig = figures.samples([np.zeros((8, 8, 3), dtype=np.uint8)] * 2)
    assert "texture, without objects" in texts(fig)[0]
