"""Files that are whole or not there, checksums that find damage, and a lock that no kill leaves.

All JSON is sealed: it ends with a checksum of the rest, whether a file, a line or a header.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import ssl
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from tqdm.auto import tqdm

CHECKSUM = ', "checksum": "'
TIMEOUT = 30  # seconds without a byte before a connection counts as lost
NETWORK = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)  # never the disk
DAMAGED = "damaged: its checksum is not the one that was written"
LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block (a full disk, a lost permission) name the `path` of the write."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def reading(path: Path, remedy: str = "") -> Iterator[None]:
    """Let an error of the block say which file cannot be read, why, and what to do."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing.{remedy}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}).{remedy}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and put the file in the place of `path` at the end.

    Whoever reads `path` sees the old content or the new, also after a kill or on a full disk.
    """
    # The name ends as that of `path` does, for writers that choose a format by it.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.tmp.{path.name}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # before the rename, or a power cut leaves an empty file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def writable(folder: Path) -> Path:
    """Give `folder`, or where that cannot be written, which is said once, a temporary one."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if os.access(there, os.W_OK):
        return folder
    if not _elsewhere.cache_info().currsize:
        said = "%s cannot be written: what goes there is kept in %s until the process ends"
        LOG.warning(said, there, _elsewhere().name)
    return Path(_elsewhere().name, *folder.parts[1:])


@functools.cache
def _elsewhere() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="lgq-")  # which lasts as long as this cache


def sweep(folder: Path) -> None:
    """Remove temporaries that a kill left in `folder`; only for whoever holds the folder's lock."""
    for left in folder.glob(".*.tmp.*"):
        left.unlink()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock the file `path` until the block or the process ends; yield whether the lock is held.

    It is not when another process has it and `wait` is false; without locks it counts as held.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    with file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held = not isinstance(error, BlockingIOError)
        yield held


def seal(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Give `value` as JSON that ends with a checksum of the rest; NaN and infinity become null."""
    lost = {k: None for k, v in value.items() if isinstance(v, float) and not math.isfinite(v)}
    text = json.dumps({**value, **lost}, indent=indent, allow_nan=False)
    return f'{text[:-1]}{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}"}}'


def unseal(text: bytes) -> dict[str, Any]:
    """Read what `seal` gave. Raises ValueError when any byte of it is another."""
    body, mark, checksum = text.strip().rpartition(CHECKSUM.encode())
    plain = body + b"}"
    if not mark or checksum != hashlib.sha256(plain).hexdigest().encode() + b'"}':
        raise ValueError(DAMAGED)
    return json.loads(plain)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as sealed JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(seal(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """Read sealed JSON. Raises ValueError that names the file when it is missing or damaged."""
    with reading(path, remedy):
        return unseal(path.read_bytes())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write arrays, and what JSON can hold `about` them, as safetensors."""
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    header = {"about": seal({**about, "arrays": hashlib.sha256(save(arrays)).hexdigest()})}
    with replacing(path) as temporary:
        temporary.write_bytes(save(arrays, metadata=header))


def read_about(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """Read only what stands `about` arrays, whose damage is not seen; null is NaN."""
    with reading(path, remedy), safe_open(path, "numpy") as file:
        about = unseal((file.metadata() or {}).get("about", "").encode())
    return {name: math.nan if value is None else value for name, value in about.items()}


def read_arrays(path: Path, *, remedy: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays and `about`. Raises ValueError that names the file when it is damaged."""
    about = read_about(path, remedy=remedy)
    with reading(path, remedy):
        arrays = load_file(path)
        if hashlib.sha256(save(arrays)).hexdigest() != about.pop("arrays"):
            raise ValueError(DAMAGED)
    return arrays, about


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path, *, digest: str, instead: str) -> None:
    """Download `url` to `path` unless it is there; `digest` is the SHA-256 of the right bytes.

    Interrupted, it stays beside `path` as `.part`, and the next call continues. ConnectionError,
    with what to do `instead`, when it fails; OSError when the disk is full; ValueError for others.
    """
    part = path.with_name(path.name + ".part")
    with locked(path.with_name(path.name + ".lock")):
        if path.exists():
            return
        try:
            found = sha256(part) if part.exists() else ""
            if found != digest:
                _fetch(url, part)
                found = sha256(part)
        except NETWORK as error:
            text = f"cannot download {url} ({getattr(error, 'reason', error)})."
            raise ConnectionError(f"{text} Try again to continue, or {instead}") from None
        except OSError as error:
            raise OSError(error.errno, f"could not write {part}: {error.strerror}") from error
        if found != digest:
            part.unlink()
            text = "a damaged download or another file. It was removed; try again, or"
            raise ValueError(f"{url} has SHA-256 {found}, not {digest}: {text} {instead}")
        with replacing(path) as temporary:
            part.rename(temporary)


def _fetch(url: str, part: Path) -> None:
    present = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={present}-"} if present else {})
    with urlopen(request, timeout=TIMEOUT) as response:
        # A server that ignores the range answers 200 with the whole file: start over.
        begin = present if response.status == 206 else 0
        total = begin + int(response.headers.get("Content-Length", 0))
        bar = tqdm(desc=part.stem, initial=begin, total=total or None, unit="B", unit_scale=True)
        with open(part, "ab" if begin else "wb") as file, bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size < total:
        raise ConnectionError("the connection was lost")


def require(*, kind: type = int, least: float = 1, most: float = 2**31, **values: Any) -> None:
    """Raise ValueError, by its name, for a value that is no number of `kind` in [least, most]."""
    right = f"a {'whole ' if kind is int else ''}number from {least} to {most}"
    for name, value in values.items():
        if type(value) not in (int, kind) or not least <= value <= most:
            raise ValueError(f"{name} = {value!r}: it must be {right}.")


def here(*folders: Path | str) -> list[Path]:
    """Give absolute paths; relative ones are below the project, or else the working directory.

    The project is the nearest folder above that holds `notebooks/01_train.ipynb`.
    """
    now = Path.cwd()
    tops = (top for top in (now, *now.parents) if (top / "notebooks" / "01_train.ipynb").exists())
    top = next(tops, now)
    return [top / folder for folder in folders]
