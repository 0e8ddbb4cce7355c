"""Assign latents to codes, softly at a temperature or hard, as one differentiable operation.

Soft assignment is the posterior of an equal-weight mixture, `p_nk = softmax_k(-d_nk / (tau s_k))`,
for latents `z_n`, codes `e_k`, an energy `d`, a temperature `tau` and widths `s` (1 by default).
Everything a quantizer needs from it is a reduction of `p`, so no `[tokens, codes]` tensor leaves
this module. The engines return the same numbers and differ in speed and memory.
"""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lgqlib.quantizers.nearest import Scores, nearest, two_best
from lgqlib.quantizers.streaming import PAIR_SHARE, StreamingAssign

ENERGIES = ("squared", "norm", "cosine", "dot")
ENGINES = ("auto", "dense", "streaming", "attention", "triton")
PRODUCTS = ("float32", "tf32x3", "tf32", "bf16")
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
    products: str = "tf32x3",
) -> Assignment:
    """Reduce the soft assignment of latents to codes, differentiably and in float32 or float64.

    Gradients reach latents, codebook, widths and a tensor `tau` through every output but the
    indices. Autocast does not lower the precision. Raises `ValueError` for shapes that do not fit,
    a temperature or width that is not positive and finite, and unknown names.

    Args:
        latents: `z_n`.
        codebook: `e_k`.
        tau: temperature, in units of the energy.
        energy: `squared` `|z-e|^2`, `norm` `|z-e|`, `cosine` `1 - cos(z, e)` or `dot` `-z.e`.
        widths: `s_k`.
        engine: `dense` is the definition, with `[tokens, codes]` tensors; `streaming` goes through
            strips on any device, and skips what float32 cannot see; `triton` runs fused kernels on
            an NVIDIA GPU, in float32; `attention` streams all but the average, which is scaled
            dot-product attention, to compare with; `auto` takes `triton` or `streaming`.
        tile_bytes: bound of the streaming engine's working memory.
        products: matrix products of the fused kernels: `float32`, three `tf32` products in place
            of one (about as precise), `tf32`, or `bf16`. Sums and softmax are float32 in all.
    """
    # What runs depends on the data; disabled here, as the decorator would import the compiler.
    run = torch.compiler.disable(_reduce) if torch.compiler.is_compiling() else _reduce
    return run(latents, codebook, tau, energy, widths, engine, tile_bytes, products)


def _reduce(
    latents: Tensor,
    codebook: Tensor,
    tau: float | Tensor,
    energy: str,
    widths: Tensor | None,
    engine: str,
    tile_bytes: int,
    products: str,
) -> Assignment:
    _check(latents, codebook, energy=energy, widths=widths, engine=engine)
    _check_tau(tau)
    if products not in PRODUCTS:
        raise ValueError(f"unknown products {products!r}; choose one of {', '.join(PRODUCTS)}")
    with torch.autocast(latents.device.type, enabled=False):
        latents, codebook, widths = _as_float(latents, codebook, widths)
        if engine == "dense" or len(latents) == 0:
            return _dense(latents, codebook, tau, energy, widths)
        if _is_fused(latents, engine):
            return _fused(latents, codebook, tau, energy, widths, products)
        assignment = _streaming(latents, codebook, tau, energy, widths, tile_bytes)
        if engine == "attention":
            average = attention_average(latents, codebook, tau, energy=energy, widths=widths)
            assignment = assignment._replace(average=average)
        return assignment


def _is_fused(latents: Tensor, engine: str) -> bool:
    """Say whether to run the fused kernels, which need Triton and a GPU (or its interpreter)."""
    fits = latents.dtype == torch.float32 and latents.shape[1] <= 256
    if engine == "auto":
        return latents.is_cuda and fits and find_spec("triton") is not None
    if engine == "triton" and not fits:
        raise ValueError(
            f"engine 'triton' got {latents.dtype} in {latents.shape[1]} dimensions; "
            "it takes float32 and at most 256"
        )
    return engine == "triton"


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


