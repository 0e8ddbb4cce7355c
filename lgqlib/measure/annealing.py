"""Refit a codebook by deterministic annealing, and see where its codes split (Rose 1998)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm.auto import tqdm

from lgqlib.measure.temperature import Array, as_tensor, critical_temperature
from lgqlib.quantizers.assignment import FLOOR, energies

NUDGE = 2e-3
"""How far codes that sit together are set apart, in units of the latents' spread."""
APART = 1e-2
"""Codes further apart than this, in the same units, are distinct."""
STILL = 1e-3
"""Once all codes are apart, EM stops when none moves further than this, in the same units."""
STEPS = 60
"""EM steps at one temperature, at most."""


class Split(NamedTuple):
    """One place of codes becoming two, between two temperatures of the schedule."""

    high: float
    """Last temperature at which the codes sat together."""
    low: float
    """First temperature at which they were apart."""
    predicted: float
    """2 lambda_max of the covariance of the latents assigned to the place, at `high`."""


@dataclass(frozen=True)
class Annealing:
    """A codebook refitted at falling temperatures."""

    taus: Float[np.ndarray, " T"]
    """The temperatures, falling."""
    codebooks: Float[np.ndarray, "T K D"]
    """The codes at each."""
    num_distinct: Int[np.ndarray, " T"]
    """Places that the codes occupy: a staircase."""
    free_energy: Float[np.ndarray, " T"]
    """Mean free energy of a token, in units of the energy."""
    splits: tuple[Split, ...]
    """Every split, in the order of falling temperature."""
    predicted: float
    """tau_c = 2 lambda_max(Cov z)."""
    observed: float
    """The first split as `first_split` sees it."""


@torch.no_grad()
def anneal(
    latents: Float[Array, "N D"],
    num_codes: int,
    taus: Sequence[float] | Float[np.ndarray, " T"],
) -> Annealing:
    """Follow a minimum of the free energy (squared energy) down a falling schedule of temperatures.

    All codes start at the mean. At each temperature the codes of every place are set apart a little
    in two halves, along the longest axis of the latents assigned to it; then EM steps
    e_k = sum_n p_nk z_n / sum_n p_nk run, and halves that came back together are one place again. A
    place splits at most once a temperature: on a Gaussian, where any number of codes splits at
    once, the staircase follows the schedule. For up to 64 codes and a few thousand latents. Raises
    ValueError when the schedule does not fall or the latents do not vary.
    """
    taus = np.asarray(taus, dtype=np.float64)
    if len(taus) == 0 or not (taus > 0).all() or not (np.diff(taus) < 0).all():
        raise ValueError(f"taus must be positive and fall, got {taus}")
    if num_codes < 1:
        raise ValueError(f"num_codes must be at least 1, got {num_codes}")
    z = as_tensor(latents).cpu()
    predicted = critical_temperature(z.double())
    if not predicted > 0:
        raise ValueError("the latents do not vary: nothing can split")
    spread = z.double().var(0, correction=0).sum().sqrt().item()
    places, owner = z.mean(0, keepdim=True), np.zeros(num_codes, dtype=np.int64)
    codebooks, distinct, free_energies, splits = [], [], [], []
    high = float(taus[0])
    for tau in tqdm(taus, desc="annealing", unit="temperature", leave=False, delay=1):
        parent = owner
        limits, axes = _stability(z, places, parent, high)
        owner, place, side = _halves(parent)
        places = places[place] + NUDGE * spread * side[:, None] * axes[place]
        limit = STILL if len(places) == num_codes else NUDGE / 100  # a slow split is a split
        for _ in range(STEPS):
            moved, free_energy = _em_step(z, places, tau, np.bincount(owner))
            step = (moved - places).norm(dim=1).max()
            places = moved
            if step < limit * spread:
                break
        places, owner = _merge(places, owner, APART * spread)
        splits += [
            Split(high, float(tau), predicted)
            for p, predicted in enumerate(limits)
            if len(np.unique(owner[parent == p])) > 1
        ]
        codebooks.append(places[torch.from_numpy(owner)].numpy())
        distinct.append(len(places))
        free_energies.append(free_energy)
        high = float(tau)
    return Annealing(
        taus=taus,
        codebooks=np.stack(codebooks),
        num_distinct=np.asarray(distinct),
        free_energy=np.asarray(free_energies),
        splits=tuple(splits),
        predicted=predicted,
        observed=first_split(z),
    )


