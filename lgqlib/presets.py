"""Named configs: a preset is data and scale, a recipe is what a method needs at its best there."""

from typing import Any

from lgqlib.config import Config
from lgqlib.quantizers import METHODS, known

LAPTOP: dict[str, Any] = {
    "data.eval_crops": 256,
    "data.size": 32,
    "backbone.family": "patch",
    "backbone.downsample": 4,
    "backbone.width": 64,
    "backbone.depth": 2,
    "quantizer.num_codes": 1024,
    "backbone.dim": 5,
    "backbone.norm": "none",
    "train.num_steps": 300,
    "train.batch_size": 64,
    "train.lr": 2e-3,
    "train.codebook_lr": 10.0,
    "loss.perceptual_side": 64,
}

PAPER: dict[str, Any] = {
    "data.name": "imagenette",
    "data.size": 128,
    "data.resize": 128,
    "backbone.family": "vqgan",
    "backbone.downsample": 16,
    "backbone.width": 128,
    "backbone.depth": 2,
    "backbone.dim": 64,
    "backbone.norm": "group+layer",
    "quantizer.num_codes": 16384,
    "train.num_steps": 20_000,
    "train.batch_size": 64,
    "train.lr": 3e-4,
    "train.decay": "constant",
    "train.precision": "bf16",
    "train.log_every": 50,
    "train.eval_every": 1000,
    "train.checkpoint_every": 1000,
    "data.eval_crops": 0,
}

AUTHORS_LGQ: dict[str, Any] = {
    "quantizer.lgq.num_nearest": 0,
    "quantizer.lgq.codebook_loss": "commit",
    "quantizer.lgq.identity": 0.0,
    "quantizer.lgq.usage": "square",
    "loss.commit": 1.0,
    "loss.peak": 0.005,
    "loss.usage": 0.005,
    "temperature.kind": "linear",
    "temperature.start": 1.0,
    "temperature.end": 0.1,
    "temperature.reduced": False,
}
"""The paper's loss and schedule for LGQ (Altun et al. 2026): the recipe that never changes."""

LGQ: dict[str, Any] = {
    "quantizer.lgq.codebook_loss": "free_energy",
    "quantizer.lgq.identity": 1.0,
    "quantizer.lgq.usage": "entropy",
    "loss.commit": 0.25,
    "loss.peak": 0.0,
    "loss.usage": 0.03,
    "temperature.kind": "exponential",
    "temperature.start": 1.0,
    "temperature.end": 0.003,
    "temperature.reduced": True,
}
"""Annealed from the first critical temperature by the free energy."""

PRESETS = {"laptop": LAPTOP, "paper": PAPER, "authors": PAPER}
"""What `preset` starts from."""

COLD: dict[str, Any] = LGQ | {"temperature.start": 0.02}
"""In 300 steps every step above 0.02 tau_c costs fidelity: the decoder sees few codes apart."""
IMPLICIT: dict[str, Any] = {"backbone.dim": 4}
"""With as many channels as levels nothing is projected."""
SLOW: dict[str, Any] = {"backbone.norm": "layer", "train.codebook_lr": 1.0}
"""IBQ's gradient reaches all codes: faster, without a norm, nine of 1,024 are left."""
SIGNS: dict[str, Any] = {"backbone.dim": 10}
"""One channel a bit: K = 2^10."""
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "laptop": {
        "lgq": COLD,
        "fsq": IMPLICIT,
        "ifsq": IMPLICIT,
        "ibq": SLOW,
        "lfq": SIGNS,
        "bsq": SIGNS,
    },
    "paper": {"lgq": LGQ},
    "authors": {"lgq": AUTHORS_LGQ},
}
"""By preset and method: what each method needs to be at its best at that scale, from the ablations.
"""


def preset(
    name: str = "laptop", *, method: str = "lgq", num_codes: int | None = None, seed: int = 0
) -> Config:
    """Give a named config for a method.

    `laptop`: 32x32 crops of the embedded photographs, 64 tokens, K = 1024; about a minute and a
    half on one CPU core.
    `paper`: 128x128 images, the VQGAN backbone, 64 tokens of 64 channels, K = 16384; for a GPU.
    `authors`: the paper's own recipe at that scale: tau from 1 to 0.1, whatever the latents are.

    Raises ValueError for an unknown name or method.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: it must be one of {', '.join(PRESETS)}.")
    changes = PRESETS[name] | METHODS[known(method)].weights | RECIPES[name].get(method, {})
    changes |= {"quantizer.method": method, "seed": seed}
    if num_codes is not None:
        changes["quantizer.num_codes"] = num_codes
    return Config().override(changes)
