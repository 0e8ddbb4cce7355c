"""Folders and archives: the right images in the right split, or an error says why."""

import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import archive_of, folder_of, noise, read
from PIL import Image

from lgqlib.data import SPLITS, store
from lgqlib.data.store import decode

BAD = {
    "image file is truncated": ("truncated.jpg", "cut.png"),
    "not an image of a known format": ("text.jpg", "nothing.png"),
    "not named as an image": ("notes.txt",),
    " pixels": ("1.png", "200.png", "300.png"),
    "cannot be read": ("loop.png", "gone.png"),
    "a link back to a folder above": ("up",),
    "not a regular file": ("pipe.png",),
}


def test_bad_files_are_named_and_skipped(tmp_path, monkeypatch, caplog):
    root = folder_of(tmp_path / "images", "train/a/good.png", "val/a/other.png")
    bad = root / "train" / "a"
    Image.fromarray(noise(64, 64)).save(bad / "truncated.jpg")
    (bad / "truncated.jpg").write_bytes((bad / "truncated.jpg").read_bytes()[:-400])
    (bad / "cut.png").write_bytes((bad / "good.png").read_bytes()[:300])
    for name in ("text.jpg", "notes.txt", ".hidden.png", "nothing.png"):
        (bad / name).write_text("" if name == "nothing.png" else "no image")
    for side in (1, 200, 300):
        Image.new("RGB", (side, side)).save(bad / f"{side}.png")
    for name, target in {"loop.png": "loop.png", "up": "..", "gone.png": "nowhere"}.items():
        (bad / name).symlink_to(target)
    os.mkfifo(bad / "pipe.png")
    # Above the limit Pillow warns, above twice the limit it raises; both are refused.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    images = read(root, tmp_path / "cache")
    assert images.names == ("train/a/good.png",) and images.classes == ("a",)
    reasons = {Path(name).name: reason for name, reason in images.skipped}
    assert reasons.keys() == {name for names in BAD.values() for name in names}
    for reason, names in BAD.items():
        assert all(reason in reasons[name] for name in names), (reason, reasons)
    assert "12 skipped, 1 read" in caplog.text and "cut.png" in caplog.text
    assert read(root, tmp_path / "cache", split="val").skipped == ()


def test_hostile_names_are_read(tmp_path):
    word, line, long = os.fsdecode(b"caf\xe9"), "new\nline", "x" * 240
    names = [f"train/{word}/x.png", f"train/{line}/<i>.png", f"train/b/{long}.png"]
    root = folder_of(tmp_path / "images", *names, f"val/{word}/x.png")
    images = read(root, tmp_path / "cache")
    assert images.classes == ("b", "caf\\xe9", line)
    assert images.names == (f"train/b/{long}.png", "train/caf\\xe9/x.png", names[1])
    assert (images.image(1).numpy() == noise(20, 24, 0)).all()


def test_what_is_not_there_or_damaged_is_named(tmp_path):
    root = folder_of(tmp_path / "images", "train/a/x.png", "train/a/y.png")
    assert len(read(root / "train", tmp_path / "cache")) == 1
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.png").write_text("not an image")
    content = archive_of({f"{i}.png": noise(20, 24, i).tobytes() for i in range(3)})
    (tmp_path / "torn.tgz").write_bytes(content[:900])
    (tmp_path / "text.tgz").write_bytes(b"text" * 999)
    for name, says in (
        ("absent", r"data.root = .*absent"),
        ("images", "images: .*give the folder train itself"),
        ("bare", "bare: no readable image"),
        ("torn.tgz", r"torn.tgz: not a readable tar archive"),
        ("text.tgz", r"text.tgz: not a readable tar archive"),
    ):
        with pytest.raises(ValueError, match=says):
            read(tmp_path / name, tmp_path / "none")
    assert not list((tmp_path / "none").rglob("pixels.bin")), "a failed build leaves no store"


