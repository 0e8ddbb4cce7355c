"""The coded rate: what tokens cost when a range coder really writes them."""

from typing import NamedTuple

import constriction
import numpy as np
from jaxtyping import Int
from torch import Tensor


class CodedRate(NamedTuple):
    """The size of a coded token stream, including the coder's last partial word."""

    bits_per_token: float
    num_tokens: int
    num_bytes: int


def coded_rate(indices: Int[Tensor, "*shape"], train_counts: Int[Tensor, " K"]) -> CodedRate:
    """Encode tokens with a range coder, decode them back, and return what they cost.

    The model is categorical with probability (count + 1/2) / (N + K/2) from the usage
    `train_counts` of the K codes on training images (Krichevsky and Trofimov 1981): the receiver
    needs nothing from the images that are sent, and an unseen code still has a codeword. Indices
    are sent in their order in memory as one stream. Raises `RuntimeError` should the decoded
    tokens differ.
    """
    num_codes = len(train_counts)
    symbols = indices.detach().flatten().cpu().numpy()
    if num_codes < 2 or symbols.size == 0:
        raise ValueError(
            f"{symbols.size} tokens of {num_codes} codes; coding needs at least 1 token and 2 codes"
        )
    if symbols.min() < 0 or symbols.max() >= num_codes:
        raise ValueError(
            f"indices run from {symbols.min()} to {symbols.max()}; they must lie in"
            f" [0, {num_codes})"
        )
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
