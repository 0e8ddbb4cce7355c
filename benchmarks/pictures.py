"""Draw the README's picture from the runs of a study: held-out photographs through every method.

    python benchmarks/pictures.py runs/quick docs

One run a method, that of the lowest seed; the same photographs for all, at the same percentiles of
LGQ's PSNR.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from lgqlib.figures.codes_side_by_side import side_by_side

from lgqlib.data import evaluation_images, load, to_model, to_unit
from lgqlib.figures.style import name_of, png
from lgqlib.run import Run

PERCENTILES = (10, 25, 40, 55, 70, 80, 90, 97)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of a study's runs")
    parser.add_argument("out", type=Path, help="folder of pictures")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    options = parser.parse_args()
    runs = {}
    for run in sorted(Run.all(options.study), key=lambda run: run.config.seed):
        runs.setdefault(run.config.quantizer.method, run)
    data = runs["lgq"].config.data
    held_out = load(data, "val", cache=options.cache)
    images, _, _ = evaluation_images(held_out, size=data.size, limit=data.eval_crops)
    order = np.argsort(runs["lgq"].arrays()["per_image.psnr"], kind="stable")
    picked = order[[round(p / 100 * (len(order) - 1)) for p in PERCENTILES]]
    originals = images[torch.as_tensor(picked)]
    rows = {}
    for method, run in runs.items():
        with torch.no_grad():
            decoded = to_unit(run.tokenizer()(to_model(originals)).images).clamp(0, 1)
        rows[f"{name_of(method)}, {run.evaluation()['psnr']:.2f} dB"] = decoded
    fig = side_by_side(originals / 255, rows)
    options.out.mkdir(exist_ok=True)
    (options.out / "reconstructions.png").write_bytes(png(fig))


if __name__ == "__main__":
    main()
