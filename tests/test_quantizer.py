"""LGQ does what its equations say: straight-through, terms, limits, symmetry, initialization."""

import math

import pytest
import torch
from einops import rearrange

from lgqlib.quantizers.assignment import probabilities
from lgqlib.quantizers.base import initial_codes
from lgqlib.quantizers.lgq import LGQ, prune
from lgqlib.quantizers.scalar import ScalarLGQ

TAU = 0.7


def latents(b=3, c=4, h=2, w=5, seed=0, dtype=torch.float32):
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lgq(num_codes=7, dim=4, seed=1, **options):
    torch.manual_seed(seed)
    return LGQ(num_codes, dim, **options)


def flat(z):
    return rearrange(z, "b c h w -> (b h w) c")


def test_forward_gives_codes_and_their_indices_exactly():
    q, z = lgq(), latents()
    out = q(z, TAU)
    assert out.indices.dtype == torch.int64
    assert torch.equal(out.z_q, q.lookup(out.indices))
    nearest = torch.cdist(flat(z), q.codes).argmin(1)
    assert torch.equal(out.indices.flatten(), nearest)
    assert torch.equal(q.encode(z), out.indices)


@pytest.mark.parametrize("tau", [10.0, 0.7, 0.01])
def test_hard_index_does_not_depend_on_the_temperature(tau):
    q, z = lgq(), latents()
    assert torch.equal(q(z, tau).indices, q(z, 1.0).indices)


def test_straight_through_gradients_are_the_soft_average_s():
    """Upstream g reaches z as (2/tau) Cov_p(e) g, and e_k as sum_n p_nk g_n + (2/tau) p_nk [(e_k -
    q_soft) . g] (z - e_k).
    """
    q, z = lgq(), latents().requires_grad_()
    g = latents(seed=5)
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
        q, x = lgq(identity=share), z.clone().requires_grad_()
        (q(x, TAU).z_q * g).sum().backward()
        return x.grad

    torch.testing.assert_close(gradient(1.0), g)
    torch.testing.assert_close(gradient(0.3), 0.3 * g + 0.7 * gradient(0.0))


def test_terms_are_their_definitions():
    q, z = lgq(active_floor=6.0), latents()
    terms = q(z, TAU).terms
    p = probabilities(flat(z), q.codes, TAU)
    u = p.mean(0)
    perplexity = torch.exp(-(u * u.log()).sum())
    expected = {
        "commit": (q.lookup(q.encode(z)) - z).square().mean(),
        "peak": (1 - p.square().sum(1)).mean(),
        "usage": 7 * u.square().sum(),
        "floor": (6.0 - perplexity).clamp(min=0).square(),
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)
    entropy = lgq(usage="entropy")(z, TAU).terms["usage"]
    torch.testing.assert_close(entropy, 1 - perplexity.log() / math.log(7))


def test_usage_is_one_when_even_and_k_when_one_code_has_all():
    q = lgq(num_codes=4, dim=2)
    q.codes.data = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * 10
    even = rearrange(q.codes.data, "k c -> k c 1 1").clone()
    assert q(even, 0.1).terms["usage"].item() == pytest.approx(1, abs=1e-5)
    assert q(even[:1].expand(4, -1, -1, -1), 0.1).terms["usage"].item() == pytest.approx(4)


def test_free_energy_moves_codes_by_its_own_gradient_and_the_encoder_by_commitment():
    q, z = lgq(codebook_loss="free_energy"), latents().requires_grad_()
    terms = q(z, TAU).terms
    (codes,) = torch.autograd.grad(terms["free_energy"], q.codes, retain_graph=True)
    x, e = flat(z.detach()), q.codes.detach()
    p = probabilities(x, e, TAU)
    expected = 2 * (p.sum(0)[:, None] * e - p.T @ x) / len(x) / q.dim
    torch.testing.assert_close(codes, expected)
    moved = torch.autograd.grad(
        terms["free_energy"], z, retain_graph=True, allow_unused=True, materialize_grads=True
    )[0]
    assert torch.equal(moved, torch.zeros_like(z))
    (pull,) = torch.autograd.grad(terms["commit"], z)
    hard = q.lookup(q.encode(z)).detach()
    torch.testing.assert_close(pull, 2 * (z.detach() - hard) / z.numel())


