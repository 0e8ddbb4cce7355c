"""Peers: the contract that each keeps, and agreement with vector-quantize-pytorch."""

import copy
import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
import vector_quantize_pytorch as vqp
from einops import rearrange
from safetensors.torch import load_file, save_file

from lgqlib.config import TERMS, Config, LossConfig
from lgqlib.quantizers.assignment import hard_assign
from lgqlib.quantizers.fsq import BSQ, FSQ, IFSQ, LFQ, matching_levels
from lgqlib.quantizers.vq import EMAVQ, IBQ, PEERS, RECOMMENDED_WEIGHTS, VQ, SimVQ

K, C = 64, 6
LEARNED = ("vq", "vq_ema", "rotation", "simvq", "ibq")
every_peer = pytest.mark.parametrize("name", PEERS)


def latents(seed=0, *, scale=1.0, shift=0.0, shape=(3, C, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(shape, generator=generator)


def flat(z):
    return rearrange(z, "b c h w -> (b h w) c")


def started(name, num_codes=K, dim=C, seed=1):
    torch.manual_seed(seed)
    peer = PEERS[name](num_codes, dim)
    peer.initialize(flat(latents(seed, shape=(16, dim, 4, 4))))
    return peer


def test_the_registry_is_that_of_the_config():
    assert {"lgq", *PEERS} == set(METHODS)
    assert set(RECOMMENDED_WEIGHTS) == set(PEERS)


@every_peer
def test_recommended_weights_are_overrides_and_name_the_terms(name):
    Config().override(RECOMMENDED_WEIGHTS[name])
    weighed = {key.removeprefix("loss.") for key in RECOMMENDED_WEIGHTS[name]}
    assert set(started(name)(latents(), 1.0).terms) == weighed
    assert weighed <= set(TERMS) <= {item.name for item in fields(LossConfig)}


@every_peer
@pytest.mark.parametrize("num_codes", [1024, 4096, 16384, 65536])
def test_every_size_of_the_study_can_be_built(name, num_codes):
    peer = PEERS[name](num_codes, 5)
    assert peer.sites.shape[0] == peer.codebook.shape[0] == num_codes
    assert peer.codebook.shape[1] == 5


@every_peer
@pytest.mark.parametrize("num_codes, dim", [(64, 6), (64, 2), (64, 9), (1024, 4)])
def test_encode_and_lookup_agree_with_forward(name, num_codes, dim):
    peer = started(name, num_codes, dim).eval()
    z = latents(3, shape=(2, dim, 3, 4))
    out = peer(z, 0.5)
    indices = peer.encode(z)
    assert out.indices.dtype == indices.dtype == torch.int64
    assert torch.equal(out.indices, indices)
    assert indices.min() >= 0 and indices.max() < num_codes
    assert torch.equal(peer.lookup(indices), out.z_q)
    assert torch.equal(rearrange(peer.codebook[indices], "b h w c -> b c h w"), out.z_q)


@every_peer
def test_training_decodes_the_table_that_was_used(name):
    peer = started(name)
    z, table = latents(4), peer.codebook.detach().clone()
    out = peer.train()(z, 0.5)
    assert torch.equal(rearrange(table[out.indices], "b h w c -> b c h w"), out.z_q)


@every_peer
def test_points_choose_the_nearest_site(name):
    peer = started(name)
    z = latents(5, scale=1.5)
    points = rearrange(peer.points(z), "b h w d -> (b h w) d")
    nearest = hard_assign(points, peer.sites, energy=getattr(peer, "energy", "squared"))
    assert torch.equal(peer.encode(z).flatten(), nearest)


@every_peer
def test_evaluation_writes_nothing(name):
    peer = started(name).eval()
    before = {key: value.clone() for key, value in peer.state_dict().items()}
    peer(latents(6, shift=3.0), 0.5)
    peer.encode(latents(7))
    assert all(torch.equal(before[key], value) for key, value in peer.state_dict().items())


@every_peer
def test_the_codebook_moves_unless_it_is_implicit(name):
    peer = started(name).train()
    before, sites = peer.codebook.detach().clone(), peer.sites.detach().clone()
    parameters = list(peer.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
    for step in range(10):
        z = latents(20 + step, shape=(4, C, 8, 8))
        out = peer(z, 0.5)
        weights = {
            key.removeprefix("loss."): value for key, value in RECOMMENDED_WEIGHTS[name].items()
        }
        loss = (out.z_q - z).abs().mean() + sum(
            weights[key] * term for key, term in out.terms.items()
        )
        if optimizer is not None and loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    moved = (peer.codebook - before).abs().amax(1)
    if name in LEARNED:
        share = (moved > 1e-4).float().mean()
        assert share > 0.9, f"only {share:.0%} of the codes moved"
    else:
        assert torch.equal(peer.sites, sites)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_codes_start_as_large_as_the_latents(name, scale):
    z = flat(latents(8, scale=scale, shape=(64, C, 4, 4)))
    peer = PEERS[name](K, C)
    peer.initialize(z)
    ratio = peer.codebook.square().mean().sqrt() / z.square().mean().sqrt()
    assert 0.7 < ratio < 1.4


@pytest.mark.parametrize("name", LEARNED)
def test_initialization_refuses_latents_of_another_shape(name):
    peer = PEERS[name](K, C)
    for wrong in (torch.zeros(5, C + 1), torch.zeros(0, C)):
        with pytest.raises(ValueError, match=f"expected .n >= 1, {C}."):
            peer.initialize(wrong)


@every_peer
@pytest.mark.parametrize(
    "z", [torch.zeros(1, C, 1, 1), torch.full((2, C, 3, 3), 0.7), torch.full((1, C, 2, 2), 1e4)]
)
def test_gradients_stay_finite_on_constant_latents(name, z):
    peer = started(name).train()
    z = z.clone().requires_grad_()
    for _ in range(2):
        out = peer(z, 1e-3)
        (out.z_q.sum() + sum(out.terms.values())).backward()
    gradients = [z.grad, *(p.grad for p in peer.parameters())]
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    assert torch.isfinite(peer.codebook).all()


@every_peer
def test_autocast_does_not_lower_the_precision(name):
    plain, mixed = started(name), started(name)
    z = latents(9)
    expected = plain(z, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixed(z, 0.5)
        assert out.z_q.dtype == mixed.codebook.dtype == torch.float32
        assert torch.equal(
            mixed.eval().lookup(expected.indices), plain.eval().lookup(expected.indices)
        )
        assert torch.equal(mixed.encode(z), plain.encode(z))
    assert torch.equal(out.z_q, expected.z_q)
    assert all(torch.equal(out.terms[key], term) for key, term in expected.terms.items())


@every_peer
def test_the_encoder_gets_a_gradient(name):
    z = latents(10).requires_grad_()
    started(name)(z, 0.5).z_q.square().sum().backward()
    assert (z.grad != 0).float().mean() > 0.9


@every_peer
def test_state_survives_a_file_and_a_copy(name, tmp_path):
    trained, fresh = started(name).train(), started(name, seed=2)
    trained(latents(11), 0.5)
    save_file(trained.state_dict(), tmp_path / "state.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "state.safetensors"))
    copied = copy.deepcopy(trained)
    expected = trained.eval()(latents(12), 0.5).z_q
    assert torch.equal(fresh.eval()(latents(12), 0.5).z_q, expected)
    copied(latents(13, shift=1.0), 0.5)  # moves its own codes only
    assert torch.equal(trained(latents(12), 0.5).z_q, expected)


# Levels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "num_codes, levels",
    [
        (1024, (8, 8, 4, 4)),
        (4096, (8, 8, 8, 8)),
        (16384, (8, 8, 8, 8, 4)),
        (65536, (16, 16, 16, 16)),
        (240, (8, 6, 5)),  # the sets that the FSQ paper recommends
        (1000, (8, 5, 5, 5)),
        (4375, (7, 5, 5, 5, 5)),
        (512, (8, 8, 8)),
        (3, (3,)),
    ],
)
def test_levels_multiply_to_the_size(num_codes, levels):
    assert matching_levels(num_codes) == levels
    assert math.prod(levels) == num_codes


@pytest.mark.parametrize("num_codes, near", [(1021, "1020 or 1023"), (2, "3"), (94, "93 or 95")])
def test_a_size_without_levels_is_refused_with_the_nearest(num_codes, near):
    with pytest.raises(ValueError, match=f"num_codes = {num_codes}.*; {near} would do"):
        PEERS["fsq"](num_codes, 4)


@pytest.mark.parametrize("levels", [(2, 32), (8, 7), (64, 1)])
def test_levels_that_do_not_fit_are_refused(levels):
    with pytest.raises(ValueError, match="product num_codes = 64"):
        PEERS["fsq"](64, 4, levels=levels)


def test_levels_given_take_the_place_of_those_searched():
    peer = PEERS["ifsq"](105, 3, levels=(7, 5, 3))
    assert peer.levels == (7, 5, 3)
    assert not list(peer.parameters()), "as many channels as levels need no projection"


@pytest.mark.parametrize("cls", [LFQ, BSQ])
def test_signs_need_a_power_of_two(cls):
    with pytest.raises(ValueError, match=r"num_codes = 1000.*512 or 1024 would do"):
        cls(1000, 10)


# Agreement with the library's forward pass ----------------------------------------------


@pytest.mark.parametrize("levels, dim", [((8, 6, 5), 3), ((8, 8, 4, 4), 6), ((7, 5, 3), 5)])
def test_fsq_is_the_library_s(levels, dim):
    torch.manual_seed(0)
    reference = vqp.FSQ(list(levels), dim=dim, channel_first=True)
    peer = FSQ(math.prod(levels), dim, levels=levels)
    peer.library.load_state_dict(reference.state_dict())
    z1, z2 = (latents(1, scale=2.0, shape=(2, dim, 5, 5)).requires_grad_() for _ in range(2))
    expected, indices = reference(z1)
    out = peer(z2, 1.0)
    assert torch.equal(out.indices, indices.long())
    torch.testing.assert_close(out.z_q, expected)
    expected.square().sum().backward()
    out.z_q.square().sum().backward()
    torch.testing.assert_close(z2.grad, z1.grad)
    for mine, theirs in zip(peer.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_ifsq_spreads_a_gaussian_more_evenly_than_fsq():
    z = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))

    def distance_to_uniform(cls):
        values = cls(7, 1, levels=(7,)).points(z).flatten().sort().values
        return (values - torch.linspace(-1, 1, len(values))).abs().amax()

    assert distance_to_uniform(IFSQ) < 0.5 * distance_to_uniform(FSQ)


def test_ifsq_is_its_formula():
    z = latents(2, scale=1.5, shape=(2, 2, 5, 5))
    half = torch.tensor([2.0, 3.0]).reshape(2, 1, 1)
    expected = torch.round((2 * torch.sigmoid(1.6 * z) - 1) * half) / half
    torch.testing.assert_close(IFSQ(35, 2, levels=(5, 7))(z, 1.0).z_q, expected)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("dim", [6, 4])
def test_lfq_is_the_library_s(spherical, dim):
    torch.manual_seed(0)
    reference = vqp.LFQ(
        dim=dim,
        codebook_size=K,
        entropy_loss_weight=1.0,
        commitment_loss_weight=1.0,
        spherical=spherical,
    ).train()
    peer = (BSQ if spherical else LFQ)(K, dim)
    peer.library.load_state_dict(reference.state_dict())
    peer.beta = 2.0  # soft enough for the library's floor of 1e-5 under its logarithms not to show
    z1, z2 = (latents(1, scale=0.4, shape=(2, dim, 6, 6)).requires_grad_() for _ in range(2))
    (quantized, indices, _), breakdown = reference(
        z1, inv_temperature=2.0, return_loss_breakdown=True
    )
    out = peer.train()(z2, 1.0)
    assert torch.equal(out.indices, indices.long())
    torch.testing.assert_close(out.z_q, quantized)
    theirs = breakdown.per_sample_entropy - breakdown.batch_entropy
    torch.testing.assert_close(out.terms["entropy"], theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.terms["commit"], breakdown.commitment)
    (quantized.square().sum() + theirs).backward()
    (out.z_q.square().sum() + out.terms["entropy"]).backward()
    torch.testing.assert_close(z2.grad, z1.grad, atol=1e-4, rtol=1e-3)


def test_simvq_is_the_library_s():
    torch.manual_seed(0)
    peer = SimVQ(K, C)
    reference = vqp.SimVQ(
        C, K, channel_first=True, rotation_trick=False, input_to_quantize_commit_loss_weight=0.25
    )
    reference.load_state_dict(peer.library.state_dict())
    z1, z2 = (latents(1).requires_grad_() for _ in range(2))
    expected, indices, loss = reference(z1)
    out = peer(z2, 1.0)
    mine = out.terms["codebook"] + 0.25 * out.terms["commit"]
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.z_q, expected)
    torch.testing.assert_close(mine, loss)
    (expected.square().sum() + loss).backward()
    (out.z_q.square().sum() + mine).backward()
    torch.testing.assert_close(z2.grad, z1.grad)
    torch.testing.assert_close(
        peer.library.code_transform.weight.grad, reference.code_transform.weight.grad
    )


def test_vq_is_the_library_s():
    peer = started("vq")
    reference = vqp.VectorQuantize(
        C,
        K,
        accept_image_fmap=True,
        rotation_trick=False,
        ema_update=False,
        learnable_codebook=True,
    ).train()
    reference.codebook.data.copy_(peer.codes.data)
    z1, z2 = (latents(1).requires_grad_() for _ in range(2))
    expected, indices, loss = reference(z1)
    out = peer(z2, 1.0)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.z_q, expected)
    # The library has one weight for both halves; here they are two terms.
    both = out.terms["commit"] + out.terms["codebook"]
    torch.testing.assert_close(both / 2, loss)
    (expected.square().sum() + loss).backward()
    (out.z_q.square().sum() + both).backward()
    torch.testing.assert_close(peer.codes.grad, reference._codebook.embed.grad[0])
    torch.testing.assert_close(z2.grad, z1.grad)


@pytest.mark.parametrize("rotate", [False, True])
def test_ema_is_the_library_s(rotate):
    torch.manual_seed(0)
    peer = EMAVQ(K, C, rotate=rotate)
    reference = vqp.VectorQuantize(
        C, K, accept_image_fmap=True, rotation_trick=rotate, decay=0.99, threshold_ema_dead_code=0
    ).train()
    peer.initialize(flat(latents(1, shape=(16, C, 4, 4))))
    reference.load_state_dict(peer.library.state_dict())
    for step in range(5):
        z1, z2 = (latents(30 + step).requires_grad_() for _ in range(2))
        expected, indices, loss = reference(z1)
        out = peer(z2, 1.0)
        assert torch.equal(out.indices, indices)
        torch.testing.assert_close(out.z_q, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.terms["commit"], loss)
        expected.square().sum().backward()
        out.z_q.square().sum().backward()
        torch.testing.assert_close(z2.grad, z1.grad, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(peer.codebook, reference.codebook)


# What is this project's own ------------------------------------------------------------


def test_ema_brings_dead_codes_back_to_where_latents_are():
    torch.manual_seed(0)
    peer = EMAVQ(K, C)
    peer.initialize(flat(latents(1, shape=(16, C, 4, 4))))
    peer.library._codebook.embed[:, : K // 2] += 100.0
    peer.library._codebook.embed_avg[:, : K // 2] += 100.0
    far = peer.codebook[: K // 2].clone()
    for step in range(300):
        peer(latents(step, shape=(2, C, 8, 8)), 1.0)
    assert (peer.codebook[: K // 2] - far).abs().amin() > 50, (
        "a dead code stayed where no latent is"
    )
    used = peer.encode(latents(999, shape=(8, C, 16, 16))).unique()
    assert len(used) > 0.9 * K


def test_ema_does_not_kill_a_table_larger_than_the_batch():
    torch.manual_seed(0)
    peer = EMAVQ(512, C)
    peer.initialize(flat(latents(1, shape=(64, C, 4, 4))))
    before = peer.codebook.clone()
    for step in range(20):
        peer(latents(step, shape=(1, C, 4, 4)), 1.0)  # 16 tokens for 512 codes
    assert ((peer.codebook - before).abs().amax(1) < 1.0).float().mean() > 0.9


def test_ibq_gives_the_gradient_of_its_formula():
    torch.manual_seed(0)
    peer = started("ibq", num_codes=16).double()
    z1, z2 = (flat(latents(2)).double().requires_grad_() for _ in range(2))
    table = peer.codes.detach().clone().requires_grad_()
    soft = (z1 @ table.T).softmax(1)
    hard = F.one_hot(soft.argmax(1), 16).double()
    expected = (hard - soft.detach() + soft) @ table
    # The double quantization loss: index path, commitment, codes.
    commit = (expected - z1).square().mean() + ((hard @ table).detach() - z1).square().mean()
    weight = torch.randn_like(expected)
    ((expected * weight).sum() + commit).backward()

    peer.float()
    out = peer(rearrange(z2.float(), "(b h w) c -> b c h w", b=3, h=4, w=5), 1.0)
    z_q = flat(out.z_q)
    torch.testing.assert_close(z_q.double(), expected, atol=1e-5, rtol=1e-5)
    ((z_q * weight).sum() + out.terms["commit"]).backward()
    torch.testing.assert_close(z2.grad, z1.grad, atol=1e-4, rtol=1e-4)
    # A code's gradient comes from the tokens that chose it, and through the index from all.
    torch.testing.assert_close(peer.codes.grad.double(), table.grad, atol=1e-4, rtol=1e-4)


def test_ibq_entropy_is_that_of_its_dense_definition():
    peer, z = started("ibq"), latents(3, scale=0.05)
    p = (flat(z) @ peer.codes.T / IBQ.temperature).softmax(1)
    sample = -torch.xlogy(p, p).sum(1).mean()
    batch = -torch.xlogy(p.mean(0), p.mean(0)).sum()
    torch.testing.assert_close(peer(z, 1.0).terms["entropy"], sample - batch, atol=1e-4, rtol=1e-4)


def test_vq_terms_move_one_side_each():
    peer, z = started("vq"), latents(4).requires_grad_()
    terms = peer(z, 1.0).terms
    terms["commit"].backward(retain_graph=True)
    assert peer.codes.grad is None and z.grad is not None
    z.grad = None
    terms["codebook"].backward()
    assert z.grad is None and peer.codes.grad is not None
    assert isinstance(peer, VQ)
