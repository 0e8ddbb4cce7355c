"""The temperature laboratory: one slider, and everything that follows it."""

from typing import Any

import ipywidgets
import numpy as np

from lgqlib.explorers.controls import Explorer, Throttled, play, whole
from lgqlib.explorers.entropy import tau_slider
from lgqlib.explorers.softness import Softness
from lgqlib.figures.entropy import map_trace
from lgqlib.figures.information import counted
from lgqlib.figures.laboratory import laboratory
from lgqlib.figures.pictures import data_uri
from lgqlib.measure.geometry import spectrum


class TemperatureLaboratory(Explorer):
    """Turn the temperature of a trained tokenizer: assignment, pictures, free energy, rate and
    distortion.

    Args:
        softness: the curves over the whole range; computed once, when the laboratory opens.
        image, token: to start with.
    """

    name = "Temperature laboratory"

    def __init__(self, softness: Softness, *, image: int = 0, token: int = 0):
        self.softness, self.view = softness, softness.view
        view = self.view
        super().__init__(
            laboratory(
                view.pixels(image),
                softness.curve,
                spectrum(softness.latents).eigenvalues,
                scale=view.scale,
                grid=view.grid,
            )
        )
        self.image = whole("Image", len(view.images) - 1, value=image)
        self.token = whole("Token", view.num_tokens - 1, value=token)
        self.tau = tau_slider(softness)
        told = counted(softness.curve.num_tokens, view.num_codes)
        self.about = ipywidgets.HTML(value=f"This run: {view.tau_label}. Curves: {told}.")
        self.image.observe(Throttled(lambda change: self.look_at()), "value")
        update = Throttled(lambda change: self.update())
        self.token.observe(update, "value")
        self.tau.observe(update, "value")
        self.traces["map"].on_click(self._clicked)
        self.lay_out([self.image, self.token, play(self.tau), self.tau], self.about, self.figure)
        self.look_at()

    def look_at(self) -> None:
        """Redraw what depends on the image, then all that depends on the temperature."""
        view, image = self.view, self.image.value
        with self.figure.batch_update():
            self.traces["original"].source = data_uri(view.pixels(image))
            self.traces["hard"].source = data_uri(view.reconstruction(image))
        self.update()

    def update(self) -> None:
        """Redraw what depends on the temperature."""
        view, index, image = self.view, self.tau.value, self.image.value
        tau, curve = float(self.softness.taus[index]), self.softness.curve
        soft = view.soft(image, tau)
        token = int(view.tokens(image)[self.token.value])
        best, shares = view.shares(token, tau)
        row, col = divmod(self.token.value, view.grid[1])
        entropy = soft.entropy.clip(min=0).reshape(view.grid)
        x = [tau / view.scale]
        self.show(
            self.finding(index, float(soft.entropy[self.token.value])),
            soft={"source": data_uri(view.decode(soft.average))},
            map={key: map_trace(entropy)[key] for key in ("z", "zmax")},
            place={"x": [col], "y": [row]},
            bars={"x": [f"k{k}" for k in best], "y": shares.astype(np.float32)},
            **{
                "here F": {"x": x, "y": [curve.free_energy[index]]},
                "here d": {"x": x, "y": [curve.mean_energy[index]]},
                "here H": {"x": x, "y": [tau * curve.entropy[index]]},
                "here": {
                    "x": [curve.mutual_information[index] / np.log(2)],
                    "y": [curve.mean_energy[index]],
                },
            },
        )

    def finding(self, index: int, entropy: float) -> str:
        """Say what one temperature shows."""
        tau, curve = self.softness.taus[index], self.softness.curve
        bits = curve.mutual_information[index] / np.log(2)
        return (
            f"τ = {tau:.3g} = {tau / self.view.scale:.3g} τc: a code tells {bits:.2f} bits of its "
            f"token; the chosen token hesitates between {np.exp(max(entropy, 0)):.1f} codes"
        )

    def _clicked(self, trace: Any, points: Any, state: Any) -> None:
        if points.xs:
            row, col = round(points.ys[0]), round(points.xs[0])
            self.token.value = row * self.view.grid[1] + col