@pytest.mark.parametrize("options", [{}, {"codebook_loss": "free_energy", "usage": "entropy"}])
@pytest.mark.parametrize("wrt", ["latents", "codes"])
def test_every_term_s_gradient_agrees_with_finite_differences(options, wrt):
    torch.manual_seed(0)
    q = LGQ(5, 3, widths=True, active_floor=4.5, engine="dense", **options).double()
    z = latents(1, 3, 2, 2, dtype=torch.float64).requires_grad_()
    leaf = z if wrt == "latents" else q.codes
    terms = q(z, TAU).terms
    for name in terms:
        if name == "commit":
            continue  # through the hard code: tested against its own definition below
        (analytic,) = torch.autograd.grad(
            q(z, TAU).terms[name], leaf, allow_unused=True, materialize_grads=True
        )
        if wrt == "latents" and options.get("codebook_loss") == "free_energy":
            assert torch.equal(analytic, torch.zeros_like(leaf))  # only the codes move
            continue
        numeric = torch.zeros_like(leaf)
        for i in range(leaf.numel()):
            for sign in (1, -1):
                with torch.no_grad():
                    leaf.view(-1)[i] += sign * 1e-5
                    numeric.view(-1)[i] += sign * q(z, TAU).terms[name] / 2e-5
                    leaf.view(-1)[i] -= sign * 1e-5
        torch.testing.assert_close(analytic, numeric, rtol=1e-5, atol=1e-8, msg=f"{name}, {wrt}")


def test_commit_pulls_code_and_latent_together_and_detaches_nothing():
    """d mean (z_q - z)^2 through equation (3): the residual times (J_soft - 1)."""
    q, z = lgq(), latents().requires_grad_()
    out = q(z, TAU)
    (gradient,) = torch.autograd.grad(out.terms["commit"], z)
    residual = 2 * (out.z_q - z).detach() / z.numel()
    (through,) = torch.autograd.grad((q(z, TAU).z_q * residual).sum(), z)
    torch.testing.assert_close(gradient, through - residual)


def test_permuting_codes_permutes_indices_and_changes_nothing_else():
    q, z = lgq(), latents()
    order = torch.randperm(7)
    out = q(z, TAU)
    permuted = lgq()
    permuted.codes.data = q.codes.data[order]
    other = permuted(z, TAU)
    assert torch.equal(order[other.indices], out.indices)
    torch.testing.assert_close(other.z_q, out.z_q)
    for name, value in out.terms.items():
        torch.testing.assert_close(other.terms[name], value)


def test_widths_start_at_exactly_one_and_change_the_assignment():
    q, z = lgq(widths=True), latents()
    assert torch.equal(q.widths, torch.ones(7))
    plain = lgq()(z, TAU)
    torch.testing.assert_close(q(z, TAU).terms["peak"], plain.terms["peak"])
    assert q(z, TAU).terms["widths"].item() == 0
    with torch.no_grad():
        q.width_logits[int(q.encode(z).flatten()[0])] = -20.0
    assert not torch.equal(q.encode(z), lgq().encode(z))
    assert q(z, TAU).terms["widths"].item() > 0


@pytest.mark.parametrize("energy", ["squared", "norm", "cosine", "dot"])
def test_each_energy_chooses_its_nearest_code(energy):
    q, z = lgq(energy=energy), latents()
    x, e = flat(z), q.codes.detach()
    unit = torch.nn.functional.normalize
    distance = {
        "squared": torch.cdist(x, e) ** 2,
        "norm": torch.cdist(x, e),
        "cosine": 1 - unit(x, dim=1) @ unit(e, dim=1).T,
        "dot": -x @ e.T,
    }[energy]
    out = q(z, TAU)
    assert torch.equal(out.indices.flatten(), distance.argmin(1))
    assert torch.equal(q.encode(z), out.indices)
    p = torch.softmax(-distance / TAU, 1)
    torch.testing.assert_close(out.terms["peak"], (1 - p.square().sum(1)).mean())


