"""What a step minimizes: reconstruction, a quantizer's terms, perceptual, adversarial distance."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lgqlib.config import TERMS, LossConfig
from lgqlib.measure.features import Images, LiteFeatures


class PatchDiscriminator(nn.Module):
    """Judge overlapping patches of an image (Isola et al. 2017): high logits where it is real."""

    def __init__(self, width: int = 64, num_halvings: int = 2):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for power in range(1, num_halvings + 1):
            before, after = width * 2 ** (power - 1), width * 2**power
            stride = 2 if power < num_halvings else 1
            convolution = nn.Conv2d(before, after, 4, stride, 1, bias=False)
            layers += [convolution, nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(after, 1, 4, 1, 1))

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> Float[Tensor, "b 1 h w"]:
        return self.layers(images)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Give the hinge loss of a discriminator's logits on real and reconstructed images."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module without reaching its own parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


class TokenizerLoss(nn.Module):
    """Weigh the terms of a step by `config`, by names that they keep up to the plot's legend."""

    def __init__(self, config: LossConfig):
        super().__init__()
        self.config = config
        # EfficientNet-Lite0 here, Lite2 for measuring: a metric must not be what was trained on.
        side = config.perceptual_side
        self.features = LiteFeatures("lite0", side=side) if config.perceptual else None

    def forward(
        self, images: Images, reconstruction: Images, quantizer_terms: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the total and the terms of images in [-1, 1]; ValueError for an unknown term."""
        distance = F.l1_loss if self.config.reconstruction == "l1" else F.mse_loss
        terms = {"reconstruction": distance(reconstruction.float(), images)}
        total = terms["reconstruction"]
        if self.features is not None:
            pair = ((image + 1) / 2 for image in (reconstruction.float(), images))
            terms["perceptual"] = self.features.perceptual(*pair).mean()
            total = total + self.config.perceptual * terms["perceptual"]
        for name, value in quantizer_terms.items():
            if name not in TERMS:
                known = ", ".join(TERMS)
                raise ValueError(f"the quantizer's term {name!r} has no weight; known: {known}.")
            terms[name] = value
            total = total + getattr(self.config, name) * value
        return total, terms

    def adversarial(
        self, total: Tensor, fake_logits: Tensor, last_layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the adversarial term to `total`.

        With `adaptive`, scaled by the ratio of gradients' norms (Esser et al. 2021, equation 7).
        """
        term = -fake_logits.mean()
        scale = torch.ones((), device=term.device)
        if self.config.adaptive:
            rest = torch.autograd.grad(total, last_layer, retain_graph=True)[0].norm()
            own = torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm()
            scale = (rest / (own + 1e-4)).clamp(0, 1e4).detach()
        terms = {"adversarial": term, "adversarial_scale": scale}
        return total + self.config.adversarial * scale * term, terms
