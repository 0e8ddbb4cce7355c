"""Figures find the numbers that they were given. Every notebook's are read in its own test."""

import re

import numpy as np
import pandas
import pytest
from builders import assert_readable, pixels

from lgqlib.explorers.plane import plane_slider
from lgqlib.figures import comparison, entropy, evaluation, plane, prior, style
from lgqlib.figures.comparison import RATES
from lgqlib.figures.pictures import as_pixels, colored, data_uri
from lgqlib.measure.annealing import anneal
from lgqlib.quantizers import METHODS

IMAGE, TOKENS, SITES = np.full((3, 8, 8), 0.5), np.array([[1, 2], [1, 9]]), np.eye(10)
PIXELS = [np.full((8, 8, 3), i, np.uint8) for i in (10, 200)]
SURE = np.array([0.05, 0.05, 0.5, 4.0])
USES = {"lgq": np.full(8, 5), "fsq": np.array([40, 0, 0, 10])}
COSTS = {"counts": np.array([9.0, 10.0]), "prior": np.array([4.0, 5.0])}
SHARES = ("active_share", "perplexity")
POINTS = pandas.DataFrame(
    {"name": m, "method": m, "variant": "", "ablation": False, "num_codes": k, "seeds": 3}
    | {"runs": m, "psnr": np.log2(k) + gain, "kid": 0.1 - gain / 100, "active": k / 2}
    | {f"{x}.seeds": [1.0, 2.0] for x in ("num_codes", "psnr", "kid", *RATES, *SHARES)}
    | {"active_share": 0.5, "perplexity": k / 4 if gain else 64.0}
    | {"bits_per_token_prior": np.log2(k) - 5, "bits_per_token_coded": np.log2(k) - 0.5}
    | {"images_per_second": 100.0 - 20 * gain}
    for m, gain in (("lgq", 1.0), ("fsq", 0.0))
    for k in (1024, 4096)
)
KEYS = ["at", "a", "b", "metric", "difference", "low", "high", "seeds", "verdict"]
DECIDED = ("K = 1,024", "lgq", "fsq", "psnr", 0.7, 0.2, 1.2, 3, "better")
OPEN = ("K = 1,024", "lgq", "vq", "psnr", 0.1, -np.inf, np.inf, 1, "undecided")
DIFFERENCES = pandas.DataFrame([DECIDED, OPEN], columns=KEYS)
FIGURES = {
    "50 % of the tokens are sure (below 0.1 bits), 25 %": lambda: entropy.histogram(SURE, 32),
    "LGQ 0.00; FSQ 0.65": lambda: entropy.evenness(USES),
    "best means are of LGQ in PSNR (13) and LGQ in KID (0.09)": lambda: comparison.rate_distortion(
        POINTS
    ),
    "by a factor of LGQ 4.0, FSQ 1.0": lambda: comparison.codes_over_sizes(POINTS),
    "At K = 4,096 LGQ trains at 0.80 of FSQ's speed": lambda: comparison.cost(POINTS),
    "2 differences of LGQ: 1 better, 1 undecided": lambda: comparison.forest(
        DIFFERENCES, ["psnr", "kid"], of="LGQ"
    ),
    "Mean error 0.100 of the full range; PSNR 20.0": lambda: evaluation.reconstructions(
        IMAGE[None], IMAGE[None] + 0.1
    ),
    "3 distinct codes in the 4 tokens": lambda: evaluation.code_map(IMAGE, TOKENS, SITES),
    "2 of 4 codes used by 8 tokens; perplexity 2, 50 %": lambda: evaluation.usage_histogram(
        np.array([4, 4, 0, 0]), method="lgq"
    ),
    "4.50 bits when its neighbors are known, 9.50 by": lambda: prior.costs(COSTS, num_codes=1024),
    "A quarter of the tokens takes 75% of the bits; the mean is 2.00": lambda: prior.bit_map(
        *PIXELS, np.array([[0.0, 1.0], [1.0, 6.0]])
    ),
}
"""By what it finds."""


