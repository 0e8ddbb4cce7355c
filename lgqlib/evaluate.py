"""The one evaluation pass that training and notebooks share: images in, numbers out.

Every metric sees `decode(encode(images))`, and nothing here writes a weight.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgqlib.data import to_model, to_unit
from lgqlib.files import replacing
from lgqlib.measure.coding import coded_rate
from lgqlib.measure.features import Extractor
from lgqlib.measure.images import (
    MS_SSIM_SIDE,
    CodeUsage,
    FeatureMoments,
    Mean,
    frechet_distance,
    kernel_distance,
    l1,
    ms_ssim,
    psnr,
    quantize_8bit,
    ssim,
)
from lgqlib.tokenizer import Tokenizer

CACHE_VERSION = 1
"""Part of the key of cached features: raise it when their computation changes."""


class Evaluation(NamedTuple):
    """What an evaluation found, over N images of h x w tokens and K codes."""

    numbers: dict[str, float | int | str]
    per_image: dict[str, np.ndarray]
    counts: Int[np.ndarray, " K"]
    indices: Int[np.ndarray, "N h w"]


def evaluate(
    tokenizer: Tokenizer,
    images: UInt8[Tensor, "N 3 S S"],
    *,
    extractor: Extractor | None,
    train_counts: Int[Tensor, " K"] | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    reference: Float[np.ndarray, "_N D"] | None = None,
    image_ids: Int[Tensor, " _N"] | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a tokenizer on images: fidelity, distribution distances, code usage and rate.

    `extractor` None leaves out perceptual, kernel (`kid` with its standard error `kid_se`) and
    Frechet (`fd`) distances, as during training; `reference` is `reference_features` of the same
    images. `train_counts`, the code usage on training images, adds the rate that a range coder
    reaches. `image_ids` (by default 0 to N - 1) stand in `per_image["image"]`, and `seed`, the
    run's, beside the numbers. The tokenizer must be on `device`; an extractor is moved there.
    Numbers are means over images or statistics of all of them: PSNR in dB, entropies and rates in
    bits. Raises ValueError when arguments do not fit each other.
    """
    _check(images, tokenizer.num_codes, train_counts, reference, image_ids)
    means, usage = Mean(), CodeUsage(tokenizer.num_codes)
    parts: dict[str, list[Tensor]] = {}
    if isinstance(extractor, nn.Module):
        extractor.to(device)
    with (
        # Not inference_mode: training goes on to use whatever tables a quantizer keeps.
        torch.no_grad(),
        _eval_mode(tokenizer),
        tqdm(total=len(images), desc="evaluate", unit="image", disable=not progress) as bar,
    ):
        for batch in images.split(batch_size):
            originals = batch.to(device)
            indices = tokenizer.encode(to_model(originals))
            decoded = to_unit(tokenizer.decode(indices).float())
            usage.update(indices)
            values = _fidelity(originals, decoded)
            features = {}
            if extractor is not None:
                comparison = extractor.compare(
                    originals.float() / 255,
                    quantize_8bit(_on_float64_device(decoded)).to(decoded),
                    with_original=reference is None,
                )
                features = {"decoded": comparison.reconstruction, "original": comparison.original}
                if comparison.perceptual is not None:
                    values["perceptual"] = comparison.perceptual
            means.update(**values)
            for name, value in {**values, **features, "indices": indices}.items():
                if value is not None:
                    parts.setdefault(name, []).append(value.cpu())
            bar.update(len(batch))

    arrays = {name: torch.cat(values).numpy() for name, values in parts.items()}
    indices, decoded = arrays.pop("indices"), arrays.pop("decoded", None)
    original = arrays.pop("original", reference)
    numbers: dict[str, float | int | str] = {"num_images": len(images), **means.compute()}
    if extractor is not None:
        numbers |= _distances(original, decoded)
        numbers |= {"extractor": extractor.name, "preprocessing": extractor.preprocessing}
    if seed is not None:
        numbers["seed"] = seed
    numbers |= usage.compute()
    numbers |= _rates(indices, numbers, train_counts, pixels=images.shape[-1] * images.shape[-2])
    ids = torch.arange(len(images)) if image_ids is None else image_ids
    return Evaluation(numbers, {"image": ids.numpy(), **arrays}, usage.counts.numpy(), indices)


