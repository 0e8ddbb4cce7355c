"""A small causal model of tokens: what a token costs when its neighbors are known.

A token map is read in an order in which every token sees the `NEIGHBORS` above it and to its left,
as vectors of the codebook, so that a code never seen here is known by where it lies. A residual
network turns them into R queries; every code has a key; and

    log p(k | context) = LSE_r <q_r, key_k> - LSE_{r, l} <q_r, key_l>.

The geometric head's keys are fixed by the codebook, but for a bias b_k: the queries are mixtures of
R Gaussians in latent space, evaluated at the codes,

    <q_r, key_k> = log w_r + log N(e_k; mu_r, s_r) + b_k,

and b_k starts at the log volume of a code's cell. Its size does not depend on K. The two others are
what language models do, a softmax over K learned keys: on the same vectors, and on embeddings.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

NEIGHBORS = (*((i, j) for i in (-2, -1) for j in range(-2, 3)), (0, -2), (0, -1))
"""Rows and columns from a token to those that it sees."""
SLOPE = 3
"""On the line j + 3 i all tokens see only lines before: a wavefront may take them at once."""
ABOVE, LEFT = NEIGHBORS.index((-1, 0)), NEIGHBORS.index((0, -1))
DRAWN = 512
"""Codes in the denominator of a training step where K is large."""
EXACT = 2048
"""K up to which every step has all codes in the denominator."""
CELLS = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Products of queries and keys that are held at once, by device: as many as a core's cache has."""


