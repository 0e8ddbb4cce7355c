"""Every figure, one table: it says what it shows, with units, of many runs, of one, and of NaN."""

import functools
import inspect
import re
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from drawn import marks, named, pixels, starting, texts

from lgqlib.figures import (
    codebook,
    comparison,
    entropy,
    evaluation,
    fixed_latents,
    geometry,
    pictures,
    plane,
    prior,
    temperature,
    training,
)
from lgqlib.figures.style import color_of, name_of
from lgqlib.measure.annealing import anneal
from lgqlib.measure.geometry import drift, measure_geometry
from lgqlib.measure.projection import Faithfulness, project
from lgqlib.measure.temperature import Moment, free_energy_curve

MODULES = (codebook, comparison, entropy, evaluation, fixed_latents, geometry, pictures, plane)
MODULES += (prior, temperature, training)
RUNS = {"many": ["lgq", "fsq", "lgq 2"], "one": ["lgq"], "nan": ["lgq", "fsq"]}
"""Kinds of data: several runs, two of one method; one run; numbers that cannot be known."""
PIXELS = [np.full((8, 8, 3), i, np.uint8) for i in (10, 200)]
PATCHES = [[PIXELS[0]] * 2, [PIXELS[1]]]
IMAGE, TOKENS, SITES = np.full((3, 8, 8), 0.5), np.array([[1, 2], [1, 9]]), np.eye(10)


@functools.cache
def given(kind: str) -> SimpleNamespace:
    """Give what figures draw, small and of a kind."""
    runs, rng, nan = RUNS[kind], np.random.default_rng(0), np.nan if kind == "nan" else 0.5
    latents, codes = (rng.standard_normal((n, 3)).astype("float32") for n in (1000, 32))
    indices = np.square(latents[:, None] - codes).sum(2).argmin(1)
    if kind == "nan":  # on their codes latents have no error, and cells no shape
        latents, moment = codes[indices], {"tau": np.nan}
    else:
        moment = {"tau": 0.1}
    measured = measure_geometry(codes, latents, indices)
    counts = [np.zeros(4, int), np.ones(4, int), np.array([1, 0, 1, 1])]
    probe, still = np.zeros(8, int), np.zeros((4, 3))
    moved = drift([1, 5, 9], [still, still + 1, still + 1], [probe, probe, probe + 1], counts)
    moment |= {"step": 3, "token": 0.5, "usage": 2.0, "num_tokens": 400}
    rows = [
        {"name": m, "method": m, "variant": "", "ablation": False, "num_codes": k, "seeds": 3}
        | {"runs": m, "psnr": np.log2(k) + gain, "psnr.low": np.log2(k) + gain - nan}
        | {"psnr.high": np.log2(k) + gain + nan / 2, "kid": 0.1 - gain / 100, "active": k / 2}
        | {"active_share": 0.5, "perplexity": k / 4 if gain else 64.0}
        | {"bits_per_token_prior": np.log2(k) - 5, "bits_per_token_coded": np.log2(k) - 0.5}
        | {"images_per_second": 100.0 - 20 * gain}
        for m, gain in zip(runs[:2], (1.0, 0.0), strict=False)
        for k in ([1024, 4096] if kind != "one" else [1024])
    ]
    keys = ["at", "a", "b", "metric", "difference", "low", "high", "seeds", "verdict"]
    decided = ("K = 1,024", "lgq", "fsq", "psnr", 0.7, 0.7 - nan, 0.7 + nan, 3, "better")
    open_ = ("K = 1,024", "lgq", "vq", "psnr", 0.1, -np.inf, np.inf, 1, "undecided")
    trials = [
        {"setting": s, "start": start, "seed": 0, "distortion": d, "active_share": nan, "bits": 4.0}
        | {"efficiency": 0.1 / d, "method": "lgq"}
        for s, d in (("authors", 0.2), ("k-means", 0.1))
        for start in ("random", "far")
    ]
    effect = {"question": "loss", "start": "random", "change": -5.0, "low": -5 - nan}
    effect |= {"num_seeds": 3, "high": -5 + nan, "verdict": "better"}
    photos = {"name": ["a", "b"], "psnr": [28.0, 30], "bits_per_pixel": [0.3, 0.5]}
    photos = pandas.DataFrame(photos | {"JPEG": [27.0, 31.0], "WebP": [29.0, 30.5]})
    cheap = photos.assign(psnr=photos["psnr"] - 1, bits_per_pixel=photos["bits_per_pixel"] / 2)
    steps = np.arange(10, 60, 10)
    train = pandas.DataFrame({"step": steps, "split": "train", "loss": 1 / steps, "commit": nan})
    val = pandas.DataFrame({"step": [50], "split": "val", "psnr": [21.5]})
    return SimpleNamespace(
        of=lambda value: dict.fromkeys(runs, value),
        geometry=measured,
        codes=codes,
        latents=latents,
        drift=moved,
        moments=[Moment(**moment)],
        curve=free_energy_curve(latents[:400], codes, np.geomspace(20, 0.01, 24)),
        schedule=[np.nan, 4.0, 0.2],
        points=pandas.DataFrame(rows),
        differences=pandas.DataFrame([decided, open_], columns=keys),
        trials=pandas.DataFrame(trials),
        effects=pandas.DataFrame([effect]),
        files={0.0: photos, 1.0: cheap},
        metrics=pandas.concat([train, val], ignore_index=True),
        steps=9 if kind == "many" else 1,
    )


