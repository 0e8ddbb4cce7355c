"""Quantizers with a table of codes: VQ, VQ-EMA, the rotation trick, SimVQ, IBQ.

They hold the modules of `vector-quantize-pytorch` wherever these keep the contract.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lgqlib.quantizers.assignment import mean_over_ranks, num_ranks
from lgqlib.quantizers.base import Quantized, Quantizer, Table, in_float32, straight_through
from lgqlib.quantizers.start import kmeans

EPS = 1e-12  # floor of a probability inside a logarithm: finite gradients where one underflows
DECAY = 0.99
DEAD_SHARE = 0.2  # of an even use; a code of VQ-EMA with less on average is dead


class VQ(Table):
    """Quantize to the nearest row of a table that learns by gradient (arXiv 1711.00937).

    Terms: `commit` = mean (z - sg e)^2 moves the encoder, `codebook` = mean (sg z - e)^2 the codes.
    """

    @in_float32
    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor | None) -> Quantized:
        indices = self._encode(latents)
        codes = self.lookup(indices)
        terms = {
            "commit": (latents - codes.detach()).square().mean(),
            "codebook": (latents.detach() - codes).square().mean(),
        }
        return Quantized(straight_through(latents, codes), indices, terms)


class KMeansVQ(Quantizer):
    """Quantize to the cluster centers of training latents, fitted once: what no learning gives."""

    def __init__(self, num_codes: int, dim: int):
        super().__init__(num_codes, dim)
        self.register_buffer("codes", torch.randn(num_codes, dim))

    codebook = Table.codebook

    @property
    def start_latents(self) -> int:
        return 32 * self.num_codes

    @in_float32
    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor | None) -> Quantized:
        indices = self._encode(latents)
        return Quantized(straight_through(latents, self.lookup(indices)), indices, {})

    def _start(self, latents: Float[Tensor, "n c"], start: str, prefit: bool) -> None:
        codes = self._started(latents, start, prefit)
        many = len(latents) > len(codes)
        self.codes.copy_(kmeans(latents, codes, max_iter=30) if many else codes)


class SimVQ(Quantizer):
    """Quantize to a frozen random table through a linear map that learns (arXiv 2411.02038).

    The map starts so that the codes are as large as the latents; with a `start` or `prefit` the
    table is codes so started. Both are the library's; the terms are as in `VQ`.
    """

    def __init__(self, num_codes: int, dim: int):
        super().__init__(num_codes, dim)
        import vector_quantize_pytorch as vqp  # late: it takes seconds

        self.library = vqp.SimVQ(dim, num_codes, rotation_trick=False)

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        return self._mapped(self.library.frozen_codebook)

    @in_float32
    def _mapped(self, rows: Float[Tensor, "K C"]) -> Float[Tensor, "K C"]:
        return self.library.code_transform(rows)

    forward = VQ.forward

    def _start(self, latents: Float[Tensor, "n c"], start: str, prefit: bool) -> None:
        weight = self.library.code_transform.weight
        if start or prefit:
            self.library.frozen_codebook.copy_(self._started(latents, start, prefit))
            weight.copy_(torch.eye(self.dim))
        else:
            size = latents.square().mean().sqrt()
            weight.mul_(size / self.codebook.square().mean().sqrt())


class EMAVQ(Quantizer):
    """VQ whose codes are moving averages of their latents (arXiv 1711.00937, appendix A.1).

    A call in training quantizes with the codes as they are and moves them afterwards, by the batch
    of all ranks. A dead code takes a random latent; what is dead scales with tokens/K. Codes and
    their moves are the library's. `rotate`: carry the encoder's gradient by the rotation trick
    (arXiv 2410.06424), taken apart from the library's forward, which gives codes up to rounding.
    """

    def __init__(self, num_codes: int, dim: int, *, rotate: bool = False):
        super().__init__(num_codes, dim)
        self.rotate = rotate
        import vector_quantize_pytorch as vqp  # late: it takes seconds

        self.library = vqp.VectorQuantize(
            dim,
            num_codes,
            accept_image_fmap=True,
            decay=DECAY,
            threshold_ema_dead_code=DEAD_SHARE,  # set again by each batch
            sync_codebook=num_ranks() > 1,
        )

    @property
    def codebook(self) -> Float[Tensor, "K C"]:
        return self.library.codebook

    @in_float32
    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor | None) -> Quantized:
        """Quantize latents, and in training move the codes; the temperature has no part in it."""
        indices = self._encode(latents)
        codes = self.lookup(indices)  # a copy: what moves below is not what the decoder receives
        terms = {"commit": (latents - codes).square().mean()}
        path = latents
        if self.rotate:
            from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

            z, e = (rearrange(x, "b c h w -> b h w c") for x in (latents, codes))
            path = rearrange(rotate_to(z, e), "b h w c -> b c h w")
        if self.training:
            moving = self.library._codebook
            even = indices.numel() * num_ranks() / self.num_codes
            moving.threshold_ema_dead_code = DEAD_SHARE * even
            moving.reset_cluster_size = even  # as if used evenly so far: time to earn its keep
            self.library.update_indices(latents.detach(), indices)
        return Quantized(straight_through(path, codes), indices, terms)

    def _start(self, latents: Float[Tensor, "n c"], start: str, prefit: bool) -> None:
        self.library.codebook = self._started(latents, start, prefit)
        self.library._codebook.embed_avg.copy_(self.library._codebook.embed)
        self.library._codebook.cluster_size.fill_(1)


class IBQ(Table):
    """Choose codes by the largest dot product; all learn through the index (arXiv 2412.02692).

        p = softmax_k(z . e_k),  z_q = sum_k (onehot + p - sg p)_k e_k

    Terms: `commit` = mean (z_q - z)^2 + mean (sg e - z)^2 and `codebook` = mean (e - sg z)^2, with
    e the chosen code; `entropy` = mean_n H(p_n) - H(mean_n p_n) in nats at temperature 0.01.
    """

    energy = "dot"
    temperature = 0.01  # of the entropies' softmax

    @in_float32
    def forward(self, latents: Float[Tensor, "b c h w"], tau: float | Tensor | None) -> Quantized:
        """Quantize latents; the index's temperature is 1, whatever tau."""
        indices = self._encode(latents)
        z = rearrange(latents, "b c h w -> (b h w) c")
        # Blocks are computed again in the backward pass: no [N, K] tensor outlives its block.
        rows = max(1, 2**24 // self.num_codes)
        again = partial(checkpoint, self._soft, use_reentrant=False)
        soft = again if torch.is_grad_enabled() else self._soft
        blocks = [soft(block, self.codes) for block in z.split(rows)]
        path, entropy, usage = (torch.cat(part) for part in zip(*blocks, strict=True))
        mean = mean_over_ranks(usage.sum(0) / len(z))

        codes = F.embedding(indices.flatten(), self.codes)
        # The value is the chosen code; the gradient is the code's own, and the index's.
        z_q = straight_through(codes + path, codes.detach())
        terms = {
            "commit": (z_q - z).square().mean() + (codes.detach() - z).square().mean(),
            "codebook": (codes - z.detach()).square().mean(),
            "entropy": entropy.mean() + (mean * mean.clamp(min=EPS).log()).sum(),
        }
        b, _, h, w = latents.shape
        return Quantized(rearrange(z_q, "(b h w) c -> b c h w", b=b, h=h, w=w), indices, terms)

    def _soft(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give sum_k p_nk sg(e_k) [n, C], H(p_n) [n] and sum_n p_n [1, K] of a block of tokens."""
        logits = z @ codes.T  # (n, K)
        path = logits.softmax(1) @ codes.detach()
        log_p = (logits / self.temperature).log_softmax(1)
        p = log_p.exp()
        return path, -(p * log_p).sum(1), p.sum(0, keepdim=True)
