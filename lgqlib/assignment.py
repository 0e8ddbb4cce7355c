"""Assign latents to codes, softly at a temperature or hard, as one differentiable operation.

Soft assignment is the posterior of an equal-weight mixture, `p_nk = softmax_k(-d_nk / (tau s_k))`,
for latents `z_n`, codes `e_k`, an energy `d`, a temperature `tau` and widths `s` (1 by default).
Everything a quantizer needs from it is a reduction of `p`, so no `[tokens, codes]` tensor leaves
this module. The engines return the same numbers and differ in speed and memory.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lgqlib.nearest import Scores, nearest, two_best
from lgqlib.streaming import PAIR_SHARE, StreamingAssign

ENERGIES = ("squared", "norm", "cosine", "dot")
ENGINES = ("auto", "dense", "streaming")
TILE_BYTES = 64 * 2**20


class Assignment(NamedTuple):
    """The reductions of a soft assignment `p` of N latents to K codes."""

    average: Float[Tensor, "tokens dim"]
    """`sum_k p_nk e_k`, the soft code."""
    indices: Int[Tensor, " tokens"]
    """`argmax_k p_nk`, the lowest of tied codes."""
    collision: Float[Tensor, " tokens"]
    """`sum_k p_nk^2`, the chance that two draws agree."""
    entropy: Float[Tensor, " tokens"]
    """`-sum_k p_nk log p_nk`, in nats."""
    free_energy: Float[Tensor, " tokens"]
    """`-tau logsumexp_k(-d_nk / (tau s_k))`, in units of the energy."""
    usage: Float[Tensor, " codes"]
    """`mean_n p_nk` over the latents of this call; zero without latents."""


def soft_assign(
    latents: Float[Tensor, "tokens dim"],
    codebook: Float[Tensor, "codes dim"],
    tau: float | Float[Tensor, ""],
    *,
    energy: str = "squared",
    widths: Float[Tensor, " codes"] | None = None,
    engine: str = "auto",
    tile_bytes: int = TILE_BYTES,
) -> Assignment:
    """Reduce the soft assignment of latents to codes, differentiably and in float32 or float64.

    Gradients reach latents, codebook, widths and a tensor `tau` through every output but the
    indices. `tile_bytes` bounds the working memory of the tiled engines. Autocast does not lower
    the precision. Raises `ValueError` for shapes that do not fit, a temperature or width that is
    not positive and finite, and unknown names.
    """
    # What runs depends on the data; disabled here, as the decorator would import the compiler.
    run = torch.compiler.disable(_reduce) if torch.compiler.is_compiling() else _reduce
    return run(latents, codebook, tau, energy, widths, engine, tile_bytes)


def _reduce(
    latents: Tensor,
    codebook: Tensor,
    tau: float | Tensor,
    energy: str,
    widths: Tensor | None,
    engine: str,
    tile_bytes: int,
) -> Assignment:
    _check(latents, codebook, energy=energy, widths=widths, engine=engine)
    _check_tau(tau)
    with torch.autocast(latents.device.type, enabled=False):
        latents, codebook, widths = _as_float(latents, codebook, widths)
        if engine == "dense" or len(latents) == 0:
            return _dense(latents, codebook, tau, energy, widths)
        return _streaming(latents, codebook, tau, energy, widths, tile_bytes)


def _dense(
    latents: Tensor,
    codebook: Tensor,
    tau: float | Tensor,
    energy: str,
    widths: Tensor | None,
) -> Assignment:
    """Compute the definition with plain autograd and `[tokens, codes]` tensors."""
    logits, lowest = _logits(latents, codebook, tau, energy, widths)
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    return Assignment(
        average=p @ codebook,
        indices=hard_assign(latents, codebook, energy=energy, widths=widths),
        collision=p.square().sum(1),
        entropy=-(p * log_p).sum(1),
        free_energy=lowest - tau * logits.logsumexp(1),
        usage=p.sum(0) / max(len(latents), 1),
    )


def _streaming(
    latents: Tensor,
    codebook: Tensor,
    tau: float | Tensor,
    energy: str,
    widths: Tensor | None,
    tile_bytes: int,
) -> Assignment:
    """Go through strips of tokens that are computed again in the backward."""
    tau = torch.as_tensor(tau, dtype=latents.dtype, device=latents.device)
    values = None
    if energy == "cosine":
        values = codebook
        latents, codebook = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
    average, free_energy, collision, entropy, usage, indices = StreamingAssign.apply(
        latents, codebook, values, tau, widths, energy, tile_bytes, PAIR_SHARE
    )
    return Assignment(average, indices, collision, entropy, free_energy, usage / len(latents))


def energies(
    latents: Float[Tensor, "tokens dim"],
    codebook: Float[Tensor, "codes dim"],
    *,
    energy: str = "squared",
) -> Float[Tensor, "tokens codes"]:
    """Return every energy `d_nk`: `|z-e|^2`, `|z-e|`, `1 - cos(z, e)` or `-z.e`."""
    _check(latents, codebook, energy=energy)
    with torch.autocast(latents.device.type, enabled=False):
        z, e, _ = _as_float(latents, codebook)
        if energy == "dot":
            return -(z @ e.T)
        if energy == "cosine":
            return 1 - F.normalize(z, dim=1) @ F.normalize(e, dim=1).T
        center = e.detach().mean(0)  # the difference ignores it; rounding does not
        z, e = z - center, e - center
        norms = rearrange(z.square().sum(1), "n -> n 1") + e.square().sum(1)
        squared = torch.addmm(norms, z, e.T, alpha=-2).clamp_min(0)
        if energy == "squared":
            return squared
        apart = squared > 0  # the root has no slope at zero: two wheres keep the gradient finite
        return torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)


def probabilities(
    latents: Float[Tensor, "tokens dim"],
    codebook: Float[Tensor, "codes dim"],
    tau: float | Float[Tensor, ""],
    *,
    energy: str = "squared",
    widths: Float[Tensor, " codes"] | None = None,
) -> Float[Tensor, "tokens codes"]:
    """Return the soft assignment `p_nk` itself, to look at a few tokens."""
    _check(latents, codebook, energy=energy, widths=widths)
    _check_tau(tau)
    with torch.autocast(latents.device.type, enabled=False):
        latents, codebook, widths = _as_float(latents, codebook, widths)
        return _logits(latents, codebook, tau, energy, widths)[0].softmax(1)


def _logits(
    latents: Tensor, codebook: Tensor, tau: float | Tensor, energy: str, widths: Tensor | None
) -> tuple[Float[Tensor, "tokens codes"], Float[Tensor, " tokens"]]:
    """Return `-d_nk / (tau s_k)` over its largest for each token, and the lowest `d_nk / s_k`."""
    d = energies(latents, codebook, energy=energy)
    d = d if widths is None else d / widths
    lowest = d.detach().amin(1, keepdim=True)
    return (lowest - d) / tau, lowest[:, 0]


def hard_assign(
    latents: Float[Tensor, "tokens dim"],
    codebook: Float[Tensor, "codes dim"],
    *,
    energy: str = "squared",
    widths: Float[Tensor, " codes"] | None = None,
    engine: str = "auto",
) -> Int[Tensor, " tokens"]:
    """Return the index of the lowest `d_nk / s_k` for every latent, the first of tied codes."""
    _check(latents, codebook, energy=energy, widths=widths, engine=engine)
    with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
        return nearest(_scores(latents, codebook, energy, widths))


def nearest_two(
    latents: Float[Tensor, "tokens dim"],
    codebook: Float[Tensor, "codes dim"],
    *,
    energy: str = "squared",
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Return the lowest and second-lowest energy of every latent; their gap over tau is the
    exponent in `1 - max_k p_nk <= (K - 1) exp(-gap / tau)`. Needs two codes or more."""
    _check(latents, codebook, energy=energy)
    if len(codebook) < 2:
        raise ValueError(f"codebook has {len(codebook)} code; nearest_two needs at least 2")
    with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
        scores = _scores(latents, codebook, energy, None)
        first, second = two_best(scores)
        return -first.to(scores.x.dtype), -second.to(scores.x.dtype)


