"""A slider over temperature for points in the plane."""

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from lgqlib.explorers.live import SentWhole
from lgqlib.figures.plane import code_tints, draw_plane, soft_partition, stairs
from lgqlib.figures.style import RED, panels, titled
from lgqlib.measure.annealing import Annealing

LOOK_FOR = (
    "Each place is tinted by the codes that it is assigned to, mixed by their probabilities: one "
    "blend when hot, then soft borders, then the sharp cells of a Voronoi partition."
)


def plane_view(points: Float[np.ndarray, "N 2"], annealing: Annealing, index: int) -> go.Figure:
    """Draw one temperature of an annealing: points, codes and soft partition, and the staircase.

    Traces that change: `plane`, `codes`, `here`.
    """
    titles = ("Points, codes and soft partition", "Distinct codes")
    fig, (left, right) = panels(
        cols=2, titles=titles, column_widths=[0.56, 0.44], height=480, horizontal_spacing=0.1
    )
    codes, tau, distinct = (
        of[index] for of in (annealing.codebooks, annealing.taus, annealing.num_distinct)
    )
    tints = code_tints(annealing.codebooks[-1])
    left.legend(x=0.01, y=0.01)
    draw_plane(left, points, codes, soft_partition(points, codes, tints, tau))
    left.axes("z<sub>1</sub>", "z<sub>2</sub>", x_showticklabels=True, y_showticklabels=True)
    stairs(right, annealing)
    right.dots([tau], [distinct], "here", RED, size=13, showlegend=False)
    finding = f"τ = {tau:.3g} = {tau / annealing.predicted:.3g} of the first critical temperature: "
    finding += f"{len(codes)} codes at {distinct} place{'' if distinct == 1 else 's'}"
    return titled(fig, finding, LOOK_FOR)


class PlaneExplorer(ipywidgets.VBox):
    """Move through an annealing: soft partition, codes and the staircase follow one slider.

    Args:
        points: the points that were annealed.
        annealing: their codebooks at falling temperatures.
        index: temperature to start at.
    """

    def __init__(self, points: Float[np.ndarray, "N 2"], annealing: Annealing, *, index: int = 0):
        options = [(f"{t / annealing.predicted:.3g}", i) for i, t in enumerate(annealing.taus)]
        how = {"index": index, "description": "τ / τc", "layout": {"width": "420px"}}
        tau = ipywidgets.SelectionSlider(options=options, **how)
        play = ipywidgets.Play(value=index, max=len(options) - 1, interval=300, show_repeat=False)
        ipywidgets.link((play, "value"), (tau, "index"))
        figure = SentWhole(plane_view(points, annealing, index))

        def update(change: dict) -> None:
            new, moved = plane_view(points, annealing, change["new"]), ("plane", "codes", "here")
            figure.move({t.name: t.to_plotly_json() for t in new.data if t.name in moved})
            figure.layout.title.text = new.layout.title.text

        tau.observe(update, "value")
        super().__init__([ipywidgets.HBox([play, tau]), figure])
