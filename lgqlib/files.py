"""Files that are whole or not there: write under a temporary name, flush to the disk, rename."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

OS_ERROR = re.compile(r"\(os error (\d+)\)")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block (a full disk, a lost permission) say that `path` could not be
    written.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """Raise the failed writes of safetensors, which has an error of its own, as OSError."""
    try:
        yield
    except SafetensorError as error:
        code = OS_ERROR.search(str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, a file or a folder to be written, and put it in its
    place at the end.

    Whoever reads `path` sees the old content or the new, never a part, even when the process is
    killed between. An exception
    (a full disk, say) leaves `path` as it was and removes the temporary.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield from _replaced(path, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _replaced(path: Path, folder: Path) -> Iterator[Path]:
    temporary = folder / path.name
    yield temporary
    for part in [*temporary.rglob("*")] if temporary.is_dir() else [temporary]:
        _sync(part)
    if path.is_dir():
        # A folder cannot be replaced in one step: move the old one aside first, to be removed
        # last.
        path.rename(folder / "old")
    os.replace(temporary, path)
    _sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove temporaries that a killed process left in `folder`; only for whoever holds the
    folder's lock.
    """
    for left in folder.glob(".*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def json_text(value: Any) -> str:
    """Give `value` as JSON text; NaN is refused, for JSON has none."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    text = json_text(value)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON. Raises ValueError that names the file when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Add the SHA-256 of `value` to it as `checksum`, for `read_sealed` to verify."""
    # As it comes back from a file: a tuple as a list, a key as text.
    plain = json.loads(json_text(value))
    return {**plain, "checksum": hashlib.sha256(json_text(plain).encode()).hexdigest()}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what was `sealed`; without a checksum (from an earlier version) it is read as it is.

    Raises ValueError that names the file when it is damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no names with values.")
    expected = value.pop("checksum", None)
    try:
        is_whole = expected is None or sealed(value)["checksum"] == expected
    except ValueError:  # NaN, which Python reads and nobody wrote
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} is damaged: its checksum is not the one that was written.")
    return value


def sealed_line(record: Mapping[str, Any]) -> str:
    """Give `record` as a line of JSON, with a checksum of the rest of it at the end."""
    text = json.dumps(record, allow_nan=False)
    return json.dumps({**record, "crc": zlib.crc32(text.encode())}, allow_nan=False) + "\n"


def read_line(line: bytes) -> dict:
    """Read a `sealed_line`; one without a checksum (from an earlier version) is read as it is.

    Raises ValueError with what is wrong with it, to stand behind its number.
    """
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not (isinstance(record, dict) and {"step", "split"} <= record.keys()):
        raise ValueError("not a record with `step` and `split`")
    expected = record.pop("crc", None)
    if expected is not None and zlib.crc32(json.dumps(record).encode()) != expected:
        raise ValueError("damaged: its checksum is not the one that was written")
    return record


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
