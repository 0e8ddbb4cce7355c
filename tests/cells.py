"""Execute a notebook's cells without a kernel.

As a script: read cases (name, until, values) as JSON, and write what each raised. A process of its
own has no hook that checks types, which would refuse what the library is to refuse.
"""

import json
import sys
import warnings
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def execute(name: str, until: str, values: dict) -> dict:
    """Run a notebook's cells in this process, up to the one that holds `until`."""
    scope = {"__name__": "__main__"}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), scope)
            if "parameters" in cell.metadata.get("tags", []):
                assert values.keys() <= scope.keys()
                scope |= values
            if until in cell.source:
                return scope
    raise AssertionError(f"{name} has no cell with {until}")


def raised(name: str, until: str, values: dict) -> str:
    """Give what an execution raises, `ValueError: why`; nothing if it does not."""
    try:
        execute(name, until, values)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    warnings.simplefilter("error")
    cases = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr
    json.dump([raised(*case) for case in cases], output)
