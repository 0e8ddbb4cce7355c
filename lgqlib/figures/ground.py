"""What lies below the points of a map, as pictures: latents, and codes that are no points.

A picture costs a browser the same however much is in it.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8
from plotly.colors import hex_to_rgb

from lgqlib.figures.quantity import Quantity
from lgqlib.measure.projection import Projection

RASTER = 360
"""Places along a side of a picture."""
GREY = (128, 128, 128)


def extent(projection: Projection) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    """Give the map's place of the first pixel, and the size of a pixel, along x and y."""
    low = np.minimum(projection.latents.min(0), projection.codes.min(0))
    high = np.maximum(projection.latents.max(0), projection.codes.max(0))
    return low, np.maximum(high - low, 1e-6) / (RASTER - 1)


def latents_picture(projection: Projection) -> UInt8[np.ndarray, "H W 4"]:
    """Draw latents as grey dots, the denser the more opaque."""
    hits = np.bincount(_pixels(projection, projection.latents).ravel(), minlength=RASTER**2)
    picture = np.full((RASTER**2, 4), 128, dtype=np.uint8)
    picture[:, 3] = np.where(hits > 0, np.clip(50 + 40 * np.log2(1 + hits), 0, 255), 0)
    return picture.reshape(RASTER, RASTER, 4)


def codes_picture(
    projection: Projection, quantity: Quantity, codes: Int[np.ndarray, " n"]
) -> UInt8[np.ndarray, "H W 4"]:
    """Draw some codes as dots in the colors of a quantity, as the points have them.

    Where several codes share a pixel it shows the mean of what is drawn of them, or the class that
    most of them have; grey where none of them has a value.
    """
    picture = np.zeros((RASTER**2, 4), dtype=np.uint8)
    at = _pixels(projection, projection.codes[codes])
    picture[at.ravel()] = (*GREY, 110)
    if quantity.names is not None:
        value, unknown = quantity.ranks[codes].astype(float), quantity.ranks[codes] < 0
        value[unknown] = np.nan
    else:
        value = quantity.shown[codes]
    known = np.isfinite(value)
    at, value = at[:, known].ravel(), np.tile(value[known], len(at))
    places, number = np.unique(at, return_inverse=True)
    if quantity.names is None:
        shown = np.bincount(number, value) / np.bincount(number)
    else:
        pairs, times = np.unique(np.stack([number, value], 1), axis=0, return_counts=True)
        order = np.argsort(times, kind="stable")  # ascending, so that the last write wins
        shown = np.zeros(len(places))
        shown[pairs[order, 0].astype(int)] = pairs[order, 1]
    picture[places] = np.column_stack([_rgb(quantity, shown), np.full(len(places), 255)])
    return picture.reshape(RASTER, RASTER, 4)


def _pixels(projection: Projection, points: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, "4 n"]:
    """Give the numbers of the four pixels that each point covers: a dot is two places wide."""
    low, step = extent(projection)
    x, y = np.round((points - low) / step).astype(int).T
    corners = [(y + dy, x + dx) for dy in (0, 1) for dx in (0, 1)]
    return np.stack(
        [RASTER * np.minimum(r, RASTER - 1) + np.minimum(c, RASTER - 1) for r, c in corners]
    )


def _rgb(quantity: Quantity, shown: Float[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    """Give the colors that the quantity's scale has for what is drawn."""
    coloring = quantity.coloring()
    # What has no value is translucent and first in the scale; here all have one.
    stops = [(place, hex_to_rgb(c)) for place, c in coloring["colorscale"] if c.startswith("#")]
    if not stops:
        return np.zeros((0, 3), dtype=np.uint8)
    places, colors = np.array([p for p, _ in stops]), np.array([c for _, c in stops], dtype=float)
    share = (shown - coloring["cmin"]) / (coloring["cmax"] - coloring["cmin"])
    return np.column_stack([np.interp(share, places, c) for c in colors.T]).round().astype("uint8")
