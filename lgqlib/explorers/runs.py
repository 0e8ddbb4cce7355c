"""Runs as notebooks open them, or the tokenizer that ships; what they measure of temperature."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lgqlib.config import DataConfig
from lgqlib.explorers.opening import Opened, from_run, from_tokenizer, held_out
from lgqlib.explorers.preparing import upright
from lgqlib.files import require, write_json
from lgqlib.measure.geometry import Drift, Geometry, drift, measure_geometry
from lgqlib.measure.temperature import FreeEnergyCurve, Moment, free_energy_curve, moment
from lgqlib.quantizers import METHODS
from lgqlib.run import Run
from lgqlib.tokenizer import Tokenizer

SHIPPED = "lgq-f4-1024"
"""The tokenizer that is opened where no run is."""
PAIRS = 2**26
"""Of token and code that one temperature sums over: half a second of one CPU core."""
SAMPLE = 32_768
"""Tokens that geometry is measured on."""
HOTTEST, COLDEST, TAUS = 3.0, 0.02, 48
"""Ends of a curve, in units of tau_c and of 2 D / C; and its temperatures."""


def open_runs(
    run: str, others: str = "", *, runs: Path | str, cache: Path | str, num_images: int = 256
) -> dict[str, Opened]:
    """Open a run's folder, or the newest trained one below `runs` when it is empty, and others
    beside it; where there is none, the tokenizer that ships, on the embedded photographs.

    `others`: folders separated by spaces, one with spaces in quotes; a folder's name may stand for
    it when it lies below `runs`. They see the photographs that the first sees: at most nine, or
    `num_images` crops. Keys are method names, with a number where one comes again.
    """
    require(num_images=num_images)
    trained = [Run(run)] if run else [r for r in Run.all(runs) if r.step > 0][-1:]
    if not trained and not others:
        tokenizer = Tokenizer.from_pretrained(SHIPPED)
        factor = tokenizer.config.backbone.downsample
        images = held_out(DataConfig(name="photos"), cache, factor, num_images)
        name = tokenizer.config.quantizer.method
        o = from_tokenizer(tokenizer, images=images, name=METHODS[name].label)
        about = f"No trained run below {runs}: this is {SHIPPED}, which ships with lgqlib."
        return {name: replace(o, about=about, notebooks=Path(runs) / SHIPPED)}
    for other in shlex.split(others):
        inside = Path(runs) / other
        trained.append(Run(inside if (inside / "config.json").exists() else other))
    found: dict[str, Opened] = {}
    images = None
    for each in trained:
        method = each.config.quantizer.method
        again = sum(key.partition(" ")[0] == method for key in found)
        o = from_run(each, images=images, cache=cache, num_images=num_images)
        found[f"{method} {again + 1}" if again else method] = o
        images = images or list(zip(o.names, o.images, strict=True))
    return found


def record(of: Run | Opened, notebook: str, numbers: Mapping[str, Any]) -> Path:
    """Write a notebook's numbers into its folder of notebooks; give the path."""
    path = of.notebooks / f"{notebook}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: value.item() if hasattr(value, "item") else value for k, value in numbers.items()}
    write_json(path, plain)
    return path


def some(o: Opened, most: int) -> torch.Tensor:
    """Choose at most `most` of its tokens, evenly over all photographs: their numbers."""
    return torch.linspace(0, o.num_tokens - 1, min(most, o.num_tokens)).long().unique()


def entropies(o: Opened, rows: torch.Tensor, tau: float = 1.0) -> np.ndarray:
    """Give the entropy of some tokens' assignments in bits, at tau x 2 D / C."""
    return o.soften(o.latents[rows], [o.width * tau])[1][0].numpy()


def surroundings(o: Opened, tokens: torch.Tensor) -> list[np.ndarray]:
    """Cut some tokens out of their photographs, each with a token more to all sides."""
    padded, places = [F.pad(x, [o.factor] * 4, value=128) for x in o.images], o.places[tokens]
    corners = [(n, row * o.factor, column * o.factor) for n, row, column in places.tolist()]
    side = 3 * o.factor
    return [upright(padded[n][:, y : y + side, x : x + side]) for n, y, x in corners]


def curve(o: Opened) -> FreeEnergyCurve:
    """Measure its soft assignment from far above tau_c to the cold; 2 D / C is one of the taus."""
    most = min(4096, max(2048, PAIRS // o.num_codes))
    hot = HOTTEST * (o.tau_c if math.isfinite(o.tau_c) else 100 * o.width)
    taus = np.geomspace(max(hot, HOTTEST * o.width), COLDEST * o.width, TAUS)
    taus[np.abs(np.log(taus / o.width)).argmin()] = o.width
    z = o.latents[some(o, most)]
    return free_energy_curve(z, o.sites, taus, energy=o.energy, widths=o.widths)


def history(o: Opened) -> list[Moment]:
    """Measure entropies at each snapshot of its training; none where codes have own widths."""
    kept = o.snapshots if o.widths is None else ()
    most = max(1024, PAIRS // o.num_codes)
    return [moment(s.step, s.latents[:most], s.codebook, energy=o.energy) for s in kept]


def drift_of(o: Opened) -> Drift | None:
    """Compare each snapshot with the one before; None with fewer than two."""
    s = o.snapshots
    parts = ("step", "codebook", "indices", "counts")
    return drift(*([getattr(x, p) for x in s] for p in parts)) if len(s) > 1 else None


def geometry_of(o: Opened) -> Geometry:
    """Measure its codebook; use is counted over all tokens, intervals over crops."""
    rows = some(o, SAMPLE)
    n, row, column = o.places.T
    crops = (n * 4096 + row // 8) * 4096 + column // 8  # of 8 x 8 tokens
    groups = crops.unique(return_inverse=True)[1]
    z, indices, groups = (a[rows].numpy() for a in (o.latents, o.codes, groups))
    counts = o.codes.bincount(minlength=o.num_codes).numpy()
    return measure_geometry(o.sites.numpy(), z, indices, counts=counts, groups=groups)