@pytest.mark.parametrize("found", FIGURES)
def test_a_figure_says_what_it_found(found):
    fig = FIGURES[found]()
    assert_readable(fig)
    assert found in re.sub("<br>", " ", fig.layout.title.text)


def test_entropies_are_in_bits():
    (lorenz,) = (t for t in entropy.evenness(USES).data if (t.name or "").startswith("FSQ, G"))
    assert np.allclose(lorenz.y, [0, 0, 0, 20, 100])
    changes = entropy.bars(SURE, SURE < 0.3, 5.0)
    assert [change["y"].sum() for change in changes.values()] == [100, 50]


def test_comparisons_show_seeds_beside_means_and_the_intervals_they_are_given():
    drawn = comparison.rate_distortion(POINTS).data
    at = [i for i, t in enumerate(drawn) if t.name == "LGQ"][1]
    assert list(drawn[at].x) == [9.5, 11.5] and list(drawn[at].y) == [11.0, 13.0]
    assert list(drawn[at - 1].y) == [1.0, 2.0] * 2 and drawn[at - 1].marker.size < 6
    forest = comparison.forest(DIFFERENCES, ["psnr"], of="LGQ")
    (mark,) = (t for t in forest.data if t.mode == "markers")
    assert list(mark.marker.symbol) == ["circle", "circle-open"], "filled is decided"
    assert list(mark.marker.color) == [style.color_of("fsq"), style.color_of("vq")]
    assert list(mark.error_x.array) == pytest.approx([0.5, 0]), "none for one seed"


def test_pictures_show_their_tokens_and_the_nearest_codes():
    z = pixels(evaluation.code_map(IMAGE, TOKENS, SITES).data[1].source)
    assert (z[0, 0] == z[1, 0]).all() and (z[0, 0] != z[0, 1]).any()
    points = plane.clusters(200)
    annealing = anneal(points, 4, np.geomspace(12, 0.5, 12))
    codes = annealing.codebooks[-1]
    picture = plane.soft_partition(points, codes, plane.code_tints(codes), 1e-6, size=16)
    x, y = (picture[f"{axis}0"] + picture[f"d{axis}"] * np.arange(16) for axis in "xy")
    places = np.stack(np.meshgrid(x, y), -1)  # row by row, as the pixels are
    nearest = np.linalg.norm(places[:, :, None] - codes, axis=3).argmin(2)
    assert len(np.unique(nearest)) == 4
    assert (pixels(picture["source"])[..., :3] == plane.code_tints(codes)[nearest]).all()
    fig = plane_slider(points, annealing, index=3)  # its frames change what it shows at `index`
    assert_readable(fig)
    assert fig.layout.title.text == fig.frames[3].layout.title.text
    assert [step.args[0][0] for step in fig.layout.sliders[0].steps] == [str(i) for i in range(12)]
    assert [frame.name for frame in fig.frames] == [str(i) for i in range(12)]
    assert [fig.data[n].name for n in fig.frames[0].traces] == ["plane", "codes", "here"]
    for i, frame in enumerate(fig.frames):
        shown, there, here = frame.data
        assert np.allclose(np.stack([there.x, there.y], 1), annealing.codebooks[i])
        assert (*here.x, *here.y) == (annealing.taus[i], annealing.num_distinct[i])
        assert (shown.source == fig.data[0].source) == (i == 3)


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
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (pixels(data_uri(picture)) == picture).all()
    images = np.moveaxis(picture / 255, -1, 0)[None]
    assert (as_pixels(images) == picture).all() and (as_pixels(images * 0 + 1.4) == 255).all()
    found = colored(np.array([0.0, 1.0, 5.0, np.nan]), high=1.0)
    assert (found[1] == found[2]).all() and (found[0] != found[1]).any()
    assert found[3].tolist() == [128] * 3, "nan is grey"
