"""What a token costs: by counts of codes, by its left neighbor, and under a prior."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lgqlib.data import to_uint8
from lgqlib.measure.codecs import CODECS, curve
from lgqlib.measure.images import psnr
from lgqlib.prior.codec import HEADER, write
from lgqlib.prior.encoding import tokens_of
from lgqlib.prior.heads import HEADS
from lgqlib.prior.model import Prior, fit
from lgqlib.quantizers.assignment import nearest
from lgqlib.quantizers.start import initial_codes
from lgqlib.tokenizer import Tokenizer


def count_bits(
    maps: Sequence[Int[Tensor, "_ _"]],
    held_out: Sequence[Int[Tensor, "_ _"]],
    codebook: Float[Tensor, "K c"],
    *,
    clusters: int = 1,
) -> Float[Tensor, " m"]:
    """Give the bits a token of each held-out map by counts: of codes, (n_k + 1/2) / (N + K/2), and
    with `clusters` of codes, of codes after a left neighbor's cluster, drawn toward the former.
    """
    outside, num_codes = clusters, len(codebook)
    cluster = torch.zeros(num_codes + 1, dtype=torch.int64)
    if clusters > 1:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            centers = initial_codes(codebook.detach().float(), clusters, "kmeans")
        cluster[:-1] = nearest(codebook.detach().float(), centers)[:, 0]
    cluster[-1] = outside

    def pairs(indices: Tensor) -> Tensor:
        left = F.pad(indices, (1, 0), value=num_codes)[:, :-1]
        return (cluster[left] * num_codes + indices).flatten()

    size = (clusters + 1) * num_codes
    counts = sum(torch.bincount(pairs(m), minlength=size) for m in maps).view(-1, num_codes)
    share = (counts.sum(0) + 0.5) / (counts.sum() + num_codes / 2)
    if clusters > 1:
        share = (counts + num_codes * share) / (counts.sum(1, keepdim=True) + num_codes)
    else:
        share = share.expand(2, -1).contiguous()
    bits = -share.double().log2().flatten()
    return torch.stack([bits[pairs(m)].mean() for m in held_out])


def prior_bits(
    tokenizer: Tokenizer,
    train_images: Iterable[UInt8[Tensor, "3 _ _"]],
    held_out: Iterable[UInt8[Tensor, "3 _ _"]],
    *,
    seed: int = 0,
    num_steps: int = 600,
    device: str = "",
    progress: bool = True,
) -> tuple[dict[str, float | int], Float[np.ndarray, " n"]]:
    """Fit a prior on the tokens of training images, and give what held-out tokens cost under it.

    Means over all held-out tokens, in bits a token and a pixel, beside them the cost by counts of
    codes alone; and the bits a pixel of each held-out image.
    """
    maps, tested = ([tokens_of(tokenizer, x) for x in xs] for xs in (train_images, held_out))
    options = {"num_steps": num_steps, "seed": seed, "device": device, "progress": progress}
    prior = fit(tokenizer.codebook, maps, **options)
    sizes = torch.tensor([indices.numel() for indices in tested]).double()
    bits = torch.stack([prior.nll(indices).double().mean() for indices in tested]).cpu()
    counted = count_bits(maps, tested, tokenizer.codebook)
    mean, pixels = float(bits @ sizes / sizes.sum()), tokenizer.config.backbone.downsample**2
    numbers = {
        "bits_per_token_prior": mean,
        "bits_per_pixel_prior": mean / pixels,
        "bits_per_token_counted": float(counted @ sizes / sizes.sum()),
        "prior_steps": num_steps,
        "prior_tokens": int(sizes.sum()),
    }
    return numbers, (bits / pixels).numpy()


@torch.no_grad()
def file_rates(
    tokenizer: Tokenizer,
    prior: Prior,
    images: Mapping[str, UInt8[Tensor, "3 _ _"]],
    *,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> pandas.DataFrame:
    """Write each image as a file, and hold it against JPEG and WebP at equal bits: a row an image.

    `bits_per_token` is the model's; `bits_per_pixel` is of the whole file, `excess` how much longer
    its stream is than the model says, and `psnr` of what comes out of it. `JPEG`, `WebP`: PSNR of
    files of as many bits, between the nearest qualities. `encode` gives an image's tokens: by
    default its nearest codes.
    """
    rows = []
    for name, image in images.items():
        tokens = encode(image) if encode else tokens_of(tokenizer, image)
        content = write(tokenizer, prior, tokens, size=tuple(image.shape[1:]))
        decoded = to_uint8(tokenizer.decode(tokens[None]))[:, :, : image.shape[1], : image.shape[2]]
        bits, size = float(prior.nll(tokens).double().sum()), 8 * len(content) / image[0].numel()
        row = {
            "name": name,
            "tokens": tokens.numel(),
            "bits_per_token": bits / tokens.numel(),
            "bits_per_pixel": size,
            "excess": 8 * (len(content) - HEADER.size) / bits - 1,
            "psnr": float(psnr(decoded.cpu() / 255, image[None] / 255)),
        }
        for codec in CODECS:
            points = curve(image.permute(1, 2, 0).numpy(), codec)
            row[codec] = float(np.interp(np.log(size), np.log(points[:, 0]), points[:, 1]))
        rows.append(row)
    return pandas.DataFrame(rows)


def head_rates(
    codebook: Float[Tensor, "K c"],
    maps: Sequence[Int[Tensor, "_ _"]],
    held_out: Sequence[Int[Tensor, "_ _"]],
    *,
    num_steps: int,
    seed: int = 0,
    progress: bool = True,
) -> pandas.DataFrame:
    """Fit a prior with every head in equal steps: a row a head, with its bits a held-out token."""
    rows = []
    for head in HEADS:
        options = {"num_steps": num_steps, "seed": seed, "progress": progress}
        prior = fit(codebook, maps, head=head, **options)
        bits = torch.cat([prior.nll(indices).flatten() for indices in held_out])
        row = {"num_codes": len(codebook), "head": head, "bits": float(bits.double().mean())}
        parameters = sum(parameter.numel() for parameter in prior.parameters())
        rows.append(row | {"steps": num_steps, "parameters": parameters})
    return pandas.DataFrame(rows)
