"""How soft the assignment of a run's tokens is, over temperature and over training, as numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lgqlib.explorers.view import LENS, UNDERFLOW, View
from lgqlib.measure.temperature import (
    FreeEnergyCurve,
    critical_temperature,
    equally_near,
    free_energy_curve,
)
from lgqlib.quantizers.assignment import energies, soft_assign
from lgqlib.run import Snapshot

WORK = 2**21
"""Pairs of token and code that one temperature looks at, token by token: bounds time for any K."""
COUNTED = 4096
"""Tokens that use is counted over. The entropy of use is at most the log of their number, so that a
few hundred would say more about themselves than about a large codebook."""
SUMMED = 2**26
"""Pairs of token and code that one temperature sums over: half a second of one CPU core."""
MAX_CODES = 512
"""Of the most used codes, those among which a close pair is looked for."""
HOTTEST, COLDEST = 10.0, 1e-3
"""Ends of the range of temperatures, in units of the first critical temperature."""


@dataclass(frozen=True)
class Moment:
    """Entropies of a probe's assignment at one step of training, in nats a token."""

    step: int
    tau: float
    token: float
    """Mean entropy of a token's assignment, E H(p)."""
    usage: float
    """Entropy of the mean assignment, H(u)."""
    deciles: tuple[float, ...]
    """The nine deciles of a token's entropy over the probe."""
    num_tokens: int
    """Tokens of the probe; `usage` and `information` are at most the log of it."""

    @property
    def information(self) -> float:
        """Mutual information of token and code, H(u) - E H(p)."""
        return self.usage - self.token


@dataclass(frozen=True)
class Effect:
    """What one small step down the gradient of a term does, in nats a token."""

    term: str
    token: float
    """Change of E H(p)."""
    usage: float
    """Change of H(u)."""


