"""Codes over latents in one plane."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int

from lgqlib.figures.style import BLUE, FAINT, RED, panels, titled
from lgqlib.measure.projection import Faithfulness, Projection

MAX_LATENTS = 4000  # latents that are drawn, evenly chosen


def codes_in_plane(
    projection: Projection, counts: Int[np.ndarray, " K"], kept: Faithfulness
) -> go.Figure:
    """Draw codes over latents, and say what the plane keeps; `chosen` is a trace to fill."""
    fig, (panel,) = panels(height=560)
    some = np.linspace(0, len(projection.latents) - 1, min(MAX_LATENTS, len(projection.latents)))
    latents = projection.latents[some.astype(int)]
    panel.dots(*latents.T, "latents", FAINT, size=2, hoverinfo="skip")
    size = (3 + 11 * np.sqrt(counts / max(counts.max(), 1))).astype("float32")
    hover = "code %{customdata[0]}: %{customdata[1]} tokens<extra></extra>"
    number = np.stack([np.arange(len(counts)), counts], 1).astype("int32")
    look = {"opacity": 0.6, "customdata": number, "hovertemplate": hover}
    panel.dots(*projection.codes.T, "codes, by use", BLUE, size=size, **look)
    ring = {"symbol": "circle-open", "size": 16, "marker": {"line": {"width": 3}}}
    panel.dots([], [], "chosen", RED, hoverinfo="skip", **ring)
    names = ["UMAP 1", "UMAP 2"]
    if projection.method != "umap":
        shares = 100 * projection.explained
        names = [f"axis {i + 1}, {share:.0f} % of the variance" for i, share in enumerate(shares)]
    panel.axes(*names[:2], x_zeroline=False, y_zeroline=False)
    plane = f"In the {projection.method.upper()} plane"
    return titled(
        fig,
        f"{plane} {100 * kept.recall:.0f} % of a code's {kept.num_neighbors} nearest codes are "
        "still its nearest"
        if kept.num_neighbors
        else f"{plane}: codes too few to have neighbors",
        "Dense where latents are dense, wider where they are rare: a codebook that follows the "
        f"data. Trustworthiness {kept.trustworthiness:.3f}, continuity {kept.continuity:.3f} among "
        f"{kept.num_points} codes: a plane tears more neighbors apart than the map above.",
    )
