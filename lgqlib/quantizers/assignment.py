"""Assign latents to codes: softly at a temperature, or hard.

    d_nk = ||z_n - e_k||^2  (or another energy)        p_nk = softmax_k(-d_nk / (tau s_k))

A quantizer needs sums of p only (`Assignment`). There are three ways to them: `dense`, the
definition, which holds [tokens, codes]; `soft_assign`, the same in chunks, computed again in the
backward; `nearest_assign`, over a token's m nearest codes, where no other has a share that matters.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

ENERGIES = ("squared", "norm", "cosine", "dot")
CHUNK = 2**20  # entries of a tile: what a core's cache holds; on a GPU, 64 times as many
FLOOR = -60.0  # of a logit below a token's largest: underflow is ten times slower on a CPU
GROUP = 16  # codes a group: a search sorts the groups' minima, K / 16 numbers a token, first

Latents, Codes = Float[Tensor, "tokens dim"], Float[Tensor, "codes dim"]
Tau, Widths = float | Float[Tensor, ""], Float[Tensor, " codes"] | None


class Assignment(NamedTuple):
    """The sums over a soft assignment `p` of N latents to K codes."""

    average: Float[Tensor, "tokens dim"]  # `sum_k p_nk e_k`, the soft code
    indices: Int[Tensor, " tokens"]  # `argmax_k p_nk`, the lowest of tied codes
    collision: Float[Tensor, " tokens"]  # `sum_k p_nk^2`, the chance that two draws agree
    entropy: Float[Tensor, " tokens"]  # `-sum_k p_nk log p_nk`, in nats
    free_energy: Float[Tensor, " tokens"]  # `-tau logsumexp_k(-d_nk / (tau s_k))`
    usage: Float[Tensor, " codes"]  # `mean_n p_nk` over the latents of this call


def dense(latents, codebook, tau, *, energy: str = "squared", widths=None) -> Assignment:
    """Compute the definition, with [tokens, codes] tensors: what the other ways are tested by."""
    d = energies(latents, codebook, energy=energy)  # (N, K)
    d = d if widths is None else d / widths
    lowest, indices = d.detach().min(1, keepdim=True)
    logits, w, total = _weights(d, lowest, tau)  # (N, K); p = w / total
    return Assignment(
        average=w @ codebook / total[:, None],
        indices=indices[:, 0],
        collision=w.square().sum(1) / total.square(),
        entropy=total.log() - (w * logits).sum(1) / total,
        free_energy=lowest[:, 0] - tau * total.log(),
        usage=(1 / total) @ w / max(len(latents), 1),
    )


def _weights(d: Tensor, lowest: Tensor, tau: Tau) -> tuple[Tensor, Tensor, Tensor]:
    """Give `(lowest - d) / tau`, its exponential, and the exponential's sum over codes."""
    logits = ((lowest - d) / tau).clamp_min(FLOOR)
    w = logits.exp()
    return logits, w, w.sum(1)


def energies(
    latents: Latents, codebook: Codes, *, energy: str = "squared"
) -> Float[Tensor, "tokens codes"]:
    """Return `d_nk`: `|z-e|^2`, `|z-e|`, `1 - cos(z, e)` or `-z.e`; ValueError for another."""
    z, e, _ = _checked(latents, codebook, energy)
    if energy == "dot":
        return -(z @ e.T)
    if energy == "cosine":
        return 1 - F.normalize(z, dim=1) @ F.normalize(e, dim=1).T
    center = e.detach().mean(0)  # the difference ignores it; rounding does not
    z, e = z - center, e - center
    norms = z.square().sum(1, keepdim=True) + e.square().sum(1)
    squared = torch.addmm(norms, z, e.T, alpha=-2).clamp_min(0)
    if energy == "squared":
        return squared
    apart = squared > 0  # the root has no slope at zero: two wheres keep the gradient finite
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def probabilities(
    latents: Latents, codebook: Codes, tau: Tau, *, energy: str = "squared", widths: Widths = None
) -> Float[Tensor, "tokens codes"]:
    """Return the soft assignment `p_nk` itself, to look at a few tokens."""
    z, e, s = _checked(latents, codebook, energy, widths, tau)
    d = energies(z, e, energy=energy)
    return (-(d if s is None else d / s) / tau).softmax(1)