def test_the_split_by_hash_is_a_partition_that_new_images_do_not_move(tmp_path):
    names = [f"{label}/{i}.png" for label in "ab" for i in range(40)]
    root = folder_of(tmp_path / "images", *names)
    train, val = (set(read(root, tmp_path / "c", split=split).names) for split in SPLITS)
    assert train | val == set(names) and not train & val and 2 <= len(val) <= 18
    folder_of(root, "b/new.png")
    assert val <= set(read(root, tmp_path / "c", split="val").names) <= val | {"b/new.png"}
    two = folder_of(tmp_path / "two", "3.png", "43.png")  # two images make one of each split
    assert [len(read(two, tmp_path / "c", split=split)) for split in SPLITS] == [1, 1]


@pytest.mark.parametrize("base", ["", "images/"])
@pytest.mark.parametrize(
    "tops, splits",
    [
        ("train val test", "train val"),
        ("train2017 val2017 test2017 unlabeled2017", "train2017 val2017"),
        ("Training_Set Test_Set", "Training_Set Test_Set"),
        ("seg_train seg_test seg_pred", "seg_train seg_test"),
        ("bullet_train test_tubes cats", ""),
        ("train2014 val2017", "refused"),
        ("train cats dogs", "refused"),
    ],
)
def test_splits_are_told_by_their_names_and_never_become_classes(tmp_path, tops, splits, base):
    names = [f"{base}{top}/{label}/{i}.png" for top in tops.split() for label in "ab" for i in "01"]
    root = folder_of(tmp_path / "images", *names)
    if splits == "refused":
        with pytest.raises(ValueError, match=r"/: as splits .* or give the folder \w+ itself"):
            read(root, tmp_path / "cache")
        return
    for split, top in zip(SPLITS, splits.split() or ["", ""], strict=True):
        images = read(root, tmp_path / "cache", split=split)
        assert all(name.startswith(f"{base}{top}") for name in images.names)
        whole = (base[:-1],) if base else tuple(sorted(tops.split()))
        assert images.classes == (("a", "b") if splits else whole)


@pytest.mark.parametrize(("mode", "top"), [("w", ""), ("w:gz", "./"), ("w:xz", "set/")])
def test_an_archive_reads_like_its_folder(tmp_path, mode, top):
    root = folder_of(tmp_path / "images", "train/c/1.png", "train/a/2.png", "test/b/3.png")
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    contents = {f"{top}{path.relative_to(root)}": path.read_bytes() for path in files}
    (tmp_path / "images.tar").write_bytes(archive_of(contents, mode))
    for split, labels in zip(SPLITS, ([0, 2], [1]), strict=True):
        folder = read(root, tmp_path / "cache", split=split)
        archive = read(tmp_path / "images.tar", tmp_path / "cache", split=split)
        assert archive.classes == folder.classes == ("a", "b", "c"), "the same in both splits"
        assert archive.labels.tolist() == folder.labels.tolist() == labels
        assert [name.removeprefix("set/") for name in archive.names] == list(folder.names)
        assert torch.equal(archive.pixels, folder.pixels)


def test_an_archive_writes_nothing_and_follows_no_link(tmp_path):
    root = folder_of(tmp_path / "images", "good.png")
    names = ("../escaped.png", "/train/a/root.png", "train/a/1.png", "val/a/2.png")
    content = (root / "good.png").read_bytes()
    (tmp_path / "evil.tar").write_bytes(archive_of(dict.fromkeys(names, content), "w"))
    with tarfile.open(tmp_path / "evil.tar", "a") as tar:
        link = tarfile.TarInfo("train/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(root / "good.png")
        tar.addfile(link)
    before = sorted(tmp_path.iterdir())
    images = read(tmp_path / "evil.tar", tmp_path / "cache")
    assert images.names == ("train/a/1.png",)
    assert images.skipped == (("train/a/link.png", "not a regular file"),)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "cache"])


