"""What queries ask of codes: Gaussians evaluated at the codebook, or a softmax over learned keys.

Both are a product of queries and keys, whose sum over all codes is taken in chunks.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lgqlib.quantizers.assignment import FLOOR

CELLS = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Products of queries and keys at once, by device: as many as a core's cache holds."""
NEIGHBORS = (*((i, j) for i in (-2, -1) for j in range(-2, 3)), (0, -2), (0, -1))
"""Rows and columns from a token to those that it sees."""


def shares(products: Float[Tensor, "n *k"]) -> tuple[Tensor, Tensor]:
    """Give exp of products over a row's largest, and that largest."""
    dims = tuple(range(1, products.ndim))
    top = products.detach().amax(dims, keepdim=True).clamp(min=torch.finfo(products.dtype).min)
    return (products - top).clamp(min=FLOOR).exp(), top


class LogSum(torch.autograd.Function):
    """LSE_l <q, key_l> over all keys but a hidden one, in chunks that backward computes again."""

    @staticmethod
    def forward(ctx, queries, keys, hidden):
        ctx.rows = max(1, CELLS.get(queries.device.type, CELLS["cpu"]) // len(keys))
        chunks = zip(queries.split(ctx.rows), hidden.split(ctx.rows), strict=True)
        parts = [shares(LogSum.scores(q, keys, h)) for q, h in chunks]
        out = torch.cat([share.sum(1).log_() + top[:, 0] for share, top in parts])
        ctx.save_for_backward(queries, keys, hidden, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        queries, keys, hidden, out = ctx.saved_tensors
        to_queries, to_keys = torch.empty_like(queries), torch.zeros_like(keys)
        for start in range(0, len(queries), ctx.rows):
            at = slice(start, start + ctx.rows)
            share = LogSum.scores(queries[at], keys, hidden[at]).sub_(out[at, None])
            share.clamp_(min=FLOOR).exp_().mul_(gradient[at, None])
            torch.mm(share, keys, out=to_queries[at])
            to_keys.addmm_(share.T, queries[at])
        return to_queries, to_keys, None

    @staticmethod
    def scores(queries, keys, hidden):
        return (queries @ keys.T).scatter_(1, hidden[:, None], -torch.inf)


class Gaussians(nn.Module):
    """R Gaussians with diagonal scales; their means start at that of the tokens above and left."""

    def __init__(self, vectors: Float[Tensor, "K c"], inputs: int, width: int, *, num: int = 4):
        super().__init__()
        dim = vectors.shape[1]
        self.shape = (num, 1 + 2 * dim)
        self.last, self.skip = nn.Linear(width, math.prod(self.shape)), nn.Linear(inputs, num * dim)
        for parameter in (*self.last.parameters(), *self.skip.parameters()):
            nn.init.zeros_(parameter)
        scales = torch.linspace(-1.5, 0.5, num)[:, None]
        self.last.bias.data.view(self.shape)[:, 1 + dim :] = scales
        for neighbor in (NEIGHBORS.index((-1, 0)), NEIGHBORS.index((0, -1))):
            seen = slice(neighbor * (dim + 1), neighbor * (dim + 1) + dim)
            self.skip.weight.data.view(num, dim, inputs)[:, :, seen] = 0.5 * torch.eye(dim)
        few = torch.cdist(vectors, vectors).topk(min(5, len(vectors)), largest=False).values
        self.bias = nn.Parameter(dim * few[:, 1:].mean(1).clamp(min=1e-3).log())
        fixed = torch.cat([vectors.square(), vectors, torch.ones_like(vectors[:, :1])], 1)
        self.fixed = nn.Buffer(fixed, persistent=False)

    @property
    def keys(self) -> Float[Tensor, "K f"]:
        return torch.cat([self.fixed, self.bias[:, None]], 1)

    def forward(self, h: Float[Tensor, "n w"], x: Float[Tensor, "n i"]) -> Float[Tensor, "n r f"]:
        dim = self.shape[1] // 2
        log_w, mean, log_s = self.last(h).view(-1, *self.shape).split([1, dim, dim], -1)
        mean, log_s = mean + self.skip(x).view(mean.shape), log_s.clamp(-4, 4)
        precision = (-2 * log_s).exp()
        rest = log_w - (log_s + precision * mean.square() / 2).sum(-1, keepdim=True)
        return torch.cat([-precision / 2, precision * mean, rest, torch.ones_like(rest)], -1)


class Softmax(nn.Module):
    """One query, and a key for each code that is learned."""

    def __init__(self, vectors: Float[Tensor, "K c"], inputs: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(vectors), width) / math.sqrt(width) / 4)
        self.bias = nn.Parameter(torch.zeros(len(vectors)))

    @property
    def keys(self) -> Float[Tensor, "K f"]:
        return torch.cat([self.weight, self.bias[:, None]], 1)

    def forward(self, h: Float[Tensor, "n w"], x: Float[Tensor, "n i"]) -> Float[Tensor, "n 1 f"]:
        return F.pad(F.silu(h), (0, 1), value=1.0)[:, None]


HEADS = {"geometric": (Gaussians, 0), "softmax": (Softmax, 0), "embeddings": (Softmax, 16)}
"""By name: the head, and the size of embeddings that stand for the codebook's vectors, if any."""
