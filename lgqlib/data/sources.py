"""The data sets by name, a row each: photographs in installed wheels, archives, and your folder."""

import hashlib
import importlib.util
import json
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
from einops import rearrange
from tqdm.auto import tqdm

from lgqlib.config import DataConfig
from lgqlib.data.folders import Archive, Folder, arrange, printable
from lgqlib.data.store import ImageSet, Listing, open_or_build
from lgqlib.files import locked, replacing, sha256

SPLITS = ("train", "val")
VERSION = 3  # of what is stored: raise it when the decoding changes, to build all stores anew


class Row(NamedTuple):
    """A data set; with neither photographs nor an address it is the user's own, at `data.root`."""

    photographs: Mapping[str, tuple[str, str, str]] = {}  # name: split, package, file in its wheel
    url: str = ""  # where its archive is, for whoever gives no `data.root`
    digest: str = ""  # SHA-256 of the archive


SOURCES = {
    # The natural color photographs of scikit-image and scikit-learn; see data/README.md.
    "photos": Row(
        photographs={
            "astronaut": ("train", "skimage", "data/astronaut.png"),
            "chelsea": ("val", "skimage", "data/chelsea.png"),
            "china": ("train", "sklearn", "datasets/images/china.jpg"),
            "coffee": ("val", "skimage", "data/coffee.png"),
            "flower": ("train", "sklearn", "datasets/images/flower.jpg"),
            "motorcycle": ("train", "skimage", "data/motorcycle_left.png"),
            "rocket": ("val", "skimage", "data/rocket.jpg"),
        }
    ),
    # The binary version: the one for Python is a pickle, and nothing is unpickled here.
    "cifar10": Row(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        digest="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "imagenette": Row(
        url="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
        digest="88daccb09b6fce93f45e6c09ddeb269cce705549e6bff322092a2a5a11489863",
    ),
    "imagefolder": Row(),
}
# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
CIFAR10_BATCH = re.compile(r"(?:^|/)(data_batch_\d|test_batch)\.bin$")
CIFAR10_RECORD = 1 + 3 * 32 * 32


