"""Named configs: a preset is data and scale, a recipe is what a method needs at its best there."""

from collections.abc import Mapping
from typing import Any

from lgqlib.config import Config, pairs
from lgqlib.quantizers import METHODS, known
from lgqlib.quantizers.fsq import matching_levels

LAPTOP: dict[str, Any] = {
    "data.eval_crops": 252,
    "backbone.width": 64,
    "backbone.depth": 1,
    "backbone.norm": "none",
    "train.num_steps": 300,
    "train.codebook_lr": 10.0,
    "loss.perceptual_side": 64,
}
"""What differs from the defaults of `Config`."""
PAPER: dict[str, Any] = {
    "data.name": "imagenette",
    "data.size": 128,
    "data.resize": 128,
    "data.eval_crops": 0,
    "backbone.family": "vqgan",
    "backbone.downsample": 16,
    "backbone.width": 128,
    "backbone.depth": 2,
    "backbone.dim": 64,
    "quantizer.num_codes": 16384,
    "train.num_steps": 20_000,
    "train.batch_size": 64,
    "train.lr": 3e-4,
    "train.decay": "constant",
    "train.precision": "bf16",
    "train.log_every": 50,
    "train.eval_every": 1000,
    "train.checkpoint_every": 1000,
}
LINEAR: dict[str, Any] = {
    "backbone.start": "pca",
    "backbone.norm": "none",
    "train.codebook_lr": 10.0,
}
"""What the `paper` scale has beside the authors' own: the linear path at its start."""
AUTHORS: dict[str, Any] = PAPER | {"backbone.start": "random", "backbone.norm": "group+layer"}

AUTHORS_LGQ: dict[str, Any] = {
    "quantizer.prefit": False,
    "quantizer.lgq.num_nearest": 0,
    "quantizer.lgq.move": False,
    "quantizer.lgq.codebook_loss": "commit",
    "quantizer.lgq.identity": 0.0,
    "quantizer.lgq.usage": "square",
    "loss.commit": 1.0,
    "loss.peak": 0.005,
    "loss.usage": 0.005,
    "temperature.kind": "linear",
    "temperature.unit": "absolute",
    "temperature.start": 1.0,
    "temperature.end": 0.1,
    "temperature.span": 1.0,
    "train.codebook_lr": 1.0,
}
"""The paper's recipe for LGQ (Altun et al. 2026), which never changes: all that ours sets."""

LGQ: dict[str, Any] = {
    "quantizer.prefit": True,
    "quantizer.lgq.codebook_loss": "free_energy",
    "quantizer.lgq.identity": 1.0,
    "quantizer.lgq.move": True,
    "loss.commit": 0.25,
    "loss.peak": 0.0,
    "loss.usage": 0.0,
    "temperature.kind": "exponential",
    "temperature.unit": "self",
    "temperature.start": 0.1,
    "temperature.end": 0.005,
    "temperature.span": 0.8,
}
"""Self-tempered, from an annealed start (`quantizers.lgq`)."""

WHITENED: dict[str, Any] = {"backbone.start": "whitened"}
"""For methods that presume latents of unit variance in every channel."""
COARSE: dict[str, Any] = WHITENED | {"quantizer.scale": 0.4}
LEVELS: dict[str, Any] = COARSE | {"train.lr": 4e-3}
"""Bounds reach farther into the latents, and few channels have many levels each."""
SIGNS: dict[str, Any] = WHITENED | {"backbone.dim": 10}  # one channel a bit: K = 2^10
SLOW: dict[str, Any] = WHITENED | {
    "backbone.norm": "layer",
    "train.codebook_lr": 1.0,
    "train.lr": 4e-3,
}
"""IBQ's gradient reaches all codes: without a norm, a tenth of 1,024 are left."""
UNLEARNED: dict[str, Any] = {
    "backbone.family": "linear",
    "backbone.start": "pca",
    "backbone.norm": "none",
    "train.num_steps": 0,
}
"""The linear path as it starts, and the centers of k-means."""


def _baselines(downsample: int) -> dict[str, dict[str, Any]]:
    """Give k-means on patches, all of whose channels are kept, and on their components."""
    return {"kmeans": UNLEARNED | {"backbone.dim": 3 * downsample**2}, "pca_kmeans": UNLEARNED}


PEERS: dict[str, dict[str, Any]] = {
    "fsq": LEVELS,
    "ifsq": LEVELS | {"quantizer.scale": 0.5, "train.lr": 2e-3},
    "simvq": WHITENED | {"backbone.dim": 3, "train.lr": 4e-3, "train.codebook_lr": 3.0},
    "lfq": SIGNS | {"loss.entropy": 0.01, "train.lr": 8e-3},
    "bsq": SIGNS | {"loss.entropy": 0.01, "train.lr": 4e-3},
    "ibq": SLOW,
}
PRESETS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "laptop": (LAPTOP, {"lgq": LGQ, **PEERS, **_baselines(4)}),
    "paper": (PAPER | LINEAR, {"lgq": LGQ, "fsq": COARSE, **_baselines(16)}),
    "authors": (AUTHORS, {"lgq": AUTHORS_LGQ, **_baselines(16)}),
}
"""By name: what a preset starts from, and each method's recipe at that scale."""


def preset(
    name: str = "laptop",
    *,
    method: str = "lgq",
    num_codes: int | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | str = "",
) -> Config:
    """Give a named config for a method, with overrides of its fields (`Config.override`).

    `laptop`: 32x32 crops of embedded photographs, K = 1024; half a minute on one CPU core.
    `paper`: 128x128 images, the VQGAN backbone, C = 64, K = 16384; for a GPU. `authors`: the
    paper's own recipe at that scale. An override of the method, or of K, takes that one's recipe.
    ValueError for an unknown name or method, and for what no run can be.
    """
    own = {"quantizer.method": method, "quantizer.num_codes": num_codes} | pairs(overrides)
    method, num_codes = own["quantizer.method"], own["quantizer.num_codes"]
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: it must be one of {', '.join(PRESETS)}.")
    start, recipes = PRESETS[name]
    changes = start | METHODS[known(method)].weights | recipes.get(method, {})
    changes |= {"quantizer.method": method, "seed": seed}
    if num_codes is not None:
        changes["quantizer.num_codes"] = num_codes
    config = Config().override(changes)
    if method in ("fsq", "ifsq"):  # with as many channels as levels nothing is projected
        dim = len(matching_levels(config.quantizer.num_codes))
        config = config.override({"backbone.dim": dim})
    if method == "simvq" and name == "laptop" and config.quantizer.num_codes > 1024:
        config = config.override({"backbone.dim": 5})  # three channels are few for more codes
    return config.override(overrides)
