"""Refit a codebook by deterministic annealing, and watch where its codes split (Rose 1998)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lgqlib.measure.neighbors import Array, as_tensor
from lgqlib.measure.temperature import tau_c_from_covariance

NUDGE = 2e-3
"""How far codes that sit together are set apart, in units of the latents' spread."""
APART = 1e-2
"""Codes further apart than this, in the same units, are distinct."""


class Split(NamedTuple):
    """One place of codes becoming several, between two temperatures of the schedule."""

    high: float
    """Last temperature at which the codes sat together."""
    low: float
    """First temperature at which they were apart."""
    predicted: float
    """2 lambda_max of the cell's own covariance at `high`: where its linear stability ends."""
    parts: int
    """Places that one became."""


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
    """First split seen, by bisection on whether a nudge to codes at the mean grows or decays."""


@torch.no_grad()
def anneal(
    latents: Float[Array, "N D"],
    num_codes: int,
    taus: Sequence[float] | Float[np.ndarray, " T"],
    *,
    num_iterations: int = 60,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Annealing:
    """Follow a minimum of the free energy (squared energy) down a falling schedule of temperatures.

    All codes start at the mean. At each temperature the codes of every place are nudged apart in
    two halves, along the longest direction of their cell; then EM steps
    e_k = sum_n p_nk z_n / sum_n p_nk run, and halves that came back together are one place again. A
    place splits in two at most once a temperature: on a Gaussian, where any number of codes splits
    at once, the staircase follows the schedule. Once all codes are apart, EM stops when none moves
    more than `tolerance`, in units of the latents' spread. For up to 64 codes and a few thousand
    latents. Raises ValueError when the schedule does not fall or the latents do not vary.
    """
    taus = np.asarray(taus, dtype=np.float64)
    if len(taus) == 0 or not (taus > 0).all() or not (np.diff(taus) < 0).all():
        raise ValueError(f"taus must be positive and fall, got {taus}")
    if num_codes < 1:
        raise ValueError(f"num_codes must be at least 1, got {num_codes}")
    z = as_tensor(latents)
    covariance = torch.cov(z.double().T, correction=0).reshape(z.shape[1], z.shape[1])
    predicted = tau_c_from_covariance(covariance)
    if not predicted > 0:
        raise ValueError("the latents do not vary: nothing can split")
    spread = float(covariance.trace().sqrt())
    places, owner = z.mean(0, keepdim=True), np.zeros(num_codes, dtype=np.int64)
    codebooks, distinct, free_energies, splits = [], [], [], []
    schedule = tqdm(taus, desc="annealing", unit="temperature", leave=False, delay=1)
    for t, tau in enumerate(schedule):
        high = float(taus[max(t - 1, 0)])
        cells = [_cell(z, places, owner, place, high) for place in range(len(places))]
        parents = owner
        places, owner = _halve(places, parents, [NUDGE * spread * cell.axis for cell in cells])
        limit = tolerance if len(places) == num_codes else NUDGE / 100  # a slow split is a split
        for _ in range(num_iterations):
            moved, free_energy = _em_step(z, places, tau, np.bincount(owner))
            step = (moved - places).norm(dim=1).max()
            places = moved
            if step < limit * spread:
                break
        places, owner = _merge(places, owner, APART * spread)
        for place, cell in enumerate(cells):
            parts = len(np.unique(owner[parents == place]))
            if parts > 1:
                splits.append(Split(high, float(tau), cell.tau_c, parts))
        codebooks.append(places[torch.from_numpy(owner)].numpy())
        distinct.append(len(places))
        free_energies.append(free_energy)
    return Annealing(
        taus=taus,
        codebooks=np.stack(codebooks),
        num_distinct=np.asarray(distinct),
        free_energy=np.asarray(free_energies),
        splits=tuple(splits),
        predicted=predicted,
        observed=first_split(z, seed=seed),
    )


@torch.no_grad()
def first_split(
    latents: Float[Array, "N D"], *, num_codes: int = 8, num_iterations: int = 60, seed: int = 0
) -> float:
    """Return the temperature at which a nudge to codes at the mean neither grows nor decays.

    Looks only at what EM does, and bisects to 0.5 %; compare with `critical_temperature`.
    """
    z = as_tensor(latents)
    z = z - z.mean(0)
    start = _noise(z.new_zeros(num_codes, z.shape[1]), torch.Generator().manual_seed(seed))
    size = NUDGE * z.square().sum(1).mean().sqrt()
    low, high = 0.0, 4 * z.square().sum(1).mean().item()  # twice the largest value tau_c can have
    while high - low > 0.005 * high:
        tau = (low + high) / 2
        codes = size * start
        for _ in range(num_iterations):
            moved, _ = _em_step(z, codes, tau, np.ones(num_codes))
            moved = moved - moved.mean(0)  # what matters is whether the codes part
            growth = moved.norm() / codes.norm()
            codes = moved * (size * start.norm() / moved.norm())
        low, high = (tau, high) if growth > 1 else (low, tau)
    return (low + high) / 2


def _em_step(
    z: Tensor, codes: Tensor, tau: float, multiplicity: np.ndarray
) -> tuple[Tensor, float]:
    """Return the next codes and the mean free energy at the present ones."""
    p, log_sum = _responsibilities(z, codes, tau, multiplicity)
    mass = p.sum(0)  # never zero: the smallest weight is exp(-60)
    return p.T @ z / mass[:, None], -tau * log_sum.mean(dtype=torch.float64).item()


def _responsibilities(
    z: Tensor, codes: Tensor, tau: float, multiplicity: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Return p [N, P] over places where several equal codes may sit, and log sum exp(-d / tau)."""
    squares = codes.square().sum(1) - tau * torch.from_numpy(multiplicity).to(z).log()
    logits = torch.addmm(squares, z, codes.T, alpha=-2).mul_(-1 / tau)
    shift = logits.amax(1, keepdim=True)
    # exponentials that underflow are ten times slower on a CPU
    p = logits.sub_(shift).clamp_(min=-60).exp_()
    total = p.sum(1, keepdim=True)
    return p.div_(total), (shift + total.log()).squeeze(1) - z.square().sum(1) / tau


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype) / like.shape[1] ** 0.5


class _Cell(NamedTuple):
    tau_c: float
    axis: Tensor


def _cell(z: Tensor, places: Tensor, owner: np.ndarray, place: int, tau: float) -> _Cell:
    """Return 2 lambda_max and its axis for the latents that a place answers for, if it can part."""
    multiplicity = np.bincount(owner)
    if multiplicity[place] == 1:
        return _Cell(float("nan"), torch.zeros_like(places[0]))
    weights = _responsibilities(z, places, tau, multiplicity)[0][:, place]
    weights = weights / weights.sum()
    centered = z - weights @ z
    values, axes = torch.linalg.eigh((weights[:, None] * centered).T @ centered)
    return _Cell(2 * values[-1].item(), axes[:, -1])


def _halve(places: Tensor, owner: np.ndarray, nudges: list[Tensor]) -> tuple[Tensor, np.ndarray]:
    """Set half of each place's codes apart from the other half, where there are two codes."""
    halves, half = [], np.zeros_like(owner)
    for place, nudge in enumerate(nudges):
        members = np.flatnonzero(owner == place)
        later = members[(len(members) + 1) // 2 :]
        half[later] = 1
        halves += [places[place] - nudge] + [places[place] + nudge] * (len(later) > 0)
    return torch.stack(halves), np.unique(2 * owner + half, return_inverse=True)[1]


def _merge(places: Tensor, owner: np.ndarray, apart: float) -> tuple[Tensor, np.ndarray]:
    """Join places closer than `apart`, at their mean."""
    from scipy.sparse.csgraph import connected_components

    near = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") < apart
    _, joined = connected_components(near.numpy(), directed=False)
    weights = np.zeros((joined.max() + 1, len(places)))
    weights[joined, np.arange(len(places))] = np.bincount(owner)
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy(weights).to(places) @ places, joined[owner]
