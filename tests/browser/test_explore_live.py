"""The explorer in JupyterLab: the same screen, and a kernel for what was not prepared."""

import json

import nbformat
import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import lab
from playwright.sync_api import expect

pytestmark = lab.marks(600)
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


def test_the_widget_asks_the_kernel_and_tells_it(tmp_path, trained, cache):
    run = trained("lgq")
    cell = nbformat.v4.new_code_cell(CELL.format(run=str(run.path), cache=str(cache)))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(notebook, tmp_path / "live.ipynb")
    with lab.jupyterlab(tmp_path) as address, lab.chromium() as page:
        lab.open_and_run(page, address, "live.ipynb")
        root = page.locator(".lgx")
        expect(root.locator(".codebook canvas.square")).to_be_visible(timeout=30_000)

        root.locator("input.text").fill("5")
        root.locator("input.text").press("Enter")
        expect(page.get_by_text("chosen [5]")).to_be_visible()

        page.get_by_role("button", name="move", exact=True).click()
        page.wait_for_function(
            "JSON.parse(document.querySelector('.lgx').dataset.state).codes.join() === '7,9'"
        )

        page.get_by_role("button", name="there", exact=True).click()
        screen = "document.querySelector('.lgx').screen"
        page.wait_for_function(f"{screen}.state.pin.token === 2 * {screen}.grid()[1] + 3")

        page.evaluate("document.querySelector('.lgx').screen.setTau(1.37)")
        page.wait_for_function(
            "document.querySelector('.lgx').screen.store.pictures.has('0/soft0@1.37')"
        )
        expect(root.locator(".thumb span").nth(1)).to_contain_text("1.37")

        root.locator(".photograph canvas.square").focus()
        page.keyboard.press("m")
        page.wait_for_timeout(200)
        state = json.loads(root.get_attribute("data-state"))
        assert state["quantity"] == "mass"
        kinds = page.evaluate(
            "window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.type)"
        )
        assert kinds[0] == "code", "keys of the explorer stay in it"
        assert not page.errors
