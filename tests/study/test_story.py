"""The first page of a report: its words follow the intervals, whatever the study has or lacks."""

import re
from zipfile import ZipFile

import numpy as np
import pytest
from studies import finished_run

from lgqlib.evaluate import evaluate_run
from lgqlib.figures.story import GROUNDS, ink
from lgqlib.files import read_json, write_json
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.study import story
from lgqlib.study.blocks import NotTold, detail, kind_of
from lgqlib.study.claims import CLAIMS
from lgqlib.study.report import build_report
from lgqlib.study.story import PLAIN_CLAIMS, Standing, readme_picture, said
from lgqlib.train import train

HOSTILE = "<script>alert('x')</script>&\""
SMALL = (
    "quantizer.num_codes=64 train.num_steps=3 data.eval_crops=16 backbone.depth=1"
    " evaluation.extractor='' evaluation.photographs=2"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two trained methods, of few codes and steps."""
    folder = tmp_path_factory.mktemp("a study & more") / "s"
    for method in ("lgq", "pca_kmeans"):
        own = SMALL if method == "lgq" else SMALL.replace("num_steps=3", "num_steps=0")
        run = Run.create(folder, preset(method=method).override(own))
        train(run.config, run, cache=folder.parent / "cache", progress=False)
        evaluate_run(run, cache=folder.parent / "cache", train_batches=2, progress=False)
    return folder


def test_all_blocks_are_told_once_and_need_no_network(study, monkeypatch):
    cache = study.parent / "cache"
    text = build_report(study, story=True, cache=cache).read_text()
    assert {"report/index.html", "report/plotly.min.js"} <= {
        *ZipFile(study / "report.zip").namelist()
    }
    assert text.count("<section>") == 9 and "Not told" not in text
    assert not re.search(r"https?://|@import|<script|url\(", text)
    assert 'src="data:image/webp' in text and "prefers-color-scheme:dark" in text
    assert "on one seed" in text, "of one seed nothing is claimed"
    monkeypatch.setattr(story, "tell", lambda *_: pytest.fail("told again"))
    assert build_report(study, story=True, cache=cache).read_text() == text
    assert build_report(study).read_text() == text, "what was told stays on the page"
    page = study / "report" / next(study.glob("lgq*")).name / "03_geometry.html"
    page.parent.mkdir()
    page.write_text("")
    assert f'<a href="{page.parent.name}/03_geometry.html">' in build_report(study).read_text()


def test_what_is_kept_is_dropped_when_an_evaluation_changes(study, monkeypatch):
    kept = study / "story.json"
    monkeypatch.setattr(story, "tell", lambda *_: [story.Block("Told anew", "body", "")])
    before, run = kept.read_text() if kept.exists() else "", next(iter(Run.all(study)))
    numbers = read_json(run.path / "evaluation.json")
    write_json(run.path / "evaluation.json", numbers | {"psnr": 1.0})
    assert "when the study is finished" in build_report(study).read_text()
    assert "Told anew" in build_report(study, story=True).read_text()
    kept.write_text("torn")
    assert "Told anew" in build_report(study, story=True).read_text()
    write_json(run.path / "evaluation.json", numbers)
    kept.write_text(before)


def test_the_readme_has_its_picture(study, tmp_path):
    readme_picture(study, tmp_path / "readme.png", cache=study.parent / "cache")
    assert 1000 < (tmp_path / "readme.png").stat().st_size < 500_000


@pytest.mark.parametrize(
    "methods, seeds, told, untold",
    [
        (("lgq", "vq", "fsq"), (0, 1, 2), ["ahead of FSQ (+3.0 dB), level with VQ"], []),
        (("lgq", "kmeans"), (0,), ["above k-means (+3.0 dB) on one seed"], []),
        (("vq", "fsq"), (0, 1), ["No LGQ here; of 2 methods VQ has"], ["no finished run of LGQ"]),
        (("lgq",), (0, 1), ["reproduce 2"], ["there is only one method"]),
        (("kmeans",), (0,), ["The 1 run behind"], ["no finished run of LGQ"]),
    ],
)
def test_a_page_is_true_without_photographs_peers_or_lgq(tmp_path, methods, seeds, told, untold):
    for i, method in enumerate(methods):
        for seed in seeds:
            db = (26 if method in ("lgq", "vq") else 23) + 0.01 * seed * (1 + 0.1 * i)
            numbers = {"psnr": db, "active": 900, "bits_per_pixel_coded": 0.6 + 0.01 * i}
            finished_run(tmp_path, method=method, seed=seed, numbers=numbers)
    finished_run(tmp_path, seed=7, failure={"error": HOSTILE}, evaluated=False)
    text = build_report(tmp_path, story=True, cache=tmp_path).read_text()
    for words in [*told, *untold, "; 1 failed", "were not seen as whole photographs"]:
        assert words in text, words
    assert "<script" not in text and "Traceback" not in text


def test_without_a_finished_run_the_page_says_what_lgq_is(tmp_path):
    text = build_report(tmp_path, story=True, cache=tmp_path).read_text()
    assert "Learnable Geometric Quantization" in text and "<section>" not in text


@pytest.mark.parametrize(
    "mean, low, high, seeds, word",
    [
        (1.0, 0.5, 1.5, 3, "ahead of"),
        (-0.1, -0.16, -0.04, 3, "behind"),
        (0.01, -0.05, 0.07, 3, "level with"),
        (0.5, -0.4, 1.4, 2, "not told apart from"),
        (0.5, -np.inf, np.inf, 1, "above"),
        (-0.5, -np.inf, np.inf, 1, "below"),
        (0.02, -np.inf, np.inf, 1, "beside"),
    ],
)
def test_words_follow_the_interval(mean, low, high, seeds, word):
    standing = Standing("VQ", mean, low, high, seeds)
    assert said([standing]).startswith(f"{word} VQ (")
    assert "inf" not in str(standing)


def test_every_claim_has_plain_words_and_every_ink_can_be_read():
    assert {id.partition(",")[0] for id in CLAIMS} == {*PLAIN_CLAIMS}
    assert not re.search("posterior|free energy", " ".join(PLAIN_CLAIMS.values()))
    assert ink("#ffffff", "light") != "#ffffff" and ink("#000000", "dark") != "#000000"
    assert {*GROUNDS} == {"light", "dark"}


def test_a_picture_is_named_by_what_it_shows_and_a_detail_lies_inside():
    flat, edge = np.full((4, 4, 3), [200.0, 20, 20]), np.full((4, 4, 3), 200.0)
    edge[:, 2:] = 20
    assert kind_of(flat)[0] == "reds" and kind_of(edge) == (
        "upright edges",
        "light left, dark right",
    )
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    for name in ("chelsea", "other"):
        x, y, w, h = detail(name, image, 48, 56, multiple=4)
        assert 0 <= x <= 70 - w and 0 <= y <= 40 - h and x % 4 == 0
    assert issubclass(NotTold, ValueError)
