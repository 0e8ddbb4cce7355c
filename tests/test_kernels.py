"""Fused kernels against the definition, in Triton's interpreter: no GPU is needed.

The interpreter has to be chosen before Triton is imported, so this file computes in a process of
its own (`python test_kernels.py RESULTS`) what its tests then look at.
"""

import os
import subprocess
import sys

import pytest
import torch

from lgqlib.quantizers.assignment import (
    ENERGIES,
    Assignment,
    attention_average,
    energies,
    hard_assign,
    soft_assign,
)

OUTPUTS = ("average", "collision", "entropy", "free_energy", "usage")
SIZES = {"ragged": (70, 150, 5), "one tile": (20, 33, 16), "one code": (3, 1, 2)}
CASES = {
    **{
        f"{energy} {s}": ("one tile", energy, s, 0.5, "float32")
        for energy in ENERGIES
        for s in "sn"
    },
    "ragged": ("ragged", "squared", "n", 1.0, "tf32x3"),
    "ragged cold": ("ragged", "squared", "s", 0.02, "float32"),
    "ragged norm": ("ragged", "norm", "n", 0.05, "float32"),
    "one code": ("one code", "squared", "n", 0.1, "float32"),
    "half": ("one tile", "squared", "n", 1.0, "bf16"),
    "only usage": ("ragged", "squared", "n", 0.3, "float32"),
    "frozen": ("ragged", "squared", "n", 1e-6, "float32"),
}
"""Name: size, energy, whether with widths (s) or without (n), temperature, products."""
ONLY = {"only usage": ("usage",)}


def differentiate(case, *, engine, dtype=torch.float32):
    """Return all outputs, and the gradients of a random combination of them."""
    size, energy, kind, tau, products = CASES[case]
    num_tokens, num_codes, dim = SIZES[size]
    make = torch.Generator().manual_seed(0)
    inputs = {
        "latents": torch.randn(num_tokens, dim, generator=make),
        "codebook": torch.randn(num_codes, dim, generator=make),
        "tau": torch.tensor(tau),
        "widths": torch.rand(num_codes, generator=make) + 0.5,
    }
    if kind == "n":
        del inputs["widths"]
    inputs = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
    more = {"products": products} if engine == "triton" else {}
    a = soft_assign(**inputs, energy=energy, engine=engine, **more)
    total = torch.zeros((), dtype=dtype)
    for name in OUTPUTS:
        direction = torch.randn(getattr(a, name).shape, generator=make).to(dtype)
        if name in ONLY.get(case, OUTPUTS):
            total = total + (getattr(a, name) * direction).sum()
    grads = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    a = Assignment(*(value.detach() for value in a))
    return a, dict(zip(inputs, grads, strict=True))


def hard(energy, engine):
    make = torch.Generator().manual_seed(0)
    z = torch.randn(70, 3, generator=make).round(decimals=1)
    e = torch.randn(75, 3, generator=make).round(decimals=1).repeat(2, 1)
    widths = torch.ones(150)
    return hard_assign(z, e, energy=energy, widths=widths, engine=engine)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Compute all cases under the interpreter, once."""
    path = tmp_path_factory.mktemp("kernels") / "results.pt"
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::RuntimeWarning", __file__, str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=False)


def close(actual, expected, tolerance):
    scale = max(expected.abs().max().item(), 1e-2)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_definition(case, computed):
    (a, grads), (b, expected) = (
        computed[case],
        differentiate(case, engine="dense", dtype=torch.float64),
    )
    assert torch.equal(a.indices, b.indices)
    tolerance = {"half": 3e-2, "ragged cold": 1e-4, "ragged norm": 1e-4, "frozen": 1e-3}.get(
        case, 1e-5
    )
    for name in OUTPUTS:
        close(getattr(a, name), getattr(b, name), tolerance)
    for name, grad in grads.items():
        assert (grad is None) == (expected[name] is None)
        if case != "frozen":  # where all is rounding but the values
            close(grad, expected[name], tolerance)
        assert grad.isfinite().all()


@pytest.mark.parametrize("energy", ENERGIES)
def test_hard_assignment_is_the_same_on_every_engine(energy, computed):
    assert torch.equal(computed[f"hard {energy}"], hard(energy, "streaming"))


def test_what_kernels_cannot_do_is_said():
    z, e = torch.randn(4, 3), torch.randn(5, 3)
    with pytest.raises(ValueError, match="NVIDIA GPU"):
        soft_assign(z, e, 1.0, engine="triton")
    with pytest.raises(ValueError, match="float64"):
        soft_assign(z.double(), e.double(), 1.0, engine="triton")
    with pytest.raises(ValueError, match="at most 256"):
        soft_assign(z.repeat(1, 100), e.repeat(1, 100), 1.0, engine="triton")
    with pytest.raises(ValueError, match="unknown products 'fp8'"):
        soft_assign(z, e, 1.0, products="fp8")


@pytest.mark.parametrize("energy", ["squared", "cosine", "dot"])
def test_attention_averages_the_same(energy):
    make = torch.Generator().manual_seed(0)
    z, e = (torch.randn(n, 8, generator=make, dtype=torch.float64) for n in (30, 50))
    for widths in (None, torch.rand(50, generator=make, dtype=torch.float64) + 0.5):
        d = energies(z, e, energy=energy)
        p = (-d / (0.3 if widths is None else 0.3 * widths)).softmax(1)
        average = attention_average(z, e, 0.3, energy=energy, widths=widths)
        torch.testing.assert_close(average, p @ e)
    a = soft_assign(z, e, 0.3, energy=energy, engine="attention")
    b = soft_assign(z, e, 0.3, energy=energy, engine="streaming")
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_takes_no_norm():
    with pytest.raises(ValueError, match="norm"):
        soft_assign(torch.zeros(2, 3), torch.ones(4, 3), 1.0, energy="norm", engine="attention")


if __name__ == "__main__":
    results = {case: differentiate(case, engine="triton") for case in CASES}
    results |= {f"hard {energy}": hard(energy, "triton") for energy in ENERGIES}
    torch.save(results, sys.argv[1])
