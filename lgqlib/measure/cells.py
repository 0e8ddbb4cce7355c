"""Inside the cells of a codebook: volume, shape against its null, density, and the classes they
hold.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from lgqlib.measure.geometry import Spectrum, count_codes
from lgqlib.measure.neighbors import Array, as_tensor
from lgqlib.measure.theory import gersho_constant


def log_volumes(mse: Float[np.ndarray, " K"], dim: float) -> Float[np.ndarray, " K"]:
    """Estimate each cell's log volume from its mean squared error, mse = d G_d V^{2/d}.

    `dim` is the effective dimension of the latents. Exact for cells as round as the best lattice's;
    a longer cell is overestimated. nan for cells without error.
    """
    squares = np.where(mse > 0, mse, np.nan) / (dim * gersho_constant(dim))
    return dim / 2 * np.log(squares)


@dataclass(frozen=True)
class CellShape:
    """How far from round the cells are, against what sampling alone would show.

    nan for cells of too few tokens, and in one dimension.
    """

    anisotropy: Float[np.ndarray, " K"]
    """Log of arithmetic over geometric mean of the within-cell eigenvalues: 0 when round."""
    expected: Float[np.ndarray, " K"]
    """Its mean for a round Gaussian cell with the same number of tokens (Wishart null)."""
    p_value: Float[np.ndarray, " K"]
    """Chance that a round cell looks at least this long."""
    dim: int
    """Principal directions that cells were projected to."""
    min_count: int
    """Tokens that a cell needs."""

    @property
    def excess(self) -> Float[np.ndarray, " K"]:
        """Return the anisotropy above what sampling explains."""
        return self.anisotropy - self.expected

    @property
    def share_long(self) -> float:
        """Return the share of judged cells that are longer than round at the 5 % level; nan for
        none.
        """
        judged = self.p_value[~np.isnan(self.p_value)]
        return float((judged < 0.05).mean()) if len(judged) else float("nan")


def cell_shape(
    latents: Float[Array, "N D"],
    indices: Int[np.ndarray, " N"],
    num_codes: int,
    *,
    basis: Spectrum,
    dim: int,
) -> CellShape:
    """Test cells with at least 10 tokens a dimension for roundness, in the leading directions.

    Latents are projected to the first `dim` axes of `basis`, their spectrum. The statistic is
    Mauchly's, log det against the trace of the covariance around the cell's own mean; its null mean
    and variance are exact for Gaussian cells, and its tail is a gamma law of those moments. Cells
    of an optimal quantizer are flatter than Gaussian, which makes the test conservative.
    """
    from scipy.special import polygamma, psi
    from scipy.stats import gamma

    if not 1 <= dim <= len(basis.eigenvalues):
        raise ValueError(f"dim must be between 1 and {len(basis.eigenvalues)}, got {dim}")
    counts = count_codes(indices, num_codes)
    min_count = 10 * dim
    cells = np.flatnonzero(counts >= min_count)
    anisotropy, expected, p_value = np.full((3, num_codes), np.nan)
    if len(cells) and dim > 1:  # in one direction every cell is round
        number = np.full(num_codes, -1)
        number[cells] = np.arange(len(cells))
        keep = number[indices] >= 0
        x = (as_tensor(latents).double().numpy()[keep] - basis.mean) @ basis.axes[:, :dim]
        values = np.linalg.eigvalsh(_scatter(x, number[indices[keep]], counts[cells]))
        values = np.maximum(values, 1e-12 * values[:, -1:].clip(1e-300))
        u = dim * np.log(values.mean(1)) - np.log(values).sum(1)
        freedom = counts[cells] - 1
        steps = (freedom[:, None] - np.arange(dim)) / 2  # log det W = sum of log chi^2
        mean = dim * (psi(dim * freedom / 2) - np.log(dim)) - psi(steps).sum(1)
        # the trace is independent of u when round, so the variances of log det and trace subtract
        variance = polygamma(1, steps).sum(1) - dim**2 * polygamma(1, dim * freedom / 2)
        anisotropy[cells], expected[cells] = u / dim, mean / dim
        p_value[cells] = gamma.sf(u, mean**2 / variance, scale=variance / mean)
    return CellShape(anisotropy, expected, p_value, dim, min_count)


def _scatter(x: np.ndarray, cells: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return each cell's scatter matrix [cells, d, d] around its own mean."""
    order = np.argsort(cells, kind="stable")
    x = torch.from_numpy(x[order])
    return np.stack(
        [
            (part - part.mean(0)).T.mm(part - part.mean(0)).numpy()
            for part in x.split(counts.tolist())
        ]
    )


@dataclass(frozen=True)
class DensityLaw:
    """Code density against latent density over cells: log slope d / (d + 2) when optimal."""

    log_data: Float[np.ndarray, " K"]
    """Log density of latents in each cell; nan for small cells."""
    log_codes: Float[np.ndarray, " K"]
    """Log density of codes there: one over the cell's volume and the number of codes."""
    slope: float
    """Slope of the second on the first."""


def density_law(
    counts: Int[np.ndarray, " K"], mse: Float[np.ndarray, " K"], *, dim: int, min_count: int = 8
) -> DensityLaw:
    """Estimate both densities in every cell from its volume; only for up to 4 dimensions.

    Volumes come from the mean squared error (`log_volumes`), so no density is estimated from
    distances. Raises ValueError in more dimensions, where an error to the power d / 2 is mostly
    noise and `partial_distortion` is the test.
    """
    if dim > 4:
        raise ValueError(f"density_law is for at most 4 dimensions, got {dim}")
    volumes = np.where(counts >= min_count, log_volumes(mse, dim), np.nan)
    log_data = np.log(np.maximum(counts, 1) / counts.sum()) - volumes
    log_codes = -np.log(len(counts)) - volumes
    ok = ~np.isnan(volumes)
    slope = float(np.polyfit(log_data[ok], log_codes[ok], 1)[0]) if ok.sum() > 2 else np.nan
    return DensityLaw(log_data, log_codes, slope)


def dominant_class(
    indices: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"], num_codes: int
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Return each code's most frequent label (-1 without tokens) and its share of the code's
    tokens.
    """
    pairs, counts = np.unique(np.stack([indices, labels], 1), axis=0, return_counts=True)
    order = np.lexsort((-pairs[:, 1], counts))  # ascending, so that the last write wins
    label, top = np.full(num_codes, -1), np.zeros(num_codes)
    label[pairs[order, 0]] = pairs[order, 1]
    top[pairs[order, 0]] = counts[order]
    total = count_codes(indices, num_codes)
    return label, np.divide(top, total, out=np.full(num_codes, np.nan), where=total > 0)
