"""Fetch one file over HTTP: resumed where it stopped, checked against its SHA-256, and there whole
or not at all.
"""

import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from lgqlib.files import sha256
from lgqlib.locks import locked

CHUNK = 1 << 20
TIMEOUT = 30
"""Seconds without a byte before the connection counts as lost."""


def download(url: str, path: Path, *, digest: str, instead: str) -> Path:
    """Download `url` to `path` unless it is there already; `digest` is the SHA-256 that its bytes
    must have.

    An interrupted download stays beside `path` as `.part` and the next call continues it. `instead`
    tells the reader what to do without a network, and ends the messages. Raises ConnectionError
    when the server cannot be reached or the connection is lost, OSError when the disk is full,
    ValueError when the bytes are not the expected ones.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock")):
        if path.exists():
            return path
        part = path.with_name(path.name + ".part")
        _fetch(url, part, instead=instead)
        found = sha256(part)
        if found != digest:
            part.unlink()
            raise ValueError(
                f"{url} has SHA-256 {found}, not {digest}: a damaged download or another file. "
                f"It was removed; try again, or {instead}"
            )
        os.replace(part, path)
    return path


def _fetch(url: str, part: Path, *, instead: str) -> None:
    present = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={present}-"} if present else {})
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if (
            error.code == 416
        ):  # Nothing is left to send: the part is complete, and its checksum decides.
            return
        raise ConnectionError(f"cannot download {url} ({error}). Otherwise, {instead}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"cannot download {url} ({reason}). Without a network, {instead}"
        ) from None
    with response:
        # A server that ignores the range answers 200 with the whole file: start over.
        resumed = response.status == 206
        left = response.headers.get("Content-Length")
        total = None if left is None else int(left) + present * resumed
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(
                desc=f"download {part.stem}",
                total=total,
                initial=present * resumed,
                unit="B",
                unit_scale=True,
            ) as bar,
        ):
            while chunk := _receive(response, url, instead=instead):
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    needed = "" if total is None else f"; the download needs {total / 1e6:.0f} MB"
                    text = f"could not write {part}: {error.strerror or error}{needed}"
                    raise OSError(error.errno, text) from error
                bar.update(len(chunk))
            os.fsync(file.fileno())
            if total is not None and file.tell() < total:
                raise ConnectionError(
                    f"the connection to {url} was lost. Try again to continue, or {instead}"
                )


def _receive(response, url: str, *, instead: str) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:
        text = f"the connection to {url} was lost ({error}). Try again to continue, or {instead}"
        raise ConnectionError(text) from None
