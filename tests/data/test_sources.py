"""Folders, archives, downloads: the right images in the right split, or an error says why."""

import hashlib
import http.server
import logging
import os
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filesystem import archive_of, folder_of, largest_file, noise, read
from PIL import Image

from lgqlib.config import DataConfig
from lgqlib.data import SOURCES, SPLITS, load
from lgqlib.data.sources import Row, download

# Folders ----------------------------------------------------------------------------------------


def test_bad_files_are_named_and_skipped(tmp_path, monkeypatch, caplog):
    root = folder_of(tmp_path / "images", "train/a/good.png", "val/a/other.png")
    bad = root / "train" / "a"
    Image.fromarray(noise(64, 64)).save(bad / "truncated.jpg")
    (bad / "truncated.jpg").write_bytes((bad / "truncated.jpg").read_bytes()[:-400])
    (bad / "cut.png").write_bytes((bad / "good.png").read_bytes()[:300])
    (bad / "text.jpg").write_text("no image")
    (bad / "nothing.png").touch()
    (bad / "notes.txt").write_text("about the images")
    (bad / ".hidden.png").write_text("no image")
    Image.new("RGB", (1, 1)).save(bad / "dot.png")
    Image.new("RGB", (300, 300)).save(bad / "bomb.png")
    Image.new("RGB", (200, 200)).save(bad / "large.png")
    (bad / "loop.png").symlink_to("loop.png")
    (bad / "up").symlink_to("..")
    (bad / "gone.png").symlink_to("nowhere.png")
    (root / "train" / "empty").mkdir()
    os.mkfifo(bad / "pipe.png")
    # Above the limit Pillow warns, above twice the limit it raises; both are refused.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    with caplog.at_level(logging.WARNING):
        images = read(root, tmp_path / "cache")
    assert images.names == ("train/a/good.png",)
    reasons = {Path(name).name: reason for name, reason in images.skipped}
    expected = {
        "truncated.jpg": "truncated",
        "cut.png": "",
        "text.jpg": "not an image",
        "nothing.png": "not an image",
        "notes.txt": "not the name of an image",
        "dot.png": "1 x 1 pixels",
        "bomb.png": "exceeds limit",
        "large.png": "above the limit",
        "loop.png": "cannot be read",
        "up": "a link back",
        "gone.png": "cannot be read",
        "pipe.png": "not a regular file",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name], (name, reasons[name])
    assert "12 skipped, 1 read" in caplog.text and "cut.png" in caplog.text
    assert read(root, tmp_path / "cache", split="val").skipped == ()
    assert images.classes == ("a", "empty")


def test_hostile_names_are_read(tmp_path):
    word, line, long = os.fsdecode(b"caf\xe9"), "new\nline", "x" * 240
    names = [f"train/{word}/x.png", f"train/{line}/<i>.png", f"train/b/{long}.png"]
    root = folder_of(tmp_path / "images", *names, f"val/{word}/x.png")
    images = read(root, tmp_path / "cache")
    assert images.classes == ("b", "caf\\xe9", line)
    assert images.names == (f"train/b/{long}.png", "train/caf\\xe9/x.png", names[1])
    assert (images.image(1).numpy() == noise(20, 24, 0)).all()
    assert read(root, tmp_path / "cache", split="val").names == ("val/caf\\xe9/x.png",)


@pytest.mark.parametrize("text", [None, "not an image"])
def test_a_folder_without_images_is_an_error_that_names_it(tmp_path, text):
    root = tmp_path / "bare"
    root.mkdir()
    for name in ("a.png", "b.png") if text else ():
        (root / name).write_text(text)
    with pytest.raises(ValueError, match=r"bare: no readable image"):
        read(root, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("pixels.bin")), "a failed build leaves no store"


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data.root = .*absent"):
        read(tmp_path / "absent", tmp_path / "cache")
    root = folder_of(tmp_path / "images", "train/a/x.png", "train/a/y.png")
    with pytest.raises(ValueError, match="images: .*give the folder train itself"):
        read(root, tmp_path / "cache")
    assert len(read(root / "train", tmp_path / "cache")) == 1
    with pytest.raises(ValueError, match="split must be one of"):
        load(DataConfig(), "test", cache=tmp_path)
    with pytest.raises(ValueError, match="photos are embedded"):
        load(DataConfig(root="somewhere"), "train", cache=tmp_path)


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_labels_mean_the_same_class_in_both_splits(tmp_path, held_out):
    root = folder_of(tmp_path / "i", "train/a/1.png", "train/c/2.png", f"{held_out}/b/3.png")
    train, val = (read(root, tmp_path / "cache", split=split) for split in SPLITS)
    assert train.classes == val.classes == ("a", "b", "c")
    assert train.labels.tolist() == [0, 2] and val.labels.tolist() == [1]


