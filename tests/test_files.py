"""A file is the old one or the new one, never a part; a download is the right one, or none."""

import hashlib
import io
import math
from types import SimpleNamespace
from urllib.response import addinfourl

import numpy as np
import pytest
from builders import largest_file

from lgqlib import files
from lgqlib.config import DataConfig
from lgqlib.data import SOURCES, load
from lgqlib.data.sources import Row
from lgqlib.files import download, read_arrays, read_json, replacing, write_arrays, write_json


def test_a_failed_write_leaves_the_old_content_and_names_the_file(tmp_path):
    file = tmp_path / "value.json"
    write_json(file, {"a": 1})
    for error in (OSError(28, "No space left on device"), RuntimeError("value.json: No space")):
        fails = pytest.raises(type(error), match="value.json: No space")
        with fails, replacing(file) as temporary:
            temporary.write_text("half of it")
            raise error
    assert read_json(file) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_of_two_writers_at_once_the_last_one_wins_whole(tmp_path):
    file = tmp_path / "value.json"
    with replacing(file) as one:
        one.write_text(files.seal({"the": "first"}))
        with replacing(file) as two:
            two.write_text(files.seal({"the": "second"}))
        assert read_json(file) == {"the": "second"}
    assert read_json(file) == {"the": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_a_checksum_is_of_every_byte_and_of_names_types_and_shapes(tmp_path):
    text = files.seal({"b": [1, 2.5, None], "a": {"x": "é"}, "c": math.inf}).encode()
    assert files.unseal(text) == {"b": [1, 2.5, None], "a": {"x": "é"}, "c": None}
    for at in range(len(text)):
        for damaged in (text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :], text[:at]):
            with pytest.raises(ValueError):
                files.unseal(damaged)
    x, file, sums = np.arange(4, dtype=np.int32), tmp_path / "a.safetensors", set()
    others = ({"y": x}, {"x": x[::-1]}, {"x": x.view(np.float32)}, {"x": x.reshape(2, 2)}, {})
    for arrays in ({"x": x}, *others):
        write_arrays(file, arrays, {"tau": math.nan})
        sums.add(files.read_about(file)["arrays"])
        found, about = read_arrays(file)
        assert math.isnan(about["tau"]) and found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], arrays[name]) for name in found)
    assert len(sums) == 1 + len(others)


CONTENT = bytes(range(256)) * 500
URL = "http://server/set.tar"


@pytest.fixture
def server(monkeypatch):
    """Answer downloads with the content, from where a range begins up to where it is cut."""
    server = SimpleNamespace(has_ranges=True, cut=None, asked=[])

    def answer(request, timeout):
        server.asked.append(request.get_header("Range"))
        begins = server.has_ranges and server.asked[-1]
        start = int(begins.removeprefix("bytes=").removesuffix("-")) if begins else 0
        content, length = io.BytesIO(CONTENT[start : server.cut]), len(CONTENT) - start
        return addinfourl(content, {"Content-Length": length}, URL, 206 if begins else 200)

    monkeypatch.setattr(files, "urlopen", answer)
    return server


def fetch(path, content=CONTENT):
    download(URL, path, digest=hashlib.sha256(content).hexdigest(), instead="set data.root")
    return path.read_bytes()


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_download_continues_where_it_was_cut_and_arrives_once(server, tmp_path, has_ranges):
    server.cut, server.has_ranges = 50_000, has_ranges
    with pytest.raises(ConnectionError, match=r"was lost.*Try again to continue.*data.root"):
        fetch(tmp_path / "set.tar")
    assert not (tmp_path / "set.tar").exists()
    server.cut = None
    for _ in range(2):
        assert fetch(tmp_path / "set.tar") == CONTENT
    assert server.asked == [None, "bytes=50000-"]
    (tmp_path / "two.tar.part").write_bytes(CONTENT)
    assert fetch(tmp_path / "two.tar") == CONTENT and len(server.asked) == 2


def test_wrong_bytes_a_full_disk_and_no_network_are_named(server, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"set.tar has SHA-256 \w+, not \w+.*data.root"):
        fetch(tmp_path / "set.tar", content=b"other")
    assert not list(tmp_path.glob("set.tar*[!k]")), "the wrong bytes are removed"
    with largest_file(50_000), pytest.raises(OSError, match=r"could not write .*tar.part: File"):
        fetch(tmp_path / "set.tar")
    monkeypatch.undo()
    monkeypatch.setitem(SOURCES, "cifar10", Row(url="http://127.0.0.1:9/set.tar", digest="0"))
    with pytest.raises(ConnectionError, match=r"127.*set.tar .*set data.root to a folder of"):
        load(DataConfig(name="cifar10"), "train", cache=tmp_path)