def _fused(
    latents: Tensor,
    codebook: Tensor,
    tau: float | Tensor,
    energy: str,
    widths: Tensor | None,
    products: str,
) -> Assignment:
    """Run the fused kernels, and decide near-ties where their products are too rough to."""
    from lgqlib.quantizers import kernels  # Triton is not everywhere, and slow to import

    kernels.check_device(latents)
    tau = torch.as_tensor(tau, dtype=latents.dtype, device=latents.device)
    values, center = None, 0
    scores = _scores(latents.detach(), codebook.detach(), energy, widths, tau.detach())
    if energy == "cosine":
        values = codebook
        latents, codebook = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
    elif energy != "dot":
        center = scores.center
    average, free_energy, collision, entropy, usage, indices, margin = kernels.FusedAssign.apply(
        latents - center, codebook - center, values, tau, widths, energy, products
    )
    indices = _settle(scores, indices, margin, products)
    return Assignment(
        average + center, indices, collision, entropy, free_energy, usage / len(latents)
    )


def _settle(scores: Scores, indices: Tensor, margin: Tensor, products: str) -> Tensor:
    """Look again at latents whose best score wins by less than the rounding of products."""
    rounding = {"float32": 1.0, "tf32x3": 4.0, "tf32": 2.0**-9, "bf16": 2.0**-7}[products]
    if rounding < 1:
        rounding /= torch.finfo(scores.x.dtype).eps * scores.left.shape[1]
    rows = torch.arange(len(indices), device=indices.device)
    best = scores.exact(rows, indices).to(margin.dtype)
    close = (margin <= rounding * scores.slack(slice(None), best)).nonzero()[:, 0]
    if len(close):
        indices = indices.index_copy(0, close, nearest(scores.restrict(close)))
    return indices


def attention_average(
    latents: Float[Tensor, "tokens dim"],
    codebook: Float[Tensor, "codes dim"],
    tau: float | Float[Tensor, ""],
    *,
    energy: str = "squared",
    widths: Float[Tensor, " codes"] | None = None,
) -> Float[Tensor, "tokens dim"]:
    """Average codes by scaled dot-product attention, for the squared distance with query
    `[z, 1]`, key `[2e, -|e|^2] / tau` and value `e`. A norm is no product: it raises `ValueError`.
    """
    _check(latents, codebook, energy=energy, widths=widths)
    _check_tau(tau)
    if energy == "norm":
        raise ValueError("energy 'norm' is no dot product; attention takes the others")
    with torch.autocast(latents.device.type, enabled=False):
        z, e, widths = _as_float(latents, codebook, widths)
        weights = torch.ones_like(e[:, :1]) / tau
        if widths is not None:
            weights = weights / rearrange(widths, "k -> k 1")
        query, key, value = [z, torch.ones_like(z[:, :1])], [e, torch.zeros_like(weights)], e
        if energy == "squared":
            center = e.detach().mean(0)
            z, value = z - center, e - center
            zz, ee = (t.square().sum(1, keepdim=True) for t in (z, value))
            query, key = [2 * z, -torch.ones_like(zz)], [value, ee]
            if widths is not None:  # without, it is the same for all codes
                query, key = [*query, -zz], [*key, torch.ones_like(ee)]
        elif energy == "cosine":
            query, key = [F.normalize(z, dim=1), -query[1]], [F.normalize(e, dim=1), key[1] + 1]
        query, key = torch.cat(query, 1), torch.cat(key, 1) * weights
        padded = F.pad(value, (0, query.shape[1] - value.shape[1]))  # one size: the fast kernels
        q, k, v = (rearrange(t, "n c -> 1 1 n c") for t in (query, key, padded))
        average = F.scaled_dot_product_attention(q, k, v, scale=1.0)[0, 0, :, : e.shape[1]]
        return average + center if energy == "squared" else average


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
        latents, codebook, widths = _as_float(latents, codebook, widths)
        scores = _scores(latents, codebook, energy, widths)
        if len(latents) == 0 or not _is_fused(latents, engine):
            return nearest(scores)
        from lgqlib.quantizers import kernels  # as above

        kernels.check_device(latents)
        found = kernels.nearest(scores.x, scores.y, widths, energy=energy)
        return _settle(scores, *found, products="tf32x3")


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
        latents, codebook, _ = _as_float(latents, codebook)
        scores = _scores(latents, codebook, energy)
        first, second = two_best(scores)
        return -first.to(scores.x.dtype), -second.to(scores.x.dtype)


def _scores(
    latents: Tensor,
    codebook: Tensor,
    energy: str,
    widths: Tensor | None = None,
    tau: Tensor | None = None,
) -> Scores:
    if energy == "cosine":
        latents, codebook = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
    tau = latents.new_ones(()) if tau is None else tau
    weights = 1 / tau if widths is None else 1 / (tau * widths.detach())
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
