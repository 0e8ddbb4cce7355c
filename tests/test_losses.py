"""What a step minimizes is the weighted sum of named terms, and each network has its own gradients
only.
"""

import pytest
import torch

from lgqlib.config import LossConfig
from lgqlib.losses import PatchDiscriminator, TokenizerLoss, discriminator_loss, frozen
from lgqlib.measure.features import LiteFeatures


def pair(size=32):
    torch.manual_seed(0)
    return torch.rand(2, 3, size, size) * 2 - 1, (
        torch.rand(2, 3, size, size) * 2 - 1
    ).requires_grad_()


def test_total_is_the_weighted_sum_of_unweighted_terms():
    x, y = pair()
    loss = TokenizerLoss(LossConfig(commit=0.5, usage=0.25))
    total, terms = loss(x, y, {"commit": torch.tensor(2.0), "usage": torch.tensor(4.0)})
    assert terms["reconstruction"].item() == pytest.approx((x - y).abs().mean().item())
    assert terms["commit"].item() == 2.0
    assert total.item() == pytest.approx(terms["reconstruction"].item() + 0.5 * 2 + 0.25 * 4)


def test_l2_is_the_mean_square():
    x, y = pair()
    _, terms = TokenizerLoss(LossConfig(reconstruction="l2"))(x, y, {})
    assert terms["reconstruction"].item() == pytest.approx((x - y).square().mean().item())


def test_a_term_without_a_weight_is_refused_by_name():
    x, y = pair()
    with pytest.raises(ValueError, match="'mystery' has no weight; known: commit"):
        TokenizerLoss(LossConfig())(x, y, {"mystery": torch.tensor(1.0)})


def test_perceptual_term_sees_structure_and_trains_nothing_of_its_own():
    x, y = pair()
    loss = TokenizerLoss(LossConfig(perceptual=1.0, perceptual_side=64))
    same, _ = loss(x, x.clone(), {})
    total, terms = loss(x, y, {})
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert terms["perceptual"].item() > 0.01
    total.backward()
    assert y.grad.abs().sum() > 0
    assert not [p for p in loss.parameters() if p.requires_grad]


def test_the_generator_s_term_never_reaches_the_discriminator():
    _, y = pair()
    judge = PatchDiscriminator(8)
    with frozen(judge):
        logits = judge(y)
    (-logits.mean()).backward()
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters())
    assert all(p.requires_grad for p in judge.parameters())
    discriminator_loss(judge(y.detach()), judge(y.detach() + 1)).backward()
    assert all(p.grad is not None for p in judge.parameters())


def test_hinge_loss_is_zero_beyond_the_margin():
    assert discriminator_loss(torch.tensor([1.5, 2.0]), torch.tensor([-1.1, -3.0])).item() == 0
    assert discriminator_loss(torch.tensor([0.0]), torch.tensor([0.0])).item() == 1


def test_the_adaptive_scale_is_the_ratio_of_gradients_at_the_last_layer():
    torch.manual_seed(0)
    last = torch.nn.Conv2d(4, 3, 1)
    features, judge = torch.randn(2, 4, 16, 16), PatchDiscriminator(8)
    y = last(features)
    total = y.abs().mean()
    with frozen(judge):
        logits = judge(y)
    loss = TokenizerLoss(LossConfig(adversarial=0.1))
    whole, terms = loss.adversarial(total, logits, last.weight)
    rest = torch.autograd.grad(total, last.weight, retain_graph=True)[0].norm()
    own = torch.autograd.grad(-logits.mean(), last.weight, retain_graph=True)[0].norm()
    assert terms["adversarial_scale"].item() == pytest.approx(
        (rest / (own + 1e-4)).item(), rel=1e-5
    )
    expected = total + 0.1 * terms["adversarial_scale"] * terms["adversarial"]
    assert whole.item() == pytest.approx(expected.item())
    plain = TokenizerLoss(LossConfig(adversarial=0.1, adaptive=False))
    assert plain.adversarial(total, logits, last.weight)[1]["adversarial_scale"].item() == 1


def test_adversarial_terms_agree_with_finite_differences():
    torch.manual_seed(0)
    judge = PatchDiscriminator(width=8).double()
    real, fake = (torch.rand(2, 3, 16, 16).double() for _ in range(2))
    fake.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: -judge(x).mean(), fake, fast_mode=True)
    parameters = tuple(judge.parameters())
    weights = dict(judge.named_parameters())

    def hinge(*values):
        named = dict(zip(weights, values, strict=True))
        logits = [torch.func.functional_call(judge, named, x) for x in (real, fake.detach())]
        return discriminator_loss(*logits)

    assert torch.autograd.gradcheck(hinge, parameters, fast_mode=True)


def test_the_perceptual_term_agrees_with_finite_differences():
    torch.manual_seed(0)
    features = LiteFeatures("lite0", side=32).double()
    target, image = torch.rand(2, 1, 3, 32, 32, dtype=torch.float64).unbind()
    image.requires_grad_()
    assert features.perceptual(image, target).dtype == torch.float64
    (gradient,) = torch.autograd.grad(features.perceptual(image, target).sum(), image)
    for _ in range(3):
        way = torch.randn_like(image)
        with torch.no_grad():
            ends = [features.perceptual(image + s * 1e-6 * way, target).sum() for s in (1, -1)]
        numeric = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close((gradient * way).sum(), numeric, rtol=1e-4, atol=1e-7)