@functools.cache
def annealing():
    return anneal(plane.clusters(200), 4, np.geomspace(12, 0.5, 12))


def curves(panels):
    return np.stack([[[0.2, 25.0], [0.6, 30.0]]] * panels)


def heads():
    rows = [(64, "geometric", 5.0), (64, "softmax", 5.5), (128, "geometric", 6.5)]
    rows += [(128, "softmax", 6.0), (64, "embeddings", 7.0), (128, "embeddings", 7.0)]
    table = pandas.DataFrame(rows, columns=["num_codes", "head", "bits"])
    return table.assign(steps=10, parameters=1000)


BITS = {"counts": np.array([9.0, 10.0]), "prior": np.array([4.0, 5.0])}
CURVES = {"JPEG": curves(2), "WebP": curves(2) + 1}
SURE = np.array([0.05, 0.05, 0.5, 4.0])
USES = np.array([40, 0, 0, 10])
COLUMN = SimpleNamespace(label="LGQ", decoded={"x": PIXELS[0] + 51}, bits={"x": 0.5})
FIGURES = {
    "codebook.codes_in_plane": lambda d: codebook.codes_in_plane(
        project([d.codes], [d.latents])[0],
        np.arange(32),
        Faithfulness(0.9, 0.8, 0.44, num_neighbors=5, num_points=32),
    ),
    "entropy.histogram": lambda d: entropy.histogram(SURE, 32),
    "entropy.decile_examples": lambda d: entropy.decile_examples(PATCHES, [(0, 0.1), (0.5, 3)]),
    "entropy.information": lambda d: entropy.information(d.of(d.curve), d.of(0.01)),
    "entropy.entropy_history": lambda d: entropy.entropy_history(
        d.of(d.moments) | {"vq": []}, num_codes=d.of(64)
    ),
    "temperature.energy_and_rate": lambda d: temperature.energy_and_rate(
        d.curve, np.ones(3), unit=2.0, tau_c=6.0, schedule=d.schedule
    ),
    "temperature.entropy_slope": lambda d: temperature.entropy_slope(
        d.curve, unit=2.0, schedule=d.schedule
    ),
    "comparison.rate_distortion": lambda d: comparison.rate_distortion(d.points),
    "comparison.codes_over_sizes": lambda d: comparison.codes_over_sizes(d.points),
    "comparison.cost": lambda d: comparison.cost(d.points),
    "comparison.forest": lambda d: comparison.forest(d.differences, ["psnr", "kid"], of="LGQ"),
    "entropy.evenness": lambda d: entropy.evenness(d.of(np.full(8, 5)) | {"fsq": USES}),
    "evaluation.reconstructions": lambda d: evaluation.reconstructions(
        IMAGE[None], IMAGE[None] + 0.1
    ),
    "evaluation.code_map": lambda d: evaluation.code_map(IMAGE, TOKENS, SITES),
    "evaluation.codes_side_by_side": lambda d: evaluation.codes_side_by_side(
        IMAGE, {"LGQ": IMAGE}, {"LGQ": (TOKENS, SITES)}
    ),
    "evaluation.photographs": lambda d: evaluation.photographs({"x": PIXELS[0]}, [COLUMN]),
    "evaluation.usage_histogram": lambda d: evaluation.usage_histogram(
        np.array([4, 4, 0, 0]), method="lgq"
    ),
    "fixed_latents.ladder": lambda d: fixed_latents.ladder(d.trials, 0.05, what="It"),
    "fixed_latents.starts": lambda d: fixed_latents.starts(d.trials, ["authors"]),
    "fixed_latents.effects": lambda d: fixed_latents.effects(d.effects, what="It"),
    "fixed_latents.rate_distortion": lambda d: fixed_latents.rate_distortion(d.trials, np.ones(3)),
    "geometry.partial_distortion": lambda d: geometry.partial_distortion(d.of(d.geometry)),
    "geometry.bounds": lambda d: geometry.bounds(d.of(d.geometry)),
    "geometry.drifts": lambda d: geometry.drifts(d.of(d.drift)),
    "pictures.picture_grid": lambda d: pictures.picture_grid({"row": PIXELS}),
    "plane.annealing_frames": lambda d: plane.annealing_frames(
        plane.clusters(200), annealing(), [0, 4, 8, 11], width=0.1, size=8
    ),
    "plane.staircase": lambda d: plane.staircase(annealing()),
    "plane.soft_code_path": lambda d: plane.soft_code_path(
        np.ones(2), plane.clusters(9), SITES[:, 1:3], np.geomspace(1e4, 1e-3, 9)
    )[0],
    "plane.four_energies": lambda d: plane.four_energies(
        np.eye(4, 2) + 1, dict(squared=0.3, norm=0.1, cosine=0.1, dot=0.3), size=8
    ),
    "prior.costs": lambda d: prior.costs(BITS, num_codes=1024),
    "prior.bit_map": lambda d: prior.bit_map(*PIXELS, np.array([[0.0, 1.0], [1.0, 6.0]])),
    "prior.heads": lambda d: prior.heads(heads()),
    "prior.rate_distortion": lambda d: prior.rate_distortion(d.files, CURVES),
    "prior.samples": lambda d: prior.samples(PIXELS),
    "training.training_curves": lambda d: training.training_curves(
        d.metrics, method="lgq", num_codes=64
    ),
}
"""How each is drawn from what is given, by module and function."""
FOUND = {
    "codebook.codes_in_plane": "In the PCA plane 44 % of a code's 5 nearest codes",
    "entropy.histogram": "50 % of the tokens are sure (below 0.1 bits), 25 % hesitate",
    "comparison.rate_distortion": "the best means are of LGQ in PSNR (13) and LGQ in KID (0.09)",
    "comparison.codes_over_sizes": "by a factor of LGQ 4.0, FSQ 1.0",
    "comparison.cost": "At K = 4,096 LGQ trains at 0.80 of FSQ's speed",
    "comparison.forest": "2 differences of LGQ: 1 better, 1 undecided",
    "entropy.evenness": "LGQ 0.00; FSQ 0.65",
    "evaluation.reconstructions": "Mean error 0.100 of the full range; PSNR 20.0 to 20.0 dB",
    "evaluation.code_map": "3 distinct codes in the 4 tokens",
    "evaluation.usage_histogram": "2 of 4 codes used by 8 tokens; perplexity 2, 50 %",
    "fixed_latents.ladder": "It: authors errs least, +100.0% against k-means",
    "fixed_latents.effects": "It: of 1 questions, 1 better, 0 worse, 0 undecided",
    "geometry.drifts": "LGQ 100 %; FSQ 100 %",
    "prior.costs": "4.50 bits when its neighbors are known, 9.50 by counts",
    "prior.bit_map": "A quarter of the tokens takes 75% of the bits; the mean is 2.00",
    "prior.rate_distortion": "+0.00 dB against JPEG (1 of 2), -0.75 dB against WebP (0 of 2)",
}
"""The numbers that it finds in many runs."""


