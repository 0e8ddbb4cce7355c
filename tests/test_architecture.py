"""The house stays as drawn: one line of floors, held as data and read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lgqlib

LIBRARY = Path(__file__).parent.parent / "lgqlib"
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
