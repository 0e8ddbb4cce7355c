"""Assign softly in fused Triton kernels for NVIDIA GPUs, forward and backward.

Three walks over the scores `l_nk = -w_k d_nk`, none of which writes a `[tokens, codes]` tensor:
token blocks over all codes with an online softmax; code blocks over all tokens for the usage and,
in the backward, for the codes; token blocks again for the latents. The backward sorts tokens by
their nearest code and marks the tiles in which any weight is visible beside 1; the others end after
one product, and are not read again for the codes.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

PRODUCTS = {"float32": "ieee", "tf32x3": "tf32x3", "tf32": "tf32", "bf16": "tf32"}
TILES = {"float32": (32, 32), "tf32x3": (64, 32), "tf32": (64, 64), "bf16": (64, 64)}
"""Tokens and codes of a tile, as large as registers hold it; marks are shared between kernels."""
ENERGY = {"squared": 0, "norm": 1, "cosine": 2, "dot": 3}
MAX_DIM = 256  # channels that fit the registers of a block
LOW = tl.constexpr(-1e30)  # in place of -inf, which makes nan of differences
PROGRAMS = 528  # keep a large GPU busy
INTERPRETED = triton.knobs.runtime.interpret
LAUNCHES = [
    triton.Config({}, num_warps=warps, num_stages=stages)
    for warps, stages in ((8, 1), (4, 2), (4, 3), (8, 2), (8, 3))
][: 1 if INTERPRETED else None]


def _fitting(configs, named, **options):
    """Leave exact products, which are no matter of tensor cores, to many threads."""
    exact = options["PRODUCT"] == "ieee"
    return [config for config in configs if (config.num_stages == 1) == exact]


def _tuned(kernel):
    """Compile a kernel, and measure once for each kind of call how to launch it."""
    keys = ["DIM", "TOKENS", "CODES", "ENERGY", "PRODUCT", "SHARED", "SOFT", "EVEN"]
    known = [key for key in keys if key in kernel.__code__.co_varnames]
    prune = {"early_config_prune": _fitting}
    return triton.autotune(configs=LAUNCHES, key=known, prune_configs_by=prune)(triton.jit(kernel))


@triton.jit
def _rows(base, rows, count, dim, DIM: tl.constexpr):
    """Load rows of a `[count, dim]` matrix, zero outside of it."""
    channels = tl.arange(0, DIM)
    inside = (rows[:, None] < count) & (channels[None, :] < dim)
    return tl.load(base + rows[:, None] * dim + channels[None, :], mask=inside, other=0.0)


@triton.jit
def _times(a, b, total, PRODUCT: tl.constexpr, WIDEN: tl.constexpr):
    """Add `a @ b` to `total` in float32; the first follows the second's type."""
    a = a.to(b.dtype)
    if WIDEN:  # the interpreter multiplies no bf16; products of its values are exact in float32
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRODUCT)


@triton.jit
def _energies(product, xx, yy, ENERGY: tl.constexpr):
    """Turn products `x . y` into energies; `xx` is zero where a token's constant is left out."""
    if ENERGY == 0:
        return xx + yy - 2 * product
    if ENERGY == 1:
        return tl.sqrt(tl.maximum(xx + yy - 2 * product, 0.0))
    if ENERGY == 2:
        return 1 - product
    return -product