@pytest.mark.parametrize("how", ["random", "kmeans", "gaussian", "uniform"])
@pytest.mark.parametrize("n", [500, 3])
def test_initialization_starts_codes_at_the_scale_of_the_latents(how, n):
    torch.manual_seed(0)
    x = torch.randn(n, 4) * torch.tensor([1.0, 2, 0.1, 5]) + 3
    codes = initial_codes(x, 16, how)
    assert codes.shape == (16, 4)
    assert len(codes.unique(dim=0)) == 16
    if n == 500:
        assert torch.all((codes.mean(0) - x.mean(0)).abs() < 1.5 * x.std(0))
        assert torch.all(codes.std(0) < 2.5 * x.std(0))
        if how != "kmeans":  # which spends codes where the variance is
            assert torch.all(codes.std(0) > 0.2 * x.std(0))
    if how == "random" and n == 500:
        assert (codes[:, None] - x[None]).abs().sum(-1).amin(1).max() == 0


def test_kmeans_beats_the_draw_that_it_starts_from():
    torch.manual_seed(0)
    x = torch.randn(2000, 3)

    def error(codes):
        return torch.cdist(x, codes).amin(1).square().mean()

    torch.manual_seed(1)
    drawn = initial_codes(x, 32, "random")
    torch.manual_seed(1)
    assert error(initial_codes(x, 32, "kmeans")) < 0.8 * error(drawn)


def test_initialize_refuses_latents_of_another_shape():
    with pytest.raises(ValueError, match=r"latents of shape \(5, 3\): expected \[n >= 1, 4\]"):
        lgq().initialize(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="initialization = 'best'"):
        initial_codes(torch.zeros(5, 3), 2, "best")


def test_pruning_keeps_the_codes_of_latents_that_use_kept_codes():
    q, z = lgq(widths=True), latents()
    before = q.encode(z)
    counts = torch.bincount(before.flatten(), minlength=7)
    smaller, index_map = prune(q, counts)
    assert smaller.num_codes == int((counts > 0).sum()) < 7
    assert torch.equal(index_map[before], smaller.encode(z))
    assert torch.equal(smaller.lookup(index_map[before]), q.lookup(before))
    assert torch.equal(index_map < 0, counts == 0)
    with pytest.raises(ValueError, match="at least one code to keep"):
        prune(q, torch.zeros(7, dtype=torch.int64))


def test_scalar_bins_round_each_channel_to_its_nearest_value():
    torch.manual_seed(0)
    q = ScalarLGQ((4, 3, 5))
    z = latents(c=3)
    q.initialize(flat(z))
    out = q(z, 0.1)
    assert q.codebook.shape == (60, 3)
    assert torch.equal(out.z_q, q.lookup(out.indices))
    assert torch.equal(q.encode(z), out.indices)
    torch.testing.assert_close(q.lookup(out.indices).movedim(1, -1), q.codebook[out.indices])
    nearest = torch.cdist(flat(z), q.codebook).argmin(1)
    assert torch.equal(nearest, out.indices.flatten())
    out.terms["commit"].backward()
    assert all(channel.codes.grad.abs().sum() > 0 for channel in q.channels)


def test_scalar_bins_have_every_option_and_term_as_means_over_channels():
    torch.manual_seed(0)
    options = dict(codebook_loss="free_energy", identity=1.0, usage="entropy", active_floor=5.0)
    q = ScalarLGQ((4, 3), **options)
    z = latents(c=2).requires_grad_()
    q.initialize(flat(z.detach()))
    out = q(z, 0.1)
    assert set(out.terms) == {"free_energy", "commit", "peak", "usage", "floor"}
    alone = [channel(z[:, c : c + 1], 0.1).terms for c, channel in enumerate(q.channels)]
    for name, value in out.terms.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)
    assert out.terms["floor"] > 0
    weight = torch.randn_like(out.z_q)
    (out.z_q * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)  # the identity path, whole


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("loss", ["commit", "free_energy"])
def test_extreme_scales_stay_finite(scale, loss):
    q, z = lgq(codebook_loss=loss), (latents() * scale).requires_grad_()
    out = q(z, 1e-6)
    (sum(out.terms.values()) + out.z_q.sum()).backward()
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(q.codes.grad).all()
