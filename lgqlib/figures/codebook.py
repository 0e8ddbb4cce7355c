"""Where codes were as they trained, and what they stand for."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, UInt8

from lgqlib.figures.pictures import picture_grid
from lgqlib.figures.style import BLUE, panels, titled


def timeline(
    places: Sequence[Float[np.ndarray, "n 2"]],
    steps: Sequence[int],
    active: Sequence[int],
    *,
    births: int,
    deaths: int,
    drawn: str = "",
) -> go.Figure:
    """Draw where codes were at several steps of training in one frame: the slider, standing still.

    `drawn` says which codes these are.
    """
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).round().astype(int))
    titles = [f"step {steps[i]}: {active[i]} active" for i in chosen]
    fig, all_panels = panels(cols=len(chosen), titles=titles, height=300, horizontal_spacing=0.015)
    everything = np.concatenate([places[i] for i in chosen])
    low, high = everything.min(0), everything.max(0)
    room = 0.05 * (high - low) + 1e-6
    x_range, y_range = np.stack([low - room, high + room], 1).tolist()
    for panel, i in zip(all_panels, chosen, strict=True):
        panel.dots(*places[i].T, f"step {steps[i]}", BLUE, size=3, marker={"opacity": 0.6})
        bare = {"x_showticklabels": False, "y_showticklabels": False}
        panel.axes(x_range=x_range, y_range=y_range, **bare)
    fig.update_layout(showlegend=False, margin={"l": 10, "r": 10, "b": 10})
    return titled(
        fig,
        f"From step {steps[0]} to {steps[-1]}: {births} codes were born, {deaths} died",
        "One frame for all steps: what moves is what training moved. A born code had no tokens "
        f"between the snapshots before, and some after. {drawn}",
    )


def code_examples(
    rows: Sequence[Sequence[UInt8[np.ndarray, "P P 3"]]],
    codes: Sequence[int],
    counts: Sequence[int],
    *,
    total: int,
) -> go.Figure:
    """Draw, for some codes, the decoder's patch and then real patches: a click, standing still."""
    labels = [f"code {k}: {n}" for k, n in zip(codes, counts, strict=True)]
    share = 100 * max(counts) / max(total, 1)
    return titled(
        picture_grid(dict(zip(labels, rows, strict=True)), tile=44, gap=3, axis="code: tokens"),
        f"The most used code has {share:.1f} % of {total} tokens; of these codes, the rarest has "
        f"{min(counts)}",
        "First in each row, what the decoder makes of the code inside real images; then real "
        "patches assigned to it, nearest first. Patches of a row should agree.",
    )
