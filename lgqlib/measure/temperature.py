"""Free energy and critical temperature: what tau does to an assignment at fixed codes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor
from tqdm.auto import tqdm

from lgqlib.measure.distances import Array, Codebook, Latents
from lgqlib.quantizers.assignment import FLOOR, energies, soft_assign


@dataclass(frozen=True)
class FreeEnergyCurve:
    """The soft assignment of fixed latents to fixed codes over temperature: means over tokens."""

    taus: Float[np.ndarray, " T"]  # temperatures, in units of the energy
    free_energy: Float[np.ndarray, " T"]  # F* = -tau log sum_k exp(-d_k / tau) = <d> - tau H
    mean_energy: Float[np.ndarray, " T"]  # <d>, averaged softly: the distortion
    entropy: Float[np.ndarray, " T"]  # E H(p), of a token's assignment, in nats
    usage_entropy: Float[np.ndarray, " T"]  # H(u), of the mean assignment, in nats
    entropy_slope: Float[np.ndarray, " T"]  # Var_p(d) / tau^3, which is dH/dtau at fixed codes
    doubt: Float[np.ndarray, " T"]  # 1 - max_k p
    num_tokens: int  # that the means are taken over
    num_codes: int

    @property
    def mutual_information(self) -> Float[np.ndarray, " T"]:
        """Return I = H(u) - E H(p), the rate of the rate-distortion point, in nats."""
        return self.usage_entropy - self.entropy


@torch.no_grad()
def free_energy_curve(
    latents: Latents,
    codebook: Codebook,
    taus: Sequence[float] | Float[np.ndarray, " T"],
    *,
    energy: str = "squared",
    widths: Float[Array, " K"] | None = None,
    tile_elements: int = 1 << 20,
) -> FreeEnergyCurve:
    """Measure the soft assignment at every temperature, tile by tile, without an [N, K] array.

    Energies, d_nk / s_k where codes have `widths`, have the dtype of the latents; sums are float64.
    One exponential a token, code and temperature. ValueError for a tau that is not positive.
    """
    taus = np.asarray(taus, dtype=np.float64)
    if not (taus > 0).all():
        raise ValueError(f"taus must be positive temperatures, got {taus}")
    z = as_tensor(latents).cpu()
    codes, scale = as_tensor(codebook).to(z), 1 if widths is None else as_tensor(widths).to(z)
    least, sums = 0.0, torch.zeros(len(taus), 4, dtype=torch.float64)
    usage = torch.zeros(len(taus), len(codes), dtype=torch.float64)
    rows = max(1, tile_elements // len(codes))
    for tile in tqdm(z.split(rows), desc="free energy", unit="tile", leave=False, delay=1):
        excess = energies(tile, codes, energy=energy) / scale  # [n, K]
        lowest = excess.amin(1)
        excess -= lowest[:, None]  # relative to the best code: no cancellation when cold
        least += lowest.sum(dtype=torch.float64).item()
        for t, tau in enumerate(taus):
            weights = (excess * (-1 / tau)).clamp_(min=FLOOR).exp_()
            top = 1 / weights.sum(1)  # max_k p: the best code weighs 1
            usage[t] += top @ weights
            first = top * weights.mul_(excess).sum(1)
            variance = top * weights.mul_(excess).sum(1) - first.square()
            parts = torch.stack([first, variance, -top.log(), 1 - top])
            sums[t] += parts.sum(1, dtype=torch.float64)
    relative, variance, log_total, doubt = (sums / len(z)).numpy().T
    return FreeEnergyCurve(
        taus=taus,
        free_energy=least / len(z) - taus * log_total,
        mean_energy=least / len(z) + relative,
        entropy=log_total + relative / taus,
        usage_entropy=torch.special.entr(usage / len(z)).sum(1).numpy(),
        entropy_slope=variance / taus**3,
        doubt=doubt,
        num_tokens=len(z),
        num_codes=len(codes),
    )


@torch.no_grad()
def soften(
    latents: Float[Tensor, "N D"],
    sites: Float[Tensor, "K D"],
    codebook: Float[Tensor, "K C"],
    taus: Sequence[float],
    *,
    energy: str = "squared",
    widths: Float[Tensor, " K"] | None = None,
) -> tuple[Float[Tensor, "T N C"], Float[Tensor, "T N"]]:
    """Return each token's soft code and entropy in bits at every temperature, a tile at a time.

    `sites` are where the nearest code is chosen, `codebook` what the decoder receives of them.
    """
    codes = torch.empty(len(taus), len(latents), codebook.shape[1])
    bits = torch.empty(len(taus), len(latents))
    rows = max(16, 2**19 // len(sites))
    for first in range(0, len(latents), rows):
        part = slice(first, first + rows)
        d = energies(latents[part], sites, energy=energy)
        d = d if widths is None else d / widths
        d -= d.amin(1, keepdim=True)
        for t, tau in enumerate(taus):
            w = (d * (-1 / tau)).clamp_(min=FLOOR).exp_()
            total = w.sum(1)
            codes[t, part] = w @ codebook / total[:, None]
            bits[t, part] = (total.log() + w.mul_(d).sum(1) / (total * tau)) / math.log(2)
    return codes, bits.clamp_(min=0)


@dataclass(frozen=True)
class Moment:
    """Entropies of some tokens' assignment at one step of training, in nats a token."""

    step: int
    tau: float
    token: float  # mean entropy of a token's assignment, E H(p)
    usage: float  # entropy of the mean assignment, H(u); at most the log of `num_tokens`
    num_tokens: int


