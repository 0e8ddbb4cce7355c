"""How long an explorer takes to answer: computation alone, and from a key press to the redrawn
figure.

    python benchmarks/latency.py [--codes 16384] [--repeat 15] [--no-browser]

Trains a run of a few steps at K codes and 64 tokens an image in a temporary folder, then prints a
table: median and 90th percentile in milliseconds. Targets: 100 ms of computation, 300 ms to the
figure in Chromium with software rendering.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lgqlib.explorers.codes import Codes
from lgqlib.explorers.entropy import EntropyExplorer
from lgqlib.explorers.explorer import CodebookExplorer
from lgqlib.explorers.softness import Softness
from lgqlib.explorers.temperature import TemperatureExplorer
from lgqlib.explorers.view import View
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.train import train

# The driver of JupyterLab is the tests' own.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

KEYS = (
    ("03_geometry", "CodebookExplorer(", "chosen", "Training step", "training step, arrow key"),
    ("03_geometry", "CodebookExplorer(", "chosen", "Code", "code, arrow key"),
    ("04_entropy", "EntropyExplorer(", "population", "τ", "entropy map, arrow key"),
    ("05_temperature", "TemperatureExplorer(", "here F", "τ", "laboratory, arrow key"),
)
WATCH = """plot => {
    const found = FIND(plot);
    window.waits = []; window.pressed = null;
    document.addEventListener('keydown', () => { window.pressed = performance.now(); }, true);
    found.on('plotly_afterplot', () => {
        const start = window.pressed;
        if (start === null) return;
        window.pressed = null;
        requestAnimationFrame(() => setTimeout(
            () => window.waits.push(performance.now() - start), 0));
    });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--no-browser", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = small_run(folder, options.codes)
        print(f"K = {options.codes}, 64 tokens an image; milliseconds, n = {options.repeat}\n")
        print(f"{'computation':44}{'median':>9}{'90 %':>9}{'target':>9}")
        for label, action in actions(run, folder):
            row(label, timed(action, options.repeat), 100)
        if not options.no_browser:
            print(f"\n{'key press to redrawn figure, Chromium':44}{'median':>9}{'90 %':>9}")
            for label, waits in in_browser(run, folder, options.repeat):
                row(label, waits, 300)
        load, cores = os.getloadavg()[0], os.cpu_count()
        print(f"\nAt the end {load:.1f} processes wanted {cores} cores: with more, waits grow.")


def small_run(folder: Path, num_codes: int) -> Run:
    """Train a few steps: what an explorer costs does not depend on how good the codes are."""
    config = preset("laptop", num_codes=num_codes).override(
        "train.num_steps=6 train.batch_size=16 train.num_snapshots=6 train.probe=512 "
        "train.eval_every=0 train.checkpoint_every=6 data.eval_crops=64"
    )
    run = Run.create(folder / "runs", config)
    train(config, run, cache=folder / "cache", progress=False)
    return run


def actions(run: Run, folder: Path) -> list[tuple[str, Callable[[int], None]]]:
    """Give what an explorer does when it is touched, by name; the argument changes at each call."""
    view = View.open(run, cache=folder / "cache", num_images=64)
    explorer = CodebookExplorer(Codes(view, run.snapshots()), folder=folder)
    softness = Softness(view, run.snapshots())
    entropy, laboratory = EntropyExplorer(softness), TemperatureExplorer(softness)
    steps, taus = len(run.snapshots()), len(softness.taus)

    def move(slider, call):
        def action(i: int) -> None:
            slider.index = i % taus
            call()

        return action

    return [
        ("hover or click a code", lambda i: explorer.choose(7 * i)),
        ("token of the same image", lambda i: explorer.look_at(0, i)),
        ("another image", lambda i: explorer.look_at(i + 1, 0)),
        ("lasso 200 codes", lambda i: explorer.select(np.arange(200) + 50 * i)),
        ("training step", lambda i: explorer.scrub(i % steps)),
        ("entropy map at another temperature", move(entropy.tau, lambda: None)),
        ("laboratory at another temperature", move(laboratory.tau, lambda: None)),
    ]


def timed(action: Callable[[int], None], repeat: int) -> list[float]:
    action(0)
    waits = []
    for i in range(1, repeat + 1):
        start = time.perf_counter()
        action(i)
        waits.append(1000 * (time.perf_counter() - start))
    return waits


def in_browser(run: Run, folder: Path, repeat: int):
    """Give the waits that a browser sees, by name."""
    import lab

    place = folder / "lab"
    place.mkdir()
    shared = {"run": str(run.path), "cache": str(folder / "cache"), "num_images": 64}
    for name, until in {key[:2] for key in KEYS}:
        lab.place_notebook(name, place, shared, until=until)
    with lab.jupyterlab(place) as address, lab.chromium() as page:
        opened = ""
        for name, _, plot, control, label in KEYS:
            if name != opened:
                lab.open_and_run(page, address, f"{name}.ipynb", seconds=300)
                opened = name
            ready = f"plot => Boolean(({lab.FIND})(plot)?.on)"
            page.wait_for_function(ready, arg=plot, timeout=60_000)
            page.evaluate(WATCH.replace("FIND", f"({lab.FIND})"), plot)
            waits = []
            for i in range(repeat):
                if control == "Code":
                    page.get_by_label("Code", exact=True).first.press("ArrowDown")
                else:
                    lab.press(page, control, "ArrowLeft" if i % 4 < 2 else "ArrowRight")
                page.wait_for_function("() => window.waits.length", timeout=20_000)
                waits.append(page.evaluate("() => window.waits.splice(0)[0]"))
                page.wait_for_timeout(200)
            yield label, waits


def row(label: str, waits: list[float], target: int) -> None:
    high = float(np.quantile(waits, 0.9))
    print(f"{label:44}{statistics.median(waits):9.1f}{high:9.1f}{target:>9}", flush=True)


if __name__ == "__main__":
    main()
