"""The temperature laboratory: pictures, one token and the curves at one temperature."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8

from lgqlib.figures.entropy import map_trace
from lgqlib.figures.pictures import data_uri
from lgqlib.figures.style import ORANGE, RED, Panel, figure, titled
from lgqlib.figures.temperature import PARTS, mark, parts, rate_distortion_curve
from lgqlib.measure.temperature import FreeEnergyCurve


def laboratory(
    image: UInt8[np.ndarray, "S S 3"],
    curve: FreeEnergyCurve,
    spectrum: Float[np.ndarray, " D"],
    *,
    scale: float,
    grid: tuple[int, int],
) -> go.Figure:
    """Draw the temperature laboratory: images on top, one token, the curves and the marks on them.

    Traces that change: `soft`, `hard`, `map`, `place`, `bars`, `here F`, `here d`, `here H`,
    `here`, `original`.
    """
    titles = (
        "Original",
        "Decoded from soft codes",
        "Decoded from hard codes",
        "Entropy: click a token",
        "Codes of the token",
        "Free energy and its parts",
        "Rate and distortion",
    )
    fig = figure(
        rows=2,
        cols=12,
        specs=[
            [*_wide(3), *_wide(3), *_wide(3), *_wide(3)],
            [*_wide(4), *_wide(4), *_wide(4)],
        ],
        row_heights=[0.48, 0.52],
        vertical_spacing=0.13,
        horizontal_spacing=0.055,
        titles=titles,
        height=640,
    )
    for col, name in ((1, "original"), (4, "soft"), (7, "hard")):
        fig.add_image(source=data_uri(image), name=name, hoverinfo="skip", row=1, col=col)
    fig.add_heatmap(**map_trace(np.zeros(grid)), name="map", row=1, col=10)
    fig.add_scatter(
        x=[0],
        y=[0],
        mode="markers",
        marker={"symbol": "square-open", "size": 20, "color": RED, "line": {"width": 3}},
        hoverinfo="skip",
        name="place",
        row=1,
        col=10,
    )
    for col in (1, 4, 7, 10):
        Panel(fig, 1, col).square()
        axes = fig.get_subplot(1, col)
        for axis in (axes.xaxis, axes.yaxis):
            axis.update(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    fig.add_bar(x=[], y=[], marker_color=ORANGE, name="bars", row=2, col=1)
    fig.update_xaxes(title_text="code k", type="category", row=2, col=1)
    fig.update_yaxes(title_text="probability", range=[0, 1], row=2, col=1)
    parts(fig, curve, scale, row=2, col=5)
    for name, color in zip(("here F", "here d", "here H"), PARTS.values(), strict=True):
        mark(fig, name, color, row=2, col=5)
    rate_distortion_curve(fig, curve, spectrum, row=2, col=9)
    mark(fig, "here", RED, row=2, col=9)
    fig.update_traces(showlegend=False, selector={"type": "bar"})
    fig.update_traces(showlegend=False, selector={"name": "place"})
    fig.update_layout(margin={"b": 40})
    return titled(fig, " ", LOOK_LABORATORY)


LOOK_LABORATORY = (
    "Hot, every token is the mean of all codes and the decoder sees nothing. Below the first "
    "critical "
    "temperature the picture comes back; the soft one meets the hard one when doubt is gone."
)


def one_token(
    image: UInt8[np.ndarray, "S S 3"],
    place: tuple[int, int],
    shares: Sequence[tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]],
    labels: Sequence[str],
    *,
    grid: tuple[int, int],
) -> go.Figure:
    """Draw one token's place and the codes that it is assigned to most at some temperatures: the
    laboratory's token, standing still.

    `place`: its row and column in a `grid` of tokens; `shares`: codes, the likeliest first, and
    their probabilities, for each of `labels`.
    """
    titles = ("Image, and the token", *labels)
    fig = figure(cols=len(titles), titles=titles, height=340, horizontal_spacing=0.07)
    fig.add_image(source=data_uri(image), hoverinfo="skip", row=1, col=1)
    (row, col), height, width = place, image.shape[0] / grid[0], image.shape[1] / grid[1]
    fig.add_shape(
        type="rect",
        x0=col * width - 0.5,
        x1=(col + 1) * width - 0.5,
        y0=row * height - 0.5,
        y1=(row + 1) * height - 0.5,
        line={"color": RED, "width": 3},
        name="token",
        row=1,
        col=1,
    )
    Panel(fig, 1, 1).square()
    fig.update_xaxes(showticklabels=False, showgrid=False, ticks="", row=1, col=1)
    fig.update_yaxes(showticklabels=False, showgrid=False, ticks="", row=1, col=1)
    for at, ((codes, weights), label) in enumerate(zip(shares, labels, strict=True), start=2):
        fig.add_bar(
            x=[f"k{k}" for k in codes],
            y=weights,
            marker_color=ORANGE,
            name=label,
            hovertemplate="%{x}: %{y:.3g}<extra></extra>",
            showlegend=False,
            row=1,
            col=at,
        )
        fig.update_xaxes(title_text="code k", type="category", row=1, col=at)
        fig.update_yaxes(title_text="probability", rangemode="tozero", row=1, col=at)
    told = [f"{float(w[0]):.3g} at {label}" for (_, w), label in zip(shares, labels, strict=True)]
    return titled(
        fig,
        f"The token at row {row}, column {col} gives its likeliest code {'; '.join(told)}",
        f"The {len(shares[0][0])} likeliest codes at each temperature, on scales of their own. "
        "Hot, many codes share a token evenly; cold, one has it all unless two are equally near.",
    )


def laboratory_frames(
    original: UInt8[np.ndarray, "S S 3"],
    soft: Sequence[UInt8[np.ndarray, "S S 3"]],
    maps: Sequence[Float[np.ndarray, "h w"]],
    hard: UInt8[np.ndarray, "S S 3"],
    labels: Sequence[str],
) -> go.Figure:
    """Draw soft reconstructions and entropy maps at several temperatures: the slider, standing
    still.
    """
    cols = len(soft) + 2
    titles = ["original", *labels, "hard codes"]
    fig = figure(
        rows=2, cols=cols, titles=titles, height=340, horizontal_spacing=0.01, vertical_spacing=0.02
    )
    for col, image in enumerate([original, *soft, hard], start=1):
        fig.add_image(source=data_uri(image), hoverinfo="skip", row=1, col=col)
    for col, entropy in enumerate(maps, start=2):
        fig.add_heatmap(**map_trace(entropy), row=2, col=col)
    for row in (1, 2):
        for col in range(1, cols + 1):
            Panel(fig, row, col).square()
    fig.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    fig.update_yaxes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
    fig.update_layout(margin={"l": 10, "r": 10, "b": 10})
    away = [float(np.abs(s.astype(float) - hard).mean() / 255) for s in soft]
    return titled(
        fig,
        f"Soft and hard pictures differ by {away[0]:.3f} of the range at {labels[0]}, by "
        f"{away[-1]:.3f} at {labels[-1]}",
        "Below each picture, the entropy of its tokens on a scale of its own. Where the picture "
        "comes back first, the codes are far apart.",
    )


def _wide(columns: int) -> list:
    return [{"colspan": columns}] + [None] * (columns - 1)
