"""A trained run's latents, as a cloud for the quantizer laboratory."""

import math
from pathlib import Path

import numpy as np
import torch

from lgqlib.data import evaluation_images, load, to_model
from lgqlib.measure.clouds import Cloud, given_cloud
from lgqlib.run import Run


@torch.no_grad()
def run_cloud(folder: Path | str, *, cache: Path | str, num_points: int) -> Cloud:
    """Encode images with a run's encoder: training images to fit on, held-out ones to judge on.

    At most `num_points` latents of each, before the quantizer, centered and scaled.
    """
    run = Run.open(folder)
    tokenizer, data = run.tokenizer(), run.config.data
    limit = math.ceil(num_points / run.config.latent_side**2)
    halves = []
    for split in ("train", "val"):
        images, _, _ = evaluation_images(
            load(data, split, cache=Path(cache)), size=data.size, limit=limit
        )
        latents = [tokenizer.latents(to_model(batch)) for batch in images.split(64)]
        flat = torch.cat([z.movedim(1, -1).flatten(0, -2) for z in latents])
        halves.append(np.asarray(flat)[:num_points])
    return given_cloud(*halves, name=f"latents of {run.name}")
