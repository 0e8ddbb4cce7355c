"""A line with the band around it: a median, and the quantiles that it lies between."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Real
from plotly.colors import hex_to_rgb

Values = Sequence[float] | Real[np.ndarray, " n"]


def band(
    fig: go.Figure,
    x: Values,
    quantiles: Float[np.ndarray, "3 n"],
    color: str,
    *,
    row: int,
    col: int,
    **line,
) -> None:
    """Add the middle one of three quantiles as a line, and the others as the band around it.

    `line` goes to the line: its `name`, `legend`, `mode`.
    """
    x, (low, middle, high) = np.asarray(x), quantiles
    fig.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=f"rgba{(*hex_to_rgb(color), 0.2)}",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        row=row,
        col=col,
    )
    mode = line.pop("mode", "lines")
    fig.add_scatter(x=x, y=middle, mode=mode, line={"color": color}, **line, row=row, col=col)
