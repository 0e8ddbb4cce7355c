"""Where a codebook starts: from real latents, once, before training."""

import torch
from jaxtyping import Float
from torch import Tensor

from lgqlib.quantizers.assignment import hard_assign

LLOYD_STEPS = 10


def initial_codes(latents: Float[Tensor, "n c"], num_codes: int, how: str) -> Float[Tensor, "K c"]:
    """Draw a codebook from latents.

    `random`: latents themselves, each at most once where there are enough; `kmeans`: the same,
    moved by Lloyd's algorithm;
    `gaussian`: the normal with the latents' mean and per-channel deviation; `uniform`: their box,
    every channel on its own.
    Raises ValueError for another name.
    """
    if how == "random":
        return _draw(latents, num_codes)
    if how == "kmeans":
        if len(latents) <= num_codes:  # nothing to move: each latent has a code of its own
            return _draw(latents, num_codes)
        return _lloyd(latents, _draw(latents, num_codes))
    shape = (num_codes, latents.shape[1])
    if how == "gaussian":
        noise = torch.randn(shape, device=latents.device, dtype=latents.dtype)
        return latents.mean(0) + latents.std(0, correction=0) * noise
    if how == "uniform":
        low, high = latents.amin(0), latents.amax(0)
        return low + (high - low) * torch.rand(shape, device=latents.device, dtype=latents.dtype)
    raise ValueError(
        f"initialization = {how!r}: it must be 'random', 'kmeans', 'gaussian' or 'uniform'."
    )


def _draw(latents: Tensor, num_codes: int) -> Tensor:
    rounds = -(-num_codes // len(latents))  # more than one only where latents are fewer than codes
    order = torch.cat([torch.randperm(len(latents)) for _ in range(rounds)])[:num_codes]
    codes = latents[order.to(latents.device)].clone()
    if rounds > 1:  # equal codes would never part: a hundredth of the spread tells them apart
        codes += 0.01 * latents.std(0, correction=0) * torch.randn_like(codes)
    return codes


def _lloyd(latents: Tensor, codes: Tensor) -> Tensor:
    for _ in range(LLOYD_STEPS):
        indices = hard_assign(latents, codes)
        counts = torch.bincount(indices, minlength=len(codes))
        sums = torch.zeros_like(codes).index_add_(0, indices, latents)
        codes = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], codes)
        dead = torch.nonzero(counts == 0).flatten()
        if len(dead):  # an empty cell takes a latent, so that no code is wasted
            again = torch.randint(len(latents), (len(dead),)).to(latents.device)
            codes[dead] = latents[again]
    return codes