def test_cifar10_from_its_binary_archive(tmp_path):
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "readme.html"]
    records = np.random.default_rng(0).integers(0, 256, (len(names), 5, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    batches = {f"cifar-10/{n}": r.tobytes() for n, r in zip(names, records, strict=True)}
    (tmp_path / "cifar.tar.gz").write_bytes(archive_of(batches))
    how = dict(name="cifar10", size=32)
    train, val = (read(tmp_path / "cifar.tar.gz", tmp_path, split, **how) for split in SPLITS)
    assert (len(train), len(val)) == (25, 5) and train.classes[3] == "cat"
    assert train.labels.tolist() == records[:5, :, 0].ravel().tolist()
    assert (train.image(5).permute(2, 0, 1).numpy().ravel() == records[1, 0, 1:]).all()
    batches["cifar-10/data_batch_1.bin"] += b"x"
    (tmp_path / "torn.tar.gz").write_bytes(archive_of(batches))
    with pytest.raises(ValueError, match="data_batch_1.bin has .*not a multiple of 3073"):
        read(tmp_path / "torn.tar.gz", tmp_path, **how)


PLAIN = (("L", 90, 90), ("1", 1, 255), ("I;16", 257 * 77, 77))
PLAIN += (("CMYK", (0, 255, 255, 0), (255, 0, 0)), ("LA", (90, 255), 90), ("LA", (90, 0), 255))
PLAIN += (("RGBA", (10, 20, 30, 0), 255), ("RGBA", (0, 0, 0, 102), 153))


def test_a_file_of_any_kind_becomes_what_a_person_sees(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = noise(10, 16)
    deep = np.linspace(0, 65535, 160).round().astype(np.uint16).reshape(10, 16)
    indexed = Image.new("P", (16, 10), 1)
    indexed.putpalette([200, 0, 0, 0, 200, 0])
    film, after = (Image.new("RGB", (16, 10), color) for color in ("red", "blue"))
    cases = [
        *((Image.new(mode, (16, 10), value), "x.tif", {}, seen) for mode, value, seen in PLAIN),
        (Image.fromarray(pixels), "turned.png", {"exif": exif}, np.rot90(pixels, -1)),
        (Image.fromarray(deep), "deep.png", {}, np.round(deep / 257)[..., None]),
        (indexed, "plain.png", {}, (0, 200, 0)),
        (indexed, "clear.png", {"transparency": 1}, (255, 255, 255)),
        (film, "film.gif", {"save_all": True, "append_images": [after]}, (255, 0, 0)),
    ]
    for image, name, options, seen in cases:
        image.save(tmp_path / name, **options)
        for found in (decode(tmp_path / name), decode((tmp_path / name).read_bytes())):
            assert found.dtype == np.uint8 and (found == seen).all(), (image.mode, name)


def test_it_decodes_once_and_again_when_something_changed(tmp_path, monkeypatch):
    names = [f"train/a/{i}.png" for i in range(8)]
    root = folder_of(tmp_path / "images", *names, "val/a/8.png")
    built, build = [], store._build

    def counted(*arguments, **options):
        built.append(time.sleep(0.1))
        build(*arguments, **options)

    monkeypatch.setattr(store, "_build", counted)
    with ThreadPoolExecutor() as pool:  # who come at once wait for the first, by a lock of the file
        first, *others = pool.map(lambda _: read(root, tmp_path / "cache"), range(3))
    others.append(read(root, tmp_path / "cache"))
    assert len(built) == 1 and all(torch.equal(first.pixels, each.pixels) for each in others)
    assert len(first) == 8 and (first.image(7).numpy() == noise(20, 24, 7)).all()
    read(root, tmp_path / "cache", resize=10)
    os.utime(root / "train/a/1.png", (1, 1))
    assert read(root, tmp_path / "cache").content == first.content
    folder_of(root / "train", "a/1.png", "a/0.png")
    assert read(root, tmp_path / "cache").content != first.content
    assert len(built) == 4
