"""Where images come from: two wheels, two public sets, or the user's folder or archive."""

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange

from lgqlib.data.download import download
from lgqlib.data.listing import Found, arrange, browse, contents, printable, walk
from lgqlib.data.store import Listing, Sample, Source

PHOTOGRAPHS = {
    "astronaut": ("train", "skimage", "data/astronaut.png"),
    "chelsea": ("val", "skimage", "data/chelsea.png"),
    "china": ("train", "sklearn", "datasets/images/china.jpg"),
    "coffee": ("val", "skimage", "data/coffee.png"),
    "flower": ("train", "sklearn", "datasets/images/flower.jpg"),
    "motorcycle": ("train", "skimage", "data/motorcycle_left.png"),
    "rocket": ("val", "skimage", "data/rocket.jpg"),
}
"""The natural color photographs of scikit-image and scikit-learn: split, package, file. See
data/README.md.
"""
SMALLEST_SIDE = 300
"""Short side of the smallest photograph, in pixels."""
WHEELS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


class Download(NamedTuple):
    """A public archive and the SHA-256 of its bytes."""

    url: str
    digest: str


DOWNLOADS = {
    # The binary version: the one for Python is a pickle, and nothing is unpickled here.
    "cifar10": Download(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "imagenette": Download(
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
        "88daccb09b6fce93f45e6c09ddeb269cce705549e6bff322092a2a5a11489863",
    ),
}
# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
CIFAR10_BATCH = re.compile(r"(?:^|/)(data_batch_\d|test_batch)\.bin$")
CIFAR10_RECORD = 1 + 3 * 32 * 32

Read = Callable[[list[str]], Iterable[tuple[str, Path | bytes]]]
"""From paths below the top to each with its content, or where on the disk that lies."""


def photographs(split: str) -> Source:
    """Give the embedded photographs of `split`, read from the installed wheels.

    Raises ValueError when a wheel is missing or ships other files.
    """
    files, samples = [], []
    for label, (name, (side, package, file)) in enumerate(PHOTOGRAPHS.items()):
        if side != split:
            continue
        spec = importlib.util.find_spec(package)
        path = Path(spec.submodule_search_locations[0]) / file if spec else Path(file)
        if not path.is_file():
            raise ValueError(
                f"the photograph {path} is missing: install {WHEELS[package]} as locked"
            )
        files.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
        samples.append(Sample(name, label, path))
    return Source(
        title=f"photos {split}",
        where="the wheels of scikit-image and scikit-learn",
        key={"photographs": files},
        open=lambda: Listing(tuple(PHOTOGRAPHS), len(samples), iter(samples)),
        by_area=True,
    )


def downloaded(name: str, split: str, *, folder: Path) -> Source:
    """Give a public set by name, its archive downloaded to `folder` first when it is not there."""
    url, digest = DOWNLOADS[name]
    file = Path(url).name
    instead = f"set data.root to a folder of the images (train/ and val/ or test/) or to {file}."
    path = download(url, folder / file, digest=digest, instead=instead)
    return user(path, split, name=name)


def user(root: Path, split: str, *, name: str) -> Source:
    """Give the user's images: a folder of them, or a tar of such a folder, which is not extracted.

    With train/ and val/ or test/, those are the splits; otherwise one image in ten is held out, by
    a hash of its path. Classes are the folders below. The binary version of CIFAR-10 is read too,
    in a folder or as its archive. Raises ValueError when `root` is neither.
    """
    if root.is_dir():
        found = walk(root)
        key = {"folder": printable(str(root.resolve())), "files": found.digest, "split": split}
        in_folder = partial(_in_folder, root)
        listing = partial(_listing, lambda: found, in_folder, split, where=str(root))
    elif root.is_file():
        status = root.stat()
        file = [printable(str(root.resolve())), status.st_size, status.st_mtime_ns]
        key = {"archive": file, "split": split}
        in_archive = partial(contents, root)
        listing = partial(_listing, partial(browse, root), in_archive, split, where=str(root))
    else:
        raise ValueError(
            f"data.root = {str(root)!r} is neither a folder of images nor a tar archive of one"
        )
    return Source(f"{name} {split}", str(root), key, listing)


def _in_folder(root: Path, names: list[str]) -> Iterator[tuple[str, Path]]:
    return ((name, root / name) for name in names)


def _listing(find: Callable[[], Found], read: Read, split: str, *, where: str) -> Listing:
    found = find()
    batches = {path: match[1] for path in found.sizes if (match := CIFAR10_BATCH.search(path))}
    if batches:
        chosen = [
            path for path, name in batches.items() if (name == "test_batch") == (split == "val")
        ]
        count = sum(found.sizes[path] // CIFAR10_RECORD for path in chosen)
        return Listing(CIFAR10_CLASSES, count, _cifar10(read(chosen), where=where))
    classes, labels, skipped = arrange(found, split, where=where)
    samples = (Sample(printable(path), labels[path], content) for path, content in read([*labels]))
    return Listing(classes, len(labels), samples, tuple(skipped))


def _cifar10(batches: Iterable[tuple[str, Path | bytes]], *, where: str) -> Iterator[Sample]:
    """Read the binary version: a label, then 32 x 32 values of red, of green and of blue."""
    for path, content in batches:
        data = content if isinstance(content, bytes) else content.read_bytes()
        if len(data) % CIFAR10_RECORD:
            raise ValueError(
                f"{path} in {where} has {len(data)} bytes, not a multiple of {CIFAR10_RECORD}"
            )
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, CIFAR10_RECORD)
        labels = records[:, 0]
        if labels.max(initial=0) >= len(CIFAR10_CLASSES):
            raise ValueError(f"{path} in {where} has the label {labels.max()}, above 9")
        images = rearrange(records[:, 1:], "n (c h w) -> n h w c", c=3, h=32)
        for i, image in enumerate(images):
            yield Sample(f"{path}/{i:05d}", int(labels[i]), np.ascontiguousarray(image))