@torch.no_grad()
def first_split(latents: Float[Array, "N D"]) -> float:
    """Return the temperature at which a nudge to codes at the mean neither grows nor decays.

    Sees only what EM does, and bisects to 0.5 %; compare with `critical_temperature`.
    """
    z = as_tensor(latents).cpu()
    z = z - z.mean(0)
    variance = z.square().sum(1).mean()
    start = torch.randn(8, z.shape[1], generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    start *= NUDGE * (variance / z.shape[1]).sqrt()
    low, high = 0.0, 4 * variance.item()  # twice the largest value tau_c can have
    while high - low > 0.005 * high:
        tau = (low + high) / 2
        codes = start
        for _ in range(STEPS):
            moved, _ = _em_step(z, codes, tau, np.ones(len(codes)))
            moved = moved - moved.mean(0)  # what matters is whether the codes part
            growth = moved.norm() / codes.norm()
            codes = moved * (start.norm() / moved.norm())
        low, high = (tau, high) if growth > 1 else (low, tau)
    return (low + high) / 2


def _em_step(z: Tensor, places: Tensor, tau: float, counts: np.ndarray) -> tuple[Tensor, float]:
    """Return the next places and the mean free energy at the present ones."""
    p, free_energy = _assign(z, places, tau, counts)
    mass = p.sum(0)  # never zero: no weight is below exp(FLOOR)
    return p.T @ z / mass[:, None], free_energy.mean(dtype=torch.float64).item()


def _assign(
    z: Tensor, places: Tensor, tau: float, counts: np.ndarray
) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
    """Assign latents softly to places where several equal codes sit; return p and F."""
    logits = torch.from_numpy(counts).to(z).log() - energies(z, places) / tau
    largest = logits.amax(1, keepdim=True)
    p = (logits - largest).clamp_(min=FLOOR).exp_()
    total = p.sum(1, keepdim=True)
    return p / total, -tau * (largest + total.log())[:, 0]


def _stability(
    z: Tensor, places: Tensor, owner: np.ndarray, tau: float
) -> tuple[list[float], Float[Tensor, "P D"]]:
    """Return 2 lambda_max of the latents assigned to each place of several codes, and the axis."""
    counts = np.bincount(owner)
    p, _ = _assign(z, places, tau, counts)
    limits, axes = [float("nan")] * len(places), torch.zeros_like(places)
    for place in np.flatnonzero(counts > 1):
        weights = p[:, place] / p[:, place].sum()
        centered = z - weights @ z
        values, vectors = torch.linalg.eigh((weights[:, None] * centered).T @ centered)
        limits[place], axes[place] = 2 * values[-1].item(), vectors[:, -1]
    return limits, axes


def _halves(owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Divide the codes of each place in two; return each code's half, its place and side (-1, 1).

    A place of one code is one half.
    """
    rank = np.array([(owner[:k] == place).sum() for k, place in enumerate(owner)])
    later = rank >= (np.bincount(owner)[owner] + 1) // 2
    halves, owner = np.unique(2 * owner + later, return_inverse=True)
    return owner, halves // 2, torch.from_numpy(2 * (halves % 2) - 1)


def _merge(places: Tensor, owner: np.ndarray, apart: float) -> tuple[Tensor, np.ndarray]:
    """Join places closer than `apart`, at their mean."""
    near = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") < apart
    _, joined = connected_components(near.numpy(), directed=False)
    weights = np.zeros((joined.max() + 1, len(places)))
    weights[joined, np.arange(len(places))] = np.bincount(owner)
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy(weights).to(places) @ places, joined[owner]
