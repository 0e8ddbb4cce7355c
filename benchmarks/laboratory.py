"""The quantizer laboratory at a larger setting: hypotheses, peers, starts, energies, schedules.

    python benchmarks/laboratory.py [--save] [--seeds 3] [--steps 150] [--points 8192]
    [--only wide narrow]

About a quarter of an hour of one CPU core. Learning rates are chosen for each variant on a cloud
of their own. Prints tables with 95 % intervals and verdicts computed from them; `--save` writes
benchmarks/results/laboratory.md, and after each part what there is so far.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from lgqlib.measure.temperature import critical_temperature
from lgqlib.study import hypotheses
from lgqlib.study.fixed_latents import STARTS, Experiment, bounds, run, tuned
from lgqlib.study.latents import FixedLatents, gaussian_latents, geometric_spectrum
from lgqlib.study.variants import (
    CHANGES,
    energy_variants,
    lgq_variants,
    peer_variants,
    schedule_variants,
)

LRS = (0.1, 0.3)
BAD = ("random", "cluster")
TUNING = 1000  # seed of the cloud on which learning rates are chosen


def clouds(
    options, dim: int, participation: float, separation: float = 0.0
) -> dict[int, FixedLatents]:
    """Give the tuning cloud and one for each seed."""
    values = geometric_spectrum(dim, participation)
    seeds = (TUNING, *range(options.seeds))
    return {
        s: gaussian_latents(options.points, values, seed=s, separation=separation) for s in seeds
    }


def settle(variants, family: dict[int, FixedLatents], experiment: Experiment, starts=BAD, lrs=LRS):
    """Choose learning rates on the tuning cloud, then fit on the others."""
    family = dict(family)
    tuning = family.pop(TUNING)
    chosen = tuned(variants, tuning, experiment, lrs, starts=starts[:2], seed=TUNING)
    return chosen, run(family, chosen, experiment, starts=starts)


def report(
    title: str, family: dict[int, FixedLatents], experiment: Experiment, trials, *tables
) -> str:
    """Describe a part: what was fitted, the table of means, and the verdicts."""
    cloud = family[0]
    bound = bounds(cloud, experiment.num_codes)
    lines = [
        f"## {title}",
        "",
        f"{cloud.name}; tau_c = {critical_temperature(cloud.points):.3g}; "
        f"K = {experiment.num_codes}, "
        f"{experiment.num_steps} steps of {experiment.batch_size} latents out of "
        f"{len(cloud.points)}, {len(family) - 1} seeds. Water-filling at log K: error "
        f"{bound['distortion']:.4f}; mass-law perplexity {bound['perplexity']:.0f}.",
        "",
        markdown(hypotheses.summary(trials)),
    ]
    for name, table in tables:
        lines += ["", f"**{name}**", "", markdown(table)]
    return "\n".join(lines)


def markdown(table: pd.DataFrame) -> str:
    """Write a table of numbers and words in markdown."""
    head = [name.replace("_", " ") for name in table.columns]
    rows = [head, ["---"] * len(head)]
    rows += [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in table.values]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


MEASURES = ("distortion", "active_share", "efficiency", "spread")


def judged(trials: pd.DataFrame, measures=MEASURES) -> tuple[str, pd.DataFrame]:
    table = hypotheses.effects(trials, CHANGES, measures)
    return "Hypotheses: change in percent, 95 % interval", table.drop(columns=["against"])


def peers(trials: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    table = hypotheses.against(trials, "all together")
    keep = table["variant"].isin([v.name for v in peer_variants()] + ["authors"])
    return "Against all changes together", table[keep]


def wide(options) -> str:
    """C = 64 as in the paper, effective dimension 10: tau = 1 is cold."""
    family = clouds(options, 64, 10)
    experiment = Experiment(512, options.steps, 512)
    _, trials = settle(lgq_variants() + peer_variants(), family, experiment)
    title = "Fixed latents, 64 channels"
    return report(title, family, experiment, trials, judged(trials), peers(trials))


def narrow(options) -> str:
    """C = 5 as at the laptop preset: tau = 1 is warm."""
    family = clouds(options, 5, 4.5)
    experiment = Experiment(1024, options.steps, 512)
    chosen = [v for v in lgq_variants() if v.name in ("authors", "+ free energy", "all together")]
    _, trials = settle(chosen + peer_variants(), family, experiment)
    title = "Fixed latents, 5 channels"
    return report(title, family, experiment, trials, judged(trials), peers(trials))


def clusters(options) -> str:
    """Two clusters of 16 channels."""
    family = clouds(options, 16, 10, 3.0)
    experiment = Experiment(256, options.steps, 512)
    chosen = [v for v in lgq_variants() if v.name in ("authors", "+ free energy", "all together")]
    _, trials = settle(chosen + peer_variants(), family, experiment)
    title = "Fixed latents, two clusters"
    return report(title, family, experiment, trials, judged(trials), peers(trials))


def linear(options) -> str:
    """A learned linear encoder from 64 to 8 channels: the identity path."""
    family = clouds(options, 64, 10)
    experiment = Experiment(512, options.steps, 512, bench="linear", dim=8)
    _, trials = settle(lgq_variants("linear") + peer_variants(), family, experiment, ("random",))
    title = "Behind a learned linear encoder, 64 channels to 8"
    tables = judged(trials, MEASURES[:3]), peers(trials)
    return report(title, family, experiment, trials, *tables)


def starts(options) -> str:
    """Every start, for the authors' setting and ours."""
    family = clouds(options, 64, 10)
    experiment = Experiment(256, options.steps, 512)
    chosen = [v for v in lgq_variants() if v.name in ("authors", "+ free energy", "all together")]
    _, trials = settle(chosen, family, experiment, STARTS)
    table = hypotheses.effects(trials, CHANGES, ["spread"])
    title = "Where codes begin, 64 channels"
    return report(title, family, experiment, trials, ("Worst start over best", table))


