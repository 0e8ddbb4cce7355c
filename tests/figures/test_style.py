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
    for of in (style.name_of, style.color_of):
        assert len({of(name) for name in METHODS}) == len(METHODS)
        assert of("lgq") in of("lgq seed 1"), "a variant looks like its method"
    assert (style.name_of("pq"), style.color_of("pq")) == ("pq", style.INK)

    def luminance(color):
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for color in [style.INK, *(row.color for row in METHODS.values()), *style.COLORS]:
        light = 1.05 / (luminance(color) + 0.05)
        dark = (luminance(color) + 0.05) / (luminance("#111111") + 0.05)
        assert light > 1.9 and dark > 3, (color, light, dark)


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
