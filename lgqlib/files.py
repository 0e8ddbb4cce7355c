"""Files that are whole or not there, checksums that find damage, and a lock that no kill leaves.

What the library reads back is sealed: its JSON ends with a checksum of the rest. That JSON is a
file, a line of metrics, or the header of arrays, whose own checksum it then holds.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

LOCKLESS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What a file system without locks answers."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block (a full disk, a lost permission) name the `path` of the write."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and put the file in the place of `path` at the end.

    Whoever reads `path` sees the old content or the new, also when the process is killed between.
    An exception (a full disk, say) leaves `path` as it was and removes the temporary.
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


def sweep(folder: Path) -> None:
    """Remove temporaries that a kill left in `folder`; only for whoever holds the folder's lock."""
    for left in folder.glob(".*.tmp.*"):
        left.unlink()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool | None]:
    """Lock the file `path` until the block or the process ends; yield whether the lock is held.

    False: another process has it, and `wait` is false. None: the file system has no locks, and
    whoever uses it keeps two writers apart.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    with file:
        held: bool | None = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        except OSError as error:
            if error.errno not in LOCKLESS:
                raise
            held = None
        yield held


# JSON and arrays, with checksums ------------------------------------------------------------------

CHECKSUM = ', "checksum": "'
OTHER = "damaged: its checksum is not the one that was written"


def seal(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Give `value` as JSON that ends with a checksum of the rest; NaN and infinity become null."""
    plain = {
        name: None if isinstance(item, float) and not math.isfinite(item) else item
        for name, item in value.items()
    }
    text = json.dumps(plain, indent=indent, allow_nan=False)
    return f'{text[:-1]}{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}"}}'


def unseal(text: bytes) -> dict[str, Any]:
    """Read what `seal` gave. Raises ValueError when any byte of it is another."""
    body, mark, checksum = text.strip().rpartition(CHECKSUM.encode())
    plain = body + b"}"
    if not mark or checksum != hashlib.sha256(plain).hexdigest().encode() + b'"}':
        raise ValueError(OTHER)
    return json.loads(plain)


@contextlib.contextmanager
def reading(what: Path | str, remedy: str = "") -> Iterator[None]:
    """Let an error of the block say what cannot be read, why, and what to do."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{what} is missing.{remedy}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be read ({error}).{remedy}") from None


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write `value` as JSON, atomically; without a seal a number that is NaN is refused."""
    text = seal(value, indent=1) if sealed else json.dumps(value, indent=1, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, *, sealed: bool = False, remedy: str = "") -> Any:
    """Read JSON. Raises ValueError that names the file when it is missing or damaged."""
    with reading(path, remedy):
        return (unseal if sealed else json.loads)(path.read_bytes())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """Write arrays, and what JSON can hold `about` them, as safetensors; give their checksum."""
    arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    checksum = _checksum(arrays)
    content = save(arrays, metadata={"about": seal({**about, "arrays": checksum})})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return checksum


def read_about(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """Read only what stands `about` arrays, whose damage is not seen."""
    with reading(path, remedy), safe_open(path, "numpy") as file:
        return unseal((file.metadata() or {}).get("about", "").encode())


def read_arrays(path: Path, *, remedy: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays and `about`. Raises ValueError that names the file when it is damaged."""
    about = read_about(path, remedy=remedy)
    with reading(path, remedy):
        arrays = load_file(path)
        if _checksum(arrays) != about["arrays"]:
            raise ValueError(OTHER)
    return arrays, about


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value)
    return digest.hexdigest()


# Parameters of notebooks, refused by their names before anything is computed with them ------------


def require(right: str, fits: Callable[[Any], bool], **values: Any) -> None:
    """Raise ValueError, by its name and with what is `right`, for a value that does not fit."""
    for name, value in values.items():
        if not fits(value):
            raise ValueError(f"{name} = {value!r}: it must be {right}.")


def require_whole(*, least: int = 1, most: int = 2**31, **values: Any) -> None:
    """Refuse what is no whole number in [least, most]."""
    right = f"a whole number from {least} to {most}"
    require(right, lambda x: type(x) is int and least <= x <= most, **values)


def require_folder(**values: Any) -> None:
    """Refuse what is no path."""
    right = "the path of a folder"
    require(right, lambda x: isinstance(x, str | os.PathLike) and "\0" not in str(x), **values)


def require_falling(**values: Any) -> None:
    """Refuse what is no finite number > 0, or not below the one before it."""
    right = "a finite number > 0"
    require(right, lambda x: type(x) in (int, float) and 0 < x < math.inf, **values)
    for (above, most), (name, value) in itertools.pairwise(values.items()):
        require(f"below {above} = {most!r}", lambda x, most=most: x < most, **{name: value})


def require_one_of(choices: tuple[str, ...], **values: Any) -> None:
    """Refuse what is none of the choices."""
    require(f"one of {', '.join(choices)}", lambda x: x in choices, **values)
