"""A law that only tests need."""

import math

import numpy as np

HEXAGON = 5 / (36 * math.sqrt(3))
"""Normalized second moment of the best cell in the plane."""


def zador_distortion(spectrum: np.ndarray, num_codes: float) -> float:
    """Give D(K) = d G_d ||p||_{d/(d+2)} K^{-2/d} of a Gaussian, d = 2, the total squared error.

    The high-resolution law, only meaningful when log2 K is well above d.
    """
    d = len(spectrum)
    assert d == 2
    norm = 2 * math.pi * math.exp(np.log(spectrum).mean()) * (1 + 2 / d) ** ((d + 2) / 2)
    return d * HEXAGON * norm * num_codes ** (-2 / d)
