"""Assign softly without a `[tokens, codes]` tensor: strips of tokens, recomputed in the backward.

A probe of the batch decides how. Where few codes matter to a token, `PairBlock` keeps one matrix
product and leaves out pairs that the precision cannot see: a token drops at most
`K exp(-reach)` of its mass, the rounding error of 1. Otherwise `DenseBlock` goes through all tiles.
"""

import math

import torch
from einops import rearrange

from lgqlib.quantizers.blocks import Call, DenseBlock, Slopes, Totals, Upstream
from lgqlib.quantizers.nearest import Crowded, Scores, blocks
from lgqlib.quantizers.pairs import ROUGH, PairBlock

PAIR_SHARE = 0.01  # of all pairs: above it whole tiles are faster
MANY = 2**20  # pairs
STRIP_BYTES = 2**24  # stays in the cache


class StreamingAssign(torch.autograd.Function):
    """Return average, free energy, collision, entropy, usage and indices of soft assignments.

    Arguments: latents, codebook, the values to average (`None`: the codebook), tau, widths, energy,
    the bytes of working memory, and the share of pairs that matter up to which the rest is skipped.
    Usage is summed over tokens.
    """

    @staticmethod
    def forward(ctx, latents, codebook, values, tau, widths, energy, tile_bytes, pair_share):
        # Detached: what `ctx` holds must not hold `ctx` in turn, or neither is ever freed.
        latents, codebook, tau = latents.detach(), codebook.detach(), tau.detach()
        values, widths = (None if t is None else t.detach() for t in (values, widths))
        weights = 1 / tau if widths is None else 1 / (tau * widths)
        scores = Scores(latents, codebook, weights, energy=energy)
        zeros = latents.new_zeros(5, len(latents))
        indices = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        average, usage = torch.zeros_like(latents), latents.new_zeros(len(codebook))
        call = Call(
            scores=scores,
            values=scores.y if values is None else values,
            totals=Totals(average, *zeros[1:], indices, usage),
            reach=math.log(len(codebook)) - math.log(torch.finfo(latents.dtype).eps),
            tau=tau,
            widths=widths,
            log_sum=zeros[0],
            budget=tile_bytes // 2,
        )
        ctx.blocks = _run(call, tile_bytes, pair_share)
        call.spaces.clear()
        tokens = torch.arange(len(latents), device=latents.device)
        best = scores.exact(tokens, indices).to(latents.dtype)
        call.log_sum = best + call.totals.log_mass
        ctx.call = call
        ctx.set_materialize_grads(False)
        if values is None and energy in ("squared", "norm"):
            average = average + scores.center
        outputs = average, -tau * call.log_sum, call.totals.collision, call.totals.entropy
        *outputs, indices = (t.detach() for t in (*outputs, usage, indices))
        ctx.mark_non_differentiable(indices)
        return *outputs, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        call, needs = ctx.call, ctx.needs_input_grad
        out = Slopes(
            latents=torch.zeros_like(call.scores.x),
            codebook=torch.zeros_like(call.scores.y),
            values=torch.zeros_like(call.values),
            tau=torch.zeros_like(call.tau) if needs[3] else None,
            widths=torch.zeros_like(call.widths) if needs[4] else None,
        )
        with torch.autocast(call.values.device.type, enabled=False):
            _differentiate(call, ctx.blocks, Upstream(*grads[:-1]), out)
        if call.values is call.scores.y:
            out = out._replace(codebook=out.codebook + out.values, values=None)
        return *out, None, None, None


def _differentiate(
    call: Call, parts: list[PairBlock | DenseBlock], upstream: Upstream, out: Slopes
) -> None:
    """Add up the gradients that leave, block by block."""
    column = torch.zeros_like(call.values[:, 0]) if upstream.usage is None else upstream.usage
    sides = [rearrange(t, "k -> k 1") for t in (column, torch.ones_like(column))]
    call.demand = torch.cat([call.values, *sides], 1)
    for block in parts:
        block.backward(upstream, out)
    call.demand = None
    call.spaces.clear()


def _run(call: Call, tile_bytes: int, pair_share: float) -> list[PairBlock | DenseBlock]:
    """Fill in the totals block by block, and return the blocks for the backward."""
    num_tokens, num_codes = call.scores.x.shape[0], call.scores.y.shape[0]
    item = call.scores.x.element_size()
    # Half of the memory is to work in: two strips, or two tiles and the pairs of a block.
    most = call.scores.tile_tokens
    if call.scores.x.device.type == "cpu":
        most = min(most, max(64, STRIP_BYTES // (item * num_codes)))
    strip = min(most, max(1, tile_bytes // (4 * item * num_codes)))
    share, slack = _probe(call)
    # Rough scores are better refined, which only pairs are, unless those are too many.
    rough = slack > ROUGH and share * num_tokens * num_codes < MANY and pair_share >= 0
    if share > pair_share and not rough:
        return [_done(DenseBlock(call, tokens)) for tokens in blocks(num_tokens, strip)]
    limit = 64 + 4 * share * num_codes
    row = 4 * item * min(num_codes, call.scores.tile_codes) + 48 * int(limit)
    wide = min(call.scores.tile_tokens, max(1, tile_bytes // row))
    done = []
    for tokens in blocks(num_tokens, wide):
        try:
            done.append(_done(PairBlock(call, tokens, limit=limit)))
        except Crowded:  # these tokens are not like those of the probe
            rest = blocks(tokens.stop - tokens.start, strip)
            shifted = (slice(tokens.start + r.start, tokens.start + r.stop) for r in rest)
            done += [_done(DenseBlock(call, part)) for part in shifted]
    return done


def _done(block: PairBlock | DenseBlock) -> PairBlock | DenseBlock:
    block.forward()
    return block


def _probe(call: Call) -> tuple[float, float]:
    """Estimate from some tokens the share of pairs that matter, and bound the error of scores."""
    step = max(1, len(call.scores.x) // 64)
    probe = call.scores.restrict(slice(None, 64 * step, step))
    every, num_codes = slice(0, len(probe.x)), len(probe.y)
    tiles = blocks(num_codes, probe.tile_codes)
    rows = call.matrix("tile", tiles[0].stop, every.stop)
    best = rows.new_full((every.stop,), -torch.inf)
    for codes in tiles:
        tile = probe.tile(codes, every, out=rows[: codes.stop - codes.start])
        best = torch.maximum(best, tile.amax(0))
    slack = probe.slack(every, best)
    floor = best - call.reach - slack
    count = 0
    for codes in tiles:
        tile = probe.tile(codes, every, out=rows[: codes.stop - codes.start])
        count += int((tile >= floor).sum())
    return count / max(1, every.stop * num_codes), float(slack.max())
