"""A small causal model of tokens: what a token costs when its neighbors are known.

Every token sees its `NEIGHBORS`, above and to the left, as vectors of the codebook: a code that was
never seen there is known by where it lies. A residual network turns them into R queries, every code
k has a key, and

    log p(k | neighbors) = LSE_r <q_r, key_k> - LSE_{r, l} <q_r, key_l>.

The geometric head's queries are R Gaussians in latent space, evaluated at the codes e_k:

    <q_r, key_k> = log w_r + log N(e_k; mu_r, s_r) + b_k,    key_k = (e_k^2, e_k, 1, b_k),

with b_k started at the log volume of a code's cell. Two baselines learn their keys, as language
models do: a softmax over K on the same vectors, and one on embeddings.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgqlib.files import read_arrays, write_arrays
from lgqlib.prior.heads import HEADS, NEIGHBORS, LogSum, shares

SLOPE = 3
"""A token at row i, column j sees only tokens of smaller j + 3 i: those of a line go at once."""
WIDEST = 8
"""Channels of a code's vector that the prior looks at."""
EXACT, DRAWN = 2048, 512
"""K up to which every training step sums over all codes, and how many codes stand for more."""


class Prior(nn.Module):
    """The distribution of every token given its neighbors.

    Args:
        codebook: what indices mean, centered here and brought to one common scale, so that its
            metric stays. It is no part of the state.
        head: a name in `HEADS`; ValueError for another.
    """

    def __init__(self, codebook: Float[Tensor, "K c"], *, head: str = "geometric", width=128):
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head = {head!r}: it must be one of {', '.join(HEADS)}.")
        (kind, embedded), codes = HEADS[head], codebook.detach().float().cpu()
        vectors = principal(codes - codes.mean(0))
        vectors = vectors / vectors.square().mean().sqrt().clamp(min=1e-12)
        self.num_codes, self.kind = len(vectors), head
        table = F.pad(torch.randn(len(codes), embedded) if embedded else vectors, (0, 1, 0, 1))
        table[-1, -1] = 1  # outside the picture: no vector, and a flag
        self.table = nn.Parameter(table) if embedded else nn.Buffer(table, persistent=False)
        inputs = len(NEIGHBORS) * table.shape[1]
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(2)
        )
        self.head = kind(vectors, inputs, width)

    def queries(self, neighbors: Int[Tensor, "n 12"]) -> Float[Tensor, "n r f"]:
        """Give what the neighbors ask of the codes; K stands for outside the picture."""
        x = F.embedding(neighbors, self.table).flatten(1)  # (n, 12 (c + 1))
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h, x)

    def probs(self, neighbors: Int[Tensor, "n 12"]) -> Float[Tensor, "n K"]:
        """Give p of every code."""
        share = shares(self.queries(neighbors) @ self.head.keys.T)[0].sum(1)
        return share / share.sum(-1, keepdim=True)

    def forward(
        self,
        neighbors: Int[Tensor, "n 12"],
        tokens: Int[Tensor, " n"],
        drawn: Int[Tensor, " s"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Give -log p of tokens, in nats; where `drawn`, those codes stand for all the others."""
        queries, keys = self.queries(neighbors), self.head.keys
        own = (queries @ keys[tokens][:, :, None])[..., 0].logsumexp(-1)
        hidden, weight = tokens, torch.zeros(())
        if drawn is not None:
            never = F.pad(torch.full_like(keys[:1, :1], -1e4), (keys.shape[1] - 1, 0))
            keys = torch.cat([keys[drawn], never])  # hidden where the token itself is not drawn
            place = torch.full((self.num_codes,), len(drawn), device=drawn.device)
            place[drawn] = torch.arange(len(drawn), device=drawn.device)
            hidden = place[tokens]
            weight = ((self.num_codes - 1) / (len(drawn) - (hidden < len(drawn)).float())).log()
        hidden = hidden.repeat_interleave(queries.shape[1])
        others = LogSum.apply(queries.flatten(0, 1), keys, hidden).view(queries.shape[:2])
        return F.softplus(others.logsumexp(-1) + weight - own)

    @torch.no_grad()
    def nll(self, indices: Int[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """Give -log2 p of every token of a map, in bits; of a single code they cost none."""
        if self.num_codes == 1:
            return torch.zeros(indices.shape)
        indices = indices.to(self.stem.weight.device)
        grid, places, offsets = laid([indices], self.num_codes)
        parts = [self(grid[p[:, None] + offsets], grid[p]) for p in places.split(4096)]
        return torch.cat(parts).view(indices.shape) / math.log(2)

    @torch.no_grad()
    def along(self, height: int, width: int, choose: Callable) -> Int[Tensor, "h w"]:
        """Fill a map along the wavefront with what `choose(probs, rows, columns)` gives.

        Who writes, who reads and who samples go this one way: so their floats are equal.
        """
        grid, stride = torch.full(((height + 2) * (width + 4),), self.num_codes), width + 4
        grid = grid.to(self.stem.weight.device)
        offsets = torch.tensor([i * stride + j for i, j in NEIGHBORS], device=grid.device)
        with one_thread():
            for line in range(width + SLOPE * (height - 1)):
                first, last = max(0, -((width - 1 - line) // SLOPE)), min(height - 1, line // SLOPE)
                rows = torch.arange(first, last + 1, device=grid.device)
                columns = line - SLOPE * rows
                places = (rows + 2) * stride + columns + 2
                if len(rows):
                    probs = self.probs(grid[places[:, None] + offsets])
                    grid[places] = choose(probs, rows, columns)
        return grid.view(-1, stride)[2:, 2:-2].clone()

    def sample(self, height: int, width: int, *, seed: int = 0) -> Int[Tensor, "h w"]:
        """Draw a token map."""
        random = torch.Generator(self.stem.weight.device).manual_seed(seed)

        def draw(probs: Tensor, *_) -> Tensor:
            return torch.multinomial(probs, 1, generator=random)[:, 0]

        return self.along(height, width, draw)

    def save(self, path: Path | str) -> None:
        """Write the prior as safetensors; its codebook stays with the tokenizer."""
        state = {name: value.cpu().numpy() for name, value in self.state_dict().items()}
        write_arrays(Path(path), state, {"head": self.kind})

    @classmethod
    def load(cls, path: Path | str, codebook: Float[Tensor, "K c"]) -> "Prior":
        """Read a prior for a codebook. ValueError when it is damaged or of another codebook."""
        arrays, about = read_arrays(Path(path))
        prior = cls(codebook, head=about["head"])
        try:
            prior.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
        except RuntimeError as error:
            raise ValueError(f"{path} is not of this codebook ({error}).") from None
        return prior.requires_grad_(False).eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: their number changes last digits, and small steps only wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def principal(vectors: Float[Tensor, "K c"]) -> Float[Tensor, "K d"]:
    """Keep the `WIDEST` principal components of vectors that have more, each with a sign of its
    own: Gaussians of many channels are learned slowly.
    """
    if vectors.shape[1] <= WIDEST:
        return vectors
    axes = torch.linalg.svd(vectors.double(), full_matrices=False)[2][:WIDEST]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return vectors @ (axes * largest.sign()).T.float()


def laid(maps: Sequence[Int[Tensor, "_ _"]], outside: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lay maps out below each other, framed by `outside`: give all cells, where the tokens are in
    them, and how far it is from a token to its neighbors.
    """
    stride = max(indices.shape[1] for indices in maps) + 4
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
    device: str = "",
    lr: float = 5e-3,
    batch_size: int = 512,
    progress: bool = True,
) -> Prior:
    """Fit a prior to the token maps of training images, in so many steps; the same for a seed.

    Above K = `EXACT` two thirds of the steps draw the codes of the denominator. `device`: by
    default a GPU when there is one.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = Prior(codebook, head=head).to(device)
    random = torch.Generator().manual_seed(seed)
    grid, places, offsets = (part.to(device) for part in laid(maps, prior.num_codes))
    bias, geometric = prior.head.bias, head == "geometric"
    rest = [parameter for parameter in prior.parameters() if parameter is not bias]
    groups = [{"params": rest}, {"params": [bias], "lr": (10 if geometric else 1) * lr}]
    optimizer = torch.optim.Adam(groups, lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 20) * (1 + math.cos(math.pi * i / num_steps)) / 2
    )
    for step in tqdm(range(num_steps), desc=f"prior, {head}", disable=not progress):
        at = places[torch.randint(len(places), (batch_size,), generator=random).to(device)]
        drawn = None
        if prior.num_codes > EXACT and 3 * step < 2 * num_steps:
            drawn = torch.randperm(prior.num_codes, generator=random)[:DRAWN].to(device)
        optimizer.zero_grad()
        prior(grid[at[:, None] + offsets], grid[at], drawn).mean().backward()
        optimizer.step()
        schedule.step()
    return prior.requires_grad_(False).eval()
