"""A token that two codes share at any temperature: the tie that never resolves."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lgqlib.explorers.view import View
from lgqlib.quantizers.assignment import energies, probabilities

MAX_CODES = 512
"""Of the most used codes, those among which a close pair is looked for."""
TRIED_PAIRS = 64
"""Close pairs of codes among which a tie is looked for."""


def closest_tie(
    view: View, taus: Float[np.ndarray, " T"]
) -> tuple[tuple[int, int], Float[np.ndarray, " T"]]:
    """Put a point at equal energy from two neighboring codes; give both, and its largest share.

    The codes are, of the closest pairs of different ones, the pair from which all others are
    furthest, so that no third code shares the point when it is cold. The share is over the
    temperatures.
    """
    used = np.argsort(-view.counts, kind="stable")[:MAX_CODES]
    e = torch.from_numpy(view.sites[used]).double()
    widths = None if view.widths is None else view.widths[torch.from_numpy(used)].double()
    apart = torch.pdist(e)
    apart[apart < 1e-6 * apart.max()] = math.inf
    pairs = torch.triu_indices(len(e), len(e), offset=1).T
    room = -math.inf
    for i, j in pairs[apart.argsort()[:TRIED_PAIRS]].tolist():
        middle = _between(view, e, i, j, widths)
        d = _scaled(view, middle, e, widths)[0]
        others = torch.cat([d, d.new_tensor([math.inf])])  # there may be only two codes
        others[[i, j]] = math.inf
        if (free := float(others.min() - d[i])) > room:
            room, a, b, point = free, i, j, middle
    shares = [
        float(probabilities(point, e, float(t), energy=view.energy, widths=widths).max())
        for t in taus
    ]
    return (int(used[a]), int(used[b])), np.array(shares)


def _between(
    view: View, e: Float[Tensor, "n D"], a: int, b: int, widths: Float[Tensor, " n"] | None
) -> Float[Tensor, "1 D"]:
    """Find the point on the way from one code to another that has the same energy for both."""
    low, high = 0.0, 1.0
    pair = None if widths is None else widths[[a, b]]
    for _ in range(60):  # halves down to the last digit
        middle = (low + high) / 2
        point = torch.lerp(e[a], e[b], middle)[None]
        near, far = _scaled(view, point, e[[a, b]], pair)[0].tolist()
        low, high = (middle, high) if near < far else (low, middle)
    return point


def _scaled(
    view: View,
    z: Float[Tensor, "m D"],
    e: Float[Tensor, "n D"],
    widths: Float[Tensor, " n"] | None,
) -> Float[Tensor, "m n"]:
    d = energies(z, e, energy=view.energy)
    return d if widths is None else d / widths
