"""Explore how sure each token's assignment is, over images and temperatures."""

import ipywidgets
import numpy as np

from lgqlib.explorers.controls import Explorer, Throttled, play, slider, whole
from lgqlib.explorers.softness import Softness
from lgqlib.figures.entropy import bar_trace, entropy_view, map_trace
from lgqlib.figures.pictures import data_uri


class EntropyExplorer(Explorer):
    """Show an image, the entropy of its tokens, and all tokens', at any temperature.

    Args:
        softness: the tokens' entropies over temperature; computed once, when the explorer opens.
        image: to start with; None is the one with the most contrast.
    """

    name = "Entropy explorer"

    def __init__(self, softness: Softness, *, image: int | None = None):
        self.softness, self.view = softness, softness.view
        image = self.view.liveliest if image is None else image
        view, start = self.view, softness.start
        entropy = view.soft(image, softness.taus[start]).entropy.reshape(view.grid)
        super().__init__(entropy_view(view.pixels(image), entropy, softness.entropies[start]))
        self.image = whole("Image", len(view.images) - 1, value=image)
        self.tau = tau_slider(softness)
        self.about = ipywidgets.HTML(value=f"This run: {view.tau_label}.")
        update = Throttled(lambda change: self.update())
        self.image.observe(update, "value")
        self.tau.observe(update, "value")
        self.lay_out([self.image, play(self.tau), self.tau, self.about], self.figure)
        self.update()

    def update(self) -> None:
        """Redraw what depends on image and temperature."""
        view, index = self.view, self.tau.value
        tau = float(self.softness.taus[index])
        entropy = view.soft(self.image.value, tau).entropy.clip(min=0)
        population = self.softness.entropies[index]
        above = 100 * float((population < entropy.mean()).mean())
        self.show(
            f"τ = {tau:.3g}: this image's tokens have {entropy.mean():.3g} nats on average, more "
            "than "
            f"{above:.0f} % of all tokens",
            image={"source": data_uri(view.pixels(self.image.value))},
            map={key: map_trace(entropy.reshape(view.grid))[key] for key in ("z", "zmax")},
            population=bar_trace(population),
            own={"x": entropy, "y": np.zeros(len(entropy))},
        )


def tau_slider(softness: Softness):
    """Make a slider over temperatures, absolute and in units of the first critical temperature."""
    scale = softness.view.scale
    labels = [f"{tau:.3g} = {tau / scale:.2g} τc" for tau in softness.taus]
    options = [(label, i) for i, label in enumerate(labels)]
    return slider("τ", options, index=softness.start, width=460)
