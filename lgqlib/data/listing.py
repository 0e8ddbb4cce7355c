"""Which files a folder or a tar archive holds, and which of them are the images of a split."""

import hashlib
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
UNLABELED = "unlabeled"
"""The class of images that lie in no folder of their own."""
HELD_OUT = ("val", "valid", "validation", "test")
"""Names of the folder beside train/ that holds the other split, best first."""
LARGEST_MEMBER = 1 << 28
"""In bytes; a larger file in an archive is skipped, for members are read into memory."""
UNREADABLE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)


class Found(NamedTuple):
    """Files and folders by their paths below the top, joined by slashes; hidden ones left out."""

    sizes: dict[str, int]
    """Regular files, in bytes."""
    folders: list[str]
    skipped: list[tuple[str, str]]
    """What is neither, with the reason."""
    digest: str
    """Changes with any path, size or time of change."""


def walk(root: Path) -> Found:
    """List a folder in the order of names; links are followed, but never back to a folder above."""
    sizes: dict[str, int] = {}
    folders: list[str] = []
    skipped: list[tuple[str, str]] = []
    digest = hashlib.sha256()

    def enter(prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        try:
            entries = sorted(os.scandir(root / prefix), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            skipped.append((printable(prefix), f"cannot be read ({error.strerror})"))
            return
        if not entries:
            skipped.append((printable(prefix), "an empty folder"))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = prefix + entry.name
            try:
                status = entry.stat()
            except OSError as error:
                skipped.append((printable(path), f"cannot be read ({error.strerror})"))
                continue
            identity = (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode):
                sizes[path] = status.st_size
                digest.update(os.fsencode(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0"))
            elif not stat.S_ISDIR(status.st_mode):
                skipped.append((printable(path), "not a regular file"))
            elif identity in above:
                skipped.append((printable(path), "a link back to a folder above it"))
            else:
                folders.append(path)
                enter(path + "/", (*above, identity))

    top = root.stat()
    enter("", ((top.st_dev, top.st_ino),))
    return Found(sizes, folders, skipped, digest.hexdigest())


def browse(archive: Path) -> Found:
    """List a tar, compressed or not. Raises ValueError when it is damaged or no tar."""
    sizes: dict[str, int] = {}
    folders: list[str] = []
    skipped: list[tuple[str, str]] = []
    for name, member, _ in _members(archive):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if member.isdir():
            folders.append(name)
        elif not member.isreg():
            skipped.append((printable(name), "not a regular file"))
        elif member.size > LARGEST_MEMBER:
            skipped.append((printable(name), f"{member.size} bytes, above {LARGEST_MEMBER}"))
        else:
            sizes[name] = member.size
    status = archive.stat()
    return Found(sizes, folders, skipped, f"{status.st_size} {status.st_mtime_ns}")


def contents(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Give the bytes of the files `names` in a tar, in its order; nothing is extracted."""
    wanted = set(names)
    for name, member, tar in _members(archive):
        if name in wanted and member.isreg():
            wanted.discard(name)
            file = tar.extractfile(member)
            assert file is not None
            yield name, file.read()


def _members(archive: Path) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    """Go through a tar once, front to back: a compressed one cannot be entered elsewhere."""
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                yield member.name.removeprefix("./"), member, tar
    except UNREADABLE as error:
        raise ValueError(f"{archive} is not a readable tar archive ({error})") from error


def arrange(
    found: Found, split: str, *, where: str
) -> tuple[tuple[str, ...], dict[str, int], list[tuple[str, str]]]:
    """Choose the images of `split`: give the classes, the label of each image, and what is skipped.

    A label means the same class in both splits, and an empty folder is a class too.
    """
    images = [path for path in found.sizes if Path(path).suffix.lower() in SUFFIXES]
    others = [path for path in found.sizes if Path(path).suffix.lower() not in SUFFIXES]
    skipped = [*found.skipped, *((printable(path), "not the name of an image") for path in others)]
    prefix, beside = _split_folders(images, where=where)
    if beside:
        bases = {"train": f"{prefix}train/", "val": f"{prefix}{beside}/"}
        chosen = [path for path in images if path.startswith(bases[split])]
        skipped = [entry for entry in skipped if entry[0].startswith(printable(bases[split]))]
    else:
        bases = {"train": "", "val": ""}
        chosen = _hashed(images, split)

    def class_of(path: str, base: str) -> str:
        head, slash, _ = path.removeprefix(base).partition("/")
        return head if slash else UNLABELED

    paths = [*(f"{folder}/" for folder in found.folders), *images]
    names = {
        class_of(path, base)
        for base in bases.values()
        for path in paths
        if path.startswith(base) and path != base
    }
    classes = sorted(names, key=os.fsencode)
    labels = {name: label for label, name in enumerate(classes)}
    labeled = {path: labels[class_of(path, bases[split])] for path in chosen}
    return tuple(printable(name) for name in classes), labeled, skipped


def _split_folders(images: list[str], *, where: str) -> tuple[str, str]:
    """Find train/ and the folder beside it, at the top or in the only folder there; else none."""
    parts = [path.split("/") for path in images]
    for depth in (0, 1):
        tops = {"/".join(part[:depth]) for part in parts}
        heads = {part[depth] for part in parts if len(part) > depth + 1}
        if len(tops) == 1 and "train" in heads:
            beside = [name for name in HELD_OUT if name in heads]
            if not beside:
                raise ValueError(
                    f"{where} has images in train/ but none in val/ or test/; "
                    "give the folder train itself to hold out a part of it"
                )
            top = tops.pop()
            return (f"{top}/" if top else ""), beside[0]
    return "", ""


def _hashed(images: list[str], split: str) -> list[str]:
    """Hold out one image in ten by a hash of its path, so that new images move no other.

    Of two or more, each side gets at least one.
    """
    digests = {path: hashlib.sha256(os.fsencode(path)).digest() for path in images}
    held = {path for path, digest in digests.items() if int.from_bytes(digest[:8]) % 10 == 0}
    if len(images) > 1 and not held:
        held = {min(images, key=digests.__getitem__)}
    if len(images) > 1 and len(held) == len(images):
        held.discard(max(images, key=digests.__getitem__))
    return [path for path in images if (path in held) == (split == "val")]


def printable(name: str) -> str:
    """Give `name` as text that any file can hold: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
