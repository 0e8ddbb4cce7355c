"""What a token costs: by counts of codes, by its left neighbor, and under a prior."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lgqlib.prior.codec import tokens_of
from lgqlib.prior.model import fit
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
) -> dict[str, float | int]:
    """Fit a prior on the tokens of training images, and give what held-out tokens cost under it.

    Means over all held-out tokens, in bits a token and a pixel; beside them the cost by counts of
    codes alone.
    """
    maps, tested = ([tokens_of(tokenizer, x) for x in xs] for xs in (train_images, held_out))
    options = {"num_steps": num_steps, "seed": seed, "device": device, "progress": progress}
    prior = fit(tokenizer.codebook, maps, **options)
    tokens = sum(indices.numel() for indices in tested)
    bits = sum(float(prior.nll(indices).double().sum()) for indices in tested) / tokens
    sizes = torch.tensor([indices.numel() for indices in tested])
    counted = count_bits(maps, tested, tokenizer.codebook)
    return {
        "bits_per_token_prior": bits,
        "bits_per_pixel_prior": bits / tokenizer.config.backbone.downsample**2,
        "bits_per_token_counted": float((counted * sizes).sum() / tokens),
        "prior_steps": num_steps,
        "prior_tokens": tokens,
    }
