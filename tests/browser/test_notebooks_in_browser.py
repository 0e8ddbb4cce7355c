"""JupyterLab on loopback, a real Chromium: open, run all, press keys, click, and see the data
change.
"""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import lab

ARTIFACTS = Path(__file__).parents[2] / "artifacts"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(
        lab.chromium_path() is None,
        reason="there is no Chromium: install it (apt-get install chromium) to test the explorers",
    ),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory, trained, cache):
    folder = tmp_path_factory.mktemp("lab")
    run = trained("lgq")
    for name in ("03_geometry", "04_entropy", "05_temperature"):
        parameters = {"run": str(run.path), "cache": str(cache), "num_images": 16}
        lab.place_notebook(name, folder, parameters)
    with lab.jupyterlab(folder) as address:
        yield address


@pytest.fixture
def page(request):
    # Two browsers on two cores starve each other: the group must hold, which pytest 9.2 with
    # pytest-xdist 3.8 silently drops (pytest-xdist issue 1386).
    alone = "PYTEST_XDIST_WORKER" not in os.environ or "@browser" in request.node.nodeid
    assert alone, "run the tests with --dist loadgroup, or without -n"
    with lab.chromium() as page:
        yield page
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"{request.node.name}.png")


def test_geometry_answers_a_key_and_a_click(page, address):
    lab.open_and_run(page, address, "03_geometry.ipynb")

    codes = json.loads(lab.trace(page, "chosen", "codes", "x"))
    assert len(codes) == 64, "every code is on the map"
    before = lab.trace(page, "chosen", "moved", "x")
    assert json.loads(before) == [], "codes stand where training left them"
    lab.press(page, "Training step", "ArrowLeft")
    after = lab.wait_for_change(page, "chosen", "moved", "x", before)
    assert len(json.loads(after)) == 64, "the slider moves the codes to an earlier step"

    before = lab.trace(page, "chosen", "chosen", "x")
    other = max(range(64), key=lambda k: abs(codes[k] - json.loads(before)[0]))
    lab.click_point(page, "chosen", "codes", other)
    lab.wait_for_change(page, "chosen", "chosen", "x", before)

    before = lab.trace(page, "chosen", "token", "x")
    lab.click_point(page, "chosen", "grid", 27)
    lab.wait_for_change(page, "chosen", "token", "x", before)
    assert not page.errors, page.errors


def test_entropy_answers_a_key(page, address):
    lab.open_and_run(page, address, "04_entropy.ipynb")
    before = lab.trace(page, "population", "map", "zmax")
    lab.press(page, "τ", "ArrowLeft")
    hotter = lab.wait_for_change(page, "population", "map", "zmax", before)
    assert json.loads(hotter) > json.loads(before), "hotter tokens are less sure"
    assert not page.errors, page.errors


def test_temperature_answers_a_key_and_a_click(page, address):
    lab.open_and_run(page, address, "05_temperature.ipynb")
    before = lab.trace(page, "here F", "here", "x"), lab.trace(page, "here F", "soft", "source")
    lab.press(page, "τ", "PageDown")
    lab.wait_for_change(page, "here F", "here", "x", before[0])
    lab.wait_for_change(page, "here F", "soft", "source", before[1])

    before = lab.trace(page, "here F", "place", "y")
    lab.click_point(page, "here F", "map", 35)
    lab.wait_for_change(page, "here F", "place", "y", before)
    assert not page.errors, page.errors
