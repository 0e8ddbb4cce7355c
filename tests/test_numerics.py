"""Extreme but legal latents: values and gradients stay finite, or the stop says why."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lgqlib.losses import TokenizerLoss
from lgqlib.presets import preset
from lgqlib.quantizers import METHODS, build
from lgqlib.quantizers.assignment import ENERGIES, hard_assign, nearest_two, soft_assign
from lgqlib.tokenizer import Tokenizer

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)
SCALES = st.sampled_from([1e-6, 1e-3, 1.0, 1e2, 1e4])
SHAPES = st.sampled_from(["spread", "duplicates", "constant", "one channel", "far from zero"])
TEMPERATURES = st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 1e3])
SEEDS = st.integers(0, 2**16)


def points(kind, scale, *, num, dim, seed):
    """Give latents [num, dim] of a kind, at a scale."""
    make = torch.Generator().manual_seed(seed)
    z = torch.randn(num, dim, generator=make)
    if kind == "duplicates":
        z = z[torch.randint(max(1, num // 4), (num,), generator=make)]
    elif kind == "constant":
        z = z[:1].expand(num, dim).clone()
    elif kind == "one channel":
        z[:, 1:] = 0
    elif kind == "far from zero":
        z = z + 100
    return scale * z


def all_finite(*tensors):
    return all(bool(torch.isfinite(t).all()) for t in tensors if t is not None)


@quick
@given(
    kind=SHAPES, scale=SCALES, code_scale=SCALES, tau=TEMPERATURES, seed=SEEDS,
    energy=st.sampled_from(ENERGIES), engine=st.sampled_from(["dense", "streaming", "attention"]),
    widths=st.booleans(), num=st.integers(1, 9), num_codes=st.integers(1, 12),
    dim=st.integers(1, 6), of_latents=st.booleans(),
)  # fmt: skip
def test_a_soft_assignment_is_finite_with_its_gradients(
    kind, scale, code_scale, tau, seed, energy, engine, widths, num, num_codes, dim, of_latents
):
    if engine == "attention" and energy == "norm":
        energy = "squared"  # which is no dot product, and refused
    z = points(kind, scale, num=num, dim=dim, seed=seed).requires_grad_()
    if of_latents:  # codes on latents, so that distances vanish
        e = z.detach()[torch.arange(num_codes) % num].clone().requires_grad_()
    else:
        e = points("spread", code_scale, num=num_codes, dim=dim, seed=seed + 1).requires_grad_()
    s = torch.linspace(0.5, 2, num_codes).requires_grad_() if widths else None
    a = soft_assign(z, e, tau, energy=energy, widths=s, engine=engine)
    assert all_finite(*a)
    assert bool((a.collision >= 0).all() & (a.collision <= 1 + 1e-4).all())
    assert bool((a.entropy >= -1e-4).all() & (a.entropy <= math.log(num_codes) + 1e-4).all())
    assert abs(a.usage.sum().item() - 1) < 1e-4
    total = a.average.sum() + a.free_energy.mean() + a.collision.sum() + a.entropy.sum()
    (total + a.usage.square().sum()).backward()
    assert all_finite(z.grad, e.grad, None if s is None else s.grad)


@quick
@given(
    kind=SHAPES, scale=SCALES, code_scale=SCALES, seed=SEEDS, energy=st.sampled_from(ENERGIES),
    num=st.integers(1, 9), num_codes=st.integers(2, 12),
)  # fmt: skip
def test_a_hard_assignment_is_a_code_that_nobody_beats(
    kind, scale, code_scale, seed, energy, num, num_codes
):
    z = points(kind, scale, num=num, dim=4, seed=seed)
    e = points("spread", code_scale, num=num_codes, dim=4, seed=seed + 1)
    indices = hard_assign(z, e, energy=energy)
    assert bool((indices >= 0).all() & (indices < num_codes).all())
    two = nearest_two(z, e, energy=energy)
    assert all_finite(*(t for t in two if t.is_floating_point()))
    if energy == "squared":
        exact = torch.cdist(z.double(), e.double()).square()
        chosen = exact.gather(1, indices[:, None])[:, 0]
        size = z.double().square().sum(1) + e.double().square().sum(1).max()
        assert bool((chosen <= exact.amin(1) + 1e-5 * size + 1e-30).all())


def config_of(method):
    overrides = (
        "data.size=16 backbone.width=8 backbone.depth=1 train.num_steps=2 quantizer.num_codes=16"
    )
    return preset("laptop", method=method).override(overrides)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    kind=SHAPES, scale=SCALES, started=SCALES, tau=TEMPERATURES, seed=SEEDS,
    batch=st.integers(1, 2), side=st.integers(1, 3), degenerate=st.booleans(),
)  # fmt: skip
def test_every_quantizer_is_finite_with_its_gradients(
    method, kind, scale, started, tau, seed, batch, side, degenerate
):
    config = config_of(method)
    dim = config.backbone.dim
    torch.manual_seed(seed)
    quantizer = build(config.quantizer, config.backbone.dim).train()
    how = "constant" if degenerate else "spread"
    quantizer.initialize(points(how, started, num=64, dim=dim, seed=seed + 1))
    z = points(kind, scale, num=batch * side * side, dim=dim, seed=seed)
    z = z.reshape(batch, side, side, dim).permute(0, 3, 1, 2).clone().requires_grad_()
    for _ in range(2):
        quantized = quantizer(z, tau)
        loss = sum(quantized.terms.values(), quantized.z_q.square().mean())
        assert all_finite(quantized.z_q, *quantized.terms.values()), quantized.terms
        assert bool((quantized.indices >= 0).all() & (quantized.indices < 16).all())
        loss.backward()
    assert all_finite(z.grad, *(p.grad for p in quantizer.parameters()))
    assert all_finite(quantizer.codebook, *quantizer.buffers())


def test_per_channel_bins_are_finite_with_their_gradients():
    config = config_of("lgq").override(
        "quantizer.levels=4,4 quantizer.lgq.per_channel=true backbone.dim=2 backbone.norm=group"
    )
    for kind in ("spread", "constant", "duplicates"):
        for scale in (1e-6, 1.0, 1e4):
            torch.manual_seed(0)
            quantizer = build(config.quantizer, config.backbone.dim).train()
            quantizer.initialize(points(kind, scale, num=32, dim=2, seed=1))
            z = points(kind, scale, num=4, dim=2, seed=2).T.reshape(1, 2, 2, 2).clone()
            z.requires_grad_()
            quantized = quantizer(z, 1e-3)
            sum(quantized.terms.values(), quantized.z_q.sum()).backward()
            assert all_finite(z.grad, *quantized.terms.values())
            assert all_finite(*(p.grad for p in quantizer.parameters()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_a_constant_image_trains_with_finite_gradients(method, value):
    config = config_of(method)
    torch.manual_seed(0)
    tokenizer = Tokenizer(config).train()
    images = torch.full((1, 3, 16, 16), value)
    with torch.no_grad():
        latents = tokenizer.latents(images)
        tokenizer.quantizer.initialize(latents.movedim(1, -1).flatten(0, -2))
    output = tokenizer(images, 0.01)
    total, terms = TokenizerLoss(config.loss)(images, output.images, output.quantized.terms)
    total.backward()
    assert all_finite(total, *terms.values(), *(p.grad for p in tokenizer.parameters()))