def reference_features(
    images: UInt8[Tensor, "N 3 S S"],
    extractor: Extractor,
    *,
    cache: Path,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Float[np.ndarray, "N D"]:
    """Return the pooled features of originals, computed once and kept in the folder `cache`.

    The file's name is a hash of the pixels, the extractor with its weights and preprocessing, and
    the version of this code, so that no other features are ever read; an unreadable file is
    computed again.
    """
    identity = f"{CACHE_VERSION} {extractor.name} {extractor.preprocessing} {tuple(images.shape)}"
    digest = hashlib.sha256(identity.encode())
    for batch in images.split(batch_size):
        digest.update(batch.contiguous().numpy())
    path = Path(cache) / f"features-{digest.hexdigest()[:24]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        features = np.load(path, allow_pickle=False)
        if features.ndim == 2 and len(features) == len(images):
            return features
    if isinstance(extractor, nn.Module):
        extractor.to(device)
    bar = tqdm(total=len(images), desc="features of originals", unit="image", disable=not progress)
    parts = []
    with torch.no_grad(), bar:
        for batch in images.split(batch_size):
            parts.append(extractor.pooled(batch.to(device).float() / 255).cpu())
            bar.update(len(batch))
    features = torch.cat(parts).numpy()
    with replacing(path) as temporary:
        np.save(temporary, features)
    return features


def _fidelity(originals: Tensor, decoded: Tensor) -> dict[str, Tensor]:
    x, y = quantize_8bit(_on_float64_device(decoded)), _on_float64_device(originals).double() / 255
    values = {"l1": l1(x, y), "psnr": psnr(x, y), "ssim": ssim(x, y)}
    if min(x.shape[-2:]) >= MS_SSIM_SIDE:
        values["ms_ssim"] = ms_ssim(x, y)
    return values


def _distances(original: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    x, y = torch.from_numpy(original), torch.from_numpy(decoded)
    kid = kernel_distance(x, y, paired=True)
    moments = FeatureMoments(x.shape[1]), FeatureMoments(x.shape[1])
    for moment, features in zip(moments, (x, y), strict=True):
        moment.update(features)
    return {
        "kid": kid.value,
        "kid_se": kid.standard_error,
        "fd": frechet_distance(*moments),
    }


def _rates(
    indices: np.ndarray, usage: dict, train_counts: Tensor | None, *, pixels: int
) -> dict[str, float | int]:
    """Return what a token and a pixel cost: log2 K, the entropy, and really coded."""
    bits = {"nominal": math.log2(usage["num_codes"]), "entropy": usage["entropy"]}
    if train_counts is not None:
        bits["coded"] = coded_rate(torch.from_numpy(indices), train_counts).bits_per_token
    tokens = indices[0].size
    per_token = {f"bits_per_token_{name}": value for name, value in bits.items()}
    per_pixel = {f"bits_per_pixel_{name}": value * tokens / pixels for name, value in bits.items()}
    return {"tokens_per_image": tokens, **per_token, **per_pixel}


def _on_float64_device(images: Tensor) -> Tensor:
    """Move images off a device without float64 (Apple's)."""
    return images.cpu() if images.device.type == "mps" else images


@contextlib.contextmanager
def _eval_mode(tokenizer: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and afterwards each part back to the mode that it was in."""
    modes = [(module, module.training) for module in tokenizer.modules()]
    tokenizer.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check(
    images: Tensor,
    num_codes: int,
    train_counts: Tensor | None,
    reference: np.ndarray | None,
    image_ids: Tensor | None,
) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; give uint8 [N, 3, S, S]"
        )
    for name, value in (("reference", reference), ("image_ids", image_ids)):
        if value is not None and len(value) != len(images):
            raise ValueError(
                f"{name} has {len(value)} rows for {len(images)} images; give one each"
            )
    if train_counts is not None and len(train_counts) != num_codes:
        raise ValueError(
            f"train_counts has {len(train_counts)} codes, the tokenizer {num_codes}; count its own"
        )
