"""One image file, whatever it is, as 8-bit RGB pixels; or an error that says why not."""

from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
# What is opened, whatever its name. Never what Pillow hands to another program, such as EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SMALLEST_SIDE = 8  # a smaller image is an icon, and scaling it up would teach interpolation


def decode(
    content: Path | bytes | UInt8[np.ndarray, "_ _ 3"], *, resize: int = 0, at_least: int = 0
) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image file (a path, its bytes, or pixels already decoded) as 8-bit RGB.

    EXIF rotation is applied, transparency is composited on white, 16-bit values are scaled to 8,
    and of several frames the first is taken. The short side is then scaled to `resize` pixels (0
    keeps it) and, where it is still shorter, up to `at_least`; the aspect stays.

    Raises ValueError for an image below 8 pixels, above Pillow's `MAX_IMAGE_PIXELS` or without a
    natural range of values, and whatever Pillow raises for a file that is damaged.
    """
    if isinstance(content, np.ndarray):
        return np.asarray(_scaled(Image.fromarray(content), resize=resize, at_least=at_least))
    source = BytesIO(content) if isinstance(content, bytes) else content
    try:
        opened = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not an image of a known format") from None
    with opened as image:
        _check_size(*image.size)
        if resize:
            # A JPEG decodes at a half, a quarter or an eighth for less; twice the target leaves
            # room for a good filter.
            image.draft(None, (2 * max(resize, at_least),) * 2)
        upright = ImageOps.exif_transpose(image)
        return np.asarray(_scaled(_rgb(upright), resize=resize, at_least=at_least))


def _check_size(width: int, height: int) -> None:
    if min(width, height) < SMALLEST_SIDE:
        raise ValueError(f"{width} x {height} pixels, a side below {SMALLEST_SIDE}")
    if width * height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise ValueError(f"{width} x {height} pixels, above the limit of {Image.MAX_IMAGE_PIXELS}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integer pixels, which have no natural range")
        image = Image.fromarray(np.round(values / 257.0).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, which have no natural range")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _scaled(image: Image.Image, *, resize: int, at_least: int) -> Image.Image:
    short = min(image.size)
    target = max(resize or short, at_least)
    if target == short:
        return image
    width, height = (max(target, round(side * target / short)) for side in image.size)
    _check_size(width, height)
    return image.resize((width, height), Image.Resampling.BICUBIC)
