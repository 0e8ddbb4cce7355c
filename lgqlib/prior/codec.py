"""A photograph as a file of tokens: range coding under a causal model, along its wavefront.

A file is 20 bytes and a stream of 32-bit words. The bytes say what it is (`LGQ1`), the height and
width in pixels, K - 1, which tokenizer and prior wrote it, and hold a checksum of the tokens and
one of the rest. Who writes and who reads go through `Prior.along` alike, so that their floats, and
with them the coder's intervals, are equal; where they are not, the checksum of the tokens says so.
"""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import constriction
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from lgqlib.data import to_uint8
from lgqlib.prior.encoding import closer_tokens, tokens_of
from lgqlib.prior.model import Prior
from lgqlib.tokenizer import Tokenizer

MAGIC = b"LGQ1"
HEADER = struct.Struct("<4sHHHIHI")
"""Magic, height, width, K - 1, models, tokens, rest."""
PRETRAINED = Path(__file__).parents[1] / "pretrained"
MODEL = constriction.stream.model.Categorical(perfect=False, lazy=True)


def compress(
    tokenizer: Tokenizer,
    prior: Prior,
    image: UInt8[Tensor, "3 H W"],
    *,
    weight: float | None = None,
) -> bytes:
    """Write an image as the bytes of a file: by its nearest codes or, where `weight` is given, by
    those of `closer_tokens`, a search of half a minute. ValueError as in `write`.
    """
    if weight is None:
        tokens = tokens_of(tokenizer, image)
    else:
        tokens = closer_tokens(tokenizer, image, prior, weight=weight)
    return write(tokenizer, prior, tokens, size=tuple(image.shape[1:]))


def write(
    tokenizer: Tokenizer, prior: Prior, tokens: Int[Tensor, "h w"], *, size: tuple[int, int]
) -> bytes:
    """Write tokens of an image of `size`, height and width in pixels, as the bytes of a file.

    ValueError for sides above 65,535 pixels.
    """
    if max(size) > 65535:
        raise ValueError(f"an image of {size[1]} x {size[0]} pixels: a side has at most 65535.")
    coder = constriction.stream.queue.RangeEncoder()

    def known(probs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        chosen = tokens[rows, columns]
        coder.encode(chosen.cpu().numpy().astype(np.int32), MODEL, probs.cpu().numpy())
        return chosen

    prior.along(*tokens.shape, known)
    stream = coder.get_compressed().astype("<u4").tobytes()
    about = (MAGIC, *size, tokenizer.num_codes - 1, _models(tokenizer, prior), _checksum(tokens))
    head = HEADER.pack(*about, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head + stream)) + stream


def read(tokenizer: Tokenizer, prior: Prior, content: bytes) -> tuple[Tensor, tuple[int, int]]:
    """Read tokens, and the image's height and width, back from a file's bytes.

    Raises ValueError for another kind of file, one of another tokenizer or prior, a damaged one,
    and where this machine's floats are not those of the machine that wrote it.
    """
    if len(content) < HEADER.size or content[:4] != MAGIC:
        raise ValueError("no file of tokens: it does not begin with LGQ1 and its header.")
    _, height, width, last, models, tokens, rest = HEADER.unpack_from(content)
    stream = content[HEADER.size :]
    if rest != zlib.crc32(content[: HEADER.size - 4] + stream) or len(stream) % 4:
        raise ValueError("the file is torn or damaged: its checksum is not the one written.")
    if last != tokenizer.num_codes - 1 or models != _models(tokenizer, prior):
        raise ValueError(
            f"the file is of another tokenizer or prior, with K = {last + 1}: models {models:08x}, "
            f"not {_models(tokenizer, prior):08x}."
        )
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))

    def unknown(probs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        found = coder.decode(MODEL, probs.cpu().numpy())
        return torch.from_numpy(found.astype(np.int64)).to(probs.device)

    factor = tokenizer.config.backbone.downsample
    other = ValueError(
        "the tokens read are not those written: this machine's floats differ from the writer's."
    )
    try:
        found = prior.along(-(-height // factor), -(-width // factor), unknown)
    except AssertionError:  # constriction's, for a stream that no such model wrote
        raise other from None
    if _checksum(found) != tokens:
        raise other
    return found, (height, width)


@torch.no_grad()
def decompress(tokenizer: Tokenizer, prior: Prior, content: bytes) -> UInt8[Tensor, "3 H W"]:
    """Read the image back from a file's bytes, exactly as the tokenizer decodes its tokens.

    Raises ValueError as `read` does.
    """
    tokens, (height, width) = read(tokenizer, prior, content)
    return to_uint8(tokenizer.decode(tokens[None]))[0, :, :height, :width].cpu()


def pretrained(folder: Path | str = "") -> tuple[Tokenizer, Prior]:
    """Open a tokenizer and its `prior.safetensors` in a folder; by default the first that ships.

    Raises ValueError where there is none, or it does not fit the tokenizer.
    """
    folders = [Path(folder)] if folder else sorted(PRETRAINED.glob("*/"))
    found = [place for place in folders if (place / "prior.safetensors").is_file()]
    if not found:
        where = folder or PRETRAINED
        raise ValueError(f"no tokenizer with a prior.safetensors in {where}: name a folder.")
    tokenizer = Tokenizer.from_pretrained(found[0]).eval()
    return tokenizer, Prior.load(found[0] / "prior.safetensors", tokenizer.codebook)


def _checksum(tokens: Tensor) -> int:
    return zlib.crc32(tokens.cpu().numpy().astype("<u4").tobytes()) & 0xFFFF


def _models(tokenizer: Tokenizer, prior: Prior) -> int:
    """Give a checksum of all that decides what a file's bits mean."""
    digest = hashlib.sha256(json.dumps(tokenizer.config.to_dict()["quantizer"]).encode())
    for model in (tokenizer, prior):
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:4], "little")