@functools.cache
def drawn(name: str, kind: str = "many"):
    return FIGURES[name](given(kind))


def test_every_figure_has_a_row():
    found = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in MODULES
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and name[0] != "_"
        if "Figure" in str(inspect.signature(f).return_annotation)
    }
    assert found == set(FIGURES)


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_found_in_units_and_nothing_is_clipped(name, kind):
    fig = drawn(name, kind)
    assert "$" not in fig.to_json(), "no LaTeX: a report has no MathJax"
    title = fig.layout.title
    if title.text:  # a plain grid of pictures gets one by others
        finding, look_for = texts(fig)
        assert len(finding) > 10 and len(look_for) > 10
        assert kind != "many" or FOUND.get(name, "") in finding
        assert kind == "nan" or not re.search(r"\b(nan|inf)\b", finding + look_for)
        lines, more = (part.split("<br>") for part in (title.text, title.subtitle.text))
        assert max(map(len, lines)) <= fig.layout.width / 8.4
        assert max(map(len, more)) <= fig.layout.width / 6.4
        assert fig.layout.margin.t >= 26 + 21 * len(lines) + 17 * len(more)
    charts = [t for t in fig.data if t.type in ("scatter", "bar") and t.marker.opacity != 0]
    for letter, axes in (("x", [*fig.select_xaxes()]), ("y", [*fig.select_yaxes()])):
        said = any(axis.title.text or axis.ticktext for axis in axes) or fig.layout.annotations
        assert said or all(isinstance(v, str) for t in charts for v in t[letter]), letter
    colors = {name_of(key): color_of(key) for key in RUNS["many"]}
    for trace in charts:
        if (label := re.split("[:,]", trace.name or "")[0]) in colors:
            look = trace.to_plotly_json()
            assert colors[label] in [look.get(part, {}).get("color") for part in ("line", "marker")]


