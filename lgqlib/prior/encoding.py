"""Encoders: the nearest codes, cheaper ones, and those that decode closest for their cost."""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lgqlib.data import to_model
from lgqlib.prior.model import Prior, laid, one_thread
from lgqlib.quantizers.assignment import nearest
from lgqlib.tokenizer import Tokenizer


def tokens_of(tokenizer: Tokenizer, image: UInt8[Tensor, "3 H W"]) -> Int[Tensor, "h w"]:
    """Encode an image of any size, its last pixels repeated up to whole tokens."""
    with torch.no_grad():
        return tokenizer.encode(_whole(tokenizer, image))[0]


@torch.no_grad()
def cheaper_tokens(
    tokenizer: Tokenizer, prior: Prior, image: UInt8[Tensor, "3 H W"], *, weight: float
) -> Int[Tensor, "h w"]:
    """Encode an image into tokens that trade error for bits, along the wavefront:

        argmin_k ||z - e_k||^2 - weight (2 D / C) log p(k | context).

    At weight 0 the nearest code, at 1 what a mixture of Gaussians with these masses would choose.
    """
    points = tokenizer.quantizer.points(tokenizer.latents(_whole(tokenizer, image)))[0]
    sites, unit = tokenizer.quantizer.sites, tokenizer.width

    def choose(probs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        errors = torch.cdist(points[rows, columns], sites).square()
        return (errors - weight * unit * probs.log()).argmin(1)

    return prior.along(*points.shape[:2], choose)


@one_thread()
@torch.no_grad()
def closer_tokens(
    tokenizer: Tokenizer,
    image: UInt8[Tensor, "3 H W"],
    prior: Prior | None = None,
    *,
    weight: float = 0.5,
    candidates: int = 8,
    sweeps: int = 2,
) -> Int[Tensor, "h w"]:
    """Encode an image by what its tokens decode to and cost: of its nearest codes each takes

        argmin_k error(k) - weight (2 D / C) log p(k and the four next to it that see it),

    `error` the squared error of the 5 x 5 tokens about it, D a token's when all codes are nearest.
    Without a prior by error alone. Tokens four apart go at once, from the nearest codes on: a sweep
    decodes 16 x `candidates` times. What it gains: docs/results/prior.md, hypotheses.md.
    """
    q, image = tokenizer.quantizer, _whole(tokenizer, image)
    points = q.points(tokenizer.latents(image))[0]
    how = {"energy": q.energy, "widths": q.widths}
    near = nearest(points.flatten(0, 1), q.sites, candidates, **how)
    near = near.view(*points.shape[:2], -1)
    found = near[..., 0].clone()

    def errors(tokens: Tensor) -> Float[Tensor, "1 h w"]:
        squares = (tokenizer.decode(tokens[None]).clamp(-1, 1) - image).square().sum(1)
        return F.avg_pool2d(squares, tokenizer.config.backbone.downsample, divisor_override=1)

    def cost(tokens: Tensor, place: tuple[slice, slice]) -> Float[Tensor, "a b"]:
        around = F.avg_pool2d(errors(tokens), 5, 1, padding=2, divisor_override=1)[0][place]
        return around if prior is None else around + unit * _nats(prior, tokens, place)

    unit = weight * 2 * errors(found).mean() / q.sites.shape[1]
    for row, column in [*itertools.product(range(4), range(4))] * sweeps:
        place, costs = (slice(row, None, 4), slice(column, None, 4)), []
        for code in near[place].unbind(-1):
            tried = found.clone()
            tried[place] = code
            costs.append(cost(tried, place))
        best = torch.stack(costs, -1).argmin(-1, keepdim=True)
        found[place] = near[place].gather(-1, best)[..., 0]
    return found


def _nats(
    prior: Prior, tokens: Int[Tensor, "h w"], place: tuple[slice, slice]
) -> Float[Tensor, "a b"]:
    """Give -log p of the tokens at a place, each with those that follow next to it."""
    grid, places, offsets = laid([tokens], prior.num_codes)
    at, stride = places.view(tokens.shape)[place], tokens.shape[1] + 4
    cells = torch.stack([at + step for step in (0, 1, stride - 1, stride, stride + 1)])
    cells = cells.clamp(max=len(grid) - 1).flatten()
    inside = grid[cells] < prior.num_codes
    nats = prior(grid[cells[:, None] + offsets], grid[cells].where(inside, 0))
    return nats.where(inside, 0).view(-1, *at.shape).sum(0)


def _whole(tokenizer: Tokenizer, image: UInt8[Tensor, "3 _ _"]) -> Float[Tensor, "1 3 _ _"]:
    factor = tokenizer.config.backbone.downsample
    bottom, right = (-side % factor for side in image.shape[1:])
    padded = F.pad(to_model(image)[None], (0, right, 0, bottom), mode="replicate")
    return padded.to(next(tokenizer.parameters()).device)
