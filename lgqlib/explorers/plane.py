"""A slider over temperature for points in the plane."""

import numpy as np
from jaxtyping import Float

from lgqlib.explorers.controls import Explorer, Throttled, play, slider
from lgqlib.figures.pictures import data_uri
from lgqlib.figures.plane import code_tints, plane_view, soft_cells, view_finding
from lgqlib.measure.annealing import Annealing

SIZE = 72
"""Places along a side of the field of soft cells."""


class PlaneExplorer(Explorer):
    """Move through an annealing: soft cells, codes and the staircase follow one slider.

    Args:
        points: the points that were annealed.
        annealing: their codebooks at falling temperatures.
        index: temperature to start at.
    """

    name = "Annealing in the plane"

    def __init__(self, points: Float[np.ndarray, "N 2"], annealing: Annealing, *, index: int = 0):
        super().__init__(plane_view(points, annealing, index, size=SIZE))
        self.points, self.annealing = points, annealing
        self.tints = code_tints(annealing.codebooks[-1])
        labels = [f"{tau / annealing.predicted:.3g}" for tau in annealing.taus]
        self.tau = slider("τ / τc", [(label, i) for i, label in enumerate(labels)], index=index)
        self.tau.observe(Throttled(lambda change: self.update()), names="value")
        self.lay_out([play(self.tau), self.tau], self.figure)
        self.update()

    def update(self) -> None:
        """Redraw what depends on the temperature."""
        index, annealing = self.tau.value, self.annealing
        codes = annealing.codebooks[index].astype("float32")
        tau = annealing.taus[index]
        field = soft_cells(self.points, codes, self.tints, tau, size=SIZE)
        self.show(
            view_finding(annealing, index),
            field={"source": data_uri(field)},
            codes={"x": codes[:, 0], "y": codes[:, 1]},
            here={"x": [tau], "y": [annealing.num_distinct[index]]},
        )
