"""Soft and hard assignment: the definition, and both short ways against it."""

import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lgqlib.quantizers import assignment
from lgqlib.quantizers.assignment import dense, energies, nearest_assign, probabilities, soft_assign
from lgqlib.quantizers.start import move_starved

OUTPUTS = ("average", "collision", "entropy", "free_energy", "usage")
WAYS = {"dense": dense, "chunked": soft_assign, "nearest": partial(nearest_assign, num_nearest=99)}
"""With 99 nearest codes nothing is outside."""
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
each_energy = pytest.mark.parametrize("energy", assignment.ENERGIES)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(assignment, "CHUNK", 1)  # 64 tokens each, the least


def problem(num_tokens, num_codes, dim, *, dtype=torch.float64, seed=0):
    make = torch.Generator().manual_seed(seed)
    z, e = (torch.randn(n, dim, dtype=dtype, generator=make) for n in (num_tokens, num_codes))
    return z, e, torch.rand(num_codes, dtype=dtype, generator=make) + 0.5


def differentiate(way, z, e, tau, widths=None, **options):
    """Give all outputs, and the gradients of a random combination of them."""
    inputs = [t.clone().requires_grad_() for t in (z, e, torch.as_tensor(tau, dtype=z.dtype))]
    more = {}
    if widths is not None:
        more["widths"] = widths.clone().requires_grad_()
        inputs.append(more["widths"])
    a = way(*inputs[:3], **more, **options)
    make = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=z.dtype)
    for name in OUTPUTS:
        value = getattr(a, name)
        direction = torch.randn(value.shape, generator=make, dtype=torch.float64).to(z.dtype)
        total = total + (value * direction).sum() * (len(z) if name == "usage" else 1)
    return a, torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


def assert_same(one, other, *, tolerance):
    (a, grads), (b, expected) = one, other
    assert torch.equal(a.indices, b.indices)
    pairs = [(getattr(a, name), getattr(b, name)) for name in OUTPUTS]
    for actual, right in [*pairs, *zip(grads, expected, strict=True)]:
        atol = tolerance * max(right.abs().max().item(), 1e-2)
        torch.testing.assert_close(actual, right, rtol=tolerance, atol=atol, check_dtype=False)


@each_energy
def test_the_definition_is_sums_over_the_probabilities_and_differentiable(energy):
    z, e, s = problem(20, 9, 4)
    d = {
        "squared": torch.cdist(z, e).square(),
        "norm": torch.cdist(z, e),
        "cosine": 1 - F.cosine_similarity(z[:, None], e[None], dim=2),
        "dot": -z @ e.T,
    }[energy] / s
    torch.testing.assert_close(energies(z, e, energy=energy) / s, d)
    p = (-d / 0.5).softmax(1)
    torch.testing.assert_close(probabilities(z, e, 0.5, widths=s, energy=energy), p)
    a = dense(z, e, 0.5, widths=s, energy=energy)
    assert torch.equal(a.indices, d.argmin(1))
    entropy, free = torch.special.entr(p).sum(1), -0.5 * torch.logsumexp(-d / 0.5, 1)
    expected = (p @ e, p.square().sum(1), entropy, free, p.mean(0))
    for name, value in zip(OUTPUTS, expected, strict=True):
        torch.testing.assert_close(getattr(a, name), value)

    def outputs(z, e, s, tau):
        a = dense(z, e, tau, widths=s, energy=energy)
        return tuple(getattr(a, name) for name in OUTPUTS)

    inputs = [z[:4], e[:4], s[:4], torch.tensor(0.7, dtype=torch.float64)]
    assert torch.autograd.gradcheck(outputs, [t.clone().requires_grad_() for t in inputs])


@each_energy
@pytest.mark.parametrize("widths", [False, True], ids=["even", "widths"])
@pytest.mark.parametrize("tau", [2.0, 0.05])
def test_chunks_equal_the_definition(energy, widths, tau):
    for size in [(150, 37, 5), (129, 1, 3), (65, 300, 64), (2, 40, 2)]:
        z, e, s = problem(*size)
        one, other = (
            differentiate(way, z, e, tau, s if widths else None, energy=energy)
            for way in (soft_assign, dense)
        )
        assert_same(one, other, tolerance=1e-10)


@pytest.mark.parametrize("num_codes", [3, 8, 100, 1000])
def test_the_nearest_codes_equal_the_definition_where_nothing_is_outside(num_codes):
    z, e, _ = problem(150, num_codes, 5)
    tau = 1.0 if num_codes <= 8 else 0.01
    assert assignment.mass_outside(z, e, tau) < 1e-9
    one, other = (differentiate(way, z, e, tau) for way in (nearest_assign, dense))
    assert_same(one, other, tolerance=1e-7)