def test_the_split_by_hash_is_a_partition_that_new_images_do_not_move(tmp_path):
    names = [f"{label}/{i}.png" for label in "ab" for i in range(40)]
    root = folder_of(tmp_path / "images", *names)
    train, val = (set(read(root, tmp_path / "c", split=split).names) for split in SPLITS)
    assert train | val == set(names) and not train & val
    assert 2 <= len(val) <= 18
    folder_of(root, "b/new.png")
    assert val <= set(read(root, tmp_path / "c", split="val").names) <= val | {"b/new.png"}


@pytest.mark.parametrize("number", range(12))
def test_two_images_make_one_of_each_split(tmp_path, number):
    root = folder_of(tmp_path / "images", f"{number}.png", f"{number + 40}.png")
    sets = [read(root, tmp_path / "cache", split=split) for split in SPLITS]
    assert [len(images) for images in sets] == [1, 1]
    assert sets[0].classes == ("unlabeled",)


def test_a_new_source_is_a_row(tmp_path, monkeypatch):
    cup, cat = ("train", "skimage", "data/coffee.png"), ("val", "skimage", "data/chelsea.png")
    monkeypatch.setitem(SOURCES, "photos", Row(photographs={"cup": cup, "cat": cat}))
    train, val = (load(DataConfig(), split, cache=tmp_path) for split in SPLITS)
    assert train.classes == val.classes == ("cat", "cup")
    assert (train.labels.tolist(), val.labels.tolist()) == ([1], [0])
    monkeypatch.setitem(SOURCES, "photos", Row(photographs={"x": ("train", "skimage", "x.png")}))
    with pytest.raises(ValueError, match="skimage/x.png is missing: install skimage"):
        load(DataConfig(), "train", cache=tmp_path)


# Archives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("top", ["", "./", "set/"])
def test_an_archive_reads_like_its_folder(tmp_path, mode, top):
    root = folder_of(tmp_path / "images", "train/b/1.png", "train/a/2.png", "test/a/3.png")
    (root / "notes.csv").write_text("x")
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    contents = {f"{top}{path.relative_to(root)}": path.read_bytes() for path in files}
    (tmp_path / "images.tar").write_bytes(archive_of(contents, mode))
    for split in SPLITS:
        folder = read(root, tmp_path / "cache", split=split)
        archive = read(tmp_path / "images.tar", tmp_path / "cache", split=split)
        assert archive.classes == folder.classes == ("a", "b")
        assert [name.removeprefix("set/") for name in archive.names] == list(folder.names)
        assert torch.equal(archive.pixels, folder.pixels)


def test_an_archive_writes_nothing_and_follows_no_link(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "images", "good.png")
    names = ("../escaped.png", "train/a/1.png", "train/a/large.png", "val/a/2.png")
    content = (root / "good.png").read_bytes()
    evil = {name: content + bytes(9000 * ("large" in name)) for name in names}
    (tmp_path / "evil.tar").write_bytes(archive_of(evil, "w"))
    with tarfile.open(tmp_path / "evil.tar", "a") as tar:
        link = tarfile.TarInfo("train/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(root / "good.png")
        tar.addfile(link)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("lgqlib.data.folders.LARGEST_MEMBER", 9000)
    images = read(tmp_path / "evil.tar", tmp_path / "cache")
    assert images.names == ("train/a/1.png",)
    assert [(Path(name).name, reason[:9]) for name, reason in images.skipped] == [
        ("large.png", f"{9000 + len(content)} byte"[:9]),
        ("link.png", "not a reg"),
    ]
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "cache"])


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    root = folder_of(tmp_path / "images", "1.png")
    content = archive_of({f"{i}.png": (root / "1.png").read_bytes() for i in range(3)})
    path = tmp_path / "images.tar.gz"
    path.write_bytes(content[:900] if damage == "cut" else b"text" * 999)
    with pytest.raises(ValueError, match=r"images.tar.gz: not a readable tar archive"):
        read(path, tmp_path / "cache")


