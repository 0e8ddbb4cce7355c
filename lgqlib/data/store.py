"""Images decoded once into one memory-mapped file of bytes, written whole or not at all."""

import hashlib
import json
import logging
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from lgqlib.data.decode import decode
from lgqlib.files import json_text, read_sealed, replacing, sealed, sweep
from lgqlib.locks import locked

VERSION = 2
"""Part of every key: raise it when the decoding or the layout changes, and every store is built
anew.
"""
WORKERS = 2
VERIFIED = 1 << 28
"""Bytes of pixels up to which opening a store reads them all against their checksum: a fraction of
a second. Of a larger one only the sizes are verified.
"""
LOG = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One image to come: a name to show, its class, and a path, bytes or pixels."""

    name: str
    label: int
    content: Path | bytes | UInt8[np.ndarray, "_ _ 3"]


class Listing(NamedTuple):
    """What a source holds, once somebody looks; `skipped` is what it tells without decoding."""

    classes: tuple[str, ...]
    count: int
    samples: Iterator[Sample]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """Where images come from, and the identity under which their store is kept."""

    title: str
    """For progress and messages: the name and the split."""
    where: str
    """The folder or archive that errors name."""
    key: dict[str, Any]
    """JSON values that change whenever the images might."""
    open: Callable[[], Listing]
    by_area: bool = False
    """Whether every crop position is one example (few large photographs), rather than every image.
    """


@dataclass(frozen=True)
class ImageSet:
    """Images of any sizes, all in one flat tensor of bytes, with labels and names."""

    pixels: UInt8[Tensor, " bytes"] = field(repr=False)
    """Every image in turn, each height x width x 3."""
    offsets: Int64[Tensor, " images"] = field(repr=False)
    """Where each image begins in `pixels`."""
    heights: Int64[Tensor, " images"] = field(repr=False)
    widths: Int64[Tensor, " images"] = field(repr=False)
    labels: Int64[Tensor, " images"] = field(repr=False)
    classes: tuple[str, ...]
    names: tuple[str, ...] = field(repr=False)
    skipped: tuple[tuple[str, str], ...] = field(repr=False)
    """Files that are not in the set, each with the reason."""
    by_area: bool
    content: str
    """SHA-256 of the pixels, sizes, labels and classes."""

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> UInt8[Tensor, "height width 3"]:
        """Give image `i` as it is stored."""
        height, width, offset = int(self.heights[i]), int(self.widths[i]), int(self.offsets[i])
        return self.pixels[offset : offset + height * width * 3].view(height, width, 3)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Move the pixels to an accelerator when they fit there, else leave them mapped from the
        disk.
        """
        target = torch.device(device)
        if target.type == self.pixels.device.type or not fits(len(self.pixels), device=target):
            return self
        return replace(self, pixels=self.pixels.to(target))


def fits(num_bytes: int, *, device: torch.device | str) -> bool:
    """Say whether `num_bytes` of images may live on `device`: within a quarter of the memory that
    is free there.

    The CPU needs no copy: a mapped file lives in the page cache, as much of it as there is room
    for.
    """
    target = torch.device(device)
    if target.type == "cuda":
        return num_bytes <= torch.cuda.mem_get_info(target)[0] // 4
    if target.type == "mps":
        return num_bytes <= torch.mps.recommended_max_memory() // 4
    return target.type == "cpu"


def open_or_build(source: Source, *, cache: Path, resize: int, at_least: int) -> ImageSet:
    """Open the store of `source` in the folder `cache`, decoding the images first when there is
    none.

    Two processes may ask at once: one builds, the other waits. A killed build leaves only a
    temporary that a later build removes. Raises ValueError when no image can be read, OSError when
    the store cannot be written.
    """
    identity = {"version": VERSION, "resize": resize, "at_least": at_least, **source.key}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "stores" / f"{source.title.replace(' ', '-')}-{key}"
    path = folder / "images"
    found = _open(path)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep_others(folder)
        with locked(folder / "lock") as held:
            if held:
                sweep(folder)
            if _open(path) is None:
                with replacing(path) as temporary:
                    temporary.mkdir()
                    _build(temporary, source, resize=resize, at_least=at_least)
        found = _open(path)
        assert found is not None
    for name, reason in found.skipped[:10]:
        LOG.warning("%s: skipped %r: %s", source.title, name, reason)
    if found.skipped:
        LOG.warning("%s: %d skipped, %d read", source.title, len(found.skipped), len(found))
    return found


def _sweep_others(folder: Path) -> None:
    """Remove what killed builds of other stores left, unless such a build is still running."""
    for lock in folder.parent.glob("*/lock"):
        with locked(lock, wait=False) as held:
            if held:
                sweep(lock.parent)


