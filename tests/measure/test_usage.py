"""Code usage against scipy; the coded rate in real bytes, decoded back, near its model's bound."""

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
    assert usage["num_tokens"] == 5000 and usage["num_codes"] == 250
    assert usage["active"] == np.count_nonzero(counts) < 250
    assert usage["active_share"] == usage["active"] / 250
    assert usage["entropy"] == pytest.approx(scipy.stats.entropy(counts, base=2), rel=1e-12)
    assert usage["entropy_2"] == pytest.approx(-np.log2(((counts / 5000) ** 2).sum()), rel=1e-12)
    assert usage["perplexity"] == pytest.approx(np.exp(scipy.stats.entropy(counts)), rel=1e-12)
    assert usage["perplexity_share"] == pytest.approx(usage["perplexity"] / 250)
    gini = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert usage["gini"] == pytest.approx(gini, rel=1e-12)
    largest = np.sort(counts)[::-1] / 5000
    assert usage["top_1_percent"] == pytest.approx(largest[:3].sum(), rel=1e-12)
    assert usage["top_10_percent"] == pytest.approx(largest[:25].sum(), rel=1e-12)
    one = code_usage(torch.tensor([0, 9, 0, 0]))
    assert (one["entropy"], one["entropy_2"], one["gini"]) == (0, 0, 0.75)
    assert (one["active"], one["perplexity"], one["top_1_percent"]) == (1, 1, 1)


def test_miller_madow_takes_most_of_the_bias_away():
    share = np.random.default_rng(0).dirichlet(np.ones(50))
    truth = scipy.stats.entropy(share, base=2)
    draws = np.random.default_rng(1).multinomial(200, share, size=200)
    usages = [code_usage(torch.from_numpy(counts)) for counts in draws]
    bias = np.mean([u["entropy"] for u in usages]) - truth
    corrected = np.mean([u["entropy_miller_madow"] for u in usages]) - truth
    assert bias < -0.1
    assert abs(corrected) < abs(bias) / 3


@pytest.mark.parametrize("num_codes", [2, 1024, 65536])
def test_a_token_costs_the_cross_entropy_of_the_model(num_codes):
    train = counts_of(draw(num_codes, 200_000), num_codes)
    indices = draw(num_codes, (50, 16, 16), seed=1)
    rate = coded_rate(indices, train)
    share = (train.double() + 0.5) / (train.double() + 0.5).sum()
    bound = -share[indices].log2().mean().item()
    assert bound - 1e-3 < rate.bits_per_token < bound * 1.002 + 64 / indices.numel()
    assert rate.num_tokens == indices.numel()
    assert rate.bits_per_token == 8 * rate.num_bytes / rate.num_tokens


def test_codes_never_seen_in_training_can_be_sent():
    rate = coded_rate(torch.tensor([3, 2, 1] * 100), torch.tensor([1000, 0, 0, 0]))
    assert rate.bits_per_token == pytest.approx(np.log2(1002 / 0.5), rel=0.02)


def test_a_decoder_that_returns_other_tokens_is_an_error(monkeypatch):
    class Wrong:
        def __init__(self, words):
            pass

        def decode(self, model, size):
            return np.zeros(size, dtype=np.int32)

    monkeypatch.setattr(constriction.stream.queue, "RangeDecoder", Wrong)
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
