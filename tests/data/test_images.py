"""Whatever the file is, it becomes the pixels that a person sees, or an error says why not."""

import numpy as np
import pytest
from filesystem import noise
from PIL import Image

from lgqlib.data.images import decode


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
    for pixels in (decode(path), decode(path.read_bytes())):
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
    ("image", "arguments", "reason"),
    [
        (Image.new("RGB", (1, 1)), {}, "a side below 8"),
        (Image.new("RGB", (7, 300)), {}, "a side below 8"),
        (Image.new("F", (9, 9)), {}, "floating-point"),
        (Image.new("I", (9, 9), 1 << 20), {}, "32-bit integer"),
        (Image.new("RGB", (200, 101)), {}, "200 x 101 pixels, above the limit"),
        (Image.new("RGB", (8, 2000)), {"at_least": 80}, "80 x 20000 pixels, above the limit"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_an_example_says_why(tmp_path, monkeypatch, image, arguments, reason):
    image.save(tmp_path / "image.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(ValueError, match=reason):
        decode(tmp_path / "image.tif", **arguments)