def _open(path: Path) -> ImageSet | None:
    """Map the store at `path`; None when there is none or it is damaged, for a cache can be built
    again.
    """
    if not path.is_dir():
        return None
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        LOG.warning("%s is damaged (%s) and is built again", path, error)
        return None


def _read(path: Path) -> ImageSet:
    """Map the store at `path`, and verify it. Raises any of many errors when it is damaged."""
    meta = read_sealed(path / "meta.json")
    with open(path / "index.npz", "rb") as file, np.load(file, allow_pickle=False) as index:
        columns = {name: index[name] for name in ("heights", "widths", "labels")}
    lengths = columns["heights"] * columns["widths"] * 3
    total = int(lengths.sum())
    size = (path / "pixels.bin").stat().st_size
    if size != total or not all(len(c) == len(meta["names"]) for c in columns.values()):
        raise ValueError(f"{size} bytes of pixels where the index says {total}")
    if size <= VERIFIED:
        with open(path / "pixels.bin", "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if _content(digest, columns, meta["classes"]) != meta["content"]:
            raise ValueError("its checksum is not the one that was written")
    offsets = torch.from_numpy(lengths.cumsum() - lengths)
    return ImageSet(
        pixels=torch.from_file(
            str(path / "pixels.bin"), shared=False, size=total, dtype=torch.uint8
        ),
        offsets=offsets,
        **{name: torch.from_numpy(column) for name, column in columns.items()},
        classes=tuple(meta["classes"]),
        names=tuple(meta["names"]),
        skipped=tuple((name, reason) for name, reason in meta["skipped"]),
        by_area=meta["by_area"],
        content=meta["content"],
    )


def _content(digest, columns: Mapping[str, np.ndarray], classes: Sequence[str]) -> str:
    """Finish the digest of the pixels with that of the index and the classes."""
    for name in ("heights", "widths", "labels"):
        digest.update(columns[name])
    digest.update(json.dumps(list(classes)).encode())
    return digest.hexdigest()


def _build(path: Path, source: Source, *, resize: int, at_least: int) -> None:
    """Decode every image of `source` into the folder `path`."""
    listing = source.open()
    skipped = list(listing.skipped)
    names, rows = [], []
    digest, written = hashlib.sha256(), 0
    # Unbuffered: a full disk then fails at the write that met it, not again when the file is
    # closed.
    with open(path / "pixels.bin", "wb", buffering=0) as file:
        for sample, result in _decoded(listing, source.title, resize=resize, at_least=at_least):
            if isinstance(result, Exception):
                skipped.append((sample.name, str(result) or type(result).__name__))
                continue
            pixels = np.ascontiguousarray(result)
            expected = (written + pixels.nbytes) * listing.count / (len(names) + 1)
            _write(file, pixels, needed=expected - written)
            digest.update(pixels)
            written += pixels.nbytes
            names.append(sample.name)
            rows.append((*pixels.shape[:2], sample.label))
    if not names:
        seen = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise ValueError(
            f"no readable image in {source.where}"
            + (f" ({len(skipped)} skipped: {seen})" if seen else "")
        )
    heights, widths, labels = np.array(rows, dtype=np.int64).T.copy()
    columns = {"heights": heights, "widths": widths, "labels": labels}
    np.savez(path / "index.npz", **columns)
    meta = {
        "classes": listing.classes,
        "names": names,
        "skipped": skipped,
        "by_area": source.by_area,
        "content": _content(digest, columns, listing.classes),
    }
    (path / "meta.json").write_text(json_text(sealed(meta)), encoding="utf-8")


def _decoded(
    listing: Listing, title: str, *, resize: int, at_least: int
) -> Iterator[tuple[Sample, np.ndarray | Exception]]:
    """Decode in a few threads, a bounded number of images ahead, and give the results in order."""
    pending: deque[tuple[Sample, Future]] = deque()

    def collect() -> tuple[Sample, np.ndarray | Exception]:
        sample, future = pending.popleft()
        bar.update()
        # Damaged files make Pillow raise nearly anything; every one is a file to skip, with what it
        # said as the reason.
        error = future.exception()
        return sample, error if isinstance(error, Exception) else future.result()

    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(WORKERS) as pool,
        tqdm(desc=f"decode {title}", total=listing.count, unit=" images") as bar,
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for sample in listing.samples:
            pending.append(
                (sample, pool.submit(decode, sample.content, resize=resize, at_least=at_least))
            )
            if len(pending) > 16 * WORKERS:
                yield collect()
        while pending:
            yield collect()


def _write(file, pixels: np.ndarray, *, needed: float) -> None:
    left = memoryview(pixels).cast("B")
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        text = f"{error.strerror}; about {needed / 1e6:.1f} MB more are needed"
        raise OSError(error.errno, text) from error
