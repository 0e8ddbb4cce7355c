"""Soft and hard assignment: the definition, and every engine against it."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lgqlib.quantizers import assignment, streaming
from lgqlib.quantizers.assignment import (
    ENERGIES,
    Assignment,
    energies,
    hard_assign,
    mean_over_ranks,
    nearest_two,
    probabilities,
    soft_assign,
)

PAIRS, STRIPS = 2.0, -1.0
"""Shares of pairs up to which all others are skipped: always, never."""
SIZES = [(5, 1, 3), (37, 150, 5), (33, 17, 64), (1, 40, 2), (2, 2100, 3)]
OUTPUTS = ("average", "collision", "entropy", "free_energy", "usage")


@pytest.fixture(params=[PAIRS, STRIPS], ids=["pairs", "strips"])
def share(request, monkeypatch):
    """Make the streaming engine take one kind of block."""
    monkeypatch.setattr(assignment, "PAIR_SHARE", request.param)
    return request.param


def problem(num_tokens, num_codes, dim, *, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    z, e = (torch.randn(n, dim, dtype=dtype, generator=make) for n in (num_tokens, num_codes))
    return z, e, torch.rand(num_codes, dtype=dtype, generator=make) + 0.5


def differentiate(z, e, tau, widths, *, cotangents=None, **options):
    """Return all outputs, and the gradients of a random combination of them."""
    tau = torch.as_tensor(tau, dtype=torch.promote_types(z.dtype, torch.float32))
    z, e, tau = (t.clone().requires_grad_() for t in (z, e, tau))
    inputs = {"latents": z, "codebook": e, "tau": tau}
    if widths is not None:
        inputs["widths"] = widths = widths.clone().requires_grad_()
    a = soft_assign(z, e, tau, widths=widths, **options)
    make = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=z.dtype)
    for name in OUTPUTS:
        value = getattr(a, name)
        direction = torch.randn(value.shape, dtype=torch.float64, generator=make).to(z.dtype)
        if cotangents is None or name in cotangents:
            total = total + (value * direction).sum() * (len(z) if name == "usage" else 1)
    grads = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    return a, dict(zip(inputs, grads, strict=True))


def close(actual, expected, *, tolerance):
    scale = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-2), check_dtype=False
    )


def assert_same(one, other, *, tolerance):
    (a, grads), (b, expected) = one, other
    for name in OUTPUTS:
        close(getattr(a, name), getattr(b, name), tolerance=tolerance)
    assert torch.equal(a.indices, b.indices)
    for name, grad in grads.items():
        if grad is not None:
            close(grad, expected[name], tolerance=tolerance)


# The definition


@pytest.mark.parametrize("energy", ENERGIES)
def test_dense_gradients_are_right(energy):
    z, e, s = problem(4, 6, 3)
    tau = torch.tensor(0.7, dtype=torch.float64)

    def outputs(z, e, s, tau):
        a = soft_assign(z, e, tau, widths=s, energy=energy, engine="dense")
        return tuple(getattr(a, name) for name in OUTPUTS)

    assert torch.autograd.gradcheck(outputs, [t.requires_grad_() for t in (z, e, s, tau)])


def test_outputs_are_reductions_of_the_probabilities():
    z, e, s = problem(20, 9, 4)
    p = probabilities(z, e, 0.5, widths=s)
    torch.testing.assert_close(p, (-torch.cdist(z, e).square() / (0.5 * s)).softmax(1))
    a = soft_assign(z, e, 0.5, widths=s)
    torch.testing.assert_close(a.average, p @ e)
    assert torch.equal(a.indices, p.argmax(1))
    torch.testing.assert_close(a.collision, p.square().sum(1))
    torch.testing.assert_close(a.entropy, torch.special.entr(p).sum(1))
    torch.testing.assert_close(a.usage, p.mean(0))
    d = energies(z, e) / s
    torch.testing.assert_close(a.free_energy, (p * d).sum(1) - 0.5 * a.entropy)


def test_energies_are_what_their_names_say():
    z, e, _ = problem(6, 5, 4)
    expected = {
        "squared": torch.cdist(z, e).square(),
        "norm": torch.cdist(z, e),
        "cosine": 1 - F.cosine_similarity(z[:, None], e[None], dim=2),
        "dot": -z @ e.T,
    }
    for energy in ENERGIES:
        torch.testing.assert_close(energies(z, e, energy=energy), expected[energy])


# Engines against the definition


@pytest.mark.parametrize("widths", [False, True], ids=["even", "widths"])
@pytest.mark.parametrize("energy", ENERGIES)
def test_streaming_equals_dense(energy, widths, share):
    for seed, size in enumerate(SIZES):
        z, e, s = problem(*size, seed=seed)
        s = s if widths else None
        for tau in (2.0, 0.05):
            one = differentiate(z, e, tau, s, energy=energy, engine="streaming")
            other = differentiate(z, e, tau, s, energy=energy, engine="dense")
            assert_same(one, other, tolerance=1e-10)


@pytest.mark.parametrize("output", OUTPUTS)
def test_each_output_carries_its_own_gradient(output, share):
    z, e, s = problem(30, 70, 5)
    one, other = (
        differentiate(z, e, 0.4, s, cotangents=[output], engine=engine)
        for engine in ("streaming", "dense")
    )
    assert_same(one, other, tolerance=1e-10)


@pytest.mark.parametrize("tau", [2.0, 0.5, 0.1])
def test_float32_agrees_to_its_precision(tau, share):
    z, e, _ = problem(100, 300, 16)
    one = differentiate(z.float(), e.float(), tau, None, engine="streaming")
    other = differentiate(z.float().double(), e.float().double(), tau, None, engine="dense")
    assert_same(one, other, tolerance=1e-4 if tau < 0.5 else 2e-5)


@settings(max_examples=25, deadline=None)
@given(
    num_tokens=st.integers(1, 40),
    num_codes=st.integers(1, 60),
    dim=st.integers(1, 9),
    log_tau=st.floats(-3, 1),
    tile_bytes=st.sampled_from([1, 3000, 10**6]),
)
def test_any_shape_and_memory_gives_the_same(num_tokens, num_codes, dim, log_tau, tile_bytes):
    z, e, _ = problem(num_tokens, num_codes, dim)
    options = {"engine": "streaming", "tile_bytes": tile_bytes}
    one = differentiate(z, e, 10**log_tau, None, **options)
    other = differentiate(z, e, 10**log_tau, None, engine="dense")
    assert_same(one, other, tolerance=1e-9)


def test_skipping_changes_nothing_float32_can_see(monkeypatch):
    z, e, _ = problem(200, 3000, 6, dtype=torch.float32)
    for tau in (0.3, 0.05):
        results = []
        for always in (PAIRS, STRIPS):
            monkeypatch.setattr(assignment, "PAIR_SHARE", always)
            results.append(differentiate(z, e, tau, None, engine="streaming"))
        assert_same(*results, tolerance=5e-5)
        assert abs(results[0][0].usage.sum().item() - 1) < 1e-6


def test_skipping_turns_itself_on_when_cold(monkeypatch):
    z, e, _ = problem(64, 2000, 4, dtype=torch.float32)
    kinds = []
    for block in ("PairBlock", "DenseBlock"):
        inner = getattr(streaming, block)
        spy = lambda *args, inner=inner, **more: kinds.append(inner) or inner(*args, **more)  # noqa: E731
        monkeypatch.setattr(streaming, block, spy)
    soft_assign(z, e, 100.0, engine="streaming")
    assert {kind.__name__ for kind in kinds} == {"DenseBlock"}
    kinds.clear()
    soft_assign(z, e, 1e-3, engine="streaming")
    assert {kind.__name__ for kind in kinds} == {"PairBlock"}


def test_tokens_unlike_the_probe_fall_back_to_strips(monkeypatch):
    # The probe reads every second token; the others see all codes at once.
    z, e, _ = problem(128, 2000, 3, dtype=torch.float64)
    e = F.normalize(e, dim=1)
    z[::2] = e[:64]
    z[1::2] = 0
    one = differentiate(z, e, 1e-3, None, engine="streaming")
    other = differentiate(z, e, 1e-3, None, engine="dense")
    assert_same(one, other, tolerance=1e-8)


# The method's closed forms


@pytest.mark.parametrize("engine", ["dense", "streaming"])
def test_straight_through_gradients_have_their_closed_form(engine, share):
    z, e, _ = problem(8, 6, 3)
    tau, g = 0.6, torch.randn(8, 3, dtype=torch.float64)
    z.requires_grad_(), e.requires_grad_()
    a = soft_assign(z, e, tau, engine=engine)
    dz, de = torch.autograd.grad(a.average, (z, e), g)
    p = probabilities(z, e, tau).detach()
    with torch.no_grad():
        q_soft = p @ e
        apart = e[None] - q_soft[:, None]  # [N, K, C]
        covariance = torch.einsum("nk,nki,nkj->nij", p, apart, apart)
        torch.testing.assert_close(dz, 2 / tau * torch.einsum("nij,nj->ni", covariance, g))
        pull = torch.einsum("nki,ni->nk", apart, g)
        expected = p.T @ g + 2 / tau * torch.einsum("nk,nki->ki", p * pull, z[:, None] - e[None])
        torch.testing.assert_close(de, expected)


def test_free_energy_moves_codes_to_their_latents(share):
    z, e, _ = problem(50, 7, 3)
    e.requires_grad_()
    a = soft_assign(z, e, 0.3, engine="streaming")
    grad = torch.autograd.grad(a.free_energy.sum(), e)[0]
    p = probabilities(z, e, 0.3).detach()
    torch.testing.assert_close(grad, 2 * (p.sum(0)[:, None] * e.detach() - p.T @ z))


@pytest.mark.parametrize("engine", ["dense", "streaming"])
def test_permuting_codes_permutes_everything(engine, share):
    z, e, s = problem(30, 20, 4)
    order = torch.randperm(20)
    a = soft_assign(z, e, 0.4, widths=s, engine=engine)
    b = soft_assign(z, e[order], 0.4, widths=s[order], engine=engine)
    assert torch.equal(order[b.indices], a.indices)
    torch.testing.assert_close(b.usage, a.usage[order])
    for name in ("average", "collision", "entropy", "free_energy"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_gap_bounds_what_the_best_code_leaves():
    z, e, _ = problem(200, 30, 3)
    first, second = nearest_two(z, e)
    expected = energies(z, e).topk(2, largest=False).values
    torch.testing.assert_close(torch.stack([first, second], 1), expected)
    for tau in (1.0, 0.1, 0.01):
        left = 1 - probabilities(z, e, tau).amax(1)
        assert (left <= 29 * torch.exp((first - second) / tau) + 1e-12).all()


@pytest.mark.parametrize("tau", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("engine", ["dense", "streaming"])
def test_tied_codes_keep_equal_shares(engine, tau):
    e = torch.tensor([[9.0, 0], [0, 1], [1, 0], [0, 1], [0, -1], [-10, -1]])
    a = soft_assign(torch.zeros(3, 2), e, tau, engine=engine)
    if tau < 1:
        torch.testing.assert_close(a.collision, torch.full((3,), 0.25))
        torch.testing.assert_close(a.entropy, torch.full((3,), math.log(4)))
        expected = torch.tensor([0, 0.25, 0.25, 0.25, 0.25, 0])
        torch.testing.assert_close(a.usage, expected)
    assert a.indices.tolist() == [1, 1, 1]


def test_near_pairs_are_told_apart_at_low_temperature():
    make = torch.Generator().manual_seed(0)
    e = 3 * torch.randn(500, 64, generator=make)
    z = e[:50] + 1e-2 * torch.randn(50, 64, generator=make)
    e = torch.cat([e, e[:50] + 2e-3 * torch.randn(50, 64, generator=make)])
    one = differentiate(z, e, 1e-3, None, engine="streaming")
    other = differentiate(z.double(), e.double(), 1e-3, None, engine="dense")
    assert 0.1 < other[0].entropy.mean() < 0.7
    assert_same(one, other, tolerance=2e-5)


# Hard assignment


@pytest.mark.parametrize("energy", ENERGIES)
def test_hard_assignment_is_the_lowest_energy(energy):
    for size in [*SIZES, (600, 1100, 4)]:
        z, e, s = problem(*size, dtype=torch.float32)
        for widths in (None, s):
            d = energies(z.double(), e.double(), energy=energy) / (1 if widths is None else widths)
            assert torch.equal(hard_assign(z, e, energy=energy, widths=widths), d.argmin(1))


@pytest.mark.parametrize("engine", ["dense", "streaming"])
def test_the_first_of_equal_codes_wins_on_every_engine(engine, share):
    z, e, _ = problem(600, 40, 8, dtype=torch.float32)
    copies = e.repeat(60, 1)
    hard = hard_assign(z, copies)
    assert torch.equal(hard, hard_assign(z, e))
    assert torch.equal(soft_assign(z, copies, 0.01, engine=engine).indices, hard)
    assert torch.equal(soft_assign(z, copies, 30.0, engine=engine).indices, hard)


def test_hard_index_does_not_depend_on_the_neighbors_in_the_batch():
    z, e, _ = problem(300, 700, 16, dtype=torch.float32)
    e = e.round(decimals=1)
    z = z.round(decimals=1)  # many exact ties
    whole = hard_assign(z, e)
    assert torch.equal(whole, torch.cat([hard_assign(part, e) for part in z.split(7)]))


# Hard cases


@pytest.mark.parametrize("engine", ["dense", "streaming"])
@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize(
    "case", ["large", "far", "equal codes", "one code", "on the codes", "zero"]
)
def test_values_and_gradients_are_finite(case, energy, engine, share):
    z, e, s = problem(20, 12, 5, dtype=torch.float32)
    if case == "large":
        z, e = 1e4 * z, 1e4 * e
    elif case == "far":
        z, e = z + 1e4, e + 1e4
    elif case == "equal codes":
        e = e[:1].expand(12, 5).clone()
    elif case == "one code":
        e, s = e[:1], s[:1]
    elif case == "on the codes":
        z = e[torch.arange(20) % 12].clone()
    else:
        z, e = 0 * z, 0 * e
    for tau in (1e-6, 1.0):
        for widths in (None, s):
            a, grads = differentiate(z, e, tau, widths, energy=energy, engine=engine)
            for value in (*a, *grads.values()):
                assert value.isfinite().all()


@pytest.mark.parametrize("engine", ["auto", "dense", "streaming"])
def test_no_latents_is_no_problem(engine):
    a, grads = differentiate(
        torch.empty(0, 3), torch.randn(4, 3), 1.0, torch.ones(4), engine=engine
    )
    assert a.average.shape == (0, 3) and a.indices.shape == (0,) and a.usage.tolist() == [0] * 4
    assert all(not grad.any() for grad in grads.values())
    assert hard_assign(torch.empty(0, 3), torch.randn(4, 3)).shape == (0,)


@pytest.mark.parametrize("engine", ["dense", "streaming"])
def test_autocast_does_not_lower_the_precision(engine):
    z, e, s = problem(30, 50, 16, dtype=torch.float32)
    z.requires_grad_()
    plain = soft_assign(z, e, 0.05, widths=s, engine=engine)
    with torch.autocast("cpu", torch.bfloat16):
        a = soft_assign(z, e, 0.05, widths=s, engine=engine)
        total = a.average.square().sum()
        if engine == "streaming":  # its backward is our own, wherever it is called
            grad = torch.autograd.grad(total, z, retain_graph=True)[0]
        assert torch.equal(hard_assign(z, e), hard_assign(z.double(), e.double()))
    for name in OUTPUTS:
        value = getattr(a, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, getattr(plain, name), rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(plain.average.square().sum(), z)[0]
    if engine == "streaming":
        close(grad, expected, tolerance=1e-6)
    close(torch.autograd.grad(total, z)[0], expected, tolerance=1e-6)


def test_half_precision_is_raised_to_float32():
    z, e, _ = problem(30, 50, 16, dtype=torch.float32)
    z, e = z.bfloat16(), e.bfloat16()
    a, grads = differentiate(z, e, 0.5, None)
    b, _ = differentiate(z.float(), e.float(), 0.5, None)
    assert a.average.dtype == torch.float32 and torch.equal(a.average, b.average)
    assert grads["latents"].dtype == torch.bfloat16


def test_a_graph_is_freed_with_its_outputs():
    z, e, _ = problem(40, 30, 4)
    nodes = []

    def once():
        x = z.clone().requires_grad_()
        a = soft_assign(x, e, 0.5, engine="streaming")
        (a.average.sum() + a.usage.square().sum() + a.collision.sum()).backward()
        nodes.append(torch.utils.weak.WeakTensorKeyDictionary({x: None}))

    once()
    assert len(nodes[0]) == 0, "the inputs outlive the graph"


def test_gradients_can_be_taken_twice(share):
    z, e, _ = problem(40, 30, 4)
    z.requires_grad_()
    a = soft_assign(z, e, 0.5, engine="streaming")
    first, second = (
        torch.autograd.grad(a.entropy.sum() + a.usage.square().sum(), z, retain_graph=True)[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)


COMPILED = """
import sys, torch
from lgqlib.quantizers.assignment import soft_assign

