"""The house stays as drawn: floors, the public face, the environment, and what README shows."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
import torch
from builders import finished_run
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from torch import nn

import lgqlib
from lgqlib import measure, quantizers
from lgqlib.config import QuantizerConfig
from lgqlib.figures import comparison as figures
from lgqlib.figures.evaluation import metric_table
from lgqlib.figures.style import color_of, dash_of, name_of
from lgqlib.quantizers import METHODS, Method
from lgqlib.quantizers.base import Quantized, Quantizer, straight_through
from lgqlib.run import Run
from lgqlib.study.comparison import against, comparison_table, points, tabulated
from lgqlib.study.results import finished

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "lgqlib"
LINE = (
    "config · files · quantizers · backbone · presets · measure · data · tokenizer · prior · losses"
    " · run · evaluate · train · figures · explorers · study"
)
"""A module may import from its own floor and from floors to its left."""
FLOORS = LINE.split(" · ")
SOURCES = sorted(LIBRARY.rglob("*.py"))
UNPICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
each_source = pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(LIBRARY)))


def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


def imports(file: Path) -> list[str]:
    """Give the dotted names that a file imports, anywhere in it."""
    found = []
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@each_source
def test_a_module_imports_from_its_own_floor_and_from_floors_to_its_left(file):
    parts = [name.split(".") for name in imports(file)]
    floors = {part[1] for part in parts if part[0] == "lgqlib"}
    own = file.relative_to(LIBRARY).with_suffix("").parts[0]
    if own == "__init__":
        assert not floors, "the public face imports when it is asked"
        return
    allowed = FLOORS[: FLOORS.index(own) + 1]  # a ValueError here: the module has no floor
    assert floors <= {*allowed}, f"{own} imports {', '.join(floors - {*allowed})}"
    assert own != "config" or {part[0] for part in parts} <= sys.stdlib_module_names


@each_source
def test_the_library_neither_prints_nor_unpickles(file):
    assert not {name.split(".")[0] for name in imports(file)} & UNPICKLES
    speaks = file.parent.name == "study" or file.name == "__main__.py"  # command lines
    for node in nodes(file):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert speaks or called != "print", f"line {node.lineno} prints"
            assert not called.endswith("read_pickle"), f"line {node.lineno} unpickles"
            assert options.get("allow_pickle", "False") == "False", f"line {node.lineno}"
            assert called != "torch.load" or options.get("weights_only") == "True", node.lineno


def test_the_face_is_lazy_and_quick():
    code = "import time; start = time.perf_counter(); import lgqlib; took = time.perf_counter()"
    code += "; import sys; assert 'torch' not in sys.modules and took - start < 0.3, took - start"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", lgqlib.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    value = getattr(lgqlib, name)
    first, _, _ = value.__doc__.partition("\n")
    assert first.endswith((".", ":")), "a docstring's first line is whole"
    methods = [m for k, m in vars(value).items() if callable(m) and not k.startswith("_")]
    assert all(method.__doc__ for method in methods)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCK = [Requirement(line) for line in LINES if line and not line.startswith("#")]
PINNED = {canonicalize_name(r.name) for r in LOCK}
HERE = [r for r in LOCK if r.marker is None or r.marker.evaluate()]


def test_the_lock_is_exact_and_complete_and_what_is_installed_for_the_oldest_python():
    oldest = re.fullmatch(r">=(3\.\d+)", PROJECT["requires-python"]).group(1) + ".0"
    assert all(re.fullmatch(r"==[^*]+", str(requirement.specifier)) for requirement in LOCK)
    for requirement in HERE:
        name, installed = requirement.name, version(requirement.name).split("+")[0]
        assert requirement.specifier.contains(installed), f"{name} {installed}: {requirement}"
        needs = distribution(name).metadata.get("Requires-Python")
        assert needs is None or oldest in SpecifierSet(needs), f"{name} needs Python {needs}"
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in PINNED, f"{name} needs {needed}: no lock"
                found = version(needed.name).split("+")[0]
                assert needed.specifier.contains(found, prereleases=True), text


def test_the_package_needs_only_what_is_locked_and_pins_nothing():
    extras = [item for group in PROJECT["optional-dependencies"].values() for item in group]
    for needed in map(Requirement, PROJECT["dependencies"] + extras):
        assert canonicalize_name(needed.name) in PINNED and not needed.specifier, needed


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


class Toy(Quantizer):
    """Quantize to the nearest row of a table that only commits."""

    def __init__(self, config: QuantizerConfig, dim: int):
        super().__init__(config.num_codes, dim)
        self.codes = nn.Parameter(torch.randn(config.num_codes, dim))

    @property
    def codebook(self):
        return self.codes

    def forward(self, latents, tau):
        indices = self.encode(latents)
        codes = self.lookup(indices)
        commit = (latents - codes).square().mean()
        return Quantized(straight_through(latents, codes), indices, {"commit": commit})


def test_a_method_of_one_row_trains_is_evaluated_compared_and_keeps_its_color(monkeypatch, copied):
    row = Method("toy", Toy, "Toy VQ", "#123456", {"loss.commit": 0.5})
    monkeypatch.setitem(METHODS, "toy", row)
    runs = [copied(method) for method in ("toy", "lgq")]
    assert runs[0].is_complete and runs[0].config.loss.commit == 0.5
    assert runs[0].evaluation()["psnr"] > 5 and runs[0].name.startswith("toy-photos-K64-s0-")
    found = finished(runs[0].path.parent)
    assert set(comparison_table(found)["method"]) == {"Toy VQ", "LGQ"}
    drawn = points(found, ["psnr", "active", "bits_per_token_entropy", "images_per_second"])
    for fig in (figures.rate_distortion(drawn), figures.cost(drawn)):
        (color,) = {trace.marker.color for trace in fig.data if trace.name == "Toy VQ"}
        assert color == color_of("toy") == "#123456"
    forest = figures.forest(tabulated(against(found, ["psnr"])), ["psnr"], of="LGQ")
    assert list(forest.data[0].marker.color) == ["#123456"]
    assert name_of("toy seed 1") == "Toy VQ seed 1"
    for i in range(20):  # any number of methods has a dash
        monkeypatch.setitem(METHODS, f"m{i}", Method(f"m{i}", Toy, f"M{i}", f"#{i:06d}"))
    assert all(dash_of(name) for name in METHODS) and quantizers.known("m19") == "m19"


def test_a_metric_of_one_row_is_compared_with_its_label_unit_and_direction(monkeypatch, tmp_path):
    row = measure.Metric("toy_error", "toy error", 1, "toys", -1, compared=True)
    monkeypatch.setitem(measure.METRICS, "toy_error", row)
    for method, value in (("lgq", 1.0), ("fsq", 3.0)):
        for seed in (0, 1, 2):
            numbers = {"toy_error": value + 0.01 * seed**2}
            finished_run(tmp_path, method=method, seed=seed, numbers=numbers)
    found = finished(tmp_path)
    table = comparison_table(found).set_index("method")
    assert table.loc["FSQ", "toy error, toys ↓"] == "3.0 ± 0.0"
    (difference,) = against(found, ["toy_error"])
    assert difference.verdict == "better" and difference.difference == pytest.approx(-2)
    fig = figures.forest(tabulated([difference]), ["toy_error"], of="LGQ")
    assert fig.layout.annotations[0].text == "toy error, toys"
    assert metric_table({"toy_error": 2.0}).loc["toy error, toys", "value"] == "2.0"
