"""Free energy and critical temperature of a codebook: numbers that a run is held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

Array = np.ndarray | Tensor

ENERGIES = ("squared", "norm", "cosine", "dot")


@dataclass(frozen=True)
class FreeEnergyCurve:
    """What the soft assignment of fixed latents to fixed codes does over temperature; means over
    tokens, in nats.
    """

    taus: Float[np.ndarray, " T"]
    """Temperatures, in units of the energy."""
    free_energy: Float[np.ndarray, " T"]
    """F* = -tau log sum_k exp(-d_k / tau): `mean_energy - tau * entropy`."""
    mean_energy: Float[np.ndarray, " T"]
    """<d>, the energy averaged with the soft assignment: the distortion D of the rate-distortion
    point.
    """
    entropy: Float[np.ndarray, " T"]
    """Mean over tokens of the entropy of a token's assignment, H(p)."""
    usage_entropy: Float[np.ndarray, " T"]
    """Entropy of the mean assignment, H(u)."""
    mutual_information: Float[np.ndarray, " T"]
    """I = H(u) - E H(p): the rate of the rate-distortion point."""
    entropy_slope: Float[np.ndarray, " T"]
    """Var_p(d) / tau^3, which is dH/dtau at fixed codes."""
    doubt: Float[np.ndarray, " T"]
    """Mean over tokens of 1 - max_k p."""
    soft_distortion: Float[np.ndarray, " T"]
    """Mean of |z - sum_k p_k e_k|^2, summed over channels."""
    hard_distortion: float
    """Mean of |z - e_index|^2 with the code of least energy, summed over channels."""
    num_tokens: int
    """Tokens that the means are taken over."""


class FreeEnergy(NamedTuple):
    """The mean free energy of a token and its two parts: total = energy - tau * entropy."""

    total: float
    energy: float
    entropy: float


def free_energy(
    latents: Float[Array, "N D"],
    codebook: Float[Array, "K D"],
    tau: float,
    *,
    energy: str = "squared",
) -> FreeEnergy:
    """Return the mean over tokens of F* = <d> - tau H and of its parts at one temperature."""
    curve = free_energy_curve(latents, codebook, [tau], energy=energy)
    parts = (curve.free_energy, curve.mean_energy, curve.entropy)
    return FreeEnergy(*(float(part[0]) for part in parts))


