"""Every number of one codebook beside its prediction, and several codebooks side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lgqlib.measure.cells import CellShape, cell_shape, log_volumes
from lgqlib.measure.geometry import (
    Occupancy,
    PartialDistortion,
    Spacing,
    Spectrum,
    count_codes,
    occupancy,
    partial_distortion,
    spacing,
    spectrum,
    squared_errors,
    two_nn,
)
from lgqlib.measure.neighbors import Array
from lgqlib.measure.theory import geometry_efficiency, mass_law_perplexity


@dataclass(frozen=True)
class Portrait:
    """The geometry of one codebook on one set of latents."""

    occupancy: Occupancy
    """How evenly codes are used."""
    partial: PartialDistortion
    """Error of each cell against its occupancy."""
    spacing: Spacing
    """Distances between codes."""
    shape: CellShape
    """Roundness of the cells."""
    log_volume: Float[np.ndarray, " K"]
    """Log volume of each cell, from its mean squared error; nan without error."""
    latents: Spectrum
    """Spectrum of the latents."""
    codes: Spectrum
    """Spectrum of the codes, each weighing the same."""
    intrinsic_dim: float
    """TwoNN estimate of the latents' dimension."""
    distortion: float
    """Mean squared error of the hard code, summed over channels."""
    efficiency: float
    """Water-filling distortion at the entropy of the usage, over `distortion`; nan without error.
    """

    @property
    def effective_dim(self) -> float:
        """Return the participation ratio of the latents."""
        return self.latents.participation

    @property
    def ceiling(self) -> float:
        """Return the perplexity of an optimal Gaussian quantizer with as many codes (mass law)."""
        return len(self.occupancy.counts) * mass_law_perplexity(self.effective_dim)


def portrait(
    codebook: Float[Array, "K D"],
    latents: Float[Array, "N D"],
    indices: Int[np.ndarray, " N"],
    *,
    counts: Int[np.ndarray, " K"] | None = None,
    groups: Int[np.ndarray, " N"] | None = None,
    seed: int = 0,
) -> Portrait:
    """Measure a codebook on latents and the codes they take.

    `counts`: usage over a larger set than these latents, if there is one; `groups`: the image of
    each token, so that intervals are over images. Cells are judged in the leading `effective_dim`
    directions, at least 2.
    """
    num_codes, dim = codebook.shape
    usage = occupancy(count_codes(indices, num_codes) if counts is None else counts)
    errors = squared_errors(latents, codebook, indices)
    partial = partial_distortion(errors, indices, num_codes, groups=groups, seed=seed)
    basis = spectrum(latents)
    leading = int(np.clip(round(basis.participation), min(2, dim), dim))
    distortion = float(errors.mean())
    rate = usage.entropy_corrected
    return Portrait(
        occupancy=usage,
        partial=partial,
        spacing=spacing(codebook),
        shape=cell_shape(latents, indices, num_codes, basis=basis, dim=leading),
        log_volume=log_volumes(partial.mse, max(1.0, basis.participation)),
        latents=basis,
        codes=spectrum(codebook),
        intrinsic_dim=two_nn(latents, seed=seed),
        distortion=distortion,
        efficiency=geometry_efficiency(basis.eigenvalues, rate, distortion)
        if distortion > 0
        else float("nan"),
    )


def compare(portraits: Mapping[str, Portrait]) -> pd.DataFrame:
    """Return a table with a row for each named codebook and a column for each number."""
    return pd.DataFrame({name: _row(p) for name, p in portraits.items()}).T


def _row(p: Portrait) -> dict[str, float]:
    num_codes = len(p.occupancy.counts)
    used = p.partial.counts > 0
    return {
        "codes": num_codes,
        "tokens": p.occupancy.num_tokens,
        "active": p.occupancy.active,
        "perplexity": p.occupancy.perplexity,
        "mass-law ceiling": p.ceiling,
        "perplexity / ceiling": p.occupancy.perplexity / p.ceiling,
        "Gini": p.occupancy.gini,
        "distortion / variance": p.distortion / p.latents.total if p.latents.total else np.nan,
        "geometry efficiency": p.efficiency,
        "partial distortion slope": p.partial.slope,
        "slope, low": p.partial.low,
        "slope, high": p.partial.high,
        "partial distortion evenness": p.partial.evenness,
        "median spacing of used codes": float(np.median(p.spacing.distance[used])),
        "twins": p.spacing.twins,
        "hubness": p.spacing.hubness,
        "cells longer than round": p.shape.share_long,
        "channels": len(p.latents.eigenvalues),
        "effective dimension of latents": p.effective_dim,
        "effective dimension of codes": p.codes.participation,
        "intrinsic dimension (TwoNN)": p.intrinsic_dim,
    }
