"""Picture the explorers as they stand in JupyterLab, one PNG each.

    python benchmarks/screenshots.py RUN [--out docs] [--cache data/cache] [--theme light]
                                     [--only 03_geometry ...]

RUN is the folder of a trained run. Needs Chromium and the playwright package.
"""

import argparse
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

# The driver of JupyterLab is the tests' own.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

import lab

EXPLORERS = {
    "00_lgq_in_the_plane": ("PlaneExplorer(", "field"),
    "03_geometry": ("CodebookExplorer(", "chosen"),
    "04_entropy": ("EntropyExplorer(", "population"),
    "05_temperature": ("TemperatureExplorer(", "here F"),
}
"""By notebook: the cell that opens its explorer, and a trace of the explorer's figure."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--only", nargs="+", choices=EXPLORERS, default=list(EXPLORERS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    of_run = {"run": str(options.run.resolve()), "cache": str(options.cache.resolve())}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for notebook in options.only:
            cell, parameters = EXPLORERS[notebook][0], {} if notebook.startswith("00") else of_run
            lab.place_notebook(notebook, folder, parameters, until=cell)
        with (
            lab.jupyterlab(folder, theme=options.theme) as address,
            lab.chromium(height=1500) as page,
        ):
            for notebook in options.only:
                lab.open_and_run(page, address, f"{notebook}.ipynb", seconds=300)
                prepare(page, notebook)
                area = page.locator(".jp-OutputArea-child").filter(
                    has=page.locator(".js-plotly-plot")
                )
                suffix = "" if options.theme == "light" else "_dark"
                path = options.out / f"explorer_{notebook[:2]}{suffix}.png"
                small(area.last.screenshot()).save(path, optimize=True)
                print(path)


def small(png: bytes) -> Image.Image:
    """Reduce a picture to 256 colors, a third of the bytes."""
    return Image.open(BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)


def prepare(page, notebook: str) -> None:
    """Bring an explorer to where there is something to see."""
    if notebook == "03_geometry":
        lab.press(page, "Training step", "ArrowLeft")
        field = page.get_by_label("Select codes", exact=True).first
        field.fill("100-140")
        field.press("Enter")
        page.wait_for_timeout(1500)
        lab.click_point(page, "chosen", "grid", 27)
    elif notebook == "05_temperature":
        for _ in range(3):
            lab.press(page, "τ", "PageDown")
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)


if __name__ == "__main__":
    main()
