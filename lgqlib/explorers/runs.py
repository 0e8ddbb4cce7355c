"""One run, or several side by side, as the notebooks open them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgqlib.explorers.view import View
from lgqlib.files import write_json
from lgqlib.run import Run


def open_runs(run: str, others: str = "", *, runs: Path | str) -> dict[str, Run]:
    """Open a run's folder, or the newest trained one below `runs` when it is empty, and others
    beside it.

    `others`: folders separated by spaces; a folder's name may stand for it when it lies below
    `runs`. Keys are method names, with a number where one comes again; the run itself is first.
    Raises ValueError, with what to do, when there is none.
    """
    opened = [Run(run) if run else Run.latest(runs)]
    for name in others.split():
        inside = Path(runs) / name
        opened.append(Run(inside if (inside / "config.json").exists() else name))
    found: dict[str, Run] = {}
    for each in opened:
        method = each.config.quantizer.method
        again = sum(key.partition(" ")[0] == method for key in found)
        found[f"{method} {again + 1}" if again else method] = each
    return found


def open_views(
    runs: Mapping[str, Run], *, cache: Path | str, num_images: int = 256
) -> dict[str, View]:
    """Encode held-out images with each run's tokenizer."""
    return {key: View.open(run, cache=cache, num_images=num_images) for key, run in runs.items()}


def record(run: Run, notebook: str, numbers: Mapping[str, Any]) -> Path:
    """Write a notebook's numbers into the run's folder; give the path."""
    path = run.notebooks / f"{notebook}.json"
    write_json(path, {name: _plain(value) for name, value in numbers.items()})
    return path


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
