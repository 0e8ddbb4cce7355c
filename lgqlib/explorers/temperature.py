"""Turn the temperature of a trained tokenizer: one slider, and everything that follows it."""

from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, UInt8

from lgqlib.explorers.controls import Explorer, Throttled, play, whole
from lgqlib.explorers.entropy import map_trace, tau_slider
from lgqlib.explorers.softness import Softness
from lgqlib.figures.entropy import counted
from lgqlib.figures.pictures import data_uri
from lgqlib.figures.style import ORANGE, RED, Panel, figure, titled
from lgqlib.figures.temperature import PARTS, free_energy_parts, rate_distortion_curve
from lgqlib.measure.geometry import spectrum
from lgqlib.measure.temperature import FreeEnergyCurve

LOOK_FOR = (
    "Hot, every token is the mean of all codes and the decoder sees nothing. Below the first "
    "critical temperature the picture comes back; the soft one meets the hard one when doubt is "
    "gone."
)


def temperature_view(
    image: UInt8[np.ndarray, "S S 3"],
    curve: FreeEnergyCurve,
    spectrum: Float[np.ndarray, " D"],
    *,
    scale: float,
    grid: tuple[int, int],
) -> go.Figure:
    """Draw pictures on top, one token, the curves and the marks on them.

    Traces that change: `soft`, `hard`, `map`, `place`, `bars`, `here F`, `here d`, `here H`,
    `here`, `original`.
    """
    wide, third = [{"colspan": 3}, None, None], [{"colspan": 4}, None, None, None]
    titles = ("Original", "Decoded from soft codes", "Decoded from hard codes")
    titles += ("Entropy: click a token", "Codes of the token")
    titles += ("Free energy and its parts", "Rate and distortion")
    options = {"row_heights": [0.48, 0.52], "vertical_spacing": 0.13, "horizontal_spacing": 0.055}
    fig = figure(rows=2, cols=12, specs=[wide * 4, third * 3], titles=titles, height=640, **options)
    for col, name in ((1, "original"), (4, "soft"), (7, "hard")):
        Panel(fig, 1, col).picture(data_uri(image), name=name)
    tokens, codes, energy, rate = (Panel(fig, *at) for at in ((1, 10), (2, 1), (2, 5), (2, 9)))
    fig.add_heatmap(**map_trace(np.zeros(grid)), name="map", **tokens.at)
    square = {"symbol": "square-open", "marker": {"line": {"width": 3}}, "hoverinfo": "skip"}
    tokens.dots([0], [0], "place", RED, size=20, showlegend=False, **square)
    tokens.square()
    tokens.axes(bare=True)
    codes.bars([], [], "bars", ORANGE, showlegend=False)
    codes.axes("code k", "probability", x_type="category", y_range=[0, 1])
    free_energy_parts(energy, curve, scale)
    rate_distortion_curve(rate, curve, spectrum)
    mark = {"size": 11, "showlegend": False, "marker": {"line": {"color": "white", "width": 1}}}
    for name, color in zip(("here F", "here d", "here H"), PARTS.values(), strict=True):
        energy.dots([None], [None], name, color, **mark)
    rate.dots([None], [None], "here", RED, **mark)
    fig.update_layout(margin_b=40)
    return titled(fig, " ", LOOK_FOR)


class TemperatureExplorer(Explorer):
    """Turn the temperature of a trained tokenizer: assignment, pictures, free energy, rate and
    distortion.

    Args:
        softness: the curves over the whole range; computed once, when the explorer opens.
        image, token: to start with.
    """

    name = "Temperature explorer"

    def __init__(self, softness: Softness, *, image: int = 0, token: int = 0):
        self.softness, self.view = softness, softness.view
        view = self.view
        super().__init__(
            temperature_view(
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
        over = counted(softness.curve.num_tokens, view.num_codes)
        self.about = ipywidgets.HTML(value=f"This run: {view.tau_label}. Curves: {over}.")
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
