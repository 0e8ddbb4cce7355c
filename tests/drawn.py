"""Read what a figure draws."""

import base64
import io
import re

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from lgqlib.figures.style import color_of, name_of
from lgqlib.quantizers import METHODS

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