def num_looked_at(num_codes: int, num_tokens: int) -> int:
    """Give how many of some tokens to look at one by one, so that K codes cost no more than a few
    would.
    """
    return min(num_tokens, max(256, WORK // num_codes))


def num_counted(num_codes: int, num_tokens: int) -> int:
    """Give how many of some tokens to count the use of codes over: thousands, for any K."""
    return min(num_tokens, COUNTED, max(COUNTED // 2, SUMMED // num_codes))


def _spread_out(num_tokens: int, count: int) -> Int[np.ndarray, " n"]:
    """Give numbers of some tokens, evenly over all images."""
    return np.unique(np.linspace(0, num_tokens - 1, count).astype(int))


def _with(taus: Float[np.ndarray, " T"], own: float) -> Float[np.ndarray, " n"]:
    """Put a temperature among falling ones that are evenly spaced in the logarithm.

    It replaces the nearest, as two that nearly coincide would spoil differences along the curve.
    """
    away = np.abs(np.log(taus / own))
    if away.min() <= np.log(taus[0] / taus[1]) / 2 * (1 + 1e-9):
        return np.where(np.arange(len(taus)) == away.argmin(), own, taus)
    return np.sort(np.append(taus, own))[::-1].copy()


class Softness:
    """Look at a share of a view's tokens through a range of temperatures.

    Args:
        view: the run, on held-out images.
        snapshots: of its training, in order.
        num_taus: temperatures, falling, from 10 to 0.001 in units of tau_c; the view's own stands
            in for the nearest of them, or is added where it lies outside.
    """

    def __init__(self, view: View, snapshots: Sequence[Snapshot] = (), *, num_taus: int = 48):
        self.view, self.snapshots = view, list(snapshots)
        self.taus = _with(view.scale * np.geomspace(HOTTEST, COLDEST, num_taus), view.tau)
        total = len(view.points)
        counted = _spread_out(total, num_counted(view.num_codes, total))
        self.latents = view.points[counted]
        """Latents that curves, rates and effects are means over."""
        self.tokens = _spread_out(total, num_looked_at(view.num_codes, total))
        """Tokens whose entropies are kept one by one."""

    @property
    def start(self) -> int:
        """Place in `taus` of the view's own temperature."""
        return int(np.flatnonzero(self.taus == self.view.tau)[0])

    @cached_property
    def entropies(self) -> Float[np.ndarray, "T n"]:
        """Entropy of each looked-at token at each temperature, in nats."""
        z = torch.from_numpy(self.view.points[self.tokens])
        e = torch.from_numpy(self.view.sites)
        d = energies(z, e, energy=self.view.energy)
        d = d if self.view.widths is None else d / self.view.widths
        d -= d.amin(1, keepdim=True)
        rows = []
        for tau in tqdm(self.taus, desc="entropies", unit="temperature", leave=False):
            weights = torch.exp((d / -tau).clamp_(min=UNDERFLOW))
            total = weights.sum(1)
            rows.append(total.log() + torch.linalg.vecdot(weights, d) / total / tau)
        return torch.stack(rows).clamp(min=0).numpy()

    @cached_property
    def curve(self) -> FreeEnergyCurve:
        """Free energy, its parts, and the rate-distortion point over the temperatures."""
        view = self.view
        return free_energy_curve(
            self.latents, view.sites, self.taus, energy=view.energy, widths=view.widths
        )

    @property
    def no_history(self) -> str:
        """Why the entropies over training cannot be shown; empty where they can."""
        if self.view.widths is not None:
            return "codes have learned widths, which snapshots do not keep"
        looked_at = [s for s in self.snapshots if not self._is_before_training(s)]
        return "" if looked_at else "it has no snapshots of its training"

    def _is_before_training(self, snapshot: Snapshot) -> bool:
        """Say whether a snapshot is of before the first step, when there is no temperature yet."""
        return self.view.has_temperature and not math.isfinite(snapshot.tau)

    @cached_property
    def history(self) -> list[Moment]:
        """Entropies at each snapshot, at the temperature of that step.

        A method without a temperature is looked at through the same share of each step's tau_c.
        Empty where `no_history` says why.
        """
        moments = []
        if self.no_history:
            return moments
        for s in tqdm(self.snapshots, desc="history", unit="snapshot", leave=False):
            if self._is_before_training(s):
                continue
            some = s.latents[: num_counted(len(s.codebook), len(s.latents))]
            tau = s.tau if self.view.has_temperature else self._lens(some)
            found = soft_assign(
                torch.from_numpy(some), torch.from_numpy(s.codebook), tau, energy=self.view.energy
            )
            token, usage = found.entropy.clamp(min=0).numpy(), found.usage
            deciles = tuple(np.quantile(token, np.arange(1, 10) / 10).tolist())
            of_use = -float(torch.xlogy(usage, usage).sum())
            mean = float(token.mean())
            moments.append(Moment(s.step, tau, mean, of_use, deciles, len(some)))
        return moments

    def _lens(self, latents: Float[np.ndarray, "n D"]) -> float:
        if self.view.energy not in ("squared", "norm"):
            return self.view.tau
        return LENS * critical_temperature(latents, energy=self.view.energy)

    def deciles(self, tau: float, *, each: int = 12) -> list[Int[np.ndarray, " n"]]:
        """Give tokens of each decile of assignment entropy, the surest first."""
        entropy = self.view.entropies(tau)
        order = np.argsort(entropy, kind="stable")
        parts = np.array_split(order, 10)
        return [p[np.linspace(0, len(p) - 1, min(each, len(p))).astype(int)] for p in parts]

    def least_sure(
        self, tau: float, *, count: int = 8, each: int = 12
    ) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"], list[Int[np.ndarray, " n"]]]:
        """Give the used codes, the least sure first, and the mean entropy of their tokens in nats;
        of the first `count`, also tokens, the least sure first.
        """
        entropy, indices = self.view.entropies(tau), self.view.indices
        counts = np.bincount(indices, minlength=self.view.num_codes)
        used = np.flatnonzero(counts)
        means = np.bincount(indices, entropy)[used] / counts[used]
        order = np.argsort(-means, kind="stable")
        tokens = []
        for code in used[order[:count]]:
            own = np.flatnonzero(indices == code)
            tokens.append(own[np.argsort(-entropy[own], kind="stable")[:each]])
        return used[order], means[order], tokens

    def place_of(self, token: int | np.integer, tau: float) -> str:
        """Say where a token is, and how sure its assignment."""
        image, place = divmod(int(token), self.view.num_tokens)
        row, col = divmod(place, self.view.grid[1])
        nats = self.view.entropies(tau)[token]
        return f"image {image}, row {row}, column {col}: {max(nats, 0):.3g} nats"

    def effects(self, tau: float, *, size: float = 0.02) -> list[Effect]:
        """Step tokens and codes down the gradient of each term, and see what it does to both
        entropies.

        A step moves tokens and codes by `size`, in units of the latents' spread (root mean square).
        """
        z = torch.from_numpy(self.latents)
        e = torch.from_numpy(self.view.sites)
        spread = float((z - z.mean(0)).square().mean().sqrt())
        before = self._entropies_of(z, e, tau)
        found = []
        terms = ("peak", "usage", "usage, entropy form")
        for term in tqdm(terms, desc="effects", unit="term", leave=False):
            x = [z.clone().requires_grad_(), e.clone().requires_grad_()]
            gradients = torch.autograd.grad(self._term(term, *x, tau), x)
            moved = [
                part - size * spread * g / g.square().mean().sqrt().clamp(min=1e-30)
                for part, g in zip((z, e), gradients, strict=True)
            ]
            after = self._entropies_of(*moved, tau)
            found.append(Effect(term, after[0] - before[0], after[1] - before[1]))
        return found

    def _term(self, term: str, z: Tensor, e: Tensor, tau: float) -> Tensor:
        found = soft_assign(z, e, tau, energy=self.view.energy, widths=self.view.widths)
        if term == "peak":
            return (1 - found.collision).mean()
        if term == "usage":
            return len(e) * found.usage.square().sum()
        return torch.xlogy(found.usage, found.usage).sum()

    @torch.no_grad()
    def _entropies_of(self, z: Tensor, e: Tensor, tau: float) -> tuple[float, float]:
        found = soft_assign(z, e, tau, energy=self.view.energy, widths=self.view.widths)
        usage = -torch.xlogy(found.usage, found.usage).sum()
        return float(found.entropy.mean()), float(usage)

    def between(self) -> tuple[tuple[int, int], Float[np.ndarray, " T"]]:
        """Give two close codes, of the most used, and the largest share of a point between them."""
        view = self.view
        used = np.argsort(-view.counts, kind="stable")[:MAX_CODES]
        widths = None if view.widths is None else view.widths.numpy()[used]
        pair, shares = equally_near(view.sites[used], self.taus, energy=view.energy, widths=widths)
        return (int(used[pair[0]]), int(used[pair[1]])), shares
