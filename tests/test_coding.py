"""The coded rate: real bytes, decoded back, near the bound of its model."""

import constriction
import numpy as np
import pytest
import torch
from lgqlib.measure.coding import coded_rate


def draw(num_codes, shape, *, seed=0, concentration=0.3):
    random = np.random.default_rng(seed)
    share = np.random.default_rng(7).dirichlet(np.full(num_codes, concentration))
    return torch.from_numpy(random.choice(num_codes, size=shape, p=share))


def counts_of(indices, num_codes):
    return torch.bincount(indices.flatten(), minlength=num_codes)


@pytest.mark.parametrize("num_codes", [2, 1024, 65536])
def test_rate_is_the_cross_entropy_of_the_model(num_codes):
    train = counts_of(draw(num_codes, 200_000), num_codes)
    indices = draw(num_codes, (50, 16, 16), seed=1)
    rate = coded_rate(indices, train)
    share = (train.double() + 0.5) / (train.double() + 0.5).sum()
    bound = -share[indices].log2().mean().item()
    assert bound - 1e-3 < rate.bits_per_token < bound * 1.002 + 64 / indices.numel()
    assert rate.num_tokens == indices.numel()
    assert rate.bits_per_token == 8 * rate.num_bytes / rate.num_tokens


def test_codes_never_seen_in_training_can_be_sent():
    train = torch.tensor([1000, 0, 0, 0])
    rate = coded_rate(torch.tensor([3, 2, 1] * 100), train)
    assert rate.bits_per_token == pytest.approx(np.log2(1002 / 0.5), rel=0.02)


def test_even_use_costs_log2_of_the_codebook_and_a_single_code_almost_nothing():
    even = torch.arange(256).repeat(40)
    assert coded_rate(even, torch.full((256,), 100)).bits_per_token == pytest.approx(8, abs=0.01)
    collapsed = torch.zeros(10_000, dtype=torch.int64)
    assert coded_rate(collapsed, torch.tensor([10**6, 0])).bits_per_token < 0.01


def test_usage_of_other_images_costs_more_than_their_own():
    indices, others = draw(64, 20_000), draw(64, 20_000, seed=1).flip(0) ^ 1
    own = coded_rate(indices, counts_of(indices, 64))
    assert coded_rate(indices, counts_of(others, 64)).bits_per_token > own.bits_per_token


def test_a_decoder_that_returns_other_tokens_is_an_error(monkeypatch):
    class Wrong:
        def __init__(self, words):
            pass

        def decode(self, model, size):
            return np.zeros(size, dtype=np.int32)

    monkeypatch.setattr(constriction.stream.queue, "RangeDecoder", Wrong)
    with pytest.raises(RuntimeError, match="did not return the tokens"):
        coded_rate(torch.tensor([0, 1, 1]), torch.tensor([1, 2]))


def test_what_was_given_wrong_is_named():
    with pytest.raises(ValueError, match=r"0 to 4; they must lie in \[0, 4\)"):
        coded_rate(torch.tensor([0, 4]), torch.ones(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="0 tokens of 4 codes"):
        coded_rate(torch.empty(0, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="3 tokens of 1 codes"):
        coded_rate(torch.zeros(3, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