@torch.no_grad()
def free_energy_curve(
    latents: Float[Array, "N D"],
    codebook: Float[Array, "K D"],
    taus: Sequence[float] | Float[np.ndarray, " T"],
    *,
    energy: str = "squared",
    widths: Float[Array, " K"] | None = None,
    tile_elements: int = 1 << 20,
) -> FreeEnergyCurve:
    """Measure the soft assignment at every temperature, tile by tile, without an [N, K] array.

    Energies are computed once a tile, in the dtype of the latents; sums are float64. The cost is
    one exponential per token, code and temperature: give a few thousand tokens when K is large.
    With `widths`, the energy is d_nk / s_k. At fixed codes dF*/dtau = -H and dH/dtau = Var_p(d) /
    tau^3.
    """
    taus = np.asarray(taus, dtype=np.float64)
    if taus.ndim != 1 or len(taus) == 0 or not (taus > 0).all():
        raise ValueError(f"taus must be one or more positive temperatures, got {taus}")
    z, codes = _pair(latents, codebook)
    scale = None if widths is None else _tensor(widths).to(z)
    sums = {name: np.zeros(len(taus)) for name in ("energy", "log_sum", "variance", "top", "soft")}
    ones_too = torch.cat([codes, torch.ones_like(codes[:, :1])], dim=1)
    least, hard = 0.0, 0.0
    usage = torch.zeros(len(taus), len(codes), dtype=torch.float64, device=z.device)
    rows = min(len(z), max(1, tile_elements // len(codes)))
    buffer = z.new_empty(rows, len(codes))
    for tile in tqdm(z.split(rows), desc="free energy", unit="tile", leave=False, delay=1):
        excess = energies(tile, codes, energy=energy)  # [n, K]
        if scale is not None:
            excess /= scale
        lowest, nearest = excess.min(1)
        excess -= lowest[:, None]  # relative to the best code: no cancellation when cold
        least += lowest.double().sum().item()
        hard += (tile - codes[nearest]).square().sum(dtype=torch.float64).item()
        for t, tau in enumerate(taus):
            # the best code weighs 1; exponentials that underflow are ten times slower on a CPU
            weights = torch.mul(excess, -1.0 / tau, out=buffer[: len(tile)])  # [n, K]
            weights.clamp_(min=-60).exp_()
            soft, total = (weights @ ones_too).split([codes.shape[1], 1], dim=1)  # [n, D], [n, 1]
            inverse = 1 / total[:, 0]
            usage[t] += inverse @ weights
            first = weights.mul_(excess).sum(1) * inverse
            second = weights.mul_(excess).sum(1) * inverse
            sums["energy"][t] += _sum(first)
            sums["variance"][t] += _sum(second - first.square())
            sums["log_sum"][t] += _sum(total.log())
            sums["top"][t] += _sum(1 - inverse)
            sums["soft"][t] += _sum((tile - soft / total).square())
    count = len(z)
    relative, log_sum = sums["energy"] / count, sums["log_sum"] / count
    entropy = log_sum + relative / taus
    usage_entropy = torch.special.entr(usage / count).sum(1).cpu().numpy()
    return FreeEnergyCurve(
        taus=taus,
        free_energy=least / count - taus * log_sum,
        mean_energy=least / count + relative,
        entropy=entropy,
        usage_entropy=usage_entropy,
        mutual_information=usage_entropy - entropy,
        entropy_slope=sums["variance"] / count / taus**3,
        doubt=sums["top"] / count,
        soft_distortion=sums["soft"] / count,
        hard_distortion=hard / count,
        num_tokens=count,
    )


def energies(
    z: Float[Tensor, "N D"], codes: Float[Tensor, "K D"], *, energy: str = "squared"
) -> Float[Tensor, "N K"]:
    """Return the dense energies of a tile: squared |z-e|^2, norm |z-e|, cosine 1 - cos(z,e), dot
    -z.e.
    """
    if energy in ("squared", "norm"):
        center = codes.mean(0)  # moving both leaves the distance and loses fewer digits
        z, codes = z - center, codes - center
        squared = torch.addmm(codes.square().sum(1), z, codes.T, alpha=-2)
        squared = squared.add_(z.square().sum(1, keepdim=True)).clamp_(min=0)
        return squared if energy == "squared" else squared.sqrt_()
    if energy == "cosine":
        return (
            1
            - torch.nn.functional.normalize(z, dim=1)
            @ torch.nn.functional.normalize(codes, dim=1).T
        )
    if energy == "dot":
        return -(z @ codes.T)
    raise ValueError(f"unknown energy {energy!r}, expected one of {', '.join(ENERGIES)}")


@torch.no_grad()
def critical_moments(
    latents: Float[Array, "N D"],
    energy: str = "squared",
    *,
    center: Float[Array, " D"] | None = None,
) -> tuple[Float[Tensor, "D D"], Float[Tensor, "D D"]]:
    """Return G = E[grad grad'] and E[Hess] of the energy with respect to a code at `center`
    (default: the mean).

    Their largest generalized eigenvalue is the critical temperature (`tau_c_from_moments`); both
    are averages over tokens, so training can keep running averages of them. Squared energy: G = 4
    Cov(z), Hess = 2 I. The result is float32 or wider, on the device of the latents, whatever
    autocast says.

    Raises ValueError for the cosine and dot energies, which have no such temperature.
    """
    z = _tensor(latents).detach()
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    with torch.autocast(z.device.type, enabled=False):
        residual = z - (z.mean(0) if center is None else _tensor(center).to(z))
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        if energy == "squared":
            return 4 * residual.T @ residual / len(z), 2 * eye
        if energy != "norm":
            raise ValueError(_no_critical_temperature(energy))
        if z.shape[1] < 2:
            raise ValueError(
                "the norm energy needs at least 2 channels: in one it is flat, without tau_c"
            )
        radius = residual.norm(dim=1, keepdim=True)
        unit = residual / radius.clamp(min=torch.finfo(z.dtype).tiny)  # 0 for a latent on the code
        inverse = torch.where(radius > 0, 1 / radius, 0.0)
        # grad = -unit and Hess = (I - unit unit') / radius
        return unit.T @ unit / len(z), inverse.mean() * eye - (unit * inverse).T @ unit / len(z)


def tau_c_from_moments(grad: Float[Array, "D D"], hess: Float[Array, "D D"]) -> float:
    """Return max_v v'Gv / v'Hv: above this temperature all codes together at the center are stable
    (Rose 1998).
    """
    grad, hess = (_tensor(m).detach().to("cpu", torch.float64) for m in (grad, hess))
    factor, info = torch.linalg.cholesky_ex(hess)
    if info != 0 or not torch.isfinite(hess).all():
        raise ValueError(
            "the mean Hessian must be positive definite; its diagonal is"
            f" {hess.diagonal().tolist()}"
        )
    half = torch.linalg.solve_triangular(factor, grad, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return torch.linalg.eigvalsh((whitened + whitened.T) / 2)[-1].item()


def tau_c_from_covariance(covariance: Float[Array, "D D"]) -> float:
    """Return 2 lambda_max(Cov z), the critical temperature of the squared energy (Rose 1998)."""
    return (
        2 * torch.linalg.eigvalsh(_tensor(covariance).detach().to("cpu", torch.float64))[-1].item()
    )


def critical_temperature(latents: Float[Array, "N D"], *, energy: str = "squared") -> float:
    """Return the temperature below which codes that sit together split apart.

    Squared energy: 2 lambda_max(Cov z). Norm: the generalized eigenproblem of `critical_moments`,
    around the geometric median, where codes that sit together come to rest. Raises ValueError for
    cosine and dot.
    """
    center = geometric_median(latents) if energy == "norm" else None
    return tau_c_from_moments(*critical_moments(latents, energy, center=center))


@torch.no_grad()
def geometric_median(
    latents: Float[Array, "N D"], *, num_iterations: int = 64
) -> Float[Tensor, " D"]:
    """Return the point of least mean distance to the latents, by Weiszfeld's iteration from the
    mean.
    """
    z = _tensor(latents).detach()
    center = z.mean(0)
    for _ in range(num_iterations):
        weights = 1 / (z - center).norm(dim=1).clamp(min=1e-12)
        center = weights @ z / weights.sum()
    return center


def _no_critical_temperature(energy: str) -> str:
    reasons = {
        "cosine": "it sees only directions, so codes have no common place to rest at",
        "dot": "it is linear in the code, its Hessian is zero, and codes never rest together",
    }
    if energy not in reasons:
        return f"unknown energy {energy!r}, expected squared or norm"
    return (
        f"the {energy} energy has no critical temperature: {reasons[energy]}. "
        "Give tau in absolute units, or use the squared or norm energy for reduced units"
    )


def _pair(latents: Array, codebook: Array) -> tuple[Tensor, Tensor]:
    z, codes = _tensor(latents), _tensor(codebook)
    if z.shape[1] != codes.shape[1]:
        raise ValueError(
            f"latents have {z.shape[1]} channels and codes {codes.shape[1]}; they must agree"
        )
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return z, codes.to(z)


def _tensor(x: Array) -> Tensor:
    """View an array as a tensor; a read-only one is copied, as torch has no such thing."""
    return x if isinstance(x, Tensor) else torch.from_numpy(np.require(x, requirements=["C", "W"]))


def _sum(x: Tensor) -> float:
    return x.sum(dtype=torch.float64).item()
