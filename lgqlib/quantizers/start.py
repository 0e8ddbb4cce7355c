"""Where a codebook starts, and how it is fitted before the encoder moves.

Annealing (`anneal`) makes the rest of training independent of where codes start: commitment pulls
an encoder onto collapsed codes early, and no later splitting undoes it.
"""

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lgqlib.quantizers.assignment import nearest

STARTS = ("random", "kmeans", "gaussian", "uniform", "far", "mean")  # how a codebook may start
EM_STEPS, HOT, COLD = 12, 1.0, 0.1  # of `anneal`: r falls over all steps but the last two
EM_NEAREST = 32  # codes an EM step looks at for a latent: at r = 1 about seven have all of it
STARVED = 0.1  # a code is starved when its share of the latents is below this part of an even one
ROWS = 4096

Latents, Codes = Float[Tensor, "n c"], Float[Tensor, "K c"]


def initial_codes(latents: Latents, num_codes: int, how: str) -> Codes:
    """Draw a codebook from latents, in one of the ways of `STARTS`; ValueError for another.

    `random`: latents themselves, each at most once where there are enough. `kmeans`: then ten steps
    of Lloyd's algorithm. `gaussian`: the normal with their mean and deviation. `uniform`: their
    box. `far`: four deviations off. `mean`: all at the mean, a thousandth of the deviation apart.
    """
    if how in ("random", "kmeans"):
        codes = _drawn(latents, num_codes)
        few = len(latents) <= num_codes
        return codes if how == "random" or few else kmeans(latents, codes, max_iter=10)
    codes = latents.new_empty(num_codes, latents.shape[1])
    if how == "uniform":
        low, high = latents.amin(0), latents.amax(0)
        return low + (high - low) * codes.uniform_()
    offset = {"gaussian": (0, 1), "far": (4, 1), "mean": (0, 1e-3)}
    if how not in offset:
        raise ValueError(f"start = {how!r}: it must be one of {', '.join(STARTS)}.")
    shift, spread = offset[how]
    deviation = latents.std(0, correction=0)
    return latents.mean(0) + deviation * (shift + spread * codes.normal_())


def _drawn(latents: Tensor, num_codes: int) -> Tensor:
    rounds = -(-num_codes // len(latents))  # more than one only where latents are fewer than codes
    order = torch.cat([torch.randperm(len(latents)) for _ in range(rounds)])[:num_codes]
    codes = latents[order.to(latents.device)].clone()
    if rounds > 1:  # equal codes would never part: a hundredth of the spread tells them apart
        codes += 0.01 * latents.std(0, correction=0) * torch.randn_like(codes)
    return codes


def kmeans(latents: Latents, codes: Codes, *, max_iter: int) -> Codes:
    """Move codes to the centers of their latents by Lloyd's algorithm, as scikit-learn does it."""
    from sklearn.cluster import KMeans  # late: it takes a second
    from sklearn.exceptions import ConvergenceWarning

    fit = KMeans(len(codes), init=codes.cpu().numpy(), n_init=1, max_iter=max_iter, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different latents than codes
        fit.fit(latents.cpu().numpy())
    return torch.from_numpy(fit.cluster_centers_).to(codes)


@torch.no_grad()
def anneal(latents: Latents, codes: Codes) -> Codes:
    """Fit codes to latents by EM steps on the free energy at a falling temperature r 2 D / C.

        e_k = sum_n p_nk z_n / sum_n p_nk,   D = mean_n ||z_n - e_hard||^2

    r = 1 is EM's own width, that of Gaussians fitted to hard assignments; r -> 0 the nearest code.
    After each step but the last two starved codes are moved (`move_starved`).
    """
    dim, generator = latents.shape[1], torch.Generator().manual_seed(0)
    distortion = _sums(latents, codes, None).share.sum()  # D of the start
    for step in range(EM_STEPS):
        r = HOT * (COLD / HOT) ** min(1.0, step / (EM_STEPS - 3))
        tau = (r * 2 * distortion / dim).clamp_min(torch.finfo(codes.dtype).tiny)
        sums = _sums(latents, codes, tau)
        fed = sums.mass > 0
        codes = torch.where(fed[:, None], sums.mean / sums.mass.clamp_min(1e-30)[:, None], codes)
        distortion = sums.share.sum()
        if step < EM_STEPS - 2:
            move_starved(codes, sums.mass, sums.share, most=len(codes), generator=generator)
    return codes


class _Sums:
    """Over latents, for each code: `mass` = mean p_nk, `mean` = mean p_nk z_n, `share` of D."""

    def __init__(self, codes: Tensor):
        self.mass, self.share = codes.new_zeros(2, len(codes))
        self.mean = torch.zeros_like(codes)


def _sums(latents: Tensor, codes: Tensor, tau: Tensor | None) -> _Sums:
    sums = _Sums(codes)
    for z in latents.split(ROWS):
        near = nearest(z, codes, EM_NEAREST if tau is not None else 1)  # (n, m)
        d = (z[:, None] - F.embedding(near, codes)).square().sum(2)
        p = (-d / tau).softmax(1) if tau is not None else torch.ones_like(d)
        flat = near.flatten()
        sums.mass.index_add_(0, flat, p.flatten())
        sums.mean.index_add_(0, flat, (p[:, :, None] * z[:, None]).flatten(0, 1))
        least, first = d.min(1, keepdim=True)
        sums.share.index_add_(0, near.gather(1, first)[:, 0], least[:, 0])
    for total in (sums.mass, sums.mean, sums.share):
        total /= len(latents)
    return sums


@torch.no_grad()
def move_starved(
    codes: Codes,
    mass: Float[Tensor, " K"],
    share: Float[Tensor, " K"],
    *,
    most: int,
    generator: torch.Generator,
) -> int:
    """Move starved codes beside those with the largest shares of the distortion, in place.

    `mass`: each code's share of the latents; `share`: what each adds to D. A starved code and its
    donor part by 0.1 sqrt(D / C) of noise, equal on all ranks, and halve both. Returns how many.
    """
    num_codes, dim = codes.shape
    starved = torch.nonzero(mass < STARVED / num_codes).flatten()
    starved = starved[mass[starved].argsort()][: min(most, num_codes // 2)]
    if len(starved) == 0:
        return 0
    able = share.masked_fill(mass < STARVED / num_codes, -1.0)  # a starved code is no donor
    donors = able.topk(len(starved)).indices
    donors = donors[able[donors] > 0]
    starved = starved[: len(donors)]
    noise = torch.randn(len(starved), dim, generator=generator).to(codes)
    apart = 0.1 * (share.sum() / dim).sqrt() * noise
    codes[starved] = codes[donors] + apart
    codes[donors] -= apart
    for value in (mass, share):
        value[donors] /= 2
        value[starved] = value[donors]
    return len(starved)
