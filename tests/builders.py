"""Folders and archives of noise, a full disk, finished studies, and what a figure draws."""

import base64
import contextlib
import io
import re
import resource
import signal
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image

from lgqlib.config import DataConfig
from lgqlib.data import ImageSet, load
from lgqlib.figures.style import color_of, name_of
from lgqlib.files import write_json
from lgqlib.presets import preset
from lgqlib.quantizers import METHODS
from lgqlib.run import Run
from lgqlib.study.results import FAILURE_FILE, STUDY_FILE


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


def finished_run(
    study: Path,
    *,
    more: str = "",
    numbers: dict | None = None,
    failure: dict | None = None,
    evaluated: bool = True,
    **named,
) -> Run:
    """Write the files that a finished run leaves, with these numbers of its evaluation."""
    run = Run.create(study, preset("laptop", **named).override(f"train.num_steps=20 {more}"))
    for step in (10, 20):
        run.log(step, "train", loss=1.0 / step)
        run.log(step, "timing", images_per_second=100.0 + step)
    run.save_checkpoint(20, {}, tau=0.1, tau_c=None)
    if evaluated:
        about = {"num_images": 256, "num_tokens": 16384, "extractor": "lite2", "kid": None}
        run.save_evaluation(about | (numbers or {"psnr": 20.0, "active": 900}), {})
    if failure is not None:
        write_json(run.path / FAILURE_FILE, failure)
    return run


def study_of(folder: Path, runs: list[tuple[Run, str]]) -> Path:
    """Write a study's file over runs, each with its variant."""
    write_json(folder / STUDY_FILE, {"name": "made", "runs": [[r.name, v] for r, v in runs]})
    return folder


def place_notebook(notebook: Path, folder: Path, parameters: Mapping[str, Any]) -> None:
    """Copy a notebook into a folder, with a cell of other parameters."""
    node, lines = (
        nbformat.read(notebook, 4),
        [f"{name} = {parameters[name]!r}" for name in parameters],
    )
    at = next(i for i, c in enumerate(node.cells) if "parameters" in c.metadata.get("tags", []))
    node.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    folder.mkdir(exist_ok=True)
    nbformat.write(node, folder / notebook.name)


def assert_same(one: Run, other: Run, *parts: str) -> None:
    """Check that the newest checkpoints of two runs are equal to the bit, or parts of them."""
    a, b = (run.load_checkpoint().tensors for run in (one, other))
    for part in parts or a:
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), (part, name)


COLORS = {name_of(method): color_of(method) for method in METHODS}


def pixels(source: str) -> np.ndarray:
    """Decode the source of an image trace."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def assert_readable(fig: go.Figure) -> None:
    """Check that a figure says what it found, in units, that nothing is clipped, and its colors."""
    assert "$" not in fig.layout.to_plotly_json().__repr__(), "a report has no MathJax"
    title, subtitle = fig.layout.title.text, fig.layout.title.subtitle.text
    if title:  # a plain grid of pictures gets one by others
        assert len(title) > 10 and len(subtitle) > 10
        assert not re.search(r"\b(nan|inf)\b", title + subtitle), title
        lines, more = title.split("<br>"), subtitle.split("<br>")
        assert max(map(len, lines)) <= fig.layout.width / 8.4, title
        assert max(map(len, more)) <= fig.layout.width / 6.4, subtitle
        assert fig.layout.margin.t >= 26 + 21 * len(lines) + 17 * len(more), title
    charts = [t for t in fig.data if t.type in ("scatter", "bar") and t.marker.opacity != 0]
    for letter, axes in (("x", [*fig.select_xaxes()]), ("y", [*fig.select_yaxes()])):
        said = any(axis.title.text or axis.ticktext for axis in axes) or fig.layout.annotations
        assert said or all(isinstance(v, str) for t in charts for v in t[letter]), title
    for trace in charts:
        if (label := re.split("[:,]", trace.name or "")[0]) in COLORS:
            look = trace.to_plotly_json()
            own = [look.get(part, {}).get("color") for part in ("line", "marker")]
            assert COLORS[label] in own, (title, label)