assert "torch._dynamo" not in sys.modules, "importing the library imports the compiler"

def loss(z, e):
    a = soft_assign(2 * z, e + 1, 0.5)
    return a.average.sin().sum() + a.usage.square().sum()

z, e = torch.randn(30, 4, requires_grad=True), torch.randn(20, 4)
expected = torch.autograd.grad(loss(z, e), z)[0]
compiled = torch.compile(loss, backend="eager")
for _ in range(3):
    torch.testing.assert_close(torch.autograd.grad(compiled(z, e), z)[0], expected)
"""


def test_compiled_code_around_it_gives_the_same_without_a_word():
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(3)}, "latents"),
        ({"latents": torch.zeros(3, 5)}, r"\(3, 5\) and codebook \(4, 2\)"),
        ({"codebook": torch.zeros(0, 2)}, "no codes"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"tau": -1.0}, "tau is -1.0"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"tau": torch.tensor(0.0)}, "tau is 0.0"),
        ({"energy": "manhattan"}, "manhattan"),
        ({"engine": "quantum"}, "quantum"),
        ({"widths": torch.ones(3)}, "widths"),
        ({"widths": torch.tensor([1.0, 1.0, 0.0, 1.0])}, "positive"),
        ({"widths": torch.tensor([1.0, 1.0, float("nan"), 1.0])}, "positive"),
    ],
)
def test_bad_arguments_are_named(change, message):
    given = {"latents": torch.zeros(3, 2), "codebook": torch.ones(4, 2), "tau": 1.0, **change}
    check = soft_assign.__wrapped__ if hasattr(soft_assign, "__wrapped__") else soft_assign
    with pytest.raises(ValueError, match=message):
        check(given.pop("latents"), given.pop("codebook"), given.pop("tau"), **given)


def test_nearest_two_needs_two():
    with pytest.raises(ValueError, match="at least 2"):
        nearest_two(torch.zeros(3, 2), torch.zeros(1, 2))


# Data parallel


def test_one_process_averages_nothing():
    x = torch.randn(3, requires_grad=True)
    assert mean_over_ranks(x) is x


def loss_of(x, transform, codebook):
    """A loss like the quantizer's: means over tokens, and a square of the mean over all ranks."""
    a = soft_assign(x @ transform, codebook, 0.5)
    usage = mean_over_ranks(a.usage)
    return (a.average - x @ transform).square().mean() + 5 * usage.square().sum(), usage


