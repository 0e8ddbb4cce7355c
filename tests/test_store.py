"""The store holds what the files show, whatever the files are, and is there whole or not at all."""

import io
import logging
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lgqlib.data.decode import decode
from PIL import Image

from lgqlib.config import DataConfig
from lgqlib.data import load, store


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder_of(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(20, 24, seed)).save(root / name)
    return root


def read(root: Path, cache: Path, split: str = "train", **arguments) -> store.ImageSet:
    config = DataConfig(name="imagefolder", root=str(root), **{"size": 8, **arguments})
    return load(config, split, cache=cache)


# One file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 102), (153, 153, 153)),
        ("LA", (90, 255), (90, 90, 90)),
        ("LA", (90, 0), (255, 255, 255)),
        ("I;16", 257 * 77, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    path = tmp_path / "image.tif"
    Image.new(mode, (9, 11), value).save(path)
    pixels = decode(path)
    assert pixels.shape == (11, 9, 3) and pixels.dtype == np.uint8
    assert (pixels == np.array(expected)).all()


def test_16_bit_png_keeps_its_gray(tmp_path):
    values = np.linspace(0, 65535, 400).round().astype(np.uint16).reshape(20, 20)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert (decode(tmp_path / "deep.png")[..., 0] == np.round(values / 257.0)).all()


def test_palette_and_its_transparent_color(tmp_path):
    image = Image.new("P", (10, 10), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.paste(1, (0, 0, 10, 5))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    plain, clear = decode(tmp_path / "plain.png"), decode(tmp_path / "clear.png")
    assert (plain[0, 0] == (0, 200, 0)).all() and (plain[9, 0] == (200, 0, 0)).all()
    assert (clear[0, 0] == 255).all() and (clear[9, 0] == (200, 0, 0)).all()


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = noise(10, 16)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert (decode(tmp_path / "turned.png") == np.rot90(pixels, -1)).all()


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (12, 12), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert (decode(tmp_path / "film.gif") == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_scaling_sets_the_short_side(tmp_path, suffix):
    path = tmp_path / f"wide.{suffix}"
    Image.fromarray(noise(60, 90)).save(path)
    assert decode(path, resize=20).shape == (20, 30, 3)
    assert decode(path, resize=20, at_least=30).shape == (30, 45, 3)
    assert decode(path, at_least=120).shape == (120, 180, 3)
    assert decode(path, at_least=60).shape == (60, 90, 3)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (1, 1)), "a side below 8"),
        (Image.new("RGB", (7, 300)), "a side below 8"),
        (Image.new("F", (9, 9)), "floating-point"),
        (Image.new("I", (9, 9), 1 << 20), "32-bit integer"),
    ],
)
def test_what_cannot_be_an_example_says_why(tmp_path, image, reason):
    image.save(tmp_path / "image.tif")
    with pytest.raises(ValueError, match=reason):
        decode(tmp_path / "image.tif")


def test_scaling_up_does_not_pass_the_size_limit(tmp_path, monkeypatch):
    Image.new("RGB", (8, 2000)).save(tmp_path / "sliver.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(ValueError, match="80 x 20000 pixels, above the limit"):
        decode(tmp_path / "sliver.png", at_least=80)


# Folders ----------------------------------------------------------------------------------------


def test_bad_files_are_named_and_skipped(tmp_path, monkeypatch, caplog):
    root = folder_of(tmp_path / "images", "train/a/good.png", "val/a/other.png")
    bad = root / "train" / "a"
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    (bad / "truncated.jpg").write_bytes(whole.getvalue()[:-400])
    (bad / "cut.png").write_bytes((bad / "good.png").read_bytes()[:300])
    (bad / "text.jpg").write_text("no image")
    (bad / "nothing.png").touch()
    (bad / "notes.txt").write_text("about the images")
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
        "large.png": "exceeds limit",
        "loop.png": "cannot be read",
        "up": "a link back",
        "gone.png": "cannot be read",
        "empty": "an empty folder",
        "pipe.png": "not a regular file",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name], (name, reasons[name])
    assert "13 skipped, 1 read" in caplog.text and "cut.png" in caplog.text
    assert read(root, tmp_path / "cache", split="val").skipped == ()
    assert images.classes == ("a", "empty")


