"""Write a finished study as a page of record: every run, differences with intervals, claims.

    python benchmarks/record.py runs/three_seeds notebooks/studies/three_seeds.yaml [--save]

Prints the page; with --save it goes to benchmarks/results/<study>.md.
"""

import argparse
import platform
from pathlib import Path

import pandas
import torch

from lgqlib.study.claims import claims_table
from lgqlib.study.comparison import ablations, against, at_equal_rate, cohorts, points, tabulated
from lgqlib.study.results import NUMBERS, collect

METRICS = ("psnr", "ssim", "kid", "active", "perplexity", "bits_per_token_coded")
RATES = ("bits_per_token_coded", "bits_per_token_entropy", "active")
MORE = ("latent_error", "effective_dim", "geometry_efficiency", "perplexity_share")


def markdown(table: pandas.DataFrame) -> str:
    """Write a table in Markdown; numbers with four digits."""
    cells = [[*map(str, table.columns)], ["---"] * len(table.columns)]
    for row in table.itertuples(index=False):
        cells.append([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row])
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def page(study: Path, file: Path) -> str:
    """Give the page of a study."""
    table, found = collect(study), cohorts(study)
    done = table[table["state"] == "done"]
    about = done.iloc[0]
    keys = [n.key for n in NUMBERS if n.key in done] + [k for k in MORE if k in done]
    means = points(found, [*keys])
    for key in keys:
        if f"{key}.high" in means:
            half = (means[f"{key}.high"] - means[key]).map(
                lambda v: f" ± {v:.2g}", na_action="ignore"
            )
            means[key] = means[key].map(lambda v: f"{v:.4g}") + half.fillna("")
    peers = tabulated(against(found, METRICS))
    methods = [m for m in dict.fromkeys(c.method for c in found) if m != "lgq"]
    pairs = [(m, metric, rate) for m in methods for metric in ("psnr", "kid") for rate in RATES]
    equal = [at_equal_rate(found, "lgq", *pair) for pair in pairs]
    claims = claims_table(found).reset_index(names="claim id")
    parts = [
        f"# {study.name}",
        f"Command: `python -m lgqlib.study {file}`; this page: `python benchmarks/record.py "
        f"runs/{study.name} {file} --save`. Device: {platform.machine()}, "
        f"{torch.get_num_threads()} cores, torch {torch.__version__.split('+')[0]}. "
        f"Data: `{about['data.name']}`, {about['num_images']:.0f} held-out crops of "
        f"{about['data.size']} x {about['data.size']} pixels, {about['num_tokens']:.0f} tokens; "
        f"{about['train.num_steps']} steps of {about['train.batch_size']} images. Features: "
        f"{about.get('extractor')}, {about.get('preprocessing')}. Everything through "
        "decode(encode(x)). Speeds are of a machine that did other work at the time.",
        "## Means over seeds\n\n± is half of Student's 95 % interval over seeds.\n\n"
        + markdown(means[["name", "num_codes", "seeds", *keys]].rename(columns={"name": "method"})),
        "## LGQ less each peer, at equal K\n\nPaired by seed; the verdict is Student's interval's, "
        "the bootstrap is over seeds and images.\n\n" + markdown(peers),
        "## LGQ less each peer, at an equal rate\n\n"
        + markdown(tabulated([d for d in equal if d is not None])),
        "## Variants less LGQ\n\n" + markdown(tabulated(ablations(found, METRICS))),
        "## The paper's claims\n\n" + markdown(claims),
        "## Every run\n\n" + markdown(done[["run", "variant", "seed", *keys]]),
    ]
    return "\n\n".join(part for part in parts if not part.endswith("| --- |")) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of the study's runs")
    parser.add_argument("file", type=Path, help="the study's YAML file, as it is to be named")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    options = parser.parse_args()
    text = page(options.study, options.file)
    print(text)
    if options.save:
        out = Path(__file__).parent / "results" / f"{options.study.name}.md"
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
