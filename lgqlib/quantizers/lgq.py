"""Learnable Geometric Quantization, beside the equations of its paper.

Altun et al. 2026, arXiv 2602.16086. z_n are N latents of C channels, e_k are K codes, d_nk their
energy, tau > 0 the temperature:

    p_nk    = softmax_k(-d_nk / tau)                     soft assignment                    (1)
    i_n     = argmax_k p_nk                              hard index, whatever tau           (2)
    z_q     = q_soft + sg(q_hard - q_soft)               straight-through                   (3)
    q_soft  = sum_k p_nk e_k,   q_hard = e_{i_n}

and four terms, unweighted here: commit, peak, usage, floor (`LGQ.forward`). That is the paper, and
the preset `authors`. The recipe of the presets `laptop` and `paper` weighs neither peak nor usage,
the commitment by 0.25, and:

    tau     = r 2 D / C,  D = mean_n ||z_n - e_{i_n}||^2  self-tempered: a mixture of K Gaussians of
              variance tau / 2, fitted to hard assignments, has r = 1; r falls from 0.1 to 0.005
    e_k     start annealed, before the encoder moves (`start.anneal`, r from 1 to 0.1)
    e_k     descend the free energy  F = -tau mean_n log sum_k exp(-d_nk / tau), whose gradient is
              2 (u_k e_k - m_k),  u_k = mean_n p_nk,  m_k = mean_n p_nk z_n              (4)
    z_n     receive the decoder's gradient unchanged (`identity` = 1), and a commitment
    e_k     that starve (u_k < 0.1 / K) move beside the code with the largest part of D
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lgqlib.config import LGQConfig
from lgqlib.quantizers.assignment import (
    Assignment,
    mass_outside,
    mean_over_ranks,
    nearest_assign,
    num_ranks,
    soft_assign,
)
from lgqlib.quantizers.base import Quantized, Table, straight_through
from lgqlib.quantizers.start import move_starved

TINY = 1e-10  # added inside a logarithm: a code without any use has a finite gradient
OUTSIDE = 1e-3  # share of p outside a token's nearest codes above which all codes are looked at
SAMPLE = 64  # tokens of a batch by which that share is measured


class LGQ(Table):
    """Quantize by temperature-controlled soft assignment to a learned codebook.

    Args:
        num_codes: K, the size of the codebook.
        dim: C, channels of a latent.
        energy: d(z, e): `squared` (the Gaussian mixture), `norm`, `cosine` or `dot`.
        codebook_loss: what trains the codes: `commit`, the paper's mean (z_q - z)^2 with nothing
            detached, or `free_energy`, the mean of F_n / C, with a commitment for the encoder.
        identity: share of the path z + sg(q_hard - z) in the encoder's gradient; 0 is equation (3).
        usage: `square` (the paper, K sum u^2) or `entropy` (1 - H(u) / log K, free of K).
        active_floor: P_min of the floor term, in codes.
        move: move starved codes, at most 2 % of K a step.
        widths: learn a width s_k > 0 for each code, d_nk / (tau s_k), starting at exactly 1.
        num_nearest: m, a token's nearest codes: only they are looked at, with the squared energy,
            while they hold all but 1e-3 of p on the mean of a sample; 0 always looks at all.
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        energy: str = "squared",
        codebook_loss: str = "commit",
        identity: float = 0.0,
        usage: str = "square",
        active_floor: float = 0.0,
        move: bool = False,
        widths: bool = False,
        num_nearest: int = 8,
    ):
        super().__init__(num_codes, dim)
        given = dict(energy=energy, codebook_loss=codebook_loss, identity=identity, usage=usage)
        given |= dict(move=move, widths=widths, active_floor=active_floor, num_nearest=num_nearest)
        LGQConfig(**given)  # one place says what is right
        self.energy, self.codebook_loss, self.identity = energy, codebook_loss, identity
        self.usage, self.active_floor = usage, active_floor
        self.move, self.num_nearest = move, num_nearest
        self.outside = math.nan  # of p, at the last call with a choice
        self.width_logits = nn.Parameter(torch.zeros(num_codes)) if widths else None
        if move:  # running u_k, running part of D of each code, and steps
            self.register_buffer("mass", torch.full((num_codes,), 1 / num_codes))
            self.register_buffer("share", torch.zeros(num_codes))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def widths(self) -> Float[Tensor, " K"] | None:
        """s_k = softplus(w_k) / softplus(0), so that w_k = 0 is a width of exactly 1."""
        if self.width_logits is None:
            return None
        return F.softplus(self.width_logits) / F.softplus(self.width_logits.new_zeros(()))

    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor | None) -> Quantized:
        """Quantize latents at temperature tau > 0 and give the terms of the loss, unweighted."""
        if tau is None:
            raise ValueError("tau = None: LGQ trains at a temperature, a number > 0.")
        b, _, h, w = latents.shape
        dtype = torch.promote_types(latents.dtype, torch.float32)  # never less, as under autocast
        z = rearrange(latents, "b c h w -> (b h w) c").to(dtype)  # (N, C)
        e = self.codes.to(dtype)  # (K, C)
        free = self.codebook_loss == "free_energy"
        # The free energy is the codes' to lower: they see the latents as they are. The paper's
        # terms move both.
        a = self._assign(z.detach() if free else z, e, tau)

        q_hard = F.embedding(a.indices, e)  # (N, C)
        path = z  # (N, C): of the gradient, q_soft in equation (3), z where `identity` is 1
        if self.identity < 1:
            soft = self._assign(z, e, tau) if free else a
            path = torch.lerp(soft.average, z, self.identity)
        z_q = straight_through(path, q_hard)  # equation (3): hard forward, backward along the path

        if free:
            terms = {
                "free_energy": a.free_energy.mean() / self.dim,  # gradient: equation (4) over C
                "commit": (z - q_hard.detach()).square().mean(),
            }
        else:
            terms = {"commit": (z_q - z).square().mean()}  # nothing detached, as published
        terms["peak"] = (1 - a.collision).mean()  # mean_n (1 - sum_k p_nk^2)
        u = mean_over_ranks(a.usage)  # u_k = mean_n p_nk over the whole batch, on all ranks
        if self.move and self.training:
            self._follow(z, q_hard, a.indices, u)
        perplexity = torch.exp(-(u * torch.log(u + TINY)).sum())  # exp H(u)
        if self.usage == "square":
            terms["usage"] = self.num_codes * u.square().sum()  # 1 when even, K when one has all
        else:
            terms["usage"] = 1 - perplexity.log() / math.log(max(self.num_codes, 2))
        terms["floor"] = F.relu(self.active_floor - perplexity).square()
        if self.width_logits is not None:
            terms["widths"] = (self.widths - 1).abs().mean()
        return Quantized(
            rearrange(z_q, "(b h w) c -> b c h w", b=b, h=h, w=w),
            rearrange(a.indices, "(b h w) -> b h w", b=b, h=h, w=w),
            terms,
        )

    def _assign(self, z: Tensor, e: Tensor, tau: float | Tensor) -> Assignment:
        """Equations (1) and (2): over the nearest codes where a sample of this call's tokens has
        less than `OUTSIDE` of p elsewhere, or over all.
        """
        if self.num_nearest and self.energy == "squared" and self.widths is None and len(z):
            sample = z[:: -(-len(z) // SAMPLE)].detach()
            m = self.num_nearest
            self.outside = mass_outside(sample, e.detach(), tau, num_nearest=m)
            if self.outside < OUTSIDE:
                return nearest_assign(z, e, tau, num_nearest=m)
        return soft_assign(z, e, tau, energy=self.energy, widths=self.widths)

    @torch.no_grad()
    def _follow(self, z: Tensor, q_hard: Tensor, indices: Tensor, u: Tensor) -> None:
        """Keep running means of u_k and each code's part of D, over forty uses of an even code."""
        errors = (z - q_hard).square().sum(1)
        share = torch.zeros_like(self.share).index_add_(0, indices, errors) / max(len(z), 1)
        window = max(10, 40 * self.num_codes / max(len(z) * num_ranks(), 1))
        self.mass.lerp_(u, 1 / window)
        self.share.lerp_(mean_over_ranks(share), 1 if self.steps == 0 else 1 / window)
        self.steps += 1

    @torch.no_grad()
    def after_step(self) -> None:
        """Move starved codes, by noise that is equal on all ranks."""
        if self.move:
            generator = torch.Generator().manual_seed(int(self.steps))
            most = max(1, self.num_codes // 50)
            move_starved(self.codes.data, self.mass, self.share, most=most, generator=generator)