def work(rank, folder, x, transform, codebook):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    transform, codebook = transform.requires_grad_(), codebook.requires_grad_()
    loss, usage = loss_of(x.chunk(2)[rank], transform, codebook)
    loss.backward()
    for grad in (transform.grad, codebook.grad):  # as DistributedDataParallel does
        dist.all_reduce(grad)
        grad /= 2
    uneven = torch.tensor([float(rank)], requires_grad=True)
    mean = mean_over_ranks(uneven, weight=[3.0, 1.0][rank])
    mean.backward()
    saved = {
        "transform": transform.grad,
        "codebook": codebook.grad,
        "usage": usage.detach(),
        "mean": mean.detach(),
        "slope": uneven.grad,
    }
    torch.save(saved, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_half_a_batch_each_are_one(tmp_path):
    x, codebook, _ = problem(32, 10, 4)
    transform = torch.randn(4, 4, dtype=torch.float64)
    context = torch.multiprocessing.spawn(
        work, (str(tmp_path), x, transform, codebook), nprocs=2, join=False
    )
    assert context.join(timeout=120) or context.join(timeout=60)
    transform.requires_grad_(), codebook.requires_grad_()
    loss, usage = loss_of(x, transform, codebook)
    loss.backward()
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(seen["usage"], usage.detach())
        torch.testing.assert_close(seen["transform"], transform.grad)
        torch.testing.assert_close(seen["codebook"], codebook.grad)
        assert seen["mean"].item() == 0.25
        assert seen["slope"].item() == [1.5, 0.5][rank]  # halved by the average: 3/4 and 1/4


def test_an_assignment_is_what_it_says():
    assert Assignment._fields == (
        "average", "indices", "collision", "entropy", "free_energy", "usage"
    )  # fmt: skip
