"""A law that only tests need."""

import math

import numpy as np

from lgqlib.measure.theory import gersho_constant


def zador_distortion(spectrum: np.ndarray, num_codes: float) -> float:
    """Give D(K) = d G_d ||p||_{d/(d+2)} K^{-2/d} of a Gaussian, the total squared error.

    The high-resolution law, only meaningful when log2 K is well above d.
    """
    d = len(spectrum)
    norm = 2 * math.pi * math.exp(np.log(spectrum).mean()) * (1 + 2 / d) ** ((d + 2) / 2)
    return d * gersho_constant(d) * norm * num_codes ** (-2 / d)