def test_names_that_are_not_utf8(tmp_path):
    root = tmp_path / "images"
    name = os.fsdecode(b"caf\xe9")
    folder_of(root, f"train/{name}/x.png", "train/b/y.png", f"val/{name}/<i>.png")
    images = read(root, tmp_path / "cache")
    assert images.classes == ("b", "caf\\xe9")
    assert images.names == ("train/b/y.png", "train/caf\\xe9/x.png")
    assert (images.image(1).numpy() == noise(20, 24, 0)).all()
    assert read(root, tmp_path / "cache", split="val").names == ("val/caf\\xe9/<i>.png",)


@pytest.mark.parametrize("text", [None, "not an image"])
def test_a_folder_without_images_is_an_error_that_names_it(tmp_path, text):
    root = tmp_path / "bare"
    root.mkdir()
    if text:
        (root / "a.png").write_text(text)
        (root / "b.png").write_text(text)
    with pytest.raises(ValueError, match=r"no readable image in .*bare"):
        read(root, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("images")), "a failed build leaves no store"


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"data.root = .*absent"):
        read(tmp_path / "absent", tmp_path / "cache")


def test_train_alone_asks_which_folder_is_meant(tmp_path):
    root = folder_of(tmp_path / "images", "train/a/x.png", "train/a/y.png")
    with pytest.raises(ValueError, match="give the folder train itself"):
        read(root, tmp_path / "cache")
    assert len(read(root / "train", tmp_path / "cache")) == 1


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_labels_mean_the_same_class_in_both_splits(tmp_path, held_out):
    root = folder_of(tmp_path / "i", "train/a/1.png", "train/c/2.png", f"{held_out}/b/3.png")
    train, val = (read(root, tmp_path / "cache", split=split) for split in ("train", "val"))
    assert train.classes == val.classes == ("a", "b", "c")
    assert train.labels.tolist() == [0, 2] and val.labels.tolist() == [1]


def test_the_split_by_hash_is_a_partition_that_new_images_do_not_move(tmp_path):
    names = [f"{label}/{i}.png" for label in "ab" for i in range(40)]
    root = folder_of(tmp_path / "images", *names)
    train, val = (set(read(root, tmp_path / "c", split=s).names) for s in ("train", "val"))
    assert train | val == set(names) and not train & val
    assert 2 <= len(val) <= 18
    folder_of(root, "b/new.png")
    assert val <= set(read(root, tmp_path / "c", split="val").names) <= val | {"b/new.png"}


def test_two_images_make_one_of_each_split(tmp_path):
    root = folder_of(tmp_path / "images", "x.png", "y.png")
    sets = [read(root, tmp_path / "cache", split=split) for split in ("train", "val")]
    assert [len(images) for images in sets] == [1, 1]
    assert sets[0].classes == ("unlabeled",)


# Archives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("top", ["", "./", "set/"])
def test_an_archive_reads_like_its_folder(tmp_path, mode, top):
    root = folder_of(tmp_path / "images", "train/b/1.png", "train/a/2.png", "test/a/3.png")
    (root / "notes.csv").write_text("x")
    with tarfile.open(tmp_path / "images.tar", mode) as tar:
        tar.add(root, arcname=top or ".") if top == "./" else [
            tar.add(path, arcname=top + path.name) for path in sorted(root.iterdir())
        ]
    for split in ("train", "val"):
        folder = read(root, tmp_path / "cache", split=split)
        archive = read(tmp_path / "images.tar", tmp_path / "cache", split=split)
        assert archive.classes == folder.classes == ("a", "b")
        sizes = {
            name.removeprefix("set/"): archive.image(i) for i, name in enumerate(archive.names)
        }
        for i, name in enumerate(folder.names):
            assert torch.equal(sizes[name], folder.image(i))


def test_an_archive_writes_nothing_and_follows_no_link(tmp_path):
    good = io.BytesIO()
    Image.fromarray(noise(9, 9)).save(good, "PNG")
    outside = tmp_path / "outside.png"
    outside.write_bytes(good.getvalue())
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("../escaped.png", "train/a/1.png", "val/a/2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(good.getvalue())
            tar.addfile(member, io.BytesIO(good.getvalue()))
        link = tarfile.TarInfo("train/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
    before = sorted(tmp_path.iterdir())
    images = read(tmp_path / "evil.tar", tmp_path / "cache")
    assert images.names == ("train/a/1.png",)
    assert images.skipped == (("train/a/link.png", "not a regular file"),)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "cache"])


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    root = folder_of(tmp_path / "images", "train/b/1.png", "test/a/3.png")
    path = tmp_path / "images.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root, arcname=".")
    path.write_bytes(path.read_bytes()[:900] if damage == "cut" else b"text" * 999)
    with pytest.raises(ValueError, match=r"images.tar.gz is not a readable tar archive"):
        read(path, tmp_path / "cache")