def soft_assign(
    latents: Latents, codebook: Codes, tau: Tau, *, energy: str = "squared", widths: Widths = None
) -> Assignment:
    """Assign latents to all codes, exactly and differentiably, a chunk of tokens at a time.

    Gradients reach latents, codebook, widths and a tensor `tau`, in float32 or float64 whatever
    autocast says. Raises ValueError for shapes that do not fit, a tau or width that is not positive
    and finite, and an unknown energy.
    """
    z, e, s = _checked(latents, codebook, energy, widths, tau)
    if len(z) == 0:
        return dense(z, e, tau, energy=energy, widths=s)
    rows = max(64, _chunk(z) // len(e))

    def of(chunk: Tensor, e: Tensor, s: Tensor | None, tau: float | Tensor) -> tuple[Tensor, ...]:
        part = dense(chunk, e, tau, energy=energy, widths=s)
        return (*part[:-1], len(chunk) * part.usage)

    with torch.autocast(z.device.type, enabled=False):
        parts = [_Again.apply(of, chunk, e, s, tau) for chunk in z.split(rows)]
        *per_token, usage = zip(*parts, strict=True)
        return Assignment(*map(torch.cat, per_token), torch.stack(usage).sum(0) / len(z))


class _Again(torch.autograd.Function):
    """Compute a function of tensors, and once more in the backward instead of keeping its tiles.

    `torch.utils.checkpoint` would keep two tiles a chunk, of outputs that have no gradient.
    """

    @staticmethod
    def forward(ctx, of, *arguments):
        ctx.of, ctx.others = of, [None if isinstance(a, Tensor) else a for a in arguments]
        ctx.save_for_backward(*[a if isinstance(a, Tensor) else None for a in arguments])
        ctx.set_materialize_grads(False)
        outputs = of(*arguments)
        ctx.mark_non_differentiable(*[o for o in outputs if not o.is_floating_point()])
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        needed = ctx.needs_input_grad[1:]
        saved = zip(ctx.saved_tensors, ctx.others, needed, strict=True)
        arguments = [other if a is None else a.detach().requires_grad_(n) for a, other, n in saved]
        with torch.enable_grad(), torch.autocast(arguments[0].device.type, enabled=False):
            outputs = ctx.of(*arguments)
            wanted = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
            inputs = [a for a, n in zip(arguments, needed, strict=True) if n]
            outputs, by = map(list, zip(*wanted, strict=True)) if wanted else ([], [])
            found = iter(torch.autograd.grad(outputs, inputs, by, allow_unused=True))
        return None, *[next(found) if n else None for n in needed]


def nearest_assign(
    latents: Latents, codebook: Codes, tau: Tau, *, num_nearest: int = 8
) -> Assignment:
    """Assign latents to their nearest codes only, by the squared distance.

    One matrix product finds them, without a gradient; softmax and sums are over [tokens, m]. What
    p has outside (`mass_outside`) is taken as zero. The gradient of the mean free energy then is
    the exact `2 (u_k e_k - m_k)`, with `u_k = mean_n p_nk` and `m_k = mean_n p_nk z_n`.
    """
    z, e, _ = _checked(latents, codebook, "squared", None, tau)
    with torch.autocast(z.device.type, enabled=False):
        near = nearest(z, e, num_nearest)  # (N, m)
        codes = F.embedding(near, e)  # (N, m, C)
        d = (rearrange(z, "n c -> n 1 c") - codes).square().sum(2)
        lowest = d.detach().amin(1, keepdim=True)
        logits, w, total = _weights(d, lowest, tau)  # (N, m)
        p = w / total[:, None]
        usage = e.new_zeros(len(e)).index_add(0, near.flatten(), p.flatten())
        return Assignment(
            average=torch.einsum("nm,nmc->nc", p, codes),
            indices=near.masked_fill(d > lowest, len(e)).amin(1),
            collision=p.square().sum(1),
            entropy=total.log() - (p * logits).sum(1),
            free_energy=lowest[:, 0] - tau * total.log(),
            usage=usage / max(len(z), 1),
        )


@torch.no_grad()
def mass_outside(latents: Latents, codebook: Codes, tau: Tau, *, num_nearest: int = 8) -> float:
    """Return the mean share of p outside the nearest codes; it holds [tokens, codes]: give few."""
    p = probabilities(latents, codebook, tau)
    return 1 - p.topk(min(num_nearest, p.shape[1]), 1).values.sum(1).mean().item()


@torch.no_grad()
def nearest(
    latents: Latents,
    codebook: Codes,
    num_nearest: int = 1,
    *,
    energy: str = "squared",
    widths: Widths = None,
) -> Int[Tensor, "tokens m"]:
    """Return the m codes of lowest `d_nk / s_k` of every latent, the nearest first; at most all K.

    The m nearest lie in the m groups of lowest minima: those are found first, then codes in them.
    """
    z, e, s = _checked(latents, codebook, energy, widths)
    m, groups, short = min(num_nearest, len(e)), -(-len(e) // GROUP), -len(e) % GROUP
    rows, of = max(64, _chunk(z) // len(e)), _distances(e, energy, s)
    found = [torch.empty(0, m, dtype=torch.int64, device=z.device)]
    with torch.autocast(z.device.type, enabled=False):
        for chunk in z.split(rows) if len(z) else ():
            d = of(chunk)  # (K, n): codes first, so that a minimum over codes is one sweep
            if m == 1 and groups < GROUP:
                found.append(d.argmin(0)[:, None])
                continue
            if short:
                d = torch.cat([d, d.new_full((short, d.shape[1]), torch.inf)])
            best = d.view(groups, GROUP, -1).amin(1).T.contiguous()  # (n, K / 16)
            group = _lowest(best, min(m, groups))
            within = torch.arange(GROUP, device=z.device)
            codes = rearrange(group[:, :, None] * GROUP + within, "n m g -> n (m g)")
            found.append(codes.gather(1, _lowest(d.T.gather(1, codes), m)))
    return torch.cat(found)


def _lowest(d: Tensor, m: int) -> Tensor:
    """Give the places of the m lowest entries of each row, the first of equal lowest in front."""
    first = d.argmin(1, keepdim=True)
    if m == 1:
        return first
    # Of equal ones in any order. NumPy's partition is twice as fast on a CPU.
    if d.device.type != "cpu":
        lowest = d.topk(m, largest=False, sorted=False).indices
    else:
        lowest = torch.from_numpy(d.numpy().argpartition(m - 1, axis=1)[:, :m])
    rest = torch.where(lowest == first, lowest[:, :1], lowest)[:, 1:]
    return torch.cat([first, rest], 1)


def _distances(e: Tensor, energy: str, widths: Tensor | None):
    """Give the function from latents [n, C] to `d_nk / s_k` [K, n], up to a constant a latent."""
    if energy == "squared" and widths is None:
        center = e.mean(0)
        e = e - center
        squares = e.square().sum(1, keepdim=True)
        return lambda z: torch.addmm(squares, e, (z - center).T, alpha=-2)
    scale = 1 if widths is None else widths
    return lambda z: (energies(z, e, energy=energy) / scale).T


def _chunk(z: Tensor) -> int:
    return CHUNK * 64 if z.is_cuda else CHUNK


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total / num_ranks()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def num_ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def mean_over_ranks(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Average a tensor over data-parallel ranks, differentiably; the identity on one process.

    The backward is local: with the same function of the result in each rank's loss, and gradients
    averaged over ranks, a parameter gets the gradient of one process with the whole batch.
    """
    return x if num_ranks() == 1 else _MeanOverRanks.apply(x)


def _checked(
    latents: Tensor, codebook: Tensor, energy: str, widths: Tensor | None = None, tau: Tau = 1.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give the arguments in one dtype, float32 or more; raise ValueError where they do not fit."""
    if latents.ndim != 2 or codebook.ndim != 2 or latents.shape[1] != codebook.shape[1]:
        shapes = f"latents {tuple(latents.shape)} and codebook {tuple(codebook.shape)}"
        raise ValueError(f"{shapes} do not fit; use [tokens, dim] and [codes, dim]")
    if len(codebook) == 0:
        raise ValueError("codebook has no codes; it needs at least 1")
    if energy not in ENERGIES:
        raise ValueError(f"unknown energy {energy!r}; choose one of {', '.join(ENERGIES)}")
    if widths is not None and widths.shape != (len(codebook),):
        shape = tuple(widths.shape)
        raise ValueError(f"widths {shape} do not fit {len(codebook)} codes; use one a code")
    if widths is not None and not bool(((widths > 0) & widths.isfinite()).all()):
        least = widths.min().item()
        raise ValueError(f"widths reach down to {least}; all must be positive and finite")
    if isinstance(tau, Tensor) and tau.ndim != 0:
        raise ValueError(f"tau has shape {tuple(tau.shape)}; use a number or a 0-d tensor")
    value = tau.item() if isinstance(tau, Tensor) else tau
    if not 0 < value < float("inf"):
        raise ValueError(f"tau is {value}; it must be positive and finite")
    dtype = torch.promote_types(torch.float32, latents.dtype)
    return latents.to(dtype), codebook.to(dtype), None if widths is None else widths.to(dtype)
