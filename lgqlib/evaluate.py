"""The one evaluation pass that training and notebooks share; all of it sees `decode(encode(x))`."""

import contextlib
import hashlib
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm.auto import tqdm

import lgqlib.measure.images as metrics
from lgqlib import data
from lgqlib.data import to_model
from lgqlib.files import replacing, require, writable
from lgqlib.measure import METRICS
from lgqlib.measure.distances import frechet_distance, kernel_distance, nearest_others
from lgqlib.measure.features import Extractor, build_extractor
from lgqlib.measure.theory import geometry_efficiency, mass_law_perplexity, participation_ratio
from lgqlib.measure.usage import code_usage, coded_rate
from lgqlib.prior import prior_bits
from lgqlib.run import Run
from lgqlib.tokenizer import Tokenizer

OCTAVES = ("error_below_4", "error_4_to_8", "error_8_to_16", "error_above_16")  # by period, pixels
REGIONS = ("error_edges", "error_flat")
FEW = 30  # images below which a mean says little of others
LEAST = {"kid": 3, "fd": 2}  # images below which a distance of distributions is not defined
TAUGHT = 64  # training images seen whole, on whose tokens the small prior is fitted
CACHE_VERSION = 1  # part of the key of cached features: raise it when their computation changes


class Evaluation(NamedTuple):
    """What an evaluation found, over N images of h x w tokens and K codes."""

    numbers: dict[str, float | int | str]  # by name; those that are shown have a row in METRICS
    per_image: dict[str, np.ndarray]
    counts: Int[np.ndarray, " K"]
    indices: Int[np.ndarray, "N h w"]


