"""What the README shows runs as it stands."""

import re
from pathlib import Path

import torch

from lgqlib.run import Run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def code(name: str) -> str:
    return re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", README, re.DOTALL)[1]


def test_the_quantizer_alone_in_ten_lines():
    names: dict = {}
    exec(code("quantizer"), names)
    assert names["latents"].grad.abs().sum() > 0
    assert names["quantizer"].codes.grad.abs().sum() > 0
    assert len(code("quantizer").strip().splitlines()) <= 11


def test_saving_loading_and_sharing(trained, tmp_path, monkeypatch):
    run = trained("lgq")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(run.path.parent)
    monkeypatch.setattr(Run, "latest", classmethod(lambda cls, root: run))
    names = {"images": torch.rand(2, 3, 32, 32) * 2 - 1}
    exec(code("tokenizer"), names)
    assert names["indices"].shape == (2, 8, 8)
    assert names["images"].shape == (2, 3, 32, 32)
    saved = {file.name for file in (tmp_path / "my-tokenizer").iterdir()}
    assert {"config.json", "model.safetensors"} <= saved


def test_every_file_and_make_target_that_it_names_is_there():
    named = re.findall(r"\]\(([^)#]+)\)|`((?:lgqlib|data|notebooks)/[\w./]+)`", README)
    names = [one or other for one, other in named]
    assert [name for name in names if not (ROOT / name).exists()] == []
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)", README)) <= targets | {"a"}
