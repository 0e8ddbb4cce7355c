"""Explore how sure each token's assignment is, over images and temperatures."""

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, UInt8

from lgqlib.explorers.controls import Explorer, Throttled, play, slider, whole
from lgqlib.explorers.softness import Softness
from lgqlib.figures.entropy import HEAT
from lgqlib.figures.pictures import data_uri
from lgqlib.figures.style import INK, RED, panels, titled

LOOK_FOR = (
    "Bright tokens hesitate between codes. Vermilion ticks are this image's tokens among all. Hot, "
    "all hesitate alike; cold, only tokens halfway between two codes do."
)


def entropy_view(
    image: UInt8[np.ndarray, "S S 3"],
    entropy: Float[np.ndarray, "h w"],
    population: Float[np.ndarray, " n"],
) -> go.Figure:
    """Draw an image, its entropy map, and the entropies of a population of tokens.

    Traces that change: `image`, `map`, `population`, `own`.
    """
    titles = ("Image", "Entropy of each token", "All tokens and this image's")
    fig, (picture, tokens, everything) = panels(
        cols=3, titles=titles, column_widths=[0.3, 0.3, 0.4], height=400
    )
    picture.picture(data_uri(image), name="image")
    bar = {"title": "nats", "thickness": 10, "orientation": "h", "y": -0.2, "x": 0.47, "len": 0.26}
    fig.add_heatmap(
        **map_trace(entropy) | {"showscale": True}, name="map", colorbar=bar, **tokens.at
    )
    tokens.square()
    tokens.axes(bare=True)
    everything.bars(**bar_trace(population), name="population")
    tick = {"symbol": "line-ns", "marker": {"line": {"color": RED, "width": 2}}}
    everything.dots(entropy.ravel(), np.zeros(entropy.size), "own", INK, size=16, **tick)
    everything.axes("entropy of the assignment, nats", "tokens, %")
    fig.update_layout(showlegend=False, bargap=0)
    return titled(fig, " ", LOOK_FOR)


def map_trace(entropy: Float[np.ndarray, "h w"]) -> dict:
    """Give an entropy map as a heat map's arguments."""
    return {
        "z": np.asarray(entropy, dtype="float32"),
        "colorscale": HEAT,
        "zmin": 0,
        "zmax": float(max(entropy.max(), 1e-3)),
        "showscale": False,
        "hovertemplate": "row %{y}, column %{x}: %{z:.3f} nats<extra></extra>",
    }


def bar_trace(values: Float[np.ndarray, " n"], *, bins: int = 40) -> dict:
    """Give a histogram in percent as a bar's arguments."""
    heights, edges = np.histogram(values, bins=bins, range=(0, max(float(values.max()), 1e-3)))
    centers = (edges[:-1] + edges[1:]) / 2
    percent = 100 * heights / max(len(values), 1)
    return {"x": centers.astype("float32"), "y": percent.astype("float32")}


class EntropyExplorer(Explorer):
    """Show an image, the entropy of its tokens, and all tokens', at any temperature.

    Args:
        softness: the tokens' entropies over temperature; computed once, when the explorer opens.
        image: to start with; None is the one with the most contrast.
    """

    name = "Entropy explorer"

    def __init__(self, softness: Softness, *, image: int | None = None):
        self.softness, self.view = softness, softness.view
        image = self.view.first_image if image is None else image
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
