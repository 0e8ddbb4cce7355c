"""What a person would use instead: JPEG and WebP at the same bits a pixel, by Pillow."""

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lgqlib.measure.images import psnr_bytes

CODECS = {"JPEG": {"format": "JPEG", "optimize": True}, "WebP": {"format": "WEBP", "method": 6}}
"""By label: Pillow's options; sizes are of whole files."""
QUALITIES = (1, 2, 3, 5, 8, 12, 17, 23, 30, 38, 47, 57, 67, 76, 84, 90, 95)


def coded(
    image: UInt8[np.ndarray, "H W 3"], codec: str, quality: int
) -> tuple[float, UInt8[np.ndarray, "H W 3"]]:
    """Return the bits a pixel of an image coded as a file, and what the file decodes to."""
    file = BytesIO()
    Image.fromarray(image).save(file, quality=quality, **CODECS[codec])
    bits = 8 * file.tell() / (image.shape[0] * image.shape[1])
    return bits, np.array(Image.open(file).convert("RGB"))


def curve(image: UInt8[np.ndarray, "H W 3"], codec: str) -> np.ndarray:
    """Return bits a pixel and PSNR in dB at each of `QUALITIES`, [Q, 2], the bits ascending."""
    files = (coded(image, codec, quality) for quality in QUALITIES)
    return np.array(sorted((bits, psnr_bytes(image, decoded)) for bits, decoded in files))


def at_rate(
    image: UInt8[np.ndarray, "H W 3"], codec: str, bits_per_pixel: float
) -> tuple[float, UInt8[np.ndarray, "H W 3"]]:
    """Return the bits of the best file of at most so many, or the smallest, and its image."""
    low, high = 1, 95  # the size grows with the quality, almost always
    best = coded(image, codec, low)
    while low <= high:
        middle = (low + high) // 2
        found = coded(image, codec, middle)
        if found[0] <= bits_per_pixel:
            best, low = found, middle + 1
        else:
            high = middle - 1
    return best
