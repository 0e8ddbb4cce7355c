"""Files that are whole or not there: write under a temporary name, flush to the disk, rename."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, a file or a folder to be written, and put it in its
    place at the end.

    Whoever reads `path` sees the old content or the new, never a part, even when the process is
    killed between. An exception
    (a full disk, say) leaves `path` as it was and removes the temporary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary = folder / path.name
    try:
        yield temporary
        for part in [*temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            _sync(part)
        if path.is_dir():
            # A folder cannot be replaced in one step: move the old one aside first, to be removed
            # last.
            path.rename(folder / "old")
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove temporaries that a killed process left in `folder`; only for whoever holds the
    folder's lock.
    """
    for left in folder.glob(".*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; NaN is refused, for JSON has none."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON. Raises ValueError that names the file when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