# The store --------------------------------------------------------------------------------------


def test_it_decodes_once_and_again_when_something_changed(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "images", "train/a/1.png", "val/a/2.png")
    built = []
    build = store._build
    monkeypatch.setattr(store, "_build", lambda *a, **k: built.append(1) or build(*a, **k))
    first = read(root, tmp_path / "cache")
    again = read(root, tmp_path / "cache")
    assert len(built) == 1 and torch.equal(first.pixels, again.pixels)
    assert first.content == again.content
    read(root, tmp_path / "cache", resize=10)
    assert len(built) == 2
    os.utime(root / "train/a/1.png", (1, 1))
    assert read(root, tmp_path / "cache").content == first.content
    assert len(built) == 3
    folder_of(root / "train", "a/1.png", "a/0.png")
    assert read(root, tmp_path / "cache").content != first.content


@pytest.mark.parametrize("name", ["pixels.bin", "index.npz", "meta.json"])
def test_a_damaged_store_is_built_again(tmp_path, name, caplog):
    root = folder_of(tmp_path / "images", "train/a/1.png", "val/a/2.png")
    content = read(root, tmp_path / "cache").content
    [path] = (tmp_path / "cache").rglob(name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images = read(root, tmp_path / "cache")
    assert images.content == content and (images.image(0).numpy() == noise(20, 24)).all()
    assert "is damaged" in caplog.text


SLOW_BUILD = """
import sys, time
from lgqlib.data import store
from lgqlib.config import DataConfig
from lgqlib.data import load

def slow(*arguments, decode=store.decode, **options):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[3]))
    return decode(*arguments, **options)

store.decode = slow
config = DataConfig(name="imagefolder", root=sys.argv[1], size=8)
print(load(config, "train", cache=__import__("pathlib").Path(sys.argv[2])).content)
"""


def start_build(root: Path, cache: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(cache), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_nothing_that_counts(tmp_path):
    root = folder_of(tmp_path / "images", *(f"train/a/{i}.png" for i in range(8)), "val/a/8.png")
    cache = tmp_path / "cache"
    build = start_build(root, cache, 0.2)
    for _ in range(4):
        build.stdout.readline()
    build.send_signal(signal.SIGKILL)
    build.communicate()
    assert list(cache.rglob("pixels.bin")), "the build was in the middle"
    # Another store's build cleans up, though the killed one is never asked for again.
    read(root, cache, split="val")
    assert len(list(cache.rglob("pixels.bin"))) == 1
    images = read(root, cache)
    assert len(images) == 8 and (images.image(7).numpy() == noise(20, 24, 7)).all()
    assert not list(cache.rglob("*.tmp"))


def test_of_two_processes_one_builds(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "images", *(f"train/a/{i}.png" for i in range(4)), "val/a/8.png")
    other = start_build(root, tmp_path / "cache", 0.3)
    other.stdout.readline()
    monkeypatch.setattr(store, "decode", None)
    images = read(root, tmp_path / "cache")
    assert other.communicate()[0].split()[-1] == images.content, "this one waited for the other"


def test_a_full_disk_names_the_path_and_the_need(tmp_path):
    root = folder_of(tmp_path / "images", *(f"train/a/{i}.png" for i in range(9)), "val/a/9.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # Room for three images of nine: 20 x 24 x 3 bytes each.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4500, hard))
        with pytest.raises(OSError, match=r"could not write .*stores.*more are needed"):
            read(root, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert not list((tmp_path / "cache").rglob("pixels.bin"))
    assert len(read(root, tmp_path / "cache")) == 9


def test_a_store_opens_from_a_folder_that_is_read_only(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "images", "train/a/1.png", "val/a/2.png")
    read(root, tmp_path / "cache")
    monkeypatch.setattr(store, "locked", None)
    assert len(read(root, tmp_path / "cache")) == 1


def test_opening_is_not_decoding(tmp_path):
    root = folder_of(tmp_path / "images", *(f"train/a/{i}.png" for i in range(3)), "val/a/8.png")
    read(root, tmp_path / "cache")
    start = time.perf_counter()
    images = read(root, tmp_path / "cache")
    assert time.perf_counter() - start < 1
    assert images.to("cpu") is images
    assert store.fits(1, device="cpu") and not store.fits(1, device="meta")
