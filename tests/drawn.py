"""Read what a figure draws."""

import base64
import io

import numpy as np
import plotly.graph_objects as go
from PIL import Image


def named(fig: go.Figure, name: str):
    """Give the trace of a name."""
    return next(trace for trace in fig.data if trace.name == name)


def starting(fig: go.Figure, name: str):
    """Give the first trace whose name begins so."""
    return next(trace for trace in fig.data if (trace.name or "").startswith(name))


def pixels(source: str) -> np.ndarray:
    """Decode the source of an image trace."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def texts(fig: go.Figure) -> tuple[str, str]:
    """Give the finding and the caption, without their line breaks."""
    title = fig.layout.title
    return tuple((part or "").replace("<br>", " ") for part in (title.text, title.subtitle.text))


def marks(fig: go.Figure) -> dict[str, list[tuple[float, float]]]:
    """Give the ends along x of the lines and areas drawn across panels, by name."""
    found = {}
    for shape in fig.layout.shapes:
        found.setdefault(shape.name, []).append((shape.x0, shape.x1))
    return found
