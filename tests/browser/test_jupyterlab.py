"""The explorer in JupyterLab and in executed notebooks, in a real Chromium."""

import os
import shutil
from pathlib import Path

import lab
import nbformat
import papermill
import pytest
from builders import place_notebook
from playwright.sync_api import expect

from lgqlib.study.report import _converted

CHARTS = {
    "03_geometry": ("codes, by use", "chosen", "x", "Enter"),
    "04_entropy": ("all tokens", "all tokens", "y", "."),
    "05_temperature": ("temperature", "temperature", "x", "."),
}
"""Of each notebook: a trace of the chart beside the explorer, the trace that moves, its attribute,
and the key that moves it."""
CELL = """
import ipywidgets
from lgqlib import explore
w = explore({run!r}, cache={cache!r}, temperatures=4)
told = ipywidgets.Label("nothing")
w.observe(lambda change: setattr(told, "value", f"chosen {{change['new']}}"), "selection")
moved = ipywidgets.Button(description="move")
moved.on_click(lambda _: setattr(w, "selection", [7, 9]))
there = ipywidgets.Button(description="there")
there.on_click(lambda _: setattr(w, "place", [0, 2, 3]))
ipywidgets.VBox([w, told, moved, there])
"""
ROOT = Path(__file__).parents[2]
NOTEBOOKS, ARTIFACTS = ROOT / "notebooks", ROOT / "artifacts"

pytestmark = lab.marks(900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained, cache):
    """Give a folder with the notebooks of CHARTS, and one that only holds the explorer."""
    folder = tmp_path_factory.mktemp("lab")
    run = str(shutil.copytree(trained("lgq").path, folder / "run"))
    for name in CHARTS:
        parameters = {"run": run, "cache": str(cache), "num_images": 2}
        place_notebook(NOTEBOOKS / f"{name}.ipynb", folder, parameters)
    cell = nbformat.v4.new_code_cell(CELL.format(run=run, cache=str(cache)))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(notebook, folder / "live.ipynb")
    return folder


@pytest.fixture(scope="module")
def address(folder):
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
    while lab.trace(page, chart, moved, attribute) == before:
        page.wait_for_timeout(50)
    assert not page.errors, page.errors


def test_the_widget_asks_the_kernel_and_tells_it(page, address):
    lab.open_and_run(page, address, "live.ipynb")
    root = page.locator(".lgx")
    expect(root.locator(".codebook canvas.square")).to_be_visible(timeout=30_000)
    root.locator("input.text").fill("5")
    root.locator("input.text").press("Enter")
    expect(page.get_by_text("chosen [5]")).to_be_visible()

    state = "JSON.parse(document.querySelector('.lgx').dataset.state)"
    page.get_by_role("button", name="move", exact=True).click()
    page.wait_for_function(f"{state}.codes.join() === '7,9'")
    page.get_by_role("button", name="there", exact=True).click()
    width = page.evaluate("document.querySelector('.lgx').screen.grid()[1]")
    page.wait_for_function(f"{state}.token === {2 * width + 3}")

    page.evaluate("document.querySelector('.lgx').screen.setTau(1.37)")
    pictures = "document.querySelector('.lgx').screen.store.pictures"
    page.wait_for_function(f"{pictures}.has('0/soft0@1.37')")
    expect(root.locator(".thumb span").nth(2)).to_contain_text("1.37")

    root.locator(".photograph canvas.square").focus()
    page.keyboard.press("m")
    page.wait_for_function(f"{state}.quantity === 'mass'")
    cells = "window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.type)"
    assert page.evaluate(cells)[0] == "code", "keys of the explorer stay in it"
    assert not page.errors


def test_an_executed_notebook_holds_the_explorer_without_a_kernel(tmp_path, folder, page):
    notebook, executed = nbformat.read(folder / "live.ipynb", 4), tmp_path / "notebooks/a.ipynb"
    executed.parent.mkdir()
    notebook.cells.append(nbformat.v4.new_code_cell("w.show()"))
    how = dict(cwd=str(tmp_path), progress_bar=False, engine_name="lgqlib")
    assert "widgets" not in papermill.execute_notebook(notebook, str(executed), **how).metadata
    _converted(tmp_path, tmp_path / "pages")
    assert len([*tmp_path.glob("pages/explorer-*.js")]) == 1, "what it shows lies beside its page"
    page.goto(f"file://{tmp_path / 'pages' / 'a.html'}")
    inside = page.frame_locator("iframe.lgx-page")
    page.locator("iframe.lgx-page").scroll_into_view_if_needed()
    inside.get_by_role("button", name="Mass", exact=True).click()
    expect(inside.locator(".words")).to_contain_text("how many tokens have the code")
    high = page.locator("iframe.lgx-page").bounding_box()["height"]
    assert high > inside.locator(".lgx").bounding_box()["height"], "as high as what it holds"