def load(config: DataConfig, split: str, *, cache: Path | str) -> ImageSet:
    """Give the images of `config` in `split`, `train` or `val`, from their store below `cache`.

    Raises ValueError for an unknown split, a missing folder or one without images; ConnectionError
    when a download is needed and there is no network; OSError when the disk is full. Files that
    cannot be read are logged and listed in `skipped`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    name, row, root = config.name, SOURCES[config.name], Path(config.root)
    if row.photographs and config.root:
        text = "are embedded; for a folder use data.name = 'imagefolder'"
        raise ValueError(f"data.root = {config.root!r}: {name} {text}")
    cache = Path(cache)
    if row.url and not config.root:
        root = cache / "downloads" / Path(row.url).name
        instead = f"set data.root to a folder of train/ and val/, or to {root.name}."
        download(row.url, root, digest=row.digest, instead=instead)
    if not row.photographs and not root.exists():
        raise ValueError(f"data.root = {str(root)!r}: it must be a folder of images, or its tar")
    files = Wheels(row) if row.photographs else (Folder if root.is_dir() else Archive)(root)
    # A photograph smaller than a crop is refused, not enlarged.
    sizes = {"resize": config.resize, "at_least": 0 if row.photographs else config.size}
    key = json.dumps([VERSION, files.key, split, sizes])
    store = f"{name}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    look, by_area = partial(_listing, files, split), bool(row.photographs)
    try:
        return open_or_build(cache / "stores" / store, look, by_area=by_area, **sizes)
    except ValueError as error:
        raise ValueError(f"{config.root or name}: {error}") from None


class Wheels:
    """Photographs in installed wheels, as files of a folder for each side and photograph."""

    def __init__(self, row: Row):
        self.places, states = {}, []
        for name, (split, package, file) in row.photographs.items():
            spec = importlib.util.find_spec(package)
            place = Path(spec.submodule_search_locations[0] if spec else package) / file
            if not place.is_file():
                raise ValueError(f"the photograph {place} is missing: install {package} as locked")
            self.places[f"{split}/{name}/{place.name}"] = place
            states.append(f"{place} {place.stat().st_size} {place.stat().st_mtime_ns}")
        self.key, self.entries = "\n".join(states), [(path, "") for path in self.places]

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, Path | bytes]]:
        return ((path, self.places[path]) for path in paths)


def _listing(files: Folder | Archive | Wheels, split: str) -> Listing:
    """List the images of `split`, also those of the binary version of CIFAR-10."""
    entries = list(files.entries)
    found = {path: match[1] for path, _ in entries if (match := CIFAR10_BATCH.search(path))}
    if found:
        batches = [path for path, b in found.items() if (b == "test_batch") == (split == "val")]
        return Listing(CIFAR10_CLASSES, None, _cifar10(files.read(batches)), [])
    classes, labels, skipped = arrange(entries, split)
    samples = ((printable(path), labels[path], file) for path, file in files.read(labels))
    return Listing(classes, len(labels), samples, skipped)


def _cifar10(batches: Iterable[tuple[str, Path | bytes]]) -> Iterator[tuple]:
    """Read the binary version: a label, then 32 x 32 values of red, of green and of blue."""
    for path, content in batches:
        data = content if isinstance(content, bytes) else content.read_bytes()
        if len(data) % CIFAR10_RECORD:
            raise ValueError(f"{path} has {len(data)} bytes, not a multiple of {CIFAR10_RECORD}")
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, CIFAR10_RECORD)
        images = rearrange(records[:, 1:], "n (c h w) -> n h w c", c=3, h=32)
        for i, (label, image) in enumerate(zip(records[:, 0].tolist(), images, strict=True)):
            if label >= len(CIFAR10_CLASSES):
                raise ValueError(f"{path} has the label {label}, above 9")
            yield f"{path}/{i:05d}", label, np.ascontiguousarray(image)


# Downloads ---------------------------------------------------------------------------------------

TIMEOUT = 30  # seconds without a byte before a connection counts as lost
# What goes wrong on the way, never on the disk.
NETWORK = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def download(url: str, path: Path, *, digest: str, instead: str) -> None:
    """Download `url` to `path` unless it is there; `digest` is the SHA-256 of the right bytes.

    An interrupted download stays beside `path` as `.part`, and the next call continues it. Raises
    ConnectionError, with what to do `instead`, when the server cannot be reached or the connection
    is lost; OSError when the disk is full; ValueError for other bytes.
    """
    if path.exists():
        return
    with locked(path.with_name(path.name + ".lock")):
        part = path.with_name(path.name + ".part")
        if path.exists():
            return
        _fetch(url, part, instead=instead)
        found = sha256(part)
        if found != digest:
            part.unlink()
            raise ValueError(
                f"{url} has SHA-256 {found}, not {digest}: a damaged download or another file. "
                f"It was removed; try again, or {instead}"
            )
        with replacing(path) as temporary:
            part.rename(temporary)


def _fetch(url: str, part: Path, *, instead: str) -> None:
    present = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={present}-"} if present else {})
    try:
        with urlopen(request, timeout=TIMEOUT) as response:
            # A server that ignores the range answers 200 with the whole file: start over.
            begin = present if response.status == 206 else 0
            total = begin + int(response.headers.get("Content-Length", 0))
            sizes = dict(initial=begin, total=total or None, unit="B", unit_scale=True)
            bar = tqdm(desc=f"download {part.stem}", **sizes)
            with open(part, "ab" if begin else "wb") as file, bar:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    bar.update(len(chunk))
        if part.stat().st_size < total:
            raise ConnectionError("the connection was lost")
    except NETWORK as error:
        if isinstance(error, HTTPError):
            error.close()
            if error.code == 416:  # nothing is left to send: the checksum decides
                return
        reason = getattr(error, "reason", error)
        text = f"cannot download {url} ({reason}). Try again to continue, or {instead}"
        raise ConnectionError(text) from None
    except OSError as error:
        raise OSError(error.errno, f"could not write {part}: {error.strerror}") from error