@torch.no_grad()
def moment(step: int, latents: Latents, codebook: Codebook, *, energy: str) -> Moment:
    """Measure an assignment at its own width 2 D / C, D the mean squared error of the hard code."""
    z, e = as_tensor(latents), as_tensor(codebook)
    error = (z - e[energies(z, e, energy=energy).argmin(1)]).square().sum(1).mean().item()
    tau = max(2 * error / z.shape[1], 1e-6 * z.var(0).mean().item() or 1e-6)
    found = soft_assign(z, e, tau, energy=energy)
    usage = -torch.xlogy(found.usage, found.usage).sum().item()
    return Moment(step, tau, found.entropy.clamp(min=0).mean().item(), usage, len(z))


@torch.no_grad()
def critical_moments(
    latents: Latents, energy: str = "squared", *, center: Float[Array, " D"] | None = None
) -> tuple[Float[Tensor, "D D"], Float[Tensor, "D D"]]:
    """Return E[grad grad'] and E[Hess] of the energy in a code at `center`, by default the mean.

    Squared energy: 4 Cov(z) and 2 I. On the latents' device, float32 or wider whatever autocast
    says. Raises ValueError for energies without a critical temperature (`tau_c_from_moments`).
    """
    z = as_tensor(latents)
    with torch.autocast(z.device.type, enabled=False):
        residual = z - (z.mean(0) if center is None else as_tensor(center).to(z))
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        if energy == "squared":
            return 4 * residual.T @ residual / len(z), 2 * eye
        if energy != "norm":
            said = f"the {energy} energy has no critical temperature: codes never rest together"
            raise ValueError(f"{said}; give tau in absolute units")
        if z.shape[1] < 2:
            raise ValueError("the norm energy has no tau_c in 1 channel, it needs at least 2")
        radius = residual.norm(dim=1, keepdim=True)
        unit = residual / radius.clamp(min=torch.finfo(z.dtype).tiny)  # 0 for a latent on the code
        inverse = torch.where(radius > 0, 1 / radius, 0.0)
        # grad = -unit and Hess = (I - unit unit') / radius
        return unit.T @ unit / len(z), inverse.mean() * eye - (unit * inverse).T @ unit / len(z)


def tau_c_from_moments(grad: Float[Array, "D D"], hess: Float[Array, "D D"]) -> float:
    """Return max_v v'Gv / v'Hv, tau_c (Rose 1998); ValueError where H is not positive definite."""
    moments = (as_tensor(m).cpu().double().numpy() for m in (grad, hess))
    return float(eigh(*moments, eigvals_only=True)[-1])


def natural_width(latents: Latents, codebook: Codebook) -> float:
    """Return 2 D / C of the nearest codes: tau / 2 is a Gaussian's variance in a channel."""
    z, codes = as_tensor(latents).double(), as_tensor(codebook).double()
    return 2 * float(torch.cdist(z, codes).square().amin(1).mean()) / z.shape[1]


def critical_temperature(latents: Latents, *, energy: str = "squared") -> float:
    """Return the temperature below which codes that sit together split apart.

    Squared energy: 2 lambda_max(Cov z). Norm: around the geometric median. Others: ValueError.
    """
    center = geometric_median(latents) if energy == "norm" else None
    return tau_c_from_moments(*critical_moments(latents, energy, center=center))


@torch.no_grad()
def geometric_median(latents: Latents) -> Float[Tensor, " D"]:
    """Return the point of least mean distance to the latents, by Weiszfeld's iteration."""
    z = as_tensor(latents)
    center = z.mean(0)
    for _ in range(64):
        weights = 1 / (z - center).norm(dim=1).clamp(min=1e-12)
        center = weights @ z / weights.sum()
    return center


def as_tensor(x: Array) -> Tensor:
    """View an array as a detached tensor of float32 or wider."""
    x = x if isinstance(x, Tensor) else torch.tensor(x)  # a copy: torch refuses read-only arrays
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))
