"""Rows of small pictures, one row a code, a decile, or whatever else has examples."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import UInt8

from lgqlib.figures.pictures import data_uri, sheet
from lgqlib.figures.style import figure, titled

Tiles = Sequence[UInt8[np.ndarray, "P P 3"]]


def strips(
    rows: Sequence[Tiles],
    labels: Sequence[str],
    *,
    axis: str,
    finding: str,
    look_for: str,
    hover: Sequence[Sequence[str]] | None = None,
) -> go.Figure:
    """Draw rows of tiles of one size, each row with a label; `hover` is the text of each tile."""
    cols = max(len(row) for row in rows)
    pictures = [sheet(row, cols=cols, tile=44, gap=3) for row in rows]
    width = max(p.shape[1] for p in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0))) for p in pictures]
    fig = figure(height=44 * len(rows) + 130)
    fig.add_image(source=data_uri(np.concatenate(padded)), hoverinfo="skip")
    step = padded[0].shape[0]
    if hover is not None:
        # An image has one label for all of it: clear points in the middle of each tile have theirs.
        across = width / cols
        places = [(i, j) for i, texts in enumerate(hover) for j in range(len(texts))]
        fig.add_scatter(
            x=[(j + 0.5) * across for _, j in places],
            y=[(i + 0.5) * step for i, _ in places],
            text=[text for texts in hover for text in texts],
            mode="markers",
            marker={"size": 24, "opacity": 0},
            hovertemplate="%{text}<extra></extra>",
            name="places",
            showlegend=False,
        )
    fig.update_yaxes(
        tickvals=[(i + 0.5) * step for i in range(len(rows))],
        ticktext=list(labels),
        title_text=axis,
        autorange="reversed",
        scaleanchor="x",
        constrain="domain",
        showgrid=False,
        zeroline=False,
    )
    fig.update_xaxes(
        showticklabels=False, showgrid=False, zeroline=False, constrain="domain", ticks=""
    )
    return titled(fig, finding, look_for)


def code_examples(
    rows: Sequence[Tiles], codes: Sequence[int], counts: Sequence[int], *, total: int
) -> go.Figure:
    """Draw, for some codes, the decoder's patch and then real patches: a click, standing still."""
    labels = [f"code {k}: {n}" for k, n in zip(codes, counts, strict=True)]
    share = 100 * max(counts) / max(total, 1)
    return strips(
        rows,
        labels,
        axis="code: tokens",
        finding=f"The most used code has {share:.1f} % of {total} tokens; of these codes, the "
        f"rarest has {min(counts)}",
        look_for="First in each row, what the decoder makes of the code inside real images; then "
        "real patches assigned to it, nearest first. Patches of a row should agree.",
    )
