"""Notebooks in JupyterLab and as pages, in a real Chromium: a key moves what stands beside it."""

import os
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import lab
import papermill
from playwright.sync_api import expect

from lgqlib.study.report import to_html

CHARTS = {
    "03_geometry": ("codes, by use", "chosen", "x", "Enter"),
    "04_entropy": ("all tokens", "all tokens", "y", "."),
    "05_temperature": ("temperature", "temperature", "x", "."),
}
"""Of each notebook: a trace of the chart beside the explorer, the trace that moves, its attribute,
and the key that moves it."""
ARTIFACTS = Path(__file__).parents[2] / "artifacts"

pytestmark = lab.marks(900)


@pytest.fixture(scope="module")
def address(tmp_path_factory, trained, cache):
    folder = tmp_path_factory.mktemp("lab")
    run = trained("lgq")
    for name in CHARTS:
        parameters = {"run": str(run.path), "cache": str(cache), "num_images": 2}
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


@pytest.mark.parametrize("name", CHARTS)
def test_a_key_in_the_explorer_moves_the_chart_beside_it(name, page, address):
    lab.open_and_run(page, address, f"{name}.ipynb")
    chart, moved, attribute, key = CHARTS[name]
    root = page.locator(".lgx")
    expect(root.locator(".codebook canvas.square").first).to_be_visible(timeout=60_000)
    assert not page.locator("iframe.lgx-page").is_visible(), "its page is for where no kernel runs"
    before = lab.trace(page, chart, moved, attribute)
    if key == "Enter":
        root.locator("input.text").fill("5, 7")
    field = root.locator("input.text" if key == "Enter" else ".photograph canvas.square")
    field.press(key)
    lab.wait_for_change(page, chart, moved, attribute, before)
    assert not page.errors, page.errors


def test_an_executed_notebook_holds_the_explorer_without_a_kernel(tmp_path, trained, cache):
    run = trained("lgq")
    parameters = {"run": str(run.path), "cache": str(cache), "num_images": 2}
    lab.place_notebook("04_entropy", tmp_path, parameters, until="explore(")
    notebook = papermill.execute_notebook(
        str(tmp_path / "04_entropy.ipynb"),
        str(tmp_path / "executed.ipynb"),
        cwd=str(tmp_path),
        progress_bar=False,
        engine_name="lgqlib",
    )
    assert "widgets" not in notebook.metadata
    (tmp_path / "executed.html").write_text(to_html(tmp_path / "executed.ipynb"))
    with lab.chromium() as page:
        page.goto(f"file://{tmp_path / 'executed.html'}")
        inside = page.frame_locator("iframe.lgx-page")
        page.locator("iframe.lgx-page").scroll_into_view_if_needed()
        inside.get_by_role("button", name="Mass", exact=True).click()
        expect(inside.locator(".words")).to_contain_text("how many tokens have the code")
        high = page.locator("iframe.lgx-page").bounding_box()["height"]
        assert high > inside.locator(".lgx").bounding_box()["height"], "as high as what it holds"
