"""The codebook's map without a hand on it: once for each quantity, and once for each step."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from lgqlib.figures.codebook import clickable, frame_label, sizes
from lgqlib.figures.quantity import Quantity
from lgqlib.figures.style import BLUE, figure, titled
from lgqlib.measure.projection import Projection

FACET_CODES = 1500
"""Codes that a small map draws, the most used and a spread of the others."""


def codebook_facets(
    projection: Projection,
    quantities: Mapping[str, Quantity],
    counts: Int[np.ndarray, " K"],
    *,
    name: str = "",
    frame: str = "",
) -> go.Figure:
    """Draw the map once for each quantity: the drop-down list, standing still.

    `name`: what the run is called; `frame`: what the map's axes are.
    """
    cols = 4
    rows = -(-len(quantities) // cols)
    drawn = clickable(counts, limit=FACET_CODES)
    fig = figure(
        rows=rows,
        cols=cols,
        titles=list(quantities),
        height=90 + 250 * rows,
        horizontal_spacing=0.02,
        vertical_spacing=0.09,
    )
    for i, quantity in enumerate(quantities.values()):
        marker = quantity.coloring(drawn)
        marker.pop("colorbar")
        fig.add_scatter(
            x=projection.codes[drawn, 0],
            y=projection.codes[drawn, 1],
            mode="markers",
            marker={**marker, "size": sizes(counts)[drawn] * 0.6},
            customdata=np.stack([drawn, quantity.values[drawn]], 1).astype("float32"),
            hovertext=quantity.hover(drawn),
            hovertemplate="code %{customdata[0]}<br>"
            + (
                f"%{{customdata[1]:.3g}} {quantity.unit}"
                if quantity.names is None
                else "%{hovertext}"
            )
            + "<extra></extra>",
            row=i // cols + 1,
            col=i % cols + 1,
        )
    fig.update_layout(showlegend=False, margin={"l": 10, "r": 10, "b": 10})
    fig.update_xaxes(showticklabels=False, zeroline=False)
    fig.update_yaxes(showticklabels=False, zeroline=False)
    used = int((counts > 0).sum())
    shown = "all" if len(drawn) == len(counts) else f"{len(drawn)} of {len(counts)}"
    return titled(
        fig,
        f"{name}: {used} of {len(counts)} codes used; {frame or frame_label(projection)}".lstrip(
            ": "
        ),
        f"Each map has its own scale, dark low and bright high; grey is unknown. Drawn: {shown} "
        "codes. "
        "Look for quantities that follow the density: rare codes with large cells, or edges that "
        "err.",
    )


def timeline(
    places: Sequence[Float[np.ndarray, "n 2"]],
    steps: Sequence[int],
    active: Sequence[int],
    *,
    births: int,
    deaths: int,
    drawn: str = "",
) -> go.Figure:
    """Draw where codes were at several steps of training in one frame: the scrubber, standing
    still. `drawn` says which codes these are.
    """
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).round().astype(int))
    titles = [f"step {steps[i]}: {active[i]} active" for i in chosen]
    fig = figure(rows=1, cols=len(chosen), titles=titles, height=300, horizontal_spacing=0.015)
    for col, i in enumerate(chosen, start=1):
        fig.add_scatter(
            x=places[i][:, 0],
            y=places[i][:, 1],
            mode="markers",
            marker={"size": 3, "color": BLUE, "opacity": 0.6},
            name=f"step {steps[i]}",
            row=1,
            col=col,
        )
    everything = np.concatenate([places[i] for i in chosen])
    low, high = everything.min(0), everything.max(0)
    room = 0.05 * (high - low) + 1e-6
    fig.update_xaxes(range=[low[0] - room[0], high[0] + room[0]], showticklabels=False)
    fig.update_yaxes(range=[low[1] - room[1], high[1] + room[1]], showticklabels=False)
    fig.update_layout(showlegend=False, margin={"l": 10, "r": 10, "b": 10})
    return titled(
        fig,
        f"From step {steps[0]} to {steps[-1]}: {births} codes were born, {deaths} died",
        "One frame for all steps: what moves is what training moved. A born code had no tokens "
        f"between the snapshots before, and some after. {drawn}",
    )
