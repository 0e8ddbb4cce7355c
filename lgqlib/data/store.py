"""Images decoded once into one memory-mapped file of bytes, written whole or not at all."""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from tqdm.auto import tqdm

from lgqlib.data.images import decode
from lgqlib.files import locked, read_json, replacing, sha256, sweep, write_json

WORKERS, AHEAD = 2, 32  # threads that decode, and the images that they decode before a write
VERIFIED = 1 << 28  # bytes; of a larger store only the size is verified when it is opened
LOG = logging.getLogger(__name__)


class Listing(NamedTuple):
    """What a source holds, once somebody looks; of each image the name, label and content."""

    classes: tuple[str, ...]
    count: int | None
    samples: Iterator[tuple[str, int, Path | bytes | UInt8[np.ndarray, "_ _ 3"]]]
    skipped: list[tuple[str, str]]


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
    by_area: bool  # every crop position is an example (few large photographs), not every image
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


def open_or_build(
    folder: Path, look: Callable[[], Listing], *, by_area: bool, resize: int, at_least: int
) -> ImageSet:
    """Open the store in `folder`; when there is none, decode the images of what `look` gives.

    Of two processes one builds and the other waits. Raises ValueError when no image can be read,
    OSError when the store cannot be written.
    """
    images = _open(folder, by_area=by_area)
    if images is None:
        with locked(folder / "lock") as held:
            if held:
                sweep(folder)
            images = _open(folder, by_area=by_area)
            if images is None:
                _build(folder, look(), resize=resize, at_least=at_least)
                images = _open(folder, by_area=by_area)
    assert images is not None
    if images.skipped:
        said = "; ".join(f"{name!r}: {reason}" for name, reason in images.skipped[:10])
        counts = f"{len(images.skipped)} skipped, {len(images)} read"
        LOG.warning("%s: %s: %s", folder.name, counts, said)
    return images


def _open(folder: Path, *, by_area: bool) -> ImageSet | None:
    """Map a store; give None when there is none or it is damaged, for it can be built again."""
    index, file = folder / "index.json", folder / "pixels.bin"
    if not index.exists():
        return None
    try:
        about = read_json(index, sealed=True)
        heights, widths, labels = (torch.tensor(about[k]) for k in ("heights", "widths", "labels"))
        lengths = heights * widths * 3
        total, size = int(lengths.sum()), file.stat().st_size
        if size != total or (size <= VERIFIED and sha256(file) != about["content"]):
            raise ValueError(f"{file} is damaged: it holds other bytes than were written")
    except (OSError, ValueError) as error:
        LOG.warning("%s; the store is built again", error)
        return None
    pixels = torch.from_file(str(file), shared=False, size=total, dtype=torch.uint8)
    classes, names = tuple(about["classes"]), tuple(about["names"])
    skipped, offsets = tuple(map(tuple, about["skipped"])), lengths.cumsum(0) - lengths
    sizes = (offsets, heights, widths, labels)
    return ImageSet(pixels, *sizes, classes, names, skipped, by_area, about["content"])


def _build(folder: Path, listing: Listing, *, resize: int, at_least: int) -> None:
    """Decode every image into the folder: the pixels first, then their index."""
    skipped, rows, digest = list(listing.skipped), [], hashlib.sha256()
    (folder / "index.json").unlink(missing_ok=True)
    with replacing(folder / "pixels.bin") as temporary:
        with open(temporary, "wb") as file:
            for name, label, pixels in _decoded(listing, resize=resize, at_least=at_least):
                if isinstance(pixels, Exception):
                    skipped.append((name, str(pixels) or type(pixels).__name__))
                else:
                    file.write(pixels)
                    digest.update(pixels)
                    rows.append((*pixels.shape[:2], label, name))
        if not rows:
            said = "".join(f"; {name}: {reason}" for name, reason in skipped[:3])
            raise ValueError(f"no readable image, {len(skipped)} skipped{said}")
    heights, widths, labels, names = zip(*rows, strict=True)
    about = dict(heights=heights, widths=widths, labels=labels, names=names, skipped=skipped)
    about |= {"classes": listing.classes, "content": digest.hexdigest()}
    write_json(folder / "index.json", about, sealed=True)


def _decoded(
    listing: Listing, *, resize: int, at_least: int
) -> Iterator[tuple[str, int, np.ndarray | Exception]]:
    """Decode in a few threads, and give the images in order, or why one cannot be read."""

    def attempt(sample: tuple) -> np.ndarray | Exception:
        try:
            return np.ascontiguousarray(decode(sample[2], resize=resize, at_least=at_least))
        except Exception as error:  # damaged files make Pillow raise nearly anything
            return error

    bar = tqdm(desc="decode", total=listing.count, unit=" images")
    with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool, bar:
        warnings.simplefilter("ignore")  # what Pillow doubts about a file, it raises or reads
        while samples := list(islice(listing.samples, AHEAD)):
            for (name, label, _), pixels in zip(samples, pool.map(attempt, samples), strict=True):
                bar.update()
                yield name, label, pixels
