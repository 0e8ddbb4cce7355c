"""Folders of noise and archives of bytes, to be read as images; and a disk that is full."""

import contextlib
import io
import resource
import signal
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from lgqlib.config import DataConfig
from lgqlib.data import ImageSet, load


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Give pixels that no other seed has."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder_of(root: Path, *names: str) -> Path:
    """Write images of 20 x 24 pixels; the seed is the place in `names`."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(20, 24, seed)).save(root / name)
    return root


def archive_of(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """Give a tar of files, whatever their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read(root: Path, cache: Path, split: str = "train", name="imagefolder", **more) -> ImageSet:
    """Load a folder or an archive."""
    return load(DataConfig(name=name, root=str(root), **{"size": 8, **more}), split, cache=cache)


@contextlib.contextmanager
def largest_file(num_bytes: int):
    """Let no file grow beyond `num_bytes`: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