def ablation(options) -> str:
    """Energies in the authors' setting, schedules in ours."""
    family = clouds(options, 16, 10)
    experiment = Experiment(128, options.steps, 512)
    _, energies = settle(energy_variants(), family, experiment, ("random",))
    first = next(n for n in energies["variant"] if n.startswith("squared"))
    table = hypotheses.against(energies, first)
    text = report("Energies, the authors' loss", family, experiment, energies, ("Verdicts", table))
    _, schedules = settle(schedule_variants(), family, experiment, ("cluster",))
    first = next(n for n in schedules["variant"] if n.startswith("exponential, 1"))
    table = hypotheses.against(schedules, first)
    title = "Schedules, all changes together, from one small cluster"
    more = report(title, family, experiment, schedules, ("Verdicts", table))
    return text + "\n\n" + more


PARTS: dict[str, Callable] = {
    part.__name__: part for part in (wide, linear, narrow, starts, ablation, clusters)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--points", type=int, default=8192)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    options = parser.parse_args()
    head = [
        "# The quantizer laboratory",
        "",
        f"Command: `python benchmarks/laboratory.py {' '.join(sys.argv[1:])}`. "
        f"Device: {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} thread(s). Seeds 0 to {options.seeds - 1}; a seed draws the "
        "cloud, the start and the batches, the same for all variants.",
        f"Learning rates: the better of {' and '.join(map(str, LRS))} for each "
        f"variant on a cloud of seed {TUNING}, by the error on the points fitted on. "
        "`distortion` is the held-out squared error over the variance; intervals are Student's t "
        "over paired seeds of log ratios, given in percent; verdicts are computed from them.",
    ]
    parts = []
    for name in options.only:
        began = time.process_time()
        parts.append(PARTS[name](options))
        parts[-1] += f"\n\n{time.process_time() - began:.0f} s of CPU time."
        print(parts[-1], flush=True)
        if options.save:
            folder = Path(__file__).parent / "results"
            folder.mkdir(exist_ok=True)
            text = "\n".join(head) + "\n\n" + "\n\n".join(parts) + "\n"
            (folder / "laboratory.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