@_tuned
def _forward(
    x, y, values, xx, yy, w, average, best, log_mass, collision, entropy, index, margin,
    num_tokens, num_codes, dim,
    DIM: tl.constexpr, TOKENS: tl.constexpr, CODES: tl.constexpr, ENERGY: tl.constexpr,
    PRODUCT: tl.constexpr, WIDEN: tl.constexpr, SHARED: tl.constexpr, SOFT: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    seen = n < num_tokens
    xs = _rows(x, n, num_tokens, dim, DIM)
    xx_n = tl.load(xx + n, mask=seen, other=0.0)
    top = tl.full([TOKENS], LOW, tl.float32)
    second = tl.full([TOKENS], LOW, tl.float32)
    first = tl.zeros([TOKENS], tl.int64)
    mass = tl.zeros([TOKENS], tl.float32)
    square = tl.zeros([TOKENS], tl.float32)
    mean = tl.zeros([TOKENS], tl.float32)
    total = tl.zeros([TOKENS, DIM], tl.float32)
    for start in range(0, num_codes, CODES):
        k = start + tl.arange(0, CODES).to(tl.int64)
        ys = _rows(y, k, num_codes, dim, DIM)
        yy_k = tl.load(yy + k, mask=k < num_codes, other=0.0)
        w_k = tl.load(w + k, mask=k < num_codes, other=0.0)
        product = _times(xs, tl.trans(ys), tl.zeros([TOKENS, CODES], tl.float32), PRODUCT, WIDEN)
        score = -w_k[None, :] * _energies(product, xx_n[:, None], yy_k[None, :], ENERGY)
        score = tl.where(k[None, :] < num_codes, score, LOW)
        here = tl.max(score, 1)
        where = tl.argmax(score, 1, tie_break_left=True)
        rest = tl.max(tl.where(tl.arange(0, CODES)[None, :] == where[:, None], LOW, score), 1)
        second = tl.maximum(tl.maximum(second, rest), tl.minimum(top, here))
        first = tl.where(here > top, start + where, first)
        newest = tl.maximum(top, here)
        if SOFT:
            fall = tl.maximum(top - newest, -1e4)
            shrink = tl.exp(fall)
            below = score - newest[:, None]
            p = tl.exp(below)
            mean = (mean + fall * mass) * shrink + tl.sum(p * below, 1)
            mass = mass * shrink + tl.sum(p, 1)
            square = square * shrink * shrink + tl.sum(p * p, 1)
            vs = ys if SHARED else _rows(values, k, num_codes, dim, DIM)
            total = _times(p, vs, total * shrink[:, None], PRODUCT, WIDEN)
        top = newest
    tl.store(index + n, first, mask=seen)
    tl.store(margin + n, top - second, mask=seen)
    if SOFT:
        channels = tl.arange(0, DIM)
        inside = seen[:, None] & (channels[None, :] < dim)
        tl.store(average + n[:, None] * dim + channels[None, :], total / mass[:, None], mask=inside)
        tl.store(best + n, top, mask=seen)
        tl.store(log_mass + n, tl.log(mass), mask=seen)
        tl.store(collision + n, square / (mass * mass), mask=seen)
        tl.store(entropy + n, tl.log(mass) - mean / mass, mask=seen)


@triton.jit
def _log_weights(
    xs, ys, xx, yy, w, shift, seen,
    ENERGY: tl.constexpr, PRODUCT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Return `log p` and the energies of a tile, whichever way round it lies."""
    empty = tl.zeros([xs.shape[0], ys.shape[0]], tl.float32)
    product = _times(xs, tl.trans(ys), empty, PRODUCT, WIDEN)
    d = _energies(product, xx, yy, ENERGY)
    return tl.where(seen, -w * d - shift, LOW), d


@_tuned
def _usage(
    x, y, xx, yy, w, shift, usage, num_tokens, num_codes, dim, per_part,
    DIM: tl.constexpr, TOKENS: tl.constexpr, CODES: tl.constexpr, ENERGY: tl.constexpr,
    PRODUCT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(tl.int64) * CODES + tl.arange(0, CODES)
    ys = _rows(y, k, num_codes, dim, DIM)
    yy_k = tl.load(yy + k, mask=k < num_codes, other=0.0)
    w_k = tl.load(w + k, mask=k < num_codes, other=0.0)
    total = tl.zeros([CODES], tl.float32)
    begin = tl.program_id(1).to(tl.int64) * per_part
    for start in range(begin, tl.minimum(begin + per_part, num_tokens), TOKENS):
        n = start + tl.arange(0, TOKENS).to(tl.int64)
        seen = n < num_tokens
        log_p, _ = _log_weights(
            ys, _rows(x, n, num_tokens, dim, DIM),
            tl.load(xx + n, mask=seen, other=0.0)[None, :], yy_k[:, None], w_k[:, None],
            tl.load(shift + n, mask=seen, other=0.0)[None, :],
            (k[:, None] < num_codes) & seen[None, :], ENERGY, PRODUCT, WIDEN,
        )  # fmt: skip
        total += tl.sum(tl.exp(log_p), 1)
    tl.store(usage + tl.program_id(1).to(tl.int64) * num_codes + k, total, mask=k < num_codes)


@triton.jit
def _slope(w, d, ENERGY: tl.constexpr, EVEN: tl.constexpr):
    """Return the slope of a score in `x . y`, but for a factor common to all pairs."""
    if ENERGY == 1:
        return tl.where(d > 0, w / tl.where(d > 0, d, 1.0), 0.0)
    if EVEN:
        return tl.zeros_like(d) + 1.0
    return tl.zeros_like(d) + w


@_tuned
def _latents(
    x, y, values, xx, yy, w, shift, from_average, from_usage, from_collision, from_entropy,
    from_all, common, average, scale, dx, spread, offset, marks, num_tokens, num_codes, dim, reach,
    DIM: tl.constexpr, TOKENS: tl.constexpr, CODES: tl.constexpr, ENERGY: tl.constexpr,
    PRODUCT: tl.constexpr, WIDEN: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    n = block * TOKENS + tl.arange(0, TOKENS)
    seen = n < num_tokens
    xs = _rows(x, n, num_tokens, dim, DIM)
    gs = _rows(from_average, n, num_tokens, dim, DIM)
    xx_n = tl.load(xx + n, mask=seen, other=0.0)
    shift_n = tl.load(shift + n, mask=seen, other=0.0)
    collision_n = tl.load(from_collision + n, mask=seen, other=0.0)
    entropy_n = tl.load(from_entropy + n, mask=seen, other=0.0)
    common_n = tl.load(common + n, mask=seen, other=0.0)
    mean = tl.zeros([TOKENS], tl.float32)  # sum_k p q
    logs = tl.zeros([TOKENS], tl.float32)  # sum_k p q log p
    pulled = tl.zeros([TOKENS], tl.float32)  # sum_k p q f, f the slope in x . y
    rested = tl.zeros([TOKENS], tl.float32)  # sum_k p f
    pull = tl.zeros([TOKENS, DIM], tl.float32)  # sum_k p q f y
    rest = tl.zeros([TOKENS, DIM], tl.float32)  # sum_k p f y
    for start in range(0, num_codes, CODES):
        k = start + tl.arange(0, CODES).to(tl.int64)
        ys = _rows(y, k, num_codes, dim, DIM)
        w_k = tl.load(w + k, mask=k < num_codes, other=0.0)
        log_p, d = _log_weights(
            xs, ys, xx_n[:, None], tl.load(yy + k, mask=k < num_codes, other=0.0)[None, :],
            w_k[None, :], shift_n[:, None], seen[:, None] & (k[None, :] < num_codes),
            ENERGY, PRODUCT, WIDEN,
        )  # fmt: skip
        visible = tl.max(tl.max(log_p, 1), 0) > -reach
        tile = block * tl.cdiv(num_codes, CODES) + start // CODES
        tl.store(marks + tile, visible.to(tl.int8))
        if visible:
            p = tl.exp(log_p)
            vs = ys if SHARED else _rows(values, k, num_codes, dim, DIM)
            q = _times(gs, tl.trans(vs), tl.zeros([TOKENS, CODES], tl.float32), PRODUCT, WIDEN)
            q += tl.load(from_usage + k, mask=k < num_codes, other=0.0)[None, :]
            q += 2 * collision_n[:, None] * p
            q -= entropy_n[:, None] * log_p + common_n[:, None]
            pq = p * tl.where(p > 0, q, 0.0)
            f = _slope(w_k[None, :], d, ENERGY, EVEN)
            mean += tl.sum(pq, 1)
            logs += tl.sum(pq * tl.maximum(log_p, -reach), 1)
            pulled += tl.sum(pq * f, 1)
            pull = _times(pq * f, ys, pull, PRODUCT, WIDEN)
            rested += tl.sum(p * f, 1)
            if not EVEN:
                rest = _times(p * f, ys, rest, PRODUCT, WIDEN)
    if EVEN:
        rest = _rows(average, n, num_tokens, dim, DIM).to(tl.float32)
    mean += tl.load(from_all + n, mask=seen, other=0.0)
    slope = pull - mean[:, None] * rest
    if ENERGY < 2:
        exact = _rows(x, n, num_tokens, dim, DIM).to(tl.float32)
        slope -= exact * (pulled - mean * rested)[:, None]
    channels = tl.arange(0, DIM)
    inside = seen[:, None] & (channels[None, :] < dim)
    place = n[:, None] * dim + channels[None, :]
    tl.store(dx + place, slope * tl.load(scale), mask=inside)
    tl.store(spread + n, logs, mask=seen)
    tl.store(offset + n, mean + common_n, mask=seen)


@_tuned
def _codes(
    x, y, values, xx, yy, w, shift, from_average, from_usage, from_collision, from_entropy,
    offset, log_sum, scale, dy, dv, dw, marks, num_tokens, num_codes, dim, per_part,
    DIM: tl.constexpr, TOKENS: tl.constexpr, CODES: tl.constexpr, ENERGY: tl.constexpr,
    PRODUCT: tl.constexpr, WIDEN: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    block, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    k = block * CODES + tl.arange(0, CODES)
    known = k < num_codes
    ys = _rows(y, k, num_codes, dim, DIM)
    vs = ys if SHARED else _rows(values, k, num_codes, dim, DIM)
    yy_k = tl.load(yy + k, mask=known, other=0.0)
    w_k = tl.load(w + k, mask=known, other=0.0)
    usage_k = tl.load(from_usage + k, mask=known, other=0.0)
    common_factor = tl.load(scale)
    to_y = tl.zeros([CODES, DIM], tl.float32)
    to_v = tl.zeros([CODES, DIM], tl.float32)
    to_w = tl.zeros([CODES], tl.float32)
    pulled = tl.zeros([CODES], tl.float32)
    begin = part * per_part
    for start in range(begin, tl.minimum(begin + per_part, num_tokens), TOKENS):
        if tl.load(marks + start // TOKENS * tl.cdiv(num_codes, CODES) + block) > 0:
            n = start + tl.arange(0, TOKENS).to(tl.int64)
            seen = n < num_tokens
            xs = _rows(x, n, num_tokens, dim, DIM)
            gs = _rows(from_average, n, num_tokens, dim, DIM)
            log_p, d = _log_weights(
                ys, xs, tl.load(xx + n, mask=seen, other=0.0)[None, :], yy_k[:, None],
                w_k[:, None], tl.load(shift + n, mask=seen, other=0.0)[None, :],
                known[:, None] & seen[None, :], ENERGY, PRODUCT, WIDEN,
            )  # fmt: skip
            p = tl.exp(log_p)
            q = _times(vs, tl.trans(gs), tl.zeros([CODES, TOKENS], tl.float32), PRODUCT, WIDEN)
            q += usage_k[:, None]
            q += 2 * tl.load(from_collision + n, mask=seen, other=0.0)[None, :] * p
            q -= tl.load(from_entropy + n, mask=seen, other=0.0)[None, :] * log_p
            q -= tl.load(offset + n, mask=seen, other=0.0)[None, :]
            slope = p * tl.where(p > 0, q, 0.0)
            whole = log_p + tl.load(log_sum + n, mask=seen, other=0.0)[None, :]
            to_w += tl.sum(slope * tl.where(p > 0, whole, 0.0), 1)
            slope *= _slope(w_k[:, None], d, ENERGY, EVEN) * common_factor
            if SHARED:
                to_y = _times(p, gs, to_y, PRODUCT, WIDEN)
            else:
                to_v = _times(p, gs, to_v, PRODUCT, WIDEN)
            pulled += tl.sum(slope, 1)
            to_y = _times(slope, xs, to_y, PRODUCT, WIDEN)
    if ENERGY < 2:
        to_y -= ys.to(tl.float32) * pulled[:, None]
    channels = tl.arange(0, DIM)
    inside = known[:, None] & (channels[None, :] < dim)
    place = (part * num_codes + k[:, None]) * dim + channels[None, :]
    tl.store(dy + place, to_y, mask=inside)
    if not SHARED:
        tl.store(dv + place, to_v, mask=inside)
    tl.store(dw + part * num_codes + k, to_w, mask=known)


class FusedAssign(torch.autograd.Function):
    """Return average, free energy, collision, entropy, usage, indices and margins.

    Arguments: latents and codes where distances are taken, the values to average (`None`: the
    codes), tau, widths, energy, products; float32 on the GPU. Usage is summed over tokens. Indices
    are right wherever the margin, by which a score wins, exceeds the rounding of products.
    """

    @staticmethod
    def forward(ctx, x, y, values, tau, widths, energy, products):
        ctx.energy, ctx.products = energy, products
        side = _Side(x, y, values, tau, widths, energy, products)
        average, (best, log_mass, collision, entropy, margin), index = side.forward()
        usage = side.usage(best + log_mass)
        log_sum = log_mass - side.weights[index] * _energy_of(x, y[index], energy)
        ctx.save_for_backward(
            x, y, values, tau, widths, average, best, log_mass, collision, entropy, index, log_sum
        )
        ctx.mark_non_differentiable(index, margin)
        ctx.set_materialize_grads(False)
        return average, -tau * log_sum, collision, entropy, usage, index, margin

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        x, y, values, tau, widths, *totals, index, log_sum = ctx.saved_tensors
        order = index.argsort()  # tokens that share codes share tiles
        totals = _Totals(*(t[order] for t in (*totals, log_sum)))
        grads = [None if g is None else g[order] for g in grads[:4]] + [grads[4]]
        with torch.autocast(x.device.type, enabled=False):
            side = _Side(x[order], y, values, tau, widths, ctx.energy, ctx.products)
            dx, dy, dv, dtau, dw = side.backward(totals, grads)
        return (
            torch.empty_like(dx).index_copy_(0, order, dx), dy, dv, dtau,
            None if widths is None else dw, None, None,
        )  # fmt: skip


class _Totals(NamedTuple):
    average: Float[Tensor, "tokens dim"]
    best: Float[Tensor, " tokens"]
    log_mass: Float[Tensor, " tokens"]
    collision: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]
    log_sum: Float[Tensor, " tokens"]


class _Side:
    """The arguments that all kernels of one call share, and their launches."""

    def __init__(self, x, y, values, tau, widths, energy, products):
        self.shape = len(x), len(y), x.shape[1]
        self.tau, self.widths, self.energy = tau, widths, energy
        scale = x.new_ones(len(y)) if widths is None else widths
        self.weights = (1 / (tau * scale)).contiguous()
        # Without widths a token's own square is the same in all its scores: it would only round.
        plain = energy == "squared" and widths is None
        self.xx = x.new_zeros(len(x)) if plain else x.square().sum(1)
        self.yy = y.square().sum(1)
        self.even = widths is None and energy in ("squared", "dot")
        self.dtype = torch.bfloat16 if products == "bf16" else torch.float32
        self.x, self.y = self.rounded(x), self.rounded(y)
        self.shared = values is None
        self.values = self.y if self.shared else self.rounded(values)
        self.tile = TILES[products] if x.shape[1] <= 128 else (32, 32)
        self.options = {
            "DIM": max(16, triton.next_power_of_2(x.shape[1])),
            "TOKENS": self.tile[0],
            "CODES": self.tile[1],
            "ENERGY": ENERGY[energy],
            "PRODUCT": PRODUCTS[products],
            "WIDEN": INTERPRETED,
            "SHARED": self.shared,
        }

    def rounded(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).contiguous()

    def forward(self, *, soft: bool = True):
        """Walk token blocks; without `soft`, for indices and margins only."""
        num_tokens, _, dim = self.shape
        average = self.xx.new_empty(num_tokens if soft else 0, dim)
        rows = list(self.xx.new_empty(5, num_tokens))
        index = torch.empty_like(self.xx, dtype=torch.long)
        best, log_mass, collision, entropy, margin = rows
        _forward[(triton.cdiv(num_tokens, self.tile[0]),)](
            self.x, self.y, self.values, self.xx, self.yy, self.weights, average, best, log_mass,
            collision, entropy, index, margin, *self.shape, SOFT=soft, **self.options,
        )  # fmt: skip
        return average, rows, index

    def usage(self, shift: Float[Tensor, " tokens"]) -> Float[Tensor, " codes"]:
        parts, per_part = self.split()
        usage = self.xx.new_empty(parts, self.shape[1])
        _usage[(triton.cdiv(self.shape[1], self.tile[1]), parts)](
            self.x, self.y, self.xx, self.yy, self.weights, shift, usage, *self.shape, per_part,
            **{key: value for key, value in self.options.items() if key != "SHARED"},
        )  # fmt: skip
        return usage.sum(0)

    def split(self) -> tuple[int, int]:
        """Cut tokens into parts, so that few codes still occupy the whole GPU."""
        num_tokens, num_codes, _ = self.shape
        blocks = triton.cdiv(num_tokens, self.tile[0])
        parts = min(blocks, max(1, PROGRAMS // triton.cdiv(num_codes, self.tile[1])))
        per_part = triton.cdiv(blocks, parts)
        return triton.cdiv(blocks, per_part), per_part * self.tile[0]

    def backward(self, totals: _Totals, grads: list[Tensor | None]):
        """Walk token blocks for the latents, then code blocks for codes, values and widths."""
        num_tokens, num_codes, dim = self.shape
        zeros = torch.zeros_like(self.xx)
        average, energy, collision, entropy = (
            zeros if g is None else g.contiguous() for g in grads[:4]
        )
        usage = torch.zeros_like(self.yy) if grads[4] is None else grads[4].contiguous()
        if grads[0] is None:
            average = torch.zeros_like(totals.average)
        # What arrives at the weights of a token on average, all but for the usage: left out from
        # the start, it does not cancel later.
        common = 2 * collision * totals.collision + entropy * totals.entropy
        common = common + (average * totals.average).sum(1)
        average, shift = self.rounded(average), (totals.best + totals.log_mass).contiguous()
        dx = torch.empty_like(totals.average)
        logs, offset = self.xx.new_empty(2, num_tokens)
        marks = torch.empty(
            triton.cdiv(num_tokens, self.tile[0]) * triton.cdiv(num_codes, self.tile[1]),
            dtype=torch.int8,
            device=dx.device,
        )
        scale = (1 / self.tau if self.even else torch.ones_like(self.tau)).contiguous()
        if self.energy == "squared":
            scale = 2 * scale
        reach = math.log(num_codes) - math.log(torch.finfo(torch.float32).eps)
        _latents[(triton.cdiv(num_tokens, self.tile[0]),)](
            self.x, self.y, self.values, self.xx, self.yy, self.weights, shift, average, usage,
            collision, entropy, (self.tau * energy).contiguous(), common.contiguous(),
            totals.average, scale, dx, logs, offset, marks, *self.shape, reach, EVEN=self.even,
            **self.options,
        )  # fmt: skip
        parts, per_part = self.split()
        dy = self.xx.new_empty(parts, num_codes, dim)
        dv = dy if self.shared else torch.empty_like(dy)
        dw = self.xx.new_empty(parts, num_codes)
        _codes[(triton.cdiv(num_codes, self.tile[1]), parts)](
            self.x, self.y, self.values, self.xx, self.yy, self.weights, shift, average, usage,
            collision, entropy, offset, totals.log_sum, scale, dy, dv, dw, marks, *self.shape,
            per_part, EVEN=self.even, **self.options,
        )  # fmt: skip
        mean = offset - common
        dtau = -(logs + mean * totals.entropy).sum() / self.tau
        dw = None if self.widths is None else -dw.sum(0) / self.widths
        return dx, dy.sum(0), None if self.shared else dv.sum(0), dtau, dw


def check_device(latents: Tensor) -> None:
    """Raise `ValueError` where the kernels cannot run."""
    if not latents.is_cuda and not INTERPRETED:
        raise ValueError(f"engine 'triton' got latents on {latents.device}; it needs an NVIDIA GPU")


def nearest(
    x: Float[Tensor, "tokens dim"],
    y: Float[Tensor, "codes dim"],
    widths: Float[Tensor, " codes"] | None,
    *,
    energy: str,
    products: str = "tf32x3",
) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Return the best code of each latent, and the margin by which its score `-d / s` wins."""
    side = _Side(x, y, None, x.new_ones(()), widths, energy, products)
    _, (*_, margin), index = side.forward(soft=False)
    return index, margin


def _energy_of(x: Tensor, y: Tensor, energy: str) -> Float[Tensor, " tokens"]:
    """Compute the energies of rows with rows."""
    if energy in ("squared", "norm"):
        d = (x - y).square().sum(1)
        return d.sqrt() if energy == "norm" else d
    return float(energy == "cosine") - (x * y).sum(1)
