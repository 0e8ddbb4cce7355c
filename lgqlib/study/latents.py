"""Fixed latents to fit quantizers on: of known geometry, or encoded by a trained run.

They have mean square 1 a channel, so their variance summed over channels is the number of channels.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from lgqlib.data import evaluation_images, load, to_model
from lgqlib.measure.geometry import Spectrum, spectrum
from lgqlib.measure.theory import participation_ratio
from lgqlib.run import Run


@dataclass(frozen=True)
class FixedLatents:
    """Latents to fit a quantizer on, and others of the same source to judge it on."""

    name: str
    points: Float[np.ndarray, "N C"]
    """Latents to fit on, float32."""
    held_out: Float[np.ndarray, "M C"]
    """Latents to judge on."""

    @property
    def dim(self) -> int:
        """Channels of a latent."""
        return self.points.shape[1]

    @cached_property
    def spectrum(self) -> Spectrum:
        """Return the covariance spectrum of the held-out latents, which bounds refer to."""
        return spectrum(self.held_out)


def geometric_spectrum(dim: int, participation: float) -> Float[np.ndarray, " C"]:
    """Return eigenvalues r^0, r^1, ... with this participation ratio, scaled to sum to `dim`.

    Raises ValueError outside 1 <= participation <= dim.
    """
    if dim < 1 or not 1 <= participation <= dim:
        raise ValueError(
            f"participation = {participation}: it must lie between 1 and dim = {dim}, with dim >= 1"
        )
    low, high = 0.0, 1.0  # the ratio grows with r from 1 to dim
    for _ in range(60):
        middle = (low + high) / 2
        smaller = participation_ratio(middle ** np.arange(dim)) < participation
        low, high = (middle, high) if smaller else (low, middle)
    values = high ** np.arange(dim)
    return values * dim / values.sum()


def gaussian_latents(
    num_points: int,
    eigenvalues: Float[np.ndarray, " C"],
    *,
    seed: int = 0,
    separation: float = 0.0,
) -> FixedLatents:
    """Draw a Gaussian of these covariance eigenvalues, and as many latents again to judge on.

    Its axes are a random rotation. `separation` parts it into two equal clusters, whose centers lie
    that many of the widest axis' standard deviations to either side of the mean along the narrowest
    axis; all is then scaled back to the same variance.
    """
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    if num_points < 1 or not (eigenvalues > 0).all() or separation < 0:
        raise ValueError(
            f"num_points = {num_points}, eigenvalues from {eigenvalues.min(initial=np.inf)}, "
            f"separation = {separation}: give at least one point, positive eigenvalues, and "
            "a separation of at least 0"
        )
    rng = np.random.default_rng(seed)
    dim = len(eigenvalues)
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    x = rng.standard_normal((2 * num_points, dim)) * np.sqrt(eigenvalues)
    offset = separation * np.sqrt(eigenvalues.max())
    x[:, np.argmin(eigenvalues)] += offset * rng.choice([-1.0, 1.0], 2 * num_points)
    x *= np.sqrt(eigenvalues.sum() / (eigenvalues.sum() + offset**2))
    x = (x @ axes.T).astype(np.float32)
    kind = f"two clusters {separation:g} apart" if separation else "Gaussian"
    name = f"{kind}, {dim} channels, effective dimension {participation_ratio(eigenvalues):.3g}"
    return FixedLatents(name, x[:num_points], x[num_points:])


def given_latents(
    points: Float[np.ndarray, "N C"], held_out: Float[np.ndarray, "M C"], *, name: str
) -> FixedLatents:
    """Center latents and scale them to mean square 1, by those that are fitted on."""
    points, held_out = (np.asarray(x, dtype=np.float64) for x in (points, held_out))
    mean = points.mean(0)
    scale = np.sqrt(np.square(points - mean).mean())
    if not scale > 0:
        raise ValueError(f"{len(points)} latents that do not vary: there is nothing to quantize")
    first, second = (((x - mean) / scale).astype(np.float32) for x in (points, held_out))
    return FixedLatents(name, first, second)


@torch.no_grad()
def run_latents(folder: Path | str, *, cache: Path | str, num_points: int) -> FixedLatents:
    """Encode images with a run's encoder: training images to fit on, held-out ones to judge on.

    At most `num_points` latents of each, before the quantizer, centered and scaled.
    """
    run = Run(folder)
    tokenizer, data = run.tokenizer(), run.config.data
    limit = math.ceil(num_points / run.config.latent_side**2)
    halves = []
    for split in ("train", "val"):
        stored = load(data, split, cache=Path(cache))
        images, _, _ = evaluation_images(stored, size=data.size, limit=limit)
        latents = [tokenizer.latents(to_model(batch)) for batch in images.split(64)]
        flat = torch.cat([z.movedim(1, -1).flatten(0, -2) for z in latents])
        halves.append(np.asarray(flat)[:num_points])
    return given_latents(*halves, name=f"latents of {run.name}")
