"""A prior over tokens: what a token really costs, and photographs as files of tokens."""

from lgqlib.prior.codec import compress, decompress, pretrained
from lgqlib.prior.encoding import cheaper_tokens, closer_tokens, tokens_of
from lgqlib.prior.heads import HEADS
from lgqlib.prior.model import Prior, fit
from lgqlib.prior.rates import count_bits, file_rates, head_rates, prior_bits

__all__ = [
    "HEADS",
    "Prior",
    "cheaper_tokens",
    "closer_tokens",
    "compress",
    "count_bits",
    "decompress",
    "file_rates",
    "fit",
    "head_rates",
    "pretrained",
    "prior_bits",
    "tokens_of",
]
