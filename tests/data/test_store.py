"""Any image becomes the pixels that a person sees; their store is whole or not there."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from builders import folder_of, noise, read
from PIL import Image

from lgqlib.data import store
from lgqlib.data.store import decode

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


def test_scaling_sets_the_short_side(tmp_path):
    for path in (tmp_path / "wide.png", tmp_path / "wide.jpg"):
        Image.fromarray(noise(60, 90)).save(path)
        for resize, at_least, side in [(20, 0, 20), (20, 30, 30), (0, 120, 120), (0, 60, 60)]:
            found = decode(path, resize=resize, at_least=at_least)
            assert found.shape == (side, side * 3 // 2, 3)


@pytest.fixture
def root(tmp_path):
    return folder_of(tmp_path / "images", *(f"train/a/{i}.png" for i in range(8)), "val/a/8.png")


def test_it_decodes_once_and_again_when_something_changed(root, tmp_path, monkeypatch):
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