@each_way
def test_permuting_codes_permutes_everything(way):
    z, e, _ = problem(100, 20, 4)
    order = torch.randperm(20)
    a, b = way(z, e, 0.4), way(z, e[order], 0.4)
    assert torch.equal(order[b.indices], a.indices)
    torch.testing.assert_close(b.usage, a.usage[order])
    for name in ("average", "collision", "entropy", "free_energy"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name))


@each_way
def test_when_it_is_cold_the_nearest_code_has_all_and_ties_share(way):
    z, e, _ = problem(200, 30, 3)
    a = way(z, e, 1e-7)
    torch.testing.assert_close(a.average, e[torch.cdist(z, e).argmin(1)])
    torch.testing.assert_close(a.free_energy, energies(z, e).amin(1))
    e = torch.tensor([[9.0, 0], [0, 1], [1, 0], [0, 1], [0, -1], [-10, -1]])
    for tau in (1e-3, 1e-6):
        a = way(torch.zeros(3, 2), e, tau)
        torch.testing.assert_close(a.entropy, torch.full((3,), math.log(4)))
        torch.testing.assert_close(a.usage, torch.tensor([0, 0.25, 0.25, 0.25, 0.25, 0]))
        assert a.indices.tolist() == [1, 1, 1]


@each_energy
@pytest.mark.parametrize("num_codes", [1, 5, 16, 255, 257, 1100])
def test_the_nearest_codes_are_those_of_lowest_energy(num_codes, energy):
    z, e, s = problem(150, num_codes, 4)
    for widths in (None, s):
        order = (energies(z, e, energy=energy) / (1 if widths is None else s)).sort(1).indices
        for m in (1, 8):
            found = assignment.nearest(z, e, m, energy=energy, widths=widths)
            assert torch.equal(found[:, 0], order[:, 0])  # the nearest first, others in any order
            assert torch.equal(found.sort(1).values, order[:, :m].sort(1).values)


LARGE = """
import resource, psutil, torch
from lgqlib.quantizers.assignment import soft_assign
from lgqlib.quantizers.lgq import LGQ

quantizer = LGQ(262_144, 5, codebook_loss="free_energy", identity=1.0)
z = torch.randn(4, 5, 32, 32, requires_grad=True)
limit = psutil.Process().memory_info().vms + 10**9
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

out = quantizer(z, 1e-4)
assert quantizer.outside < 1e-3
(out.z_q.sum() + sum(out.terms.values())).backward()

latents = z.detach().movedim(1, -1).flatten(0, -2)[:192].requires_grad_()  # three chunks
soft_assign(latents, quantizer.codes, 1.0).average.sum().backward()
"""


def test_memory_stays_bounded_at_large_codebooks():
    """4,096 tokens and 262,144 codes: a single [tokens, codes] tensor would be 4.3 GB."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bad_arguments_are_named():
    check = soft_assign.__wrapped__  # below the checker of shapes
    z, e, nan = torch.zeros(3, 2), torch.ones(4, 2), float("nan")
    for bad, more, message in (
        ((torch.zeros(3, 5), e, 1.0), {}, r"\(3, 5\) and codebook \(4, 2\)"),
        ((z, e[:0], 1.0), {}, "no codes"),
        ((z, e, torch.tensor(-1.0)), {}, "tau is -1.0"),
        ((z, e, nan), {}, "tau is nan"),
        ((z, e, 1.0), {"energy": "manhattan"}, "manhattan"),
        ((z, e, 1.0), {"widths": torch.tensor([1.0, 1.0, nan, 1.0])}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            check(*bad, **more)


@pytest.mark.parametrize("most, moved", [(9, [2, 5]), (1, [5]), (0, [])])
def test_only_starved_codes_move_beside_the_largest_parts_of_the_error(most, moved):
    codes = torch.arange(8.0)[:, None].expand(8, 3).clone()
    mass = torch.tensor([0.3, 0.2, 0.012, 0.013, 0.1, 0.001, 0.1, 0.274])  # 0.1 / K = 0.0125
    share = torch.tensor([0.1, 0.4, 0.9, 0.1, 0.3, 0.0, 0.1, 0.0])
    before, old = codes.clone(), mass.clone()
    generator = torch.Generator().manual_seed(0)
    count = move_starved(codes, mass, share, most=most, generator=generator)
    assert count == len(moved)
    donors = [1, 4][:count]
    changed = (codes != before).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(moved + donors)
    # The most starved goes to the largest, and both stand around where the donor stood.
    for code, donor in zip(reversed(moved), donors, strict=True):
        torch.testing.assert_close((codes[code] + codes[donor]) / 2, before[donor])
        assert 0 < (codes[code] - codes[donor]).norm() < 2
        assert mass[code] == mass[donor] == old[donor] / 2
