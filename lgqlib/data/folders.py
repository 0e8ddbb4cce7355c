"""What a folder or a tar archive holds, and which of it are the images of a split.

Both list entries, hidden ones left out: a path below the top, which ends in a slash for a folder,
and the reason when it cannot be read. Both `read` files: paths with their bytes, or where they lie.
"""

import hashlib
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lgqlib.data.images import SUFFIXES

UNLABELED = "unlabeled"  # the class of images that lie in no folder of their own
HELD_OUT = ("val", "valid", "validation", "test")  # beside train/, best first
LARGEST_MEMBER = 1 << 28  # bytes of a file in an archive, for it is read into memory
UNREADABLE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)


class Folder:
    """A folder, in the order of names; links are followed, but never back to a folder above."""

    def __init__(self, root: Path):
        self.root = root
        found = list(self._walk("", ()))
        self.entries = [(path, reason) for path, reason, _ in found]
        self.key = hashlib.sha256(repr((root.resolve(), found)).encode()).hexdigest()
        """Changes with any path, size or time of change."""

    def _walk(self, path: str, above: tuple) -> Iterator[tuple[str, str, tuple]]:
        try:
            status = os.stat(self.root / path)
            is_folder = stat.S_ISDIR(status.st_mode)
            names = sorted(os.listdir(self.root / path), key=os.fsencode) if is_folder else []
        except OSError as error:
            yield path, f"cannot be read ({error.strerror})", ()
            return
        identity = (status.st_dev, status.st_ino)
        if not is_folder:
            reason = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
            yield path, reason, (status.st_size, status.st_mtime_ns)
        elif identity in above:
            yield path, "a link back to a folder above it", ()
        else:
            base = f"{path}/" if path else ""
            yield base, "", ()
            for name in names:
                if not name.startswith("."):
                    yield from self._walk(base + name, (*above, identity))

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, Path | bytes]]:
        return ((path, self.root / path) for path in paths)


class Archive:
    """A tar, compressed or not; nothing in it is extracted, and no link followed."""

    def __init__(self, root: Path):
        self.root, status = root, root.stat()
        self.key = f"{root.resolve()} {status.st_size} {status.st_mtime_ns}"

    def _members(self) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
        """Go through it from front to back: a compressed one cannot be entered elsewhere."""
        try:
            with tarfile.open(self.root, "r|*") as tar:
                for member in tar:
                    path = member.name.removeprefix("./")
                    if not any(part.startswith(".") for part in path.split("/")):
                        yield f"{path}/" if member.isdir() else path, member, tar
        except UNREADABLE as error:
            raise ValueError(f"not a readable tar archive ({error})") from error

    @property
    def entries(self) -> Iterator[tuple[str, str]]:
        for path, member, _ in self._members():
            if not (member.isreg() or member.isdir()):
                yield path, "not a regular file"
            elif member.size > LARGEST_MEMBER:
                yield path, f"{member.size} bytes, above {LARGEST_MEMBER}"
            else:
                yield path, ""

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, Path | bytes]]:
        wanted = set(paths)
        for path, member, tar in self._members():
            if path in wanted and member.isreg() and member.size <= LARGEST_MEMBER:
                wanted.discard(path)
                yield path, tar.extractfile(member).read()


def arrange(
    entries: Iterable[tuple[str, str]], split: str
) -> tuple[tuple[str, ...], dict[str, int], list[tuple[str, str]]]:
    """Choose the images of `split`: give the classes, the label of each image, and what is skipped.

    With train/ and val/ or test/, those are the splits; otherwise one image in ten is held out. The
    class is the first folder below: the same label in both splits, also where one has none of it.
    """
    paths, skipped = [], []
    for path, reason in entries:
        if not reason and not path.endswith("/") and Path(path).suffix.lower() not in SUFFIXES:
            reason = "not the name of an image"
        if reason:
            skipped.append((path, reason))
        else:
            paths.append(path)
    images = [path for path in paths if not path.endswith("/")]
    sides = _sides(images)
    chosen = images if sides[split] else _hashed(images, split)

    def class_of(path: str, side: str) -> str:
        head, slash, _ = path.removeprefix(side).partition("/")
        return head if slash else UNLABELED

    below = [(p, s) for s in sides.values() for p in paths if p.startswith(s) and p != s]
    names = sorted({class_of(path, side) for path, side in below}, key=os.fsencode)
    side, labels = sides[split], {name: label for label, name in enumerate(names)}
    return (
        tuple(map(printable, names)),
        {path: labels[class_of(path, side)] for path in chosen if path.startswith(side)},
        [(printable(path), reason) for path, reason in skipped if path.startswith(side)],
    )


def _sides(images: list[str]) -> dict[str, str]:
    """Find train/ and the folder beside it, at the top or in the only folder there; else none."""
    tops = {path.partition("/")[0] for path in images}
    for base in ("", *(f"{top}/" for top in tops if len(tops) == 1)):
        below = (path.removeprefix(base).partition("/") for path in images)
        heads = {head for head, slash, _ in below if slash}
        if "train" in heads:
            held_out = [name for name in HELD_OUT if name in heads]
            if not held_out:
                raise ValueError(
                    "images in train/ but none in val/ or test/; "
                    "give the folder train itself to hold out a part of it"
                )
            return {"train": f"{base}train/", "val": f"{base}{held_out[0]}/"}
    return {"train": "", "val": ""}


def _hashed(images: list[str], split: str) -> list[str]:
    """Hold out one image in ten by a hash of its path, so that new images move no other.

    Of two or more, each side gets at least one.
    """
    ranks = {p: int.from_bytes(hashlib.sha256(os.fsencode(p)).digest()[:8]) for p in images}
    held = {path for path, rank in ranks.items() if rank % 10 == 0}
    if len(images) > 1:
        held = held or {min(images, key=ranks.get)}
        held -= {max(images, key=ranks.get)} if len(held) == len(images) else set()
    return [path for path in images if (path in held) == (split == "val")]


def printable(name: str) -> str:
    """Give `name` as text that any file can hold: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