# Downloads --------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 500


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve the server's content, with ranges when it has them, up to where it is cut."""

    def do_GET(self):
        content, start = self.server.content, 0
        self.server.ranges.append(self.headers.get("Range"))
        if self.path == "/missing":
            return self.send_error(404)
        if self.server.has_ranges and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.has_ranges, server.cut, server.ranges = CONTENT, True, None, []
        server.url = f"http://127.0.0.1:{server.server_port}/set.tar"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, path, content=CONTENT):
    digest = hashlib.sha256(content).hexdigest()
    download(server.url, path, digest=digest, instead="set data.root")
    return path.read_bytes()


def test_it_arrives_once_also_from_a_part_that_was_complete(server, tmp_path):
    assert fetch(server, tmp_path / "folder" / "set.tar") == CONTENT
    fetch(server, tmp_path / "folder" / "set.tar")
    assert server.ranges == [None], "the second call finds the file"
    assert not list(tmp_path.rglob("*.part"))
    (tmp_path / "set.tar.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "set.tar") == CONTENT


@pytest.mark.parametrize("has_ranges", [True, False])
def test_it_continues_where_it_was_cut(server, tmp_path, has_ranges):
    path = tmp_path / "set.tar"
    server.cut, server.has_ranges = 50_000, has_ranges
    with pytest.raises(ConnectionError, match=r"was lost.*Try again to continue.*data.root"):
        fetch(server, path)
    assert not path.exists()
    server.cut = None
    assert fetch(server, path) == CONTENT
    assert server.ranges == [None, "bytes=50000-"]


def test_wrong_bytes_are_refused_and_removed_and_a_full_disk_is_named(server, tmp_path):
    with pytest.raises(ValueError, match=r"set.tar has SHA-256 \w+, not \w+.*data.root"):
        fetch(server, tmp_path / "set.tar", content=b"other")
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.lock"]
    full = pytest.raises(OSError, match=r"could not write .*set.tar.part: File too large")
    with largest_file(10_000), full:
        fetch(server, tmp_path / "set.tar")
    assert fetch(server, tmp_path / "set.tar") == CONTENT
    assert server.ranges[-1] == "bytes=10000-"
    server.url = server.url.replace("set.tar", "missing")
    with pytest.raises(ConnectionError, match=r"cannot download .*/missing .*Not Found"):
        fetch(server, tmp_path / "other.tar")


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_without_a_network_it_says_how_to_give_a_folder(tmp_path, monkeypatch, name):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/set.tar"
    monkeypatch.setitem(SOURCES, name, Row(url=url, digest="0"))
    with pytest.raises(ConnectionError, match=rf"{url}.*set data.root to a folder of"):
        load(DataConfig(name=name), "train", cache=tmp_path)


# CIFAR-10 ---------------------------------------------------------------------------------------


def cifar10_batch(seed: int, count: int = 5) -> bytes:
    records = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records.tobytes()


def test_cifar10_from_its_binary_archive(server, tmp_path, monkeypatch):
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "readme.html"]
    batches = {f"cifar-10/{name}": cifar10_batch(i) for i, name in enumerate(names)}
    server.content = archive_of(batches)
    digest = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setitem(SOURCES, "cifar10", Row(url=server.url, digest=digest))
    config = DataConfig(name="cifar10")
    train, val = (load(config, split, cache=tmp_path) for split in SPLITS)
    assert (len(train), len(val)) == (25, 5) and train.classes[3] == "cat"
    assert len(server.ranges) == 1, "both splits are in one file"
    record = np.frombuffer(batches["cifar-10/data_batch_2.bin"], np.uint8)[:3073]
    assert train.labels[5] == record[0]
    assert (train.image(5).permute(2, 0, 1).numpy().ravel() == record[1:]).all()
    # The same from a folder.
    for name, content in batches.items():
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_bytes(content)
    given = read(tmp_path / "given", tmp_path, name="cifar10", size=32)
    assert torch.equal(given.pixels, train.pixels)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(cifar10_batch(0)[:-1], "not a multiple of 3073"), (b"\x0b" * 3073, "the label 11, above 9")],
)
def test_a_damaged_batch_of_cifar10_is_named(tmp_path, content, reason):
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_1.bin has .*{reason}"):
        read(tmp_path, tmp_path / "cache", name="cifar10")