class _LogSum(torch.autograd.Function):
    """LSE_l <q, key_l> over all codes but a hidden one, in chunks: nothing is kept for backward."""

    @staticmethod
    def forward(ctx, queries, keys, hidden):
        ctx.rows = max(1, CELLS.get(queries.device.type, 1 << 17) // len(keys))
        parts = zip(queries.split(ctx.rows), hidden.split(ctx.rows), strict=True)
        out = torch.cat([_scores(q, keys, i).logsumexp(-1) for q, i in parts])
        ctx.save_for_backward(queries, keys, hidden, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        queries, keys, hidden, out = ctx.saved_tensors
        to_queries, to_keys = torch.empty_like(queries), torch.zeros_like(keys)
        for part in torch.arange(len(queries)).split(ctx.rows):
            at = slice(int(part[0]), int(part[-1]) + 1)
            share = _scores(queries[at], keys, hidden[at]).sub_(out[at, None]).exp_()
            share.mul_(gradient[at, None])
            torch.mm(share, keys, out=to_queries[at])
            to_keys.addmm_(share.T, queries[at])
        return to_queries, to_keys, None


def _scores(queries: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
    return (queries @ keys.T).scatter_(1, hidden[:, None], -torch.inf)


class Context(nn.Module):
    """The vectors of the neighbors, and for each whether it is outside the picture."""

    def __init__(self, vectors: Float[Tensor, "K c"], *, learned: bool):
        super().__init__()
        table = F.pad(vectors, (0, 1, 0, 1))  # the last row is outside
        table[-1, -1] = 1
        self.table = nn.Parameter(table) if learned else nn.Buffer(table, persistent=False)
        self.size = len(NEIGHBORS) * table.shape[1]

    def forward(self, neighbors: Int[Tensor, "n 12"]) -> Float[Tensor, "n size"]:
        return F.embedding(neighbors, self.table).flatten(1)


class Gaussians(nn.Module):
    """Queries of M Gaussians with diagonal scales; keys of the codebook's vectors and squares."""

    def __init__(self, vectors: Float[Tensor, "K c"], inputs: int, width: int, *, num: int = 4):
        super().__init__()
        dim = vectors.shape[1]
        self.shape = (num, 1 + 2 * dim)
        self.last = nn.Linear(width, num * (1 + 2 * dim))
        self.skip = nn.Linear(inputs, num * dim, bias=False)  # from the neighbors to the means
        nn.init.zeros_(self.last.weight), nn.init.zeros_(self.last.bias), nn.init.zeros_(
            self.skip.weight
        )
        scales = self.last.bias.data.view(self.shape)[:, 1 + dim :]
        scales += torch.linspace(-1.5, 0.5, num)[:, None]
        for neighbor in (ABOVE, LEFT):  # the mean of both, to begin with
            start = neighbor * (dim + 1)
            skip = self.skip.weight.data.view(num, dim, inputs)
            skip[:, :, start : start + dim] = 0.5 * torch.eye(dim)
        few = torch.cdist(vectors, vectors).topk(min(5, len(vectors)), largest=False).values
        radius = few[:, 1:].mean(1).clamp(min=1e-3)  # of the four nearest codes, not itself
        self.bias = nn.Parameter(dim * radius.log())
        vectors = torch.cat([vectors.square(), vectors, torch.ones_like(vectors[:, :1])], 1)
        self.vectors = nn.Buffer(vectors, persistent=False)

    def forward(self, h: Float[Tensor, "n w"], x: Float[Tensor, "n i"]) -> Float[Tensor, "n r f"]:
        dim = (self.shape[1] - 1) // 2
        weight, mean, log_scale = self.last(h).view(-1, *self.shape).split([1, dim, dim], -1)
        mean = mean + self.skip(x).view(mean.shape)
        log_scale = log_scale.clamp(-4, 4)
        precision = (-2 * log_scale).exp()
        rest = weight - (log_scale + precision * mean.square() / 2).sum(-1, keepdim=True)
        return torch.cat([-precision / 2, precision * mean, rest, torch.ones_like(rest)], -1)

    @property
    def keys(self) -> Float[Tensor, "K f"]:
        return torch.cat([self.vectors, self.bias[:, None]], 1)


class Softmax(nn.Module):
    """One query, and keys that are learned for each code."""

    def __init__(self, vectors: Float[Tensor, "K c"], inputs: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(vectors), width) / math.sqrt(width) / 4)
        self.bias = nn.Parameter(torch.zeros(len(vectors)))

    def forward(self, h: Float[Tensor, "n w"], x: Float[Tensor, "n i"]) -> Float[Tensor, "n 1 f"]:
        return F.pad(F.silu(h), (0, 1), value=1.0)[:, None]

    @property
    def keys(self) -> Float[Tensor, "K f"]:
        return torch.cat([self.weight, self.bias[:, None]], 1)


HEADS = {"geometric": (Gaussians, 0), "softmax": (Softmax, 0), "embeddings": (Softmax, 16)}
"""By name: the head, and the size of learned embeddings in the place of the codebook's vectors."""


class Prior(nn.Module):
    """The distribution of each token given those above it and to its left.

    Args:
        codebook: what the indices mean. Centered, and brought to one common scale, so that its
            metric stays; it is no part of the prior's state.
        head: a name in `HEADS`. ValueError for another.
    """

    def __init__(
        self, codebook: Float[Tensor, "K c"], *, head: str = "geometric", width: int = 128
    ):
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head = {head!r}: it must be one of {', '.join(HEADS)}.")
        kind, learned = HEADS[head]
        vectors = codebook.detach().float().cpu() - codebook.detach().float().cpu().mean(0)
        vectors = vectors / vectors.square().mean().sqrt().clamp(min=1e-12)
        self.num_codes = len(vectors)
        seen = torch.randn(len(vectors), learned) if learned else vectors
        self.context = Context(seen, learned=bool(learned))
        self.stem = nn.Linear(self.context.size, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(2)
        )
        self.head = kind(vectors, self.context.size, width)

    def queries(self, neighbors: Int[Tensor, "n 12"]) -> Float[Tensor, "n r f"]:
        """Give what the neighbors ask of the codes; outside the picture stands K."""
        x = self.context(neighbors)
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h, x)

    def log_probs(self, neighbors: Int[Tensor, "n 12"]) -> Float[Tensor, "n K"]:
        """Give log p of every code, in nats."""
        scores = (self.queries(neighbors) @ self.head.keys.T).logsumexp(1)
        return scores.log_softmax(-1)

    def forward(
        self,
        neighbors: Int[Tensor, "n 12"],
        tokens: Int[Tensor, " n"],
        drawn: Int[Tensor, " s"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Give -log p of tokens in nats; where `drawn`, other codes stand for all in the sum."""
        queries, keys = self.queries(neighbors), self.head.keys
        own = (queries @ keys[tokens][:, :, None])[..., 0].logsumexp(-1)
        hidden, counted = tokens, self.num_codes - 1
        if drawn is not None:
            keys = torch.cat([keys[drawn], torch.zeros_like(keys[:1])])  # the last is always hidden
            place = torch.full_like(self.head.bias, len(drawn), dtype=torch.int64)
            place[drawn] = torch.arange(len(drawn), device=drawn.device)
            hidden = place[tokens]
            counted = len(drawn) - (hidden < len(drawn)).float()
        flat = queries.flatten(0, 1)
        sums = _LogSum.apply(flat, keys, hidden.repeat_interleave(queries.shape[1]))
        others = sums.view(queries.shape[:2]).logsumexp(-1)
        return F.softplus(others + torch.as_tensor((self.num_codes - 1) / counted).log() - own)

    @torch.no_grad()
    def nll(self, indices: Int[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """Give -log2 p of every token of a map, in bits."""
        device = self.head.bias.device
        grid, places, offsets = _laid([indices.to(device)], outside=self.num_codes)
        parts = [self(grid[p[:, None] + offsets], grid[p]) for p in places.split(4096)]
        return torch.cat(parts).view(indices.shape) / math.log(2)

    @torch.no_grad()
    def along(
        self,
        height: int,
        width: int,
        choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Int[Tensor, "h w"]:
        """Fill a map along the wavefront with what `choose(log_probs, rows, columns)` gives.

        Who writes, who reads, who samples: all go this one way, so that their floats are equal.
        """
        empty = torch.full((height, width), 0, device=self.head.bias.device)
        grid, _, offsets = _laid([empty], outside=self.num_codes)
        stride = width + 4
        for line in range(width + SLOPE * (height - 1)):
            first = max(0, -(-(line - width + 1) // SLOPE))
            rows = torch.arange(first, min(height - 1, line // SLOPE) + 1, device=grid.device)
            columns = line - SLOPE * rows
            places = (rows + 2) * stride + columns + 2
            log_probs = self.log_probs(grid[places[:, None] + offsets])
            grid[places] = choose(log_probs, rows, columns)
        return grid.view(-1, stride)[2:, 2:-2].clone()

    def probs(self, neighbors: Int[Tensor, "n 12"]) -> Float[Tensor, "n K"]:
        """Give p of every code."""
        return self.log_probs(neighbors).exp()

    def sample(self, height: int, width: int, *, seed: int = 0) -> Int[Tensor, "h w"]:
        """Draw a token map."""
        random = torch.Generator(self.head.bias.device).manual_seed(seed)
        return self.along(
            height,
            width,
            lambda log_probs, *_: torch.multinomial(log_probs.exp(), 1, generator=random)[:, 0],
        )


def _laid(
    maps: Sequence[Int[Tensor, "_ _"]], *, outside: int
) -> tuple[Int[Tensor, " cells"], Int[Tensor, " tokens"], Int[Tensor, " 12"]]:
    """Lay maps out below each other, framed by `outside`: all cells, the tokens' places in them,
    and the way from a place to its neighbors'.
    """
    stride = max(m.shape[1] for m in maps) + 4
    framed = [F.pad(m.long(), (2, stride - 2 - m.shape[1], 2, 0), value=outside) for m in maps]
    grid = torch.cat(framed).flatten()
    offsets = torch.tensor([i * stride + j for i, j in NEIGHBORS], device=grid.device)
    return grid, (grid != outside).nonzero()[:, 0], offsets


def fit(
    codebook: Float[Tensor, "K c"],
    maps: Sequence[Int[Tensor, "_ _"]],
    *,
    head: str = "geometric",
    num_steps: int = 1500,
    seed: int = 0,
    batch_size: int = 512,
    lr: float = 2e-3,
    device: str = "",
    progress: bool = True,
) -> Prior:
    """Fit a prior to the token maps of training images, by so many steps of Adam.

    The same for the same seed. With K above `EXACT` the first two thirds of the steps draw codes
    for the denominator. `device`: by default a GPU when there is one.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = Prior(codebook, head=head).to(device)
    random = torch.Generator().manual_seed(seed)
    grid, places, offsets = (x.to(device) for x in _laid(maps, outside=prior.num_codes))
    bias = [prior.head.bias]
    rest = [p for p in prior.parameters() if p is not prior.head.bias]
    rates = (lr, 10 * lr if head == "geometric" else lr)
    groups = [{"params": p, "lr": r} for p, r in zip((rest, bias), rates, strict=True)]
    optimizer = torch.optim.Adam(groups, fused=True)
    for step in tqdm(range(num_steps), desc=f"prior, {head}", disable=not progress):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            done = step / num_steps
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * done)) / 2
        chosen = places[torch.randint(len(places), (batch_size,), generator=random).to(device)]
        drawn = None
        if prior.num_codes > EXACT and 3 * step < 2 * num_steps:
            drawn = torch.randperm(prior.num_codes, generator=random)[:DRAWN].to(device)
        loss = prior(grid[chosen[:, None] + offsets], grid[chosen], drawn).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.requires_grad_(False).eval()
