"""Which codes a person means: numbers that were written, or a line that was drawn around them."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int


def parse(text: str, num_codes: int) -> list[int]:
    """Read code numbers, `3, 17-20`, leaving out what is none or not below K."""
    found: set[int] = set()
    for part in text.replace(",", " ").split():
        low, _, high = part.partition("-")
        if low.isdigit() and (high or low).isdigit():
            found |= set(range(int(low), min(int(high or low), num_codes - 1) + 1))
    return sorted(found)


def enclosed(points: Float[np.ndarray, "K 2"], selector: Any) -> Int[np.ndarray, " n"]:
    """Give the points inside plotly's lasso (`xs`, `ys`) or box (`xrange`, `yrange`).

    There are none where the line was drawn in another panel: plotly then hands on no coordinates,
    for it reads those of the first pair of axes only.
    """
    x, y = points.T
    if getattr(selector, "xrange", None) is not None:
        inside = (x >= min(selector.xrange)) & (x <= max(selector.xrange))
        inside &= (y >= min(selector.yrange)) & (y <= max(selector.yrange))
        return np.flatnonzero(inside)
    inside = np.zeros(len(points), dtype=bool)
    if getattr(selector, "xs", None) is None:
        return np.flatnonzero(inside)
    ends = np.stack([selector.xs, selector.ys], 1)
    for (x0, y0), (x1, y1) in zip(ends, np.roll(ends, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        # A ray to the right crosses the outline an odd number of times from inside.
        inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return np.flatnonzero(inside)
