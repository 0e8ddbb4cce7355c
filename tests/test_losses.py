"""A step minimizes the weighted sum of named terms; each network has its own gradients only."""

import pytest
import torch

from lgqlib.config import LossConfig
from lgqlib.losses import PatchDiscriminator, TokenizerLoss, discriminator_loss, frozen


def pair(size=32):
    torch.manual_seed(0)
    x, y = (torch.rand(2, 3, size, size) * 2 - 1 for _ in range(2))
    return x, y.requires_grad_()


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_total_is_the_weighted_sum_of_unweighted_terms(reconstruction):
    x, y = pair()
    loss = TokenizerLoss(LossConfig(commit=0.5, usage=0.25, reconstruction=reconstruction))
    total, terms = loss(x, y, {"commit": torch.tensor(2.0), "usage": torch.tensor(4.0)})
    error = (x - y).abs() if reconstruction == "l1" else (x - y).square()
    assert terms["reconstruction"].item() == pytest.approx(error.mean().item())
    assert terms["commit"].item() == 2.0
    assert total.item() == pytest.approx(error.mean().item() + 0.5 * 2 + 0.25 * 4)
    with pytest.raises(ValueError, match="'mystery' has no weight; known: commit"):
        loss(x, y, {"mystery": torch.tensor(1.0)})


def test_the_generator_s_term_never_reaches_the_discriminator():
    _, y = pair()
    judge = PatchDiscriminator(8)
    with frozen(judge):
        logits = judge(y)
    (-logits.mean()).backward()
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())
    # The hinge: nothing is left to do beyond the margin.
    assert discriminator_loss(torch.tensor([1.5, 2.0]), torch.tensor([-1.1, -3.0])).item() == 0
    assert discriminator_loss(torch.tensor([0.0]), torch.tensor([0.0])).item() == 1


def test_the_adaptive_scale_is_the_ratio_of_gradients_at_the_last_layer():
    torch.manual_seed(0)
    last, judge = torch.nn.Conv2d(4, 3, 1), PatchDiscriminator(8)
    y = last(torch.randn(2, 4, 16, 16))
    total = y.abs().mean()
    with frozen(judge):
        logits = judge(y)
    loss = TokenizerLoss(LossConfig(adversarial=0.1))
    whole, terms = loss.adversarial(total, logits, last.weight)
    rest, own = (
        torch.autograd.grad(term, last.weight, retain_graph=True)[0].norm()
        for term in (total, -logits.mean())
    )
    scale = terms["adversarial_scale"].item()
    assert scale == pytest.approx((rest / (own + 1e-4)).item(), rel=1e-5)
    assert whole.item() == pytest.approx((total + 0.1 * scale * terms["adversarial"]).item())