def _scores(latents: Tensor, codebook: Tensor, energy: str, widths: Tensor | None) -> Scores:
    latents, codebook, widths = _as_float(latents, codebook, widths)
    if energy == "cosine":
        latents, codebook = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
    weights = latents.new_ones(()) if widths is None else 1 / widths
    return Scores(latents, codebook, weights, energy=energy)


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: float | None) -> Tensor:
        ranks = torch.distributed.get_world_size()
        share = torch.tensor(1.0 if weight is None else weight, dtype=x.dtype, device=x.device)
        packed = torch.cat([x.reshape(-1) * share, share.reshape(1)])
        torch.distributed.all_reduce(packed)
        total = packed[-1]
        # Averaging gradients over ranks divides by their number, and a rank that brings a share
        # of the weight owns that share of the gradient.
        ctx.scale = ranks * share / total
        return (packed[:-1] / total).reshape(x.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


def mean_over_ranks(
    x: Float[Tensor, "..."], *, weight: float | None = None
) -> Float[Tensor, "..."]:
    """Average a tensor over data-parallel ranks, differentiably; the identity on one process.

    `weight` is this rank's weight, such as its number of tokens; equal by default. The backward
    is local: when every rank puts the same function of the result into its loss and gradients are
    averaged over ranks, as DistributedDataParallel does, each parameter gets the gradient that one
    process with the whole batch would compute.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    if distributed.get_world_size() == 1:
        return x
    return _MeanOverRanks.apply(x, weight)


def _as_float(
    latents: Tensor, codebook: Tensor, widths: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Raise half precision to float32 and bring all arguments to one dtype."""
    dtype = torch.promote_types(torch.float32, latents.dtype)
    return (
        latents.to(dtype),
        codebook.to(dtype),
        None if widths is None else widths.to(dtype),
    )


def _check(
    latents: Tensor,
    codebook: Tensor,
    *,
    energy: str,
    widths: Tensor | None = None,
    engine: str = "auto",
) -> None:
    if latents.ndim != 2 or codebook.ndim != 2 or latents.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"latents {tuple(latents.shape)} and codebook {tuple(codebook.shape)} do not fit; "
            "use [tokens, dim] and [codes, dim]"
        )
    if len(codebook) == 0:
        raise ValueError("codebook has no codes; it needs at least 1")
    if energy not in ENERGIES:
        raise ValueError(f"unknown energy {energy!r}; choose one of {', '.join(ENERGIES)}")
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")
    if widths is not None:
        if widths.shape != (len(codebook),):
            raise ValueError(
                f"widths {tuple(widths.shape)} do not fit {len(codebook)} codes; use one a code"
            )
        if not bool((widths.detach() > 0).all() & widths.detach().isfinite().all()):
            raise ValueError(
                f"widths reach down to {widths.min().item()}; all must be positive and finite"
            )


def _check_tau(tau: float | Tensor) -> None:
    if isinstance(tau, Tensor) and tau.ndim != 0:
        raise ValueError(f"tau has shape {tuple(tau.shape)}; use a number or a 0-d tensor")
    value = tau.item() if isinstance(tau, Tensor) else tau
    if not 0 < value < float("inf"):
        raise ValueError(f"tau is {value}; it must be positive and finite")
