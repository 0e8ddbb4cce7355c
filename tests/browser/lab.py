"""JupyterLab on loopback and a real Chromium in front of it."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
SETTINGS = {
    # News would be a question on the screen; windowing takes cells off the page.
    "@jupyterlab/apputils-extension/notification": '{"fetchNews": "false"}',
    "@jupyterlab/notebook-extension/tracker": '{"windowingMode": "none"}',
}
STATUS = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
ERRORS = """() => [...document.querySelectorAll(
    '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"],'
    + '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]'
)].map(node => node.innerText).filter(  // a progress bar writes to stderr too
    text => !['it/s', 'Warning', '%|'].some(part => text.includes(part)))"""
RESTORED = """async () => {
    // JupyterLab first asks the kernel which widgets there are; no hand runs cells before that.
    const context = window.jupyterapp.shell.currentWidget.sessionContext;
    await context.ready;
    await context.session.kernel.requestCommInfo({target_name: 'jupyter.widget'});
}"""
PENDING = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.widgets;
    return cells.filter(c => c.model.type === 'code' && c.model.sharedModel.source.trim()
        && c.model.executionCount === null).length;
}"""
FIND = """name => [...document.querySelectorAll('.js-plotly-plot')].find(
    plot => plot.data && plot.data.some(trace => trace.name === name))"""
PATIENT = """
    const timeout = AbortSignal.timeout.bind(AbortSignal);
    AbortSignal.timeout = milliseconds => timeout(Math.max(milliseconds, 60_000));
"""
"""anywidget gives the code of a widget two seconds to load. plotly's 5 MB take longer in a busy
browser, which then draws the figure but drops every later message to it: no key would ever move it.
"""


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


def marks(timeout: int) -> list[pytest.MarkDecorator]:
    """Mark a file's tests: of a browser, one file at a time, at most so many seconds each."""
    there = "there is no Chromium: install it (apt-get install chromium) to test the explorers"
    return [
        pytest.mark.browser,
        pytest.mark.timeout(timeout),
        pytest.mark.xdist_group("browser"),
        pytest.mark.skipif(CHROMIUM is None, reason=there),
    ]


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Run JupyterLab over `folder` with private configuration; give its address with the token."""
    private = folder / ".private"
    for name, value in SETTINGS.items():
        file = private / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        **{f"JUPYTER_{x.upper()}_DIR": str(private / x) for x in ("config", "data", "runtime")},
        "IPYTHONDIR": str(private / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(private / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", f"--IdentityProvider.token={token}", "--allow-root"]
    command += [f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    with open(folder / "jupyterlab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(240):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if server.poll() is not None:
                    raise RuntimeError((folder / "jupyterlab.log").read_text()[-2000:])
                time.sleep(0.25)
            yield f"http://127.0.0.1:{port}/lab/tree/{{name}}?reset&token={token}"
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(15)
            server.kill()
            server.wait()


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Start a Chromium with software rendering."""
    options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """Open a page of a Chromium; `page.errors` collects its console's errors."""
    with browsing() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.add_init_script(PATIENT)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        # What the server lacks (an icon, an optional page) is no error of a notebook.
        there = lambda said: "Failed to load resource" not in said.text  # noqa: E731
        page.on("console", lambda m: m.type == "error" and there(m) and page.errors.append(m.text))
        yield page


def open_and_run(page: Page, address: str, name: str, *, seconds: float = 400) -> None:
    """Open a notebook, run all its cells, and wait for the last; raise when one writes an error."""
    page.goto(address.format(name=name), timeout=120_000)
    page.wait_for_function(f"() => {STATUS} === 'idle'", timeout=90_000)
    page.evaluate(RESTORED)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        errors = page.evaluate(ERRORS)
        assert not errors, "a cell wrote to stderr:\n" + "\n".join(errors)[-3000:]
        if page.evaluate(PENDING) == 0 and page.evaluate(f"() => {STATUS}") == "idle":
            return
        time.sleep(0.5)
    raise AssertionError(f"{name} did not finish in {seconds} s")


def trace(page: Page, plot: str, name: str, attribute: str) -> list:
    """Read an attribute of a named trace in the figure that has a trace called `plot`.

    A busy browser draws a figure some time after its cell is done: it is waited for.
    """
    page.wait_for_function(f"plot => Boolean(({FIND})(plot))", arg=plot, timeout=60_000)
    trace = f"({FIND})(plot).data.find(t => t.name === name)"
    read = f"([plot, name, attribute]) => Array.from({trace}[attribute] || [])"
    return page.evaluate(read, [plot, name, attribute])
