"""The store holds what was decoded, and is there whole or not at all."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filesystem import folder_of, largest_file, noise, read

from lgqlib.data import store


@pytest.fixture
def root(tmp_path):
    return folder_of(tmp_path / "images", *(f"train/a/{i}.png" for i in range(8)), "val/a/8.png")


def test_it_decodes_once_and_again_when_something_changed(root, tmp_path, monkeypatch):
    built, build = [], store._build
    monkeypatch.setattr(store, "_build", lambda *a, **k: built.append(1) or build(*a, **k))
    first, again = read(root, tmp_path / "cache"), read(root, tmp_path / "cache")
    assert len(built) == 1 and torch.equal(first.pixels, again.pixels)
    assert len(first) == 8 and (first.image(7).numpy() == noise(20, 24, 7)).all()
    read(root, tmp_path / "cache", resize=10)
    assert len(built) == 2
    os.utime(root / "train/a/1.png", (1, 1))
    assert read(root, tmp_path / "cache").content == first.content
    assert len(built) == 3
    folder_of(root / "train", "a/1.png", "a/0.png")
    assert read(root, tmp_path / "cache").content != first.content


@pytest.mark.parametrize("name", ["pixels.bin", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_damaged_store_is_built_again(root, tmp_path, name, damage, caplog):
    content = read(root, tmp_path / "cache").content
    [path] = (tmp_path / "cache").rglob(name)
    whole = path.read_bytes()
    middle = len(whole) // 2
    cut, flipped = whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.unlink() if damage == "gone" else path.write_bytes(cut if damage == "cut" else flipped)
    images = read(root, tmp_path / "cache")
    assert images.content == content and (images.image(0).numpy() == noise(20, 24)).all()
    assert path.read_bytes() == whole
    assert ("is built again" in caplog.text) == ((name, damage) != ("index.json", "gone"))


SLOW_BUILD = """
import os, sys, time
from pathlib import Path
from lgqlib.data import store
from filesystem import read

def slow(*arguments, decode=store.decode, **options):
    os.write(1, b"decoding\\n")
    time.sleep(0.2)
    return decode(*arguments, **options)

store.decode = slow
print(read(Path(sys.argv[1]), Path(sys.argv[2])).content)
"""


@contextlib.contextmanager
def build_elsewhere(root: Path, cache: Path):
    """Build the store in another process, slowly; give that when it decodes."""
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(cache)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment, **pipes) as other:
        assert other.stdout.readline() == "decoding\n"
        yield other
        other.kill()


def test_a_killed_build_leaves_nothing_that_counts(root, tmp_path):
    with build_elsewhere(root, tmp_path / "cache") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert list(tmp_path.rglob(".*.tmp.pixels.bin")), "the build was in the middle"
    images = read(root, tmp_path / "cache")
    assert len(images) == 8 and (images.image(7).numpy() == noise(20, 24, 7)).all()
    assert not list(tmp_path.rglob("*.tmp.*"))


def test_of_two_processes_one_builds(root, tmp_path, monkeypatch):
    with build_elsewhere(root, tmp_path / "cache") as other:
        monkeypatch.setattr(store, "decode", None)
        images = read(root, tmp_path / "cache")
        assert other.communicate()[0].split()[-1] == images.content, "this one waited"


def test_a_full_disk_names_the_path_and_leaves_nothing(root, tmp_path):
    # Room for three images of eight: 20 x 24 x 3 bytes each.
    with (
        largest_file(4500),
        pytest.raises(OSError, match=r"could not write .*pixels.bin: File too"),
    ):
        read(root, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*pixels.bin"))
    assert len(read(root, tmp_path / "cache")) == 8


def test_a_store_opens_where_nothing_can_be_locked(root, tmp_path, monkeypatch):
    def lockless(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", lockless)
    assert len(read(root, tmp_path / "cache")) == 8
    monkeypatch.setattr(store, "locked", None)  # opening needs no lock, and may be read-only
    images = read(root, tmp_path / "cache")
    assert len(images) == 8 and images.to("cpu") is images
