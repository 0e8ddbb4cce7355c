"""Assess a run: its trained tokenizer on held-out images of its data, written into its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lgqlib.data import TrainingBatches, evaluation_images, load, to_model, to_unit
from lgqlib.evaluate import Evaluation, evaluate, reference_features
from lgqlib.files import require_whole
from lgqlib.measure.features import build_extractor
from lgqlib.measure.theory import geometry_efficiency, mass_law_perplexity, participation_ratio
from lgqlib.run import Run
from lgqlib.tokenizer import Tokenizer


@dataclass(frozen=True)
class Assessment:
    """A run's evaluation, with the tokenizer and the images that it is of."""

    tokenizer: Tokenizer
    held_out: UInt8[Tensor, "N 3 S S"]
    labels: Int[Tensor, " N"]
    evaluation: Evaluation

    @property
    def numbers(self) -> dict[str, Any]:
        """Every number, by the name it has in `evaluation.json`."""
        return self.evaluation.numbers

    def at_percentiles(self, metric: str, percentiles: Sequence[float]) -> list[int]:
        """Give the images that stand at percentiles of a per-image metric, lowest first."""
        order = np.argsort(self.evaluation.per_image[metric], kind="stable")
        places = np.round(np.asarray(percentiles) / 100 * (len(order) - 1)).astype(int)
        return order[places].tolist()

    def decoded(self, which: Sequence[int]) -> Float[Tensor, "n 3 S S"]:
        """Give reconstructions of held-out images in [0, 1], clamped as a saved file would be."""
        images = to_model(self.held_out[list(which)]).to(next(self.tokenizer.parameters()).device)
        with torch.no_grad():
            return to_unit(self.tokenizer.decode(self.tokenizer.encode(images))).clamp(0, 1).cpu()


@torch.no_grad()
def training_counts(
    tokenizer: Tokenizer, batches: TrainingBatches, num_batches: int
) -> Int[Tensor, " K"]:
    """Count the codes of training crops, by the tokenizer as it is now."""
    counts = torch.zeros(tokenizer.num_codes, dtype=torch.int64)
    for step in range(num_batches):
        indices = tokenizer.encode(to_model(batches.batch(step)[0]))
        counts += torch.bincount(indices.flatten().cpu(), minlength=len(counts))
    return counts


class Examples(NamedTuple):
    """Held-out images through a run's tokenizer."""

    originals: Float[Tensor, "n 3 S S"]
    """In [0, 1], as are the decoded ones."""
    decoded: Float[Tensor, "n 3 S S"]
    indices: Int[np.ndarray, "n h w"]
    sites: Float[Tensor, "K D"]


@torch.no_grad()
def examples(run: Run, which: Sequence[int], *, cache: Path | str) -> Examples:
    """Encode and decode some held-out images, by their places in the evaluation.

    Raises ValueError when the run has no checkpoint.
    """
    data, tokenizer = run.config.data, run.tokenizer("cpu")
    images, _, _ = evaluation_images(
        load(data, "val", cache=Path(cache)), size=data.size, limit=data.eval_crops
    )
    picked = images[list(which)]
    indices = tokenizer.encode(to_model(picked))
    decoded = to_unit(tokenizer.decode(indices)).clamp(0, 1)
    return Examples(picked / 255, decoded, indices.numpy(), tokenizer.quantizer.sites)


@torch.no_grad()
def latent_geometry(
    tokenizer: Tokenizer, images: UInt8[Tensor, "N 3 S S"], *, batch_size: int = 64
) -> dict[str, float]:
    """Hold a codebook against its latents, in the space where the nearest code is chosen.

    `latent_error`: squared error of the latents as a share of their variance. `effective_dim`:
    participation ratio of their covariance. `geometry_efficiency`: the error that a Gaussian of
    this covariance must have at the rate H(u), over the error (`bounds.geometry_efficiency`).
    `mass_law_share`: perplexity / K of an optimal quantizer of a Gaussian of that dimension.
    Nothing when the latents do not vary, or nothing of them is lost.
    """
    device = next(tokenizer.parameters()).device
    quantizer = tokenizer.eval().quantizer
    sites = quantizer.sites.double()
    dim = sites.shape[1]
    total, products = sites.new_zeros(dim), sites.new_zeros(dim, dim)
    error, count = 0.0, 0
    counts = torch.zeros(tokenizer.num_codes, dtype=torch.float64, device=device)
    for batch in images.split(batch_size):
        latents = tokenizer.latents(to_model(batch.to(device)))
        indices = quantizer.encode(latents).flatten()
        z = quantizer.points(latents).flatten(0, -2).double()
        error += float((z - sites[indices]).square().sum())
        total += z.sum(0)
        products += z.T @ z
        counts += torch.bincount(indices, minlength=len(counts))
        count += len(z)
    mean = total / count
    eigenvalues = torch.linalg.eigvalsh(products / count - torch.outer(mean, mean))
    spectrum = eigenvalues.clamp(min=0).cpu().numpy()
    entropy = float(torch.special.entr(counts / count).sum())
    dimension = participation_ratio(spectrum)
    if not error > 0 or not dimension > 0:
        return {}
    return {
        "latent_error": error / count / float(spectrum.sum()),
        "effective_dim": dimension,
        "geometry_efficiency": geometry_efficiency(spectrum, entropy, error / count),
        "mass_law_share": mass_law_perplexity(dimension),
    }


def assess(
    run: Run, *, cache: Path | str, train_batches: int = 32, device: str = "", progress: bool = True
) -> Assessment:
    """Evaluate a run's newest checkpoint and write `evaluation.json` and its arrays.

    `cache`: folder of data stores and of the originals' features. `train_batches`: batches of
    training crops
    from which the range coder learns how often each code occurs. `device`: a GPU when there is one,
    by default.
    Raises ValueError when the run has no checkpoint.
    """
    require_whole(train_batches=train_batches)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config, cache = run.config, Path(cache)
    tokenizer = run.tokenizer(device)
    batches = TrainingBatches(
        load(config.data, "train", cache=cache),
        size=config.data.size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        device=device,
    )
    images, labels, image_ids = evaluation_images(
        load(config.data, "val", cache=cache), size=config.data.size, limit=config.data.eval_crops
    )
    extractor = build_extractor(config.evaluation.extractor, config.evaluation.distance)
    shared = dict(batch_size=config.evaluation.batch_size, device=device, progress=progress)
    reference = None
    if extractor is not None:
        reference = reference_features(images, extractor, cache=cache, **shared)
    evaluation = evaluate(
        tokenizer,
        images,
        extractor=extractor,
        reference=reference,
        train_counts=training_counts(tokenizer, batches, train_batches),
        image_ids=image_ids,
        seed=config.seed,
        **shared,
    )
    evaluation.numbers.update(
        latent_geometry(tokenizer, images, batch_size=config.evaluation.batch_size)
    )
    arrays = {f"per_image.{name}": values for name, values in evaluation.per_image.items()}
    arrays |= {"counts": evaluation.counts, "indices": evaluation.indices, "labels": labels.numpy()}
    run.save_evaluation(evaluation.numbers, arrays)
    return Assessment(tokenizer, images, labels, evaluation)