def evaluate(
    tokenizer: Tokenizer,
    images: UInt8[Tensor, "N 3 S S"],
    *,
    extractor: Extractor | None = None,
    train_counts: Int[Tensor, " K"] | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    reference: Float[np.ndarray, "_N D"] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a tokenizer on images: fidelity, distribution distances, code usage and rate.

    An `extractor` adds the perceptual, the kernel (`kid`, with its standard error `kid_se`) and the
    Fréchet distance (`fd`); `reference` is its features of the images, where they are known.
    `train_counts`, how often codes occur in training, adds the rate that a range coder reaches.
    The tokenizer must be on `device`. PSNR is in dB, entropies and rates are in bits. Raises
    ValueError when arguments do not fit.
    """
    _check(images, tokenizer.num_codes, train_counts, reference)
    parts: dict[str, list[Tensor]] = {}
    if extractor is not None:
        extractor.to(device)
    with (
        # Not inference_mode: training goes on to use whatever tables a quantizer keeps.
        torch.no_grad(),
        _eval_mode(tokenizer),
        tqdm(total=len(images), desc="evaluate", unit="image", disable=not progress) as bar,
    ):
        for batch in images.split(batch_size):
            originals = batch.to(device)
            decoded, indices = _through(tokenizer, originals)
            x, y = _as_saved(originals, decoded)
            found = {"indices": indices, "l1": metrics.l1(x, y), "psnr": metrics.psnr(x, y)}
            found["ssim"] = metrics.ssim(x, y)
            if min(x.shape[-2:]) >= metrics.MS_SSIM_SIDE:
                found["ms_ssim"] = metrics.ms_ssim(x, y)
            if extractor is not None:
                pair = originals.float() / 255, y.to(decoded)
                found |= extractor.compare(*pair, with_original=reference is None)._asdict()
            for name, value in found.items():
                if value is not None:
                    parts.setdefault(name, []).append(value.cpu())
            bar.update(len(batch))

    arrays = {name: torch.cat(values).numpy() for name, values in parts.items()}
    indices, decoded = arrays.pop("indices"), arrays.pop("reconstruction", None)
    original = arrays.pop("original", reference)
    means = {name: float(values.mean(dtype=np.float64)) for name, values in arrays.items()}
    numbers: dict[str, float | int | str] = {"num_images": len(images), **means}
    if extractor is not None:
        numbers |= _distances(torch.from_numpy(original), torch.from_numpy(decoded))
        numbers |= {"extractor": extractor.name, "preprocessing": extractor.preprocessing}
    counts = np.bincount(indices.ravel(), minlength=tokenizer.num_codes)
    numbers |= code_usage(torch.from_numpy(counts))
    numbers |= _rates(indices, numbers, train_counts, pixels=images.shape[-1] * images.shape[-2])
    return Evaluation(numbers, arrays, counts, indices)


@dataclass(frozen=True)
class RunEvaluation:
    """A run's evaluation, with the tokenizer and the images that it is of."""

    tokenizer: Tokenizer
    held_out: UInt8[Tensor, "N 3 S S"]
    labels: Int[Tensor, " N"]
    evaluation: Evaluation
    photographs: dict[str, UInt8[np.ndarray, "_ _ 3"]]  # none where crops are whole images

    @property
    def numbers(self) -> dict[str, Any]:
        """Every number, by the name it has in `evaluation.json`."""
        return self.evaluation.numbers

    @property
    def caveats(self) -> list[str]:
        """Say what the numbers mean where images, tokens or codes are few."""
        n, k, tokens = (self.numbers[f"num_{what}"] for what in ("images", "codes", "tokens"))
        needs = [f"{METRICS[key].label} needs {least}" for key, least in LEAST.items() if n < least]
        said = {
            f"{n} held-out image(s): means say little of other images": n < FEW,
            f"too few images for a distance of distributions: {', '.join(needs)}": (
                needs and "extractor" in self.numbers
            ),
            f"{tokens:,} tokens for {k:,} codes: more tokens would find more active codes, a "
            "higher perplexity and entropy": tokens < 10 * k,
            "one code: every token is the same, and costs no bit": k == 1,
        }
        return [text for text, holds in said.items() if holds]

    def at_percentiles(self, metric: str, percentiles: Sequence[float]) -> list[int]:
        """Give the different images at percentiles of a per-image metric, lowest first."""
        order = np.argsort(self.evaluation.per_image[metric], kind="stable")
        places = np.round(np.asarray(percentiles) / 100 * (len(order) - 1)).astype(int)
        return list(dict.fromkeys(order[places].tolist()))

    def decoded(self, which: Sequence[int]) -> Float[Tensor, "n 3 S S"]:
        """Give reconstructions of held-out images in [0, 1], clamped as a saved file would be."""
        return _decoded(self.tokenizer, self.held_out[list(which)])[0]


def evaluate_run(
    run: Run, *, cache: Path | str, train_batches: int = 32, device: str = "", progress: bool = True
) -> RunEvaluation:
    """Evaluate a run's newest checkpoint on held-out images of its data, and write what was found.

    `cache`: folder of data stores and features. `train_batches`: of crops from which the range
    coder learns how often each code occurs. `device`: by default a GPU when there is one.
    ValueError when the run has no checkpoint.
    """
    require(train_batches=train_batches)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config, cache = data.identified(run.config), Path(cache)
    tokenizer, size = run.tokenizer(device), config.data.size
    train_set, held_out = (data.load(config.data, s, cache=cache) for s in data.SPLITS)
    batches = data.training_batches(config, train_set, device=device)
    limit, batch_size = config.data.eval_crops, config.evaluation.batch_size
    images, labels, image_ids = data.evaluation_images(held_out, size=size, limit=limit)
    extractor = build_extractor(config.evaluation.extractor, config.evaluation.distance)
    shared = dict(extractor=extractor, batch_size=batch_size, device=device, progress=progress)
    reference = reference_features(images, cache=cache, **shared) if extractor else None
    counts = training_counts(tokenizer, batches, train_batches)
    given = {"reference": reference, "train_counts": counts}
    evaluation = evaluate(tokenizer, images, **given, **shared)
    evaluation.per_image["image"] = image_ids.numpy()
    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
    evaluation.numbers.update({"seed": config.seed, "device": name})
    evaluation.numbers.update(latent_geometry(tokenizer, images, batch_size=batch_size))
    arrays = {f"per_image.{name}": values for name, values in evaluation.per_image.items()}
    arrays |= {"counts": evaluation.counts, "indices": evaluation.indices, "labels": labels.numpy()}
    photographs, factor = {}, config.backbone.downsample
    if data.is_tiled(held_out, size=size) and (limit := config.evaluation.photographs):
        photographs = dict(data.whole_images(held_out, multiple=factor, limit=limit))
        numbers, more = evaluate_whole(tokenizer, photographs, train_counts=counts, device=device)
        evaluation.numbers.update(numbers)
        arrays |= more
    if steps := config.evaluation.prior_steps:
        if photographs:
            tested = photographs.values()
            taught = dict(data.whole_images(train_set, multiple=factor, limit=TAUGHT)).values()
        else:
            tested = images
            taught = torch.cat([batches.batch(step)[0].cpu() for step in range(train_batches)])
        options = {"seed": config.seed, "num_steps": steps, "device": device, "progress": progress}
        numbers, bits = prior_bits(tokenizer, taught, tested, **options)
        evaluation.numbers.update(numbers)
        arrays["whole.bits_prior" if photographs else "per_image.bits_prior"] = bits
    run.save_evaluation(evaluation.numbers, arrays)
    photographs = {name: image.permute(1, 2, 0).numpy() for name, image in photographs.items()}
    return RunEvaluation(tokenizer, images, labels, evaluation, photographs)


@torch.no_grad()
def evaluate_whole(
    tokenizer: Tokenizer,
    photographs: Mapping[str, UInt8[Tensor, "3 H W"]],
    *,
    train_counts: Int[Tensor, " K"],
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float | int], dict[str, np.ndarray]]:
    """Measure a tokenizer on photographs of any sizes, whole; sides are multiples of its factor.

    Numbers are means over photographs: `whole_psnr`, `whole_ssim`, coded bits a pixel of all of
    them, and the squared error by octave of spatial frequency, at edges and in flat regions.
    Arrays: the same for each photograph under `whole.`, with `whole.bits` its own coded bits a
    pixel, and what it decodes to, bytes [H, W, 3], under `decoded.` and its name.
    """
    tokenizer.eval()
    rows: dict[str, list[Tensor]] = {name: [] for name in ("psnr", "ssim", "octaves", "edges")}
    arrays, streams, bits = {}, [], []
    for name, image in photographs.items():
        original = image[None].to(device)
        decoded, indices = _through(tokenizer, original)
        x, y = _as_saved(original, decoded)
        measures = (metrics.psnr, metrics.ssim, metrics.octave_errors, metrics.edge_errors)
        for row, measure in zip(rows.values(), measures, strict=True):
            row.append(measure(x, y).cpu())
        arrays[f"decoded.{name}"] = (y[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        streams.append(indices.flatten().cpu())
        bits.append(8 * coded_rate(streams[-1], train_counts).num_bytes / image[0].numel())
    arrays["whole.bits"] = np.array(bits)
    arrays |= {f"whole.{name}": torch.cat(row).numpy() for name, row in rows.items()}
    pixels = sum(image.shape[1] * image.shape[2] for image in photographs.values())
    rate = coded_rate(torch.cat(streams), train_counts)
    octaves, edges = arrays["whole.octaves"].mean(0), arrays["whole.edges"].mean(0)
    numbers = {
        "num_photographs": len(photographs),
        "whole_psnr": float(arrays["whole.psnr"].mean()),
        "whole_ssim": float(arrays["whole.ssim"].mean()),
        "whole_bits_per_pixel": 8 * rate.num_bytes / pixels,
    }
    errors = [*octaves.tolist(), *edges.tolist()]
    return numbers | dict(zip((*OCTAVES, *REGIONS), errors, strict=True)), arrays


@torch.no_grad()
def training_counts(
    tokenizer: Tokenizer, batches: data.TrainingBatches, num_batches: int
) -> Int[Tensor, " K"]:
    """Count the codes of training crops, by the tokenizer as it is now."""
    crops = (to_model(batches.batch(step)[0]) for step in range(num_batches))
    indices = torch.cat([tokenizer.encode(images).flatten().cpu() for images in crops])
    return torch.bincount(indices, minlength=tokenizer.num_codes)


@torch.no_grad()
def latent_geometry(
    tokenizer: Tokenizer, images: UInt8[Tensor, "N 3 S S"], *, batch_size: int = 64
) -> dict[str, float]:
    """Hold a codebook against its latents, in the space where the nearest code is chosen.

    `latent_error`: squared error as a share of the variance. `effective_dim`: participation ratio.
    `geometry_efficiency`: the least error of a Gaussian of this covariance at the rate H(u), over
    the error. `mass_law_share`: perplexity / K of its optimal quantizer. `nearest_code`: how far
    used codes are from the nearest other, 10 % quantile, in deviations. Empty without variance.
    """
    device = next(tokenizer.parameters()).device
    quantizer = tokenizer.eval().quantizer
    sites = quantizer.sites.double()
    products, error, chosen = 0.0, 0.0, []
    for batch in images.split(batch_size):
        latents = tokenizer.latents(to_model(batch.to(device)))
        indices = quantizer.encode(latents).flatten()
        z = quantizer.points(latents).flatten(0, -2).double()
        error += float((z - sites[indices]).square().sum())
        z = torch.cat([z, torch.ones_like(z[:, :1])], 1)  # its mean stands in the last column
        products = products + z.T @ z
        chosen.append(indices)
    indices = torch.cat(chosen)
    moments = products / len(indices)
    covariance = moments[:-1, :-1] - torch.outer(moments[-1, :-1], moments[-1, :-1])
    spectrum = torch.linalg.eigvalsh(covariance).clamp(min=0).cpu().numpy()
    entropy = float(torch.special.entr(torch.bincount(indices) / len(indices)).sum())
    dimension = participation_ratio(spectrum)
    if not error > 0 or not dimension > 0:
        return {}
    used = sites[indices.unique()].cpu()
    near = nearest_others(used)[0][:, 0] if len(used) > 1 else np.full(1, np.nan)
    return {
        "nearest_code": float(np.quantile(near, 0.1) / math.sqrt(spectrum.mean())),
        "latent_error": error / len(indices) / float(spectrum.sum()),
        "effective_dim": dimension,
        "geometry_efficiency": geometry_efficiency(spectrum, entropy, error / len(indices)),
        "mass_law_share": mass_law_perplexity(dimension),
    }


class Examples(NamedTuple):
    """Held-out images through a run's tokenizer."""

    originals: Float[Tensor, "n 3 S S"]  # in [0, 1], as are the decoded ones
    decoded: Float[Tensor, "n 3 S S"]
    indices: Int[np.ndarray, "n h w"]
    sites: Float[Tensor, "K D"]


def examples(run: Run, which: Sequence[int], *, cache: Path | str) -> Examples:
    """Encode and decode some held-out images of a run, by their places in the evaluation."""
    tokenizer, of = run.tokenizer("cpu"), run.config.data
    held_out = data.load(of, "val", cache=Path(cache))
    picked = data.evaluation_images(held_out, size=of.size, limit=of.eval_crops)[0][list(which)]
    decoded, indices = _decoded(tokenizer, picked)
    return Examples(picked / 255, decoded, indices.numpy(), tokenizer.quantizer.sites.detach())


@torch.no_grad()
def _decoded(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Give reconstructions in [0, 1] and indices of images of bytes, on the CPU."""
    decoded, indices = _through(tokenizer, images.to(next(tokenizer.parameters()).device))
    return decoded.clamp(0, 1).cpu(), indices.cpu()


def _through(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Give what bytes decode to, in about [0, 1], and their indices."""
    indices = tokenizer.encode(to_model(images))
    return data.to_unit(tokenizer.decode(indices).float()), indices


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

    The file's name hashes pixels, extractor and version. What cannot be read is made anew.
    """
    identity = f"{CACHE_VERSION} {extractor.name} {extractor.preprocessing} {tuple(images.shape)}"
    digest = hashlib.sha256(identity.encode() + images.contiguous().numpy().tobytes()).hexdigest()
    path = Path(cache) / f"features-{digest[:24]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        features = np.load(path, allow_pickle=False)
        if features.ndim == 2 and len(features) == len(images):
            return features
    extractor.to(device)
    batches = tqdm(images.split(batch_size), desc="features of originals", disable=not progress)
    with torch.no_grad():
        parts = [extractor.pooled(batch.to(device).float() / 255).cpu() for batch in batches]
    features = torch.cat(parts).numpy()
    with replacing(writable(path.parent) / path.name) as temporary:
        np.save(temporary, features)
    return features


def _distances(original: Tensor, decoded: Tensor) -> dict[str, float]:
    numbers = {}
    if len(original) >= LEAST["kid"]:
        kid = kernel_distance(original, decoded, paired=True)
        numbers |= {"kid": kid.value, "kid_se": kid.standard_error}
    if len(original) >= LEAST["fd"]:
        numbers["fd"] = frechet_distance(original, decoded)
    return numbers


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


def _as_saved(originals: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Give both in [0, 1], of 8 bits and in float64, which MPS does not have."""
    off = [x.cpu() if x.device.type == "mps" else x for x in (originals, decoded)]
    return off[0].double() / 255, metrics.quantize_8bit(off[1])


@contextlib.contextmanager
def _eval_mode(tokenizer: Tokenizer) -> Iterator[None]:
    """Switch to evaluation mode, and afterwards each part back to the mode that it was in."""
    modes = [(module, module.training) for module in tokenizer.modules()]
    tokenizer.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check(
    images: Tensor, num_codes: int, train_counts: Tensor | None, reference: np.ndarray | None
) -> None:
    n, shape = len(images), tuple(images.shape)
    if images.dtype != torch.uint8 or images.ndim != 4 or n == 0:
        raise ValueError(f"images are {images.dtype} of shape {shape}; give uint8 [N, 3, S, S]")
    if reference is not None and (rows := len(reference)) != n:
        raise ValueError(f"reference has {rows} rows for {n} images; give one each")
    if train_counts is not None and (found := len(train_counts)) != num_codes:
        said = f"train_counts has {found} codes, the tokenizer {num_codes}"
        raise ValueError(f"{said}; count its own")
