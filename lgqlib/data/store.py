"""Images decoded once into one memory-mapped file of bytes, written whole or not at all."""

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from lgqlib.files import locked, read_json, replacing, sha256, sweep, writable, write_json

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
# What is opened, whatever its name. Never what Pillow hands to another program, such as EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SMALLEST_SIDE = 8  # a smaller image is an icon, and scaling it up would teach interpolation
VERIFIED = 1 << 28  # bytes; of a larger store only the size is verified when it is opened
LOG = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A file of a source, or what else has a name there; hidden ones are left out."""

    path: str  # below the top
    reason: str  # why it is no image; empty where its name says that it is one
    state: tuple[int, ...] = ()  # changes when the file does
    read: Callable[[], Path | bytes | Image.Image] = bytes
    label: int = -1


@dataclass(frozen=True)
class ImageSet:
    """Images of any sizes, all in one flat tensor of bytes, with labels and names."""

    pixels: UInt8[Tensor, " bytes"] = field(repr=False)  # of each in turn, height x width x 3
    offsets: Int64[Tensor, " images"] = field(repr=False)  # where each image begins in `pixels`
    heights: Int64[Tensor, " images"] = field(repr=False)
    widths: Int64[Tensor, " images"] = field(repr=False)
    labels: Int64[Tensor, " images"] = field(repr=False)
    classes: tuple[str, ...]
    names: tuple[str, ...] = field(repr=False)
    skipped: tuple[tuple[str, str], ...] = field(repr=False)  # files that are not in it, and why
    content: str  # SHA-256 of the pixels

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> UInt8[Tensor, "height width 3"]:
        """Give image `i` as it is stored."""
        height, width, offset = int(self.heights[i]), int(self.widths[i]), int(self.offsets[i])
        return self.pixels[offset : offset + height * width * 3].view(height, width, 3)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Move the pixels to a GPU when they take no more than a quarter of what is free there."""
        target = torch.device(device)
        if target.type != "cuda" or len(self.pixels) > torch.cuda.mem_get_info(target)[0] // 4:
            return self  # mapped from the disk, in the page cache as far as there is room
        return replace(self, pixels=self.pixels.to(target))


def open_or_build(folder: Path, look: Callable, **sizes: int) -> ImageSet:
    """Open the store in `folder`, or build it, once, of the classes and entries of `look`."""
    if (images := _open(folder)) is None:
        folder = writable(folder)
        with locked(folder / "lock"):
            if (images := _open(folder)) is None:
                sweep(folder)
                _build(folder, *look(), **sizes)
                images = _open(folder)
    assert images is not None
    if skipped := images.skipped:
        said = "; ".join(f"{name!r}: {reason}" for name, reason in skipped[:10])
        LOG.warning("%s: %d skipped, %d read: %s", folder.name, len(skipped), len(images), said)
    return images


def _open(folder: Path) -> ImageSet | None:
    """Map a store; give None when there is none or it is damaged, for it can be built again."""
    index, file = folder / "index.json", folder / "pixels.bin"
    if not index.exists():
        return None
    try:
        about = read_json(index)
        heights, widths, labels = (torch.tensor(about[k]) for k in ("heights", "widths", "labels"))
        lengths = heights * widths * 3
        total, size = int(lengths.sum()), file.stat().st_size
        if size != total or (size <= VERIFIED and sha256(file) != about["content"]):
            raise ValueError(f"{file} is damaged: it holds other bytes than were written")
    except (OSError, ValueError) as error:
        LOG.warning("%s; the store is built again", error)
        return None
    pixels = torch.from_file(str(file), shared=False, size=total, dtype=torch.uint8)
    skipped, offsets = tuple(map(tuple, about["skipped"])), lengths.cumsum(0) - lengths
    said = (tuple(about["classes"]), tuple(about["names"]), skipped, about["content"])
    return ImageSet(pixels, offsets, heights, widths, labels, *said)


def _build(folder: Path, classes: tuple, entries: Iterator[Entry], **sizes: int) -> None:
    skipped, rows, digest = [], [], hashlib.sha256()
    (folder / "index.json").unlink(missing_ok=True)  # which says that the pixels are whole
    with replacing(folder / "pixels.bin") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow doubts about a file, it raises or reads
        with open(temporary, "wb") as file:
            for path, reason, _, read, label in tqdm(entries, desc="decode", unit=" images"):
                try:
                    pixels = None if reason else decode(read(), **sizes)
                except Exception as error:  # damaged files make Pillow raise nearly anything
                    reason = str(error) or type(error).__name__
                if reason:
                    skipped.append((printable(path), reason))
                else:
                    file.write(pixels)
                    digest.update(pixels)
                    rows.append((*pixels.shape[:2], label, printable(path)))
        if not rows:
            said = "".join(f"; {name}: {reason}" for name, reason in skipped[:3])
            raise ValueError(f"no readable image, {len(skipped)} skipped{said}")
    heights, widths, labels, names = zip(*rows, strict=True)
    about = dict(heights=heights, widths=widths, labels=labels, names=names, classes=classes)
    about |= {"skipped": skipped, "content": digest.hexdigest()}
    write_json(folder / "index.json", about)


def decode(
    content: Path | bytes | Image.Image, *, resize: int = 0, at_least: int = 0
) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image (a path, a file's bytes, or what Pillow has opened) as 8-bit RGB.

    EXIF rotation is applied, transparency is composited on white, 16 bits become 8, and of several
    frames the first is taken. The short side is scaled to `resize` (0 keeps it), and up to
    `at_least`. ValueError below 8 pixels, above Pillow's limit or without a natural range.
    """
    source = BytesIO(content) if isinstance(content, bytes) else content
    try:
        opened = source if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not an image of a known format") from None
    with opened as image:
        (width, height), short = image.size, min(image.size)
        target, limit = max(resize or short, at_least), Image.MAX_IMAGE_PIXELS or math.inf
        if short < SMALLEST_SIDE:
            raise ValueError(f"{width} x {height} pixels, a side below {SMALLEST_SIDE}")
        if width * height * max(1, target / short) ** 2 > limit:
            raise ValueError(f"{width} x {height} pixels, as used above the limit of {limit}")
        if resize:  # a JPEG decodes at a half or less for less; twice the target leaves room
            image.draft(None, (2 * max(resize, at_least),) * 2)
        image = _rgb(ImageOps.exif_transpose(image))
    if target != (short := min(image.size)):
        size = (max(target, round(side * target / short)) for side in image.size)
        image = image.resize(tuple(size), Image.Resampling.BICUBIC)
    return np.array(image)


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


def printable(name: str) -> str:
    """Give `name` as text that any file can hold: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
