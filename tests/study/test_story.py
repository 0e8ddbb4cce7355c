"""The first page of a report: its words follow the intervals, whatever the study has or lacks."""

import re
from zipfile import ZipFile

import numpy as np
import pytest
from builders import finished_run

from lgqlib.files import read_json, write_json
from lgqlib.run import Run
from lgqlib.study import story
from lgqlib.study.report import build_report
from lgqlib.study.story import Standing, readme_picture, said

HOSTILE = "<script>alert('x')</script>&\""


def test_all_blocks_are_told_once_and_need_no_network(copied, cache, monkeypatch):
    study, _ = (copied(method).path.parent for method in ("lgq", "pca_kmeans"))
    text = build_report(study, story=True, cache=cache).read_text()
    assert "report/index.html" in ZipFile(study / "report.zip").namelist()
    assert text.count("<section>") == 9 and "Not told" not in text
    assert not re.search(r"https?://|@import|<script|url\(", text)
    assert "on one seed" in text, "of one seed nothing is claimed"
    readme_picture(study, study.parent / "readme.png", cache=cache)
    assert 1000 < (study.parent / "readme.png").stat().st_size < 500_000
    with monkeypatch.context() as patch:
        patch.setattr(story, "tell", lambda *_: pytest.fail("told again"))
        assert build_report(study, story=True, cache=cache).read_text() == text
        assert build_report(study).read_text() == text, "what was told stays on the page"
    monkeypatch.setattr(story, "tell", lambda *_: [story.Block("Told anew", "body", "")])
    file = next(iter(Run.all(study))).path / "evaluation.json"
    write_json(file, read_json(file) | {"psnr": 1.0})
    assert "when the study is finished" in build_report(study).read_text()
    assert "Told anew" in build_report(study, story=True).read_text()


@pytest.mark.parametrize(
    "methods, seeds, words",
    [
        (("lgq", "vq", "fsq"), (0, 1, 2), "ahead of FSQ (+3.0 dB), level with VQ"),
        (("lgq", "kmeans"), (0,), "above k-means (+3.0 dB) on one seed"),
        (("vq", "fsq"), (0, 1), "No LGQ here; of 2 methods VQ has"),
        (("lgq",), (0, 1), "there is only one method"),
        ((), (), "Learnable Geometric Quantization"),
    ],
)
def test_a_page_is_true_without_photographs_peers_or_lgq(tmp_path, methods, seeds, words):
    for i, method in enumerate(methods):
        for seed in seeds:
            db = (26 if method in ("lgq", "vq") else 23) + 0.01 * seed * (1 + 0.1 * i)
            numbers = {"psnr": db, "active": 900, "bits_per_pixel_coded": 0.6 + 0.01 * i}
            finished_run(tmp_path, method=method, seed=seed, numbers=numbers)
    finished_run(tmp_path, seed=7, failure={"error": HOSTILE}, evaluated=False)
    text = build_report(tmp_path, story=True, cache=tmp_path).read_text()
    assert words in text and ("; 1 failed" in text) == bool(methods)
    assert "<script" not in text and "Traceback" not in text


@pytest.mark.parametrize(
    "mean, half, seeds, word",
    [
        (1.0, 0.5, 3, "ahead of"),
        (-0.1, 0.06, 3, "behind"),
        (0.01, 0.06, 3, "level with"),
        (0.5, 0.9, 2, "not told apart from"),
        (0.5, np.inf, 1, "above"),
        (-0.5, np.inf, 1, "below"),
        (0.02, np.inf, 1, "beside"),
    ],
)
def test_words_follow_the_interval(mean, half, seeds, word):
    standing = Standing("VQ", mean, mean - half, mean + half, seeds)
    assert said([standing]).startswith(f"{word} VQ (") and "inf" not in str(standing)
