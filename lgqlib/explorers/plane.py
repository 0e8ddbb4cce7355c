"""A slider over temperature for points in the plane, which needs no kernel."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from lgqlib.figures.plane import code_tints, draw_plane, soft_partition, stairs
from lgqlib.figures.style import RED, panels, titled
from lgqlib.measure.annealing import Annealing

LOOK_FOR = (
    "Each place is tinted by the codes that it is assigned to, mixed by their probabilities: one "
    "blend when hot, then soft borders, then the sharp cells of a Voronoi partition."
)
ANIMATE = {"method": "animate"}


def plane_slider(
    points: Float[np.ndarray, "N 2"], annealing: Annealing, *, index: int = 0
) -> go.Figure:
    """Draw points, codes, soft partition and the staircase, with a frame for each temperature.

    `index`: of the temperature that is shown first.
    """
    titles, widths = ("Points, codes and soft partition", "Distinct codes"), [0.56, 0.44]
    fig, (left, right) = panels(cols=2, titles=titles, column_widths=widths, height=550)
    tints, frames = code_tints(annealing.codebooks[-1]), []
    at_each = zip(annealing.taus, annealing.codebooks, annealing.num_distinct, strict=True)
    for i, (tau, codes, distinct) in enumerate(at_each):
        picture = soft_partition(points, codes, tints, tau)
        x, y = codes.T.astype("float32")
        moved = [{"type": "image"} | picture, {"x": x, "y": y}, {"x": [tau], "y": [distinct]}]
        title = f"τ = {tau:.3g} = {tau / annealing.predicted:.3g} of the first critical temperature"
        title += f": {len(codes)} codes at {distinct} place{'' if distinct == 1 else 's'}"
        frames.append({"data": moved, "layout": {"title_text": title}, "name": str(i)})
    left.legend(x=0.01, y=0.01)
    draw_plane(left, points, annealing.codebooks[index], picture)
    left.axes("z<sub>1</sub>", "z<sub>2</sub>", x_showticklabels=True, y_showticklabels=True)
    stairs(right, annealing)
    right.dots([0], [0], "here", RED, size=13, showlegend=False)
    moving = [n for n, t in enumerate(fig.data) if t.name in ("plane", "codes", "here")]
    fig.frames = [go.Frame(**frame, traces=moving) for frame in frames]
    still, playing = (
        {"mode": "immediate", "fromcurrent": True, "frame": {"duration": ms}} for ms in (0, 150)
    )
    steps = [ANIMATE | {"label": "", "args": [[frame["name"]], still]} for frame in frames]
    buttons = [
        ANIMATE | {"label": label, "args": args}
        for label, args in (("play", [None, playing]), ("stop", [[None], still]))
    ]
    along = {"x": 0.14, "len": 0.86, "y": -0.14, "ticklen": 0, "minorticklen": 0}
    below = {"x": 0, "y": -0.16, "xanchor": "left", "type": "buttons", "direction": "left"}
    fig.update_layout(
        sliders=[along | {"steps": steps, "active": index, "currentvalue_visible": False}],
        updatemenus=[below | {"buttons": buttons, "yanchor": "top"}],
    )
    for n, first in zip(moving, frames[index]["data"], strict=True):
        fig.data[n].update(first)
    return titled(fig, fig.frames[index].layout.title.text, LOOK_FOR).update_layout(margin_b=110)
