"""Parameters of notebooks, refused by their names before anything is computed with them.

Anybody may execute a notebook with any values; what a config holds, the config refuses itself.
"""

import itertools
import math
from typing import Any


def require_whole(*, least: int = 1, most: int = 2**31, **values: Any) -> None:
    """Raise ValueError, by its name, for a value that is no whole number in [least, most]."""
    for name, value in values.items():
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not least <= value <= most:
            raise ValueError(
                f"{name} = {value!r}: it must be a whole number from {least} to {most}."
            )


def require_positive(**values: Any) -> None:
    """Raise ValueError, by its name, for a value that is no finite number above zero."""
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} = {value!r}: it must be a finite number > 0.")


def require_folder(**values: Any) -> None:
    """Raise ValueError, by its name, for a value that is no path."""
    for name, value in values.items():
        if not hasattr(value, "__fspath__") and not isinstance(value, str):
            raise ValueError(f"{name} = {value!r}: it must be the path of a folder.")
        if "\0" in str(value):
            raise ValueError(f"{name} = {value!r}: no path holds a zero byte.")


def require_falling(**values: Any) -> None:
    """Raise ValueError, by the names, for positive numbers of which one is not below the last."""
    require_positive(**values)
    numbers = list(values.values())
    if any(later >= earlier for earlier, later in itertools.pairwise(numbers)):
        said = ", ".join(f"{name} = {value!r}" for name, value in values.items())
        raise ValueError(f"{said}: each must be below the one before.")


def require_one_of(choices: tuple[str, ...], **values: Any) -> None:
    """Raise ValueError, by its name, for a value that is none of the choices."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} = {value!r}: it must be one of {', '.join(choices)}.")
