"""Refit a codebook by deterministic annealing, and see where its codes split (Rose 1998)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm.auto import tqdm

from lgqlib.measure.distances import Latents
from lgqlib.measure.temperature import as_tensor, critical_temperature
from lgqlib.quantizers.assignment import energies

NUDGE = 2e-3  # how far codes that sit together are set apart, in units of the latents' spread
APART = 1e-2  # codes further apart than this, in the same units, are distinct
STILL = 1e-3  # once all codes are apart, EM stops when none moves further than this
STEPS = 60  # EM steps at one temperature, at most


class Split(NamedTuple):
    """One place of codes becoming two, between two temperatures of the schedule."""

    high: float  # last temperature at which the codes sat together
    low: float  # first temperature at which they were apart
    predicted: float  # 2 lambda_max of the latents assigned to the place, at `high`


@dataclass(frozen=True)
class Annealing:
    """A codebook refitted at falling temperatures."""

    taus: Float[np.ndarray, " T"]
    codebooks: Float[np.ndarray, "T K D"]  # the codes at each temperature
    num_distinct: Int[np.ndarray, " T"]  # places that the codes occupy: a staircase
    free_energy: Float[np.ndarray, " T"]  # mean over tokens, in units of the energy
    splits: tuple[Split, ...]  # in the order of falling temperature
    predicted: float  # tau_c = 2 lambda_max(Cov z)
    observed: float  # the first split as `first_split` sees it


@torch.no_grad()
def anneal(latents: Latents, num_codes: int, taus: Float[np.ndarray, " T"]) -> Annealing:
    """Follow a minimum of the free energy (squared energy) down a falling schedule of temperatures.

    All codes start at the mean. At each temperature the codes of every place are set apart a little
    in two halves, along the longest axis of its latents; then EM steps run, and halves that came
    back together are one place again. For up to 64 codes and a few thousand latents.
    """
    if not (taus > 0).all() or not (np.diff(taus) < 0).all():
        raise ValueError(f"taus must be positive and fall, got {taus}")
    z = as_tensor(latents).cpu().double()
    predicted = critical_temperature(z)
    spread = z.var(0, correction=0).sum().sqrt().item()
    codes, place = z.mean(0).repeat(num_codes, 1), np.zeros(num_codes, dtype=int)
    steps, splits, high = [], [], float(taus[0])
    for tau in tqdm(taus.tolist(), desc="annealing", unit="temperature", leave=False, delay=1):
        p, _ = _assign(z, codes, high)
        limits, together = {}, [np.flatnonzero(place == i) for i in range(place.max() + 1)]
        for i, own in enumerate(together):
            if len(own) > 1:
                limits[i], axis = _longest_axis(z, p[:, own].sum(1))
                for half, side in zip(np.array_split(own, 2), (-1, 1), strict=True):
                    codes[half] += side * NUDGE * spread * axis
        limit = STILL if max(map(len, together)) < 3 else NUDGE / 100  # a slow split is a split
        for _ in range(STEPS):
            p, free_energy = _assign(z, codes, tau)
            before, codes = codes, p.T @ z / p.sum(0)[:, None]
            if (codes - before).norm(dim=1).max() < limit * spread:
                break
        codes, place = _merge(codes, APART * spread)
        parted = (i for i in limits if len(np.unique(place[together[i]])) > 1)
        splits += [Split(high, tau, limits[i]) for i in parted]
        steps.append((codes.numpy().copy(), place.max() + 1, free_energy))
        high = tau
    at_each = map(np.array, zip(*steps, strict=True))
    return Annealing(taus, *at_each, tuple(splits), predicted, first_split(z))


@torch.no_grad()
def first_split(latents: Latents) -> float:
    """Return the tau, to 0.5 %, at which a nudge to codes at the mean neither grows nor decays."""
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
            p, _ = _assign(z, codes, tau)
            moved = p.T @ z / p.sum(0)[:, None]
            moved -= moved.mean(0)  # what matters is whether the codes part
            growth = moved.norm() / codes.norm()
            codes = moved * (start.norm() / moved.norm())
        low, high = (tau, high) if growth > 1 else (low, tau)
    return (low + high) / 2


def _assign(z: Tensor, codes: Tensor, tau: float) -> tuple[Float[Tensor, "N K"], float]:
    """Return p and the mean free energy; no code is left without a share, however small."""
    logits = energies(z, codes) / -tau
    return logits.softmax(1).clamp(min=1e-26), -tau * logits.logsumexp(1).mean().item()


def _longest_axis(z: Tensor, weights: Tensor) -> tuple[float, Float[Tensor, " D"]]:
    """Return 2 lambda_max of weighted latents, and the axis."""
    weights = weights / weights.sum()
    centered = z - weights @ z
    values, vectors = torch.linalg.eigh((weights[:, None] * centered).T @ centered)
    return 2 * values[-1].item(), vectors[:, -1]


def _merge(codes: Tensor, apart: float) -> tuple[Tensor, Int[np.ndarray, " K"]]:
    """Bring codes closer than `apart` to one place, their mean; return them, and their places."""
    near = torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist") < apart
    _, place = connected_components(near.numpy(), directed=False)
    same = torch.from_numpy(place[:, None] == place).to(codes)
    return same @ codes / same.sum(1, keepdim=True), place
