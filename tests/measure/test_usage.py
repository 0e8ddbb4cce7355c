"""Code usage against scipy; the coded rate in real bytes, decoded back, near its model's bound."""

from unittest.mock import Mock

import constriction
import numpy as np
import pytest
import scipy.stats
import torch

from lgqlib.measure.usage import code_usage, coded_rate


def draw(num_codes, shape, *, seed=0):
    share = np.random.default_rng(7).dirichlet(np.full(num_codes, 0.3))
    return torch.from_numpy(np.random.default_rng(seed).choice(num_codes, size=shape, p=share))


def counts_of(indices, num_codes):
    return torch.bincount(indices.flatten(), minlength=num_codes)


def test_usage_equals_scipy_and_direct_formulas():
    counts = counts_of(draw(250, 5000), 250)
    usage, counts = code_usage(counts), counts.numpy()
    largest = np.sort(counts)[::-1] / 5000
    expected = {
        "num_tokens": 5000,
        "num_codes": 250,
        "active": np.count_nonzero(counts),
        "active_share": np.count_nonzero(counts) / 250,
        "entropy": scipy.stats.entropy(counts, base=2),
        "entropy_2": -np.log2(((counts / 5000) ** 2).sum()),
        "perplexity": np.exp(scipy.stats.entropy(counts)),
        "perplexity_share": np.exp(scipy.stats.entropy(counts)) / 250,
        "gini": np.abs(counts[:, None] - counts).mean() / (2 * counts.mean()),
        "top_1_percent": largest[:3].sum(),
        "top_10_percent": largest[:25].sum(),
    }
    assert {name: usage[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    one = code_usage(torch.tensor([0, 9, 0, 0]))
    assert (one["entropy"], one["entropy_2"], one["gini"]) == (0, 0, 0.75)


@pytest.mark.parametrize("num_codes", [2, 1024, 65536])
def test_a_token_costs_the_cross_entropy_of_the_model(num_codes):
    train = counts_of(draw(num_codes, 200_000), num_codes)
    indices = draw(num_codes, (50, 16, 16), seed=1)
    rate = coded_rate(indices, train)
    share = (train.double() + 0.5) / (train.double() + 0.5).sum()
    bound = -share[indices].log2().mean().item()
    assert bound - 1e-3 < rate.bits_per_token < bound * 1.002 + 64 / indices.numel()
    assert rate.bits_per_token == 8 * rate.num_bytes / indices.numel()


def test_a_decoder_that_returns_other_tokens_is_an_error(monkeypatch):
    wrong = Mock()
    wrong.return_value.decode.return_value = np.zeros(3, np.int32)
    monkeypatch.setattr(constriction.stream.queue, "RangeDecoder", wrong)
    with pytest.raises(RuntimeError, match="did not return the tokens"):
        coded_rate(torch.tensor([0, 1, 1]), torch.tensor([1, 2]))


def test_tokens_that_cannot_be_counted_or_coded_are_named():
    none = torch.zeros(0, dtype=torch.int64)
    for indices, says in [
        (torch.tensor([0, 4]), r"0 to 4; they must lie in \[0, 4\)"),
        (none, "0 tokens; coding needs at least 1"),
    ]:
        with pytest.raises(ValueError, match=says):
            coded_rate(indices, torch.ones(4).long())
    assert coded_rate(torch.zeros(9).long(), torch.tensor([3])) == (0, 9, 0), "one code is known"
    with pytest.raises(ValueError, match="no token"):
        code_usage(none)