def test_the_temperature_s_curves_are_what_was_measured():
    fig = drawn("temperature.energy_and_rate")
    for found in (marks(fig), marks(drawn("temperature.entropy_slope"))):  # in units of 2
        assert set(found["schedule"]) == {(0.1, 2.0)}
    assert marks(fig)["τ<sub>c</sub>"] == [(3.0, 3.0)]
    total, energy, entropies = (np.asarray(named(fig, part).y) for part in temperature.PARTS)
    assert np.allclose(total, energy - entropies)
    predicted, seen = (np.asarray(t.y)[2:-2] for t in drawn("temperature.entropy_slope").data)
    assert np.abs(predicted - seen).max() < 0.05 * predicted.max()
    at = temperature.here((d := given("many")).curve, d.curve.taus[15] / 2.0, unit=2.0)
    assert set(at) <= {trace.name for trace in fig.data}, "traces that follow the explorer"
    assert at["temperature"]["y"] == pytest.approx([d.curve.free_energy[15]])


def test_entropies_are_in_bits_and_capped_by_few_tokens():
    usage, doubt, known = (np.asarray(t.y) for t in drawn("entropy.information").data[:3])
    assert np.allclose(usage - doubt, known)
    assert usage[0] == pytest.approx(5, abs=0.02), "hot, all 32 codes are used alike: 5 bits"
    assert marks(drawn("entropy.entropy_history"))["log2 N"], "400 tokens for 64 codes"
    lorenz = named(drawn("entropy.evenness"), "FSQ, Gini 0.65").y
    assert np.allclose(lorenz, [0, 0, 0, 20, 100])
    changes = entropy.bars(SURE, SURE < 0.3, 5.0)
    assert set(changes) == {trace.name for trace in drawn("entropy.histogram").data}
    assert [change["y"].sum() for change in changes.values()] == [100, 50]


def test_comparisons_have_the_intervals_they_are_given():
    fig = drawn("comparison.rate_distortion")
    line = [trace for trace in fig.data if trace.name == "LGQ"][1]
    assert list(line.x) == [9.5, 11.5] and list(line.y) == [11.0, 13.0]
    assert list(line.error_y.array) == [0.25] * 2 and list(line.error_y.arrayminus) == [0.5] * 2
    (mark,) = (t for t in drawn("comparison.forest").data if t.mode == "markers")
    assert list(mark.marker.symbol) == ["circle", "circle-open"], "filled is decided"
    assert list(mark.marker.color) == [color_of("fsq"), color_of("vq")]
    assert list(mark.error_x.array) == pytest.approx([0.5, 0]), "none for one seed"


def test_geometry_stands_beside_its_laws():
    g, fig = given("many").geometry, drawn("geometry.partial_distortion")
    for name, slope in ((f"slope {g.partial.slope:.2f}", g.partial.slope), ("slope −1", -1)):
        line = starting(fig, name)
        assert np.allclose(np.diff(np.log(line.y)) / np.diff(np.log(line.x)), slope)
    point = starting(drawn("geometry.bounds"), "LGQ: efficiency")
    assert (point.x[0], point.y[0]) == (g.rate / np.log(2), g.distortion / g.latents.total)


def test_pictures_show_their_tokens_and_the_nearest_codes():
    z = pixels(drawn("evaluation.code_map").data[1].source)
    assert (z[0, 0] == z[1, 0]).all() and (z[0, 0] != z[0, 1]).any()
    points, codes = plane.clusters(200), annealing().codebooks[-1]
    picture = plane.soft_partition(points, codes, plane.code_tints(codes), 1e-6, size=16)
    x, y = (picture[f"{axis}0"] + picture[f"d{axis}"] * np.arange(16) for axis in "xy")
    places = np.stack(np.meshgrid(x, y), -1)  # row by row, as the pixels are
    nearest = np.linalg.norm(places[:, :, None] - codes, axis=3).argmin(2)
    assert len(np.unique(nearest)) == 4
    assert (pixels(picture["source"])[..., :3] == plane.code_tints(codes)[nearest]).all()


def test_a_table_has_intervals_and_leaves_out_what_is_not_there():
    numbers = {"psnr": 20.0, "kid": 0.01, "kid_se": 0.001, "ms_ssim": None, "extractor": "mine"}
    table = evaluation.metric_table(numbers)
    assert list(table["value"]) == ["20.00", "0.01000 ± 0.00100", "mine"]
    assert list(table["better"]) == ["higher", "lower", ""]
