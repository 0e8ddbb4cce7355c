"""LGQ does what its equations say: straight-through, terms, limits, widths, bins."""

import math

import pytest
import torch
from einops import rearrange

from lgqlib.quantizers.assignment import probabilities
from lgqlib.quantizers.lgq import LGQ, OUTSIDE

TAU = 0.7
either_way = pytest.mark.parametrize("num_nearest", [0, 8], ids=["all codes", "nearest"])


def latents(b=3, c=4, h=2, w=5, seed=0):
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed))


def lgq(num_codes=7, dim=4, **options):
    torch.manual_seed(1)
    return LGQ(num_codes, dim, **options)


def flat(z):
    return rearrange(z, "b c h w -> (b h w) c")


@either_way
def test_straight_through_gradients_are_the_soft_average_s(num_nearest):
    """Upstream g reaches z as (2/tau) Cov_p(e) g, and e_k as sum_n p_nk g_n + (2/tau) p_nk [(e_k -
    q_soft) . g] (z - e_k).
    """
    q, z, g = lgq(num_nearest=num_nearest), latents().requires_grad_(), latents(seed=5)
    (q(z, TAU).z_q * g).sum().backward()
    e, x, up = q.codes.detach(), flat(z.detach()), flat(g)
    p = probabilities(x, e, TAU)
    soft = p @ e
    cov = torch.einsum("nk,ki,kj->nij", p, e, e) - torch.einsum("ni,nj->nij", soft, soft)
    torch.testing.assert_close(flat(z.grad), 2 / TAU * torch.einsum("nij,nj->ni", cov, up))
    inner = torch.einsum("nkc,nc->nk", e[None] - soft[:, None], up)
    codes = p.T @ up + 2 / TAU * torch.einsum("nk,nkc->kc", p * inner, x[:, None] - e[None])
    torch.testing.assert_close(q.codes.grad, codes)


def test_identity_share_blends_the_two_gradients():
    z, g = latents(), latents(seed=5)

    def gradient(share):
        x = z.clone().requires_grad_()
        (lgq(identity=share)(x, TAU).z_q * g).sum().backward()
        return x.grad

    torch.testing.assert_close(gradient(1.0), g)
    torch.testing.assert_close(gradient(0.3), 0.3 * g + 0.7 * gradient(0.0))


@either_way
@pytest.mark.parametrize("usage", ["square", "entropy"])
def test_terms_and_their_gradients_are_their_definitions(num_nearest, usage):
    q = lgq(active_floor=6.0, usage=usage, num_nearest=num_nearest)
    z = latents().requires_grad_()
    terms = q(z, TAU).terms
    p = (-torch.cdist(flat(z), q.codes).square() / TAU).softmax(1)
    u = p.mean(0)
    entropy = -(u * u.log()).sum()
    # Nothing is detached: the residual of the hard code, by the slope of the soft one.
    residual = (q.lookup(q.encode(z)) - z).detach()
    slope = rearrange(p @ q.codes, "(b h w) c -> b c h w", b=3, h=2) - z
    square = residual.square().mean()
    expected = {
        "commit": square + 2 * (residual * (slope - slope.detach())).mean(),
        "peak": (1 - p.square().sum(1)).mean(),
        "usage": 7 * u.square().sum() if usage == "square" else 1 - entropy / math.log(7),
        "floor": (6.0 - entropy.exp()).clamp(min=0).square(),
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)
        one, other = (
            torch.autograd.grad(x, (z, q.codes), retain_graph=True) for x in (terms[name], value)
        )
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


@either_way
def test_free_energy_moves_codes_by_its_own_gradient_and_the_encoder_by_commitment(num_nearest):
    q = lgq(codebook_loss="free_energy", num_nearest=num_nearest)
    z = latents().requires_grad_()
    terms = q(z, TAU).terms
    x, e = flat(z.detach()), q.codes.detach()
    p = probabilities(x, e, TAU)
    free = -TAU * (-torch.cdist(x, e).square() / TAU).logsumexp(1).mean() / 4
    torch.testing.assert_close(terms["free_energy"], free)
    sum(terms.values()).backward(retain_graph=True)
    pull = 2 * (z.detach() - q.lookup(q.encode(z)).detach()) / z.numel()
    torch.testing.assert_close(z.grad, pull)  # no other term moves latents
    moved = torch.autograd.grad(terms["commit"], q.codes, retain_graph=True, allow_unused=True)
    assert moved == (None,), "commitment is the encoder's"
    (codes,) = torch.autograd.grad(terms["free_energy"], q.codes)
    torch.testing.assert_close(codes, 2 * (p.sum(0)[:, None] * e - p.T @ x) / len(x) / q.dim)


@pytest.mark.parametrize("tau, outside", [(20.0, True), (0.1, False)])
def test_all_codes_are_looked_at_where_the_nearest_do_not_hold_all(tau, outside):
    near, every = lgq(num_codes=64), lgq(num_codes=64, num_nearest=0)
    z = latents(h=8, w=8)
    a, b = near(z, tau), every(z, tau)
    assert (near.outside > OUTSIDE) == outside
    assert torch.equal(a.indices, b.indices)
    for name, value in b.terms.items():
        torch.testing.assert_close(a.terms[name], value, rtol=2e-3, atol=1e-6, msg=name)
