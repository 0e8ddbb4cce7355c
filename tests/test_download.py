"""A download is whole and checked, or an error says what to do instead."""

import hashlib
import http.server
import io
import socket
import tarfile
import threading

import numpy as np
import pytest
import torch
from lgqlib.data.download import download

from lgqlib.config import DataConfig
from lgqlib.data import batches as data
from lgqlib.data import sources

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


@pytest.fixture
def closed_url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/set.tar"


def fetch(server, path, content=CONTENT):
    digest = hashlib.sha256(content).hexdigest()
    return download(server.url, path, digest=digest, instead="set data.root")


def test_it_arrives_once(server, tmp_path):
    path = fetch(server, tmp_path / "folder" / "set.tar")
    assert path.read_bytes() == CONTENT
    fetch(server, path)
    assert server.ranges == [None], "the second call finds the file"
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("has_ranges", [True, False])
def test_it_continues_where_it_was_cut(server, tmp_path, has_ranges):
    path = tmp_path / "set.tar"
    server.cut, server.has_ranges = 50_000, has_ranges
    with pytest.raises(ConnectionError, match=r"was lost.*Try again to continue.*data.root"):
        fetch(server, path)
    assert not path.exists()
    server.cut = None
    assert fetch(server, path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=50000-"]


def test_it_finishes_a_part_that_was_complete(server, tmp_path):
    (tmp_path / "set.tar.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "set.tar").read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_removed(server, tmp_path):
    with pytest.raises(ValueError, match=r"set.tar has SHA-256 \w+, not \w+.*data.root"):
        fetch(server, tmp_path / "set.tar", content=b"other")
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.lock"]


def test_a_missing_file_names_the_address(server, tmp_path):
    server.url = server.url.replace("set.tar", "missing")
    with pytest.raises(ConnectionError, match=r"cannot download .*/missing .*404"):
        fetch(server, tmp_path / "set.tar")


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_without_a_network_it_says_how_to_give_a_folder(tmp_path, monkeypatch, closed_url, name):
    monkeypatch.setitem(sources.DOWNLOADS, name, sources.Download(closed_url, "0"))
    with pytest.raises(ConnectionError, match=rf"{closed_url}.*set data.root to a folder"):
        data.load(DataConfig(name=name), "train", cache=tmp_path)


def cifar10_batch(seed: int, count: int = 5) -> bytes:
    records = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records.tobytes()


@pytest.fixture
def cifar10_batches():
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {f"cifar-10-batches-bin/{name}": cifar10_batch(i) for i, name in enumerate(names)}


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_cifar10_from_its_binary_archive(server, tmp_path, monkeypatch, cifar10_batches):
    server.content = archive({**cifar10_batches, "cifar-10-batches-bin/readme.html": b"x"})
    digest = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setitem(sources.DOWNLOADS, "cifar10", sources.Download(server.url, digest))
    config = DataConfig(name="cifar10")
    train, val = (data.load(config, split, cache=tmp_path) for split in data.SPLITS)
    assert (len(train), len(val)) == (25, 5) and train.classes[3] == "cat"
    assert len(server.ranges) == 1, "both splits are in one file"
    record = np.frombuffer(cifar10_batches["cifar-10-batches-bin/data_batch_2.bin"], np.uint8)[
        :3073
    ]
    assert train.labels[5] == record[0]
    assert (train.image(5).permute(2, 0, 1).numpy().ravel() == record[1:]).all()
    # The same from a folder.
    for name, content in cifar10_batches.items():
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_bytes(content)
    given = DataConfig(name="cifar10", root=str(tmp_path / "given"))
    assert torch.equal(data.load(given, "train", cache=tmp_path).pixels, train.pixels)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(cifar10_batch(0)[:-1], "not a multiple of 3073"), (b"\x0b" * 3073, "the label 11, above 9")],
)
def test_a_damaged_batch_of_cifar10_is_named(tmp_path, content, reason):
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    config = DataConfig(name="cifar10", root=str(tmp_path))
    with pytest.raises(ValueError, match=rf"data_batch_1.bin in .*{reason}"):
        data.load(config, "train", cache=tmp_path / "cache")
