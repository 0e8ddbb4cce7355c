"""The house stays as drawn: what each module may import, held as data and read from the sources."""

import ast
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "lgqlib"

MAY_IMPORT: dict[str, str] = {
    # layer 0: a value, an operation, a file; nothing of the project, or only of this layer
    "config": "",
    "files": "",
    "locks": "",
    "parameters": "",
    "decode": "",
    "listing": "",
    "download": "files locks",
    "store": "decode files locks",
    "nearest": "",
    "blocks": "nearest",
    "pairs": "blocks nearest",
    "streaming": "blocks nearest pairs",
    "kernels": "",
    "assignment": "kernels nearest streaming",
    "backbone": "",
    "features": "",
    "metrics": "",
    "coding": "",
    "intervals": "",
    "theory": "",
    "bounds": "",
    "neighbors": "",
    "faithfulness": "neighbors",
    "projection": "neighbors",
    "annealing": "neighbors theory",
    # layer 1
    "initialization": "assignment",
    "quantizer": "assignment initialization",
    "sources": "download listing store",
    "data": "config parameters sources store",
    "losses": "config features",
    "geometry": "bounds metrics neighbors",
    "cells": "bounds geometry neighbors",
    "drift": "neighbors",
    "portrait": "bounds cells geometry neighbors",
    "clouds": "bounds geometry",
    # layer 2
    "scalar": "assignment initialization quantizer",
    "implicit": "assignment quantizer",
    "peers": "assignment implicit initialization quantizer",
    # layer 3
    "presets": "config peers",
    "variants": "peers presets",
    "tokenizer": "assignment backbone config peers quantizer scalar theory",
    "laboratory": "bounds clouds config geometry implicit initialization theory tokenizer variants",
    "hypotheses": "intervals",
    # layer 4
    "run": "config files parameters tokenizer",
    "evaluate": "coding data features files metrics tokenizer",
    # layer 5
    "train": "config data evaluate losses run tokenizer",
    "assess": "bounds data evaluate features parameters run tokenizer",
    "figures": "annealing assignment bounds drift geometry portrait projection theory",
    "widgets": "annealing assess assignment cells clouds config data drift faithfulness figures "
    "files geometry neighbors portrait projection quantizer run scalar theory tokenizer",
    # layer 6
    "grid": "config presets tokenizer",
    "results": "files run",
    "progress": "run",
    "engine": "",
    "execute": "",
    "crew": "execute",
    "comparison": "intervals results run",
    "claims": "assignment comparison files theory",
    "report": "figures files results run",
    "study": "crew execute files grid locks progress report results run",
}
"""Module or package: the modules of the library that it may import."""


def modules() -> dict[str, set[str]]:
    """Give each module or package of the library with the ones that it imports."""
    found: dict[str, set[str]] = {}
    for file in sorted(LIBRARY.rglob("*.py")):
        name = file.relative_to(LIBRARY).with_suffix("").parts[0]
        if name == "__init__":
            continue
        found.setdefault(name, set())
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                own = node.module == "lgqlib"
                names = [f"lgqlib.{a.name}" for a in node.names] if own else [node.module]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: relative import"
            found[name] |= {n.split(".")[1] for n in names if n.startswith("lgqlib.")} - {name}
    return found


def test_every_module_is_in_the_table_and_every_row_is_a_module():
    assert set(modules()) == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_a_module_imports_only_what_its_row_allows(name):
    assert modules().get(name, set()) <= set(MAY_IMPORT[name].split())


def test_a_row_names_only_rows_above_it():
    order = list(MAY_IMPORT)
    for name, allowed in MAY_IMPORT.items():
        for other in allowed.split():
            assert order.index(other) < order.index(name), (
                f"{name} imports {other}, which is below it"
            )


def test_the_config_needs_the_standard_library_only():
    tree = ast.parse((LIBRARY / "config.py").read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names


def test_the_library_neither_prints_nor_unpickles():
    for file in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print" or file.parent.name == "study", file
            if isinstance(node, ast.Import):
                assert "pickle" not in {a.name for a in node.names}, file
