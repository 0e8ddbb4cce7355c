"""Lay out results as a page of record: a finished study, or the tables of notebook 07.

    python benchmarks/record.py runs/quick [--save]
    python benchmarks/record.py runs/fixed_latents/07_laboratory.json [--save]

Prints the page; with --save it goes to docs/results/<name of the folder>.md.
"""

import argparse
import platform
from pathlib import Path

import numpy as np
import pandas
import torch
from speed import table

from lgqlib.figures.comparison import RATES
from lgqlib.files import read_json
from lgqlib.measure import METRICS
from lgqlib.study import comparison
from lgqlib.study.claims import claims_table
from lgqlib.study.results import finished

COMPARED = ("psnr", "whole_psnr", "ssim", "kid", "active", "bits_per_token_prior")
MORE = ("latent_error", "effective_dim", "geometry_efficiency", "perplexity_share")


def of_study(study: Path) -> tuple[str, dict[str, pandas.DataFrame]]:
    """Give what a study was, and its tables."""
    runs = finished(study)
    keys = [m.key for m in METRICS.values() if (m.compared or m.key in MORE) and m.key in runs]
    means = comparison.points(runs, keys)
    for key in keys:
        means[key] = means[f"{key}.seeds"].map(with_interval, na_action="ignore")
    peers = [m for m in runs["method"].unique() if m != "lgq"]
    pairs = [(peer, metric, rate) for peer in peers for metric in ("psnr", "kid") for rate in RATES]
    equal = [comparison.at_equal_rate(runs, "lgq", *pair) for pair in pairs]
    of = runs.iloc[0]
    about = (
        f"Command: `python -m lgqlib.study notebooks/studies/{study.name}.yaml`. Data: "
        f"`{of['data.name']}`, {of['num_images']:.0f} held-out crops of {of['data.size']} pixels a "
        f"side, {of['num_tokens']:.0f} tokens; {of['train.num_steps']} steps of "
        f"{of['train.batch_size']} images. Features: {of.get('extractor')}, "
        f"{of.get('preprocessing')}. Everything through decode(encode(x)). ± is half of Student's "
        "95 % interval over seeds, which gives the verdicts"
    )
    return about, {
        "Means over seeds": means[["name", "num_codes", *keys]],
        "LGQ less each peer, at equal K": comparison.tabulated(comparison.against(runs, COMPARED)),
        "LGQ less each peer, at an equal rate": comparison.tabulated(d for d in equal if d),
        "Variants less LGQ": comparison.tabulated(comparison.ablations(runs, COMPARED)),
        "The paper's claims": claims_table(runs).reset_index(names="claim id"),
        "Every run": runs[["run", "variant", "seed", *keys]],
    }


def with_interval(seeds: list[float]) -> str:
    """Write the mean of several seeds with half of its interval."""
    mean, _, high = comparison.mean_interval(np.array(seeds))
    return f"{mean:.4g} ± {high - mean:.2g}" if len(seeds) > 1 else f"{mean:.4g}"


def of_notebook(file: Path) -> tuple[str, dict[str, pandas.DataFrame]]:
    """Give what notebook 07 was executed with, and its tables."""
    found = read_json(file)
    about = ", ".join(f"{key} = {value}" for key, value in found["about"].items())
    frames = {
        t["title"]: pandas.DataFrame(t["data"], columns=t["columns"]) for t in found["tables"]
    }
    return f"Notebook `07_laboratory`: {about}", frames


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of a study, or file of notebook 07")
    parser.add_argument("--save", action="store_true", help="write it into docs/results/")
    options = parser.parse_args()
    is_study = options.source.is_dir()
    about, tables = (of_study if is_study else of_notebook)(options.source)
    name = options.source.name if is_study else options.source.parent.name
    machine = f"{platform.machine()}, {torch.get_num_threads()} cores, torch {torch.__version__}"
    found = {title: table(of.columns, of.values, 4) for title, of in tables.items() if len(of)}
    parts = [f"## {title}\n\n{rows}" for title, rows in found.items()]
    text = "\n\n".join([f"# {name}", f"{about}. {machine}.", *parts]) + "\n"
    print(text)
    if options.save:
        path = Path(__file__).parent.parent / "docs" / "results" / f"{name}.md"
        path.write_text(text, encoding="utf-8")
