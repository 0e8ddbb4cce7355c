"""A file is the old one or the new one, never a part; a parameter that does not fit is named."""

import math
from pathlib import Path

import numpy as np
import pytest

from lgqlib import files
from lgqlib.files import read_arrays, read_json, replacing, write_arrays, write_json


def test_a_failed_write_leaves_the_old_content_and_names_the_file(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, {"a": 1})
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half of it")
        raise RuntimeError
    full = pytest.raises(OSError, match=r"could not write .*value.json: No space left")
    with full, replacing(file) as temporary:
        temporary.write_text("half of it")
        raise OSError(28, "No space left on device")
    with pytest.raises(ValueError):
        write_json(file, {"a": math.nan})
    assert read_json(file) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_of_two_writers_at_once_the_last_one_wins_whole(tmp_path):
    file = tmp_path / "value.json"
    with replacing(file) as one:
        one.write_text('["the first"]')
        with replacing(file) as two:
            two.write_text('["the second"]')
        assert read_json(file) == ["the second"]
    assert read_json(file) == ["the first"]
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_a_seal_is_of_every_byte_and_a_checksum_of_names_types_and_shapes(tmp_path):
    text = files.seal({"b": [1, 2.5, None], "a": {"x": "é"}, "c": math.inf}).encode()
    assert files.unseal(text) == {"b": [1, 2.5, None], "a": {"x": "é"}, "c": None}
    for at in range(len(text)):
        for damaged in (text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :], text[:at]):
            with pytest.raises(ValueError):
                files.unseal(damaged)
    x = np.arange(4, dtype=np.int32)
    others = ({"y": x}, {"x": x[::-1]}, {"x": x.view(np.float32)}, {"x": x.reshape(2, 2)}, {})
    sums = [write_arrays(tmp_path / "a.safetensors", a, {}) for a in ({"x": x}, *others)]
    assert len(set(sums)) == len(sums)
    found, about = read_arrays(tmp_path / "a.safetensors")
    assert found == {} and about == {"arrays": sums[-1]}
    with pytest.raises(ValueError, match="gone.safetensors is missing"):
        read_arrays(tmp_path / "gone.safetensors")


def test_what_fits_passes():
    files.require_whole(least=0, most=3, a=0, b=3)
    files.require_folder(run="", runs=Path())
    files.require_falling(hottest=2, coldest=1.0)
    files.require_one_of(("a", "b"), kind="b")


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        *(
            (lambda bad=bad: files.require_whole(least=0, most=3, num=bad), "num = .*from 0 to 3")
            for bad in (True, None, 1.0, math.nan, -1, 4, "1")
        ),
        (lambda: files.require_folder(run=3), "run = 3: it must be the path"),
        (lambda: files.require_folder(run="a\0"), "run = .*path"),
        (lambda: files.require_falling(hot=1, cold=1.0), "cold = 1.0: it must be below hot = 1"),
        (lambda: files.require_falling(hot=math.nan, cold=1.0), "hot = nan.*finite number > 0"),
        (lambda: files.require_one_of(("a", "b"), kind=3), "kind = 3: it must be one of a, b"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(refused, says):
    with pytest.raises(ValueError, match=says):
        refused()
