"""What codes cost: how many work, how evenly, and their bits when a range coder writes them."""

import math
from typing import NamedTuple

import constriction
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def code_usage(counts: Int[Tensor, " K"]) -> dict[str, float | int]:
    """Return how many codes work and how evenly, from the tokens counted on each of K codes.

    Entropies are in bits a token: `entropy` is the plug-in estimate, to which
    `entropy_miller_madow` adds its bias; `entropy_2` is Renyi's. `perplexity` is 2 ** entropy.
    `gini` is 0 for even use and 1 - 1/K for a single code. `top_1_percent`, `top_10_percent`:
    tokens on those of the most used codes.
    """
    num_tokens, num_codes = int(counts.sum()), len(counts)
    if num_tokens == 0:
        raise ValueError("counts has no token; count at least one before asking for usage")
    ordered = counts.double().cpu().sort().values
    share = ordered / num_tokens
    entropy = 0.0 - torch.special.xlogy(share, share).sum().item() / math.log(2)
    active = int((counts > 0).sum())
    rank = torch.arange(1, num_codes + 1, dtype=torch.float64)
    return {
        "num_codes": num_codes,
        "num_tokens": num_tokens,
        "active": active,
        "active_share": active / num_codes,
        "entropy": entropy,
        "entropy_miller_madow": entropy + (active - 1) / (2 * num_tokens * math.log(2)),
        "entropy_2": 0.0 - math.log2(share.square().sum().item()),
        "perplexity": 2**entropy,
        "perplexity_share": 2**entropy / num_codes,
        "gini": ((2 * rank - num_codes - 1) * share).sum().item() / num_codes,
        "top_1_percent": share[-math.ceil(num_codes / 100) :].sum().item(),
        "top_10_percent": share[-math.ceil(num_codes / 10) :].sum().item(),
    }


class CodedRate(NamedTuple):
    """The size of a coded token stream, including the coder's last partial word."""

    bits_per_token: float
    num_tokens: int
    num_bytes: int


def coded_rate(indices: Int[Tensor, "*shape"], train_counts: Int[Tensor, " K"]) -> CodedRate:
    """Encode tokens with a range coder, decode them back, and return what they cost.

    The model has probability (count + 1/2) / (N + K/2) from `train_counts` on training images
    (Krichevsky and Trofimov 1981): the receiver needs nothing else, and an unseen code has a
    codeword. RuntimeError should the decoded tokens differ.
    """
    num_codes = len(train_counts)
    symbols = indices.detach().flatten().cpu().numpy()
    if symbols.size == 0:
        raise ValueError("0 tokens; coding needs at least 1")
    low, high = symbols.min(), symbols.max()
    if low < 0 or high >= num_codes:
        raise ValueError(f"indices run from {low} to {high}; they must lie in [0, {num_codes})")
    if num_codes == 1:  # whoever knows their number knows them all
        return CodedRate(0.0, symbols.size, 0)
    symbols = symbols.astype(np.int32)
    weights = train_counts.detach().cpu().numpy().astype(np.float64) + 0.5
    model = constriction.stream.model.Categorical(weights / weights.sum(), perfect=False)
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, model)
    words = encoder.get_compressed()
    decoded = constriction.stream.queue.RangeDecoder(words).decode(model, symbols.size)
    if not np.array_equal(decoded, symbols):
        raise RuntimeError("the range decoder did not return the tokens that were encoded")
    return CodedRate(8 * words.nbytes / symbols.size, symbols.size, words.nbytes)
