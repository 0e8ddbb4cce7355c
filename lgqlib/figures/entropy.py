"""How sure each assignment is: over an image, over tokens, over training; and how even codes are
used.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8

from lgqlib.figures.pictures import data_uri, picture_grid
from lgqlib.figures.style import (
    BLUE,
    INK,
    RED,
    Panel,
    figure,
    titled,
)

HEAT = "Cividis"
"""Colors of an entropy map: dark is sure."""


def entropy_view(
    image: UInt8[np.ndarray, "S S 3"],
    entropy: Float[np.ndarray, "h w"],
    population: Float[np.ndarray, " n"],
) -> go.Figure:
    """Draw an image, its entropy map, and the entropies of a population of tokens.

    Traces that change: `image`, `map`, `population`, `own`.
    """
    titles = ("Image", "Entropy of each token", "All tokens and this image's")
    fig = figure(cols=3, titles=titles, column_widths=[0.3, 0.3, 0.4], height=400)
    fig.add_image(source=data_uri(image), name="image", hoverinfo="skip", row=1, col=1)
    fig.add_heatmap(**map_trace(entropy), name="map", row=1, col=2)
    fig.data[-1].update(
        showscale=True,
        colorbar={"title": "nats", "thickness": 10, "orientation": "h", "y": -0.2, "x": 0.47},
    )
    fig.data[-1].colorbar.len = 0.26
    fig.add_bar(**bar_trace(population), marker_color=INK, name="population", row=1, col=3)
    fig.add_scatter(
        x=entropy.ravel(),
        y=np.zeros(entropy.size),
        mode="markers",
        marker={"symbol": "line-ns", "size": 16, "line": {"color": RED, "width": 2}},
        name="own",
        row=1,
        col=3,
    )
    for col in (1, 2):
        _bare(fig, 1, col)
    fig.update_layout(showlegend=False, bargap=0)
    fig.update_xaxes(title_text="entropy of the assignment, nats", row=1, col=3)
    fig.update_yaxes(title_text="tokens, %", row=1, col=3)
    return titled(fig, " ", LOOK_VIEW)


LOOK_VIEW = (
    "Bright tokens hesitate between codes. Vermilion ticks are this image's tokens among all. Hot, "
    "all hesitate alike; cold, only tokens at the border of two cells do."
)


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
    return {
        "x": centers.astype("float32"),
        "y": (100 * heights / max(len(values), 1)).astype("float32"),
    }


def entropy_maps(
    images: Sequence[UInt8[np.ndarray, "S S 3"]],
    maps: Sequence[Sequence[Float[np.ndarray, "h w"]]],
    labels: Sequence[str],
) -> go.Figure:
    """Draw images, one a row, with their entropy maps at several temperatures: the slider,
    standing still.
    """
    rows, cols = len(images), 1 + len(labels)
    fig = figure(
        rows=rows,
        cols=cols,
        titles=["image", *labels] + [""] * (cols * (rows - 1)),
        height=100 + 170 * rows,
        horizontal_spacing=0.02,
        vertical_spacing=0.02,
    )
    for row, (image, of_image) in enumerate(zip(images, maps, strict=True), start=1):
        fig.add_image(source=data_uri(image), hoverinfo="skip", row=row, col=1)
        for col, entropy in enumerate(of_image, start=2):
            fig.add_heatmap(**map_trace(entropy), row=row, col=col)
    for row in range(1, rows + 1):
        for col in range(1, cols + 1):
            _bare(fig, row, col)
    fig.update_layout(margin={"l": 10, "r": 10, "b": 10})
    means = [float(np.mean([m[i] for m in maps])) for i in range(len(labels))]
    return titled(
        fig,
        "Mean entropy of a token: "
        + "; ".join(f"{m:.3g} nats at {label}" for m, label in zip(means, labels, strict=True)),
        "Each map has its own scale, dark is surest. Look for edges and texture that stay bright "
        "as "
        "the temperature falls: there the codebook has no clear answer.",
    )


def decile_examples(
    patches: Sequence[Sequence[UInt8[np.ndarray, "P P 3"]]],
    bounds: Sequence[tuple[float, float]],
    *,
    places: Sequence[Sequence[str]] | None = None,
) -> go.Figure:
    """Draw patches from each decile of assignment entropy, the surest on top; `places` say where
    each patch is from.
    """
    labels = [  # numbered, for two may have the same ends
        f"{i}: {_nats(low)} to {_nats(high)}" if high >= 1e-4 else f"{i}: below 10⁻⁴"
        for i, (low, high) in enumerate(bounds, start=1)
    ]
    rows = dict(zip(labels, patches, strict=True))
    return titled(
        picture_grid(rows, tile=44, gap=3, axis="entropy of the decile, nats", hover=places),
        f"The surest tenth of the tokens is below {_nats(bounds[0][1])} nats, the least "
        f"sure above {_nats(bounds[-1][0])}",
        "Top: patches that one code answers for. Bottom: patches between codes. Look for "
        "what they have in common: flat against textured, common against rare. Hover a patch for "
        "its place.",
    )


def least_sure_codes(
    indices: Int[np.ndarray, " N"], entropy: Float[np.ndarray, " N"], num_codes: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Give the used codes and the mean entropy of each one's tokens, the least sure first."""
    counts = np.bincount(indices, minlength=num_codes)
    used = np.flatnonzero(counts)
    mean = np.bincount(indices, entropy, num_codes)[used] / counts[used]
    order = np.argsort(-mean, kind="stable")
    return used[order], mean[order]


def uncertain_examples(
    patches: Sequence[Sequence[UInt8[np.ndarray, "P P 3"]]],
    codes: Sequence[int],
    means: Sequence[float],
    *,
    places: Sequence[Sequence[str]],
) -> go.Figure:
    """Draw real patches of some codes, the least sure code on top.

    `means`: mean entropy of each code's tokens, in nats; `places`: where each patch is from.
    """
    labels = [f"code {k}: {_nats(mean)}" for k, mean in zip(codes, means, strict=True)]
    rows = dict(zip(labels, patches, strict=True))
    return titled(
        picture_grid(rows, tile=44, gap=3, axis="code: mean entropy, nats", hover=places),
        f"The least sure codes: {codes[0]} has {_nats(means[0])} nats a token",
        "Real patches assigned to each, its least sure token first. Patches of a row that "
        "do not agree are of a code that answers for what no other does. Hover a patch for its "
        "place.",
    )


def uncertain_codes(
    indices: Int[np.ndarray, " N"], entropy: Float[np.ndarray, " N"], num_codes: int
) -> go.Figure:
    """Draw the mean entropy of each code's tokens against how many it has."""
    used, mean = least_sure_codes(indices, entropy, num_codes)
    counts = np.bincount(indices, minlength=num_codes)
    fig = figure(height=400)
    fig.add_scatter(
        x=counts[used],
        y=mean.astype("float32"),
        mode="markers",
        marker={"color": BLUE, "size": 5, "opacity": 0.6},
        customdata=used.astype("int32"),
        hovertemplate="code %{customdata}: %{x} tokens, %{y:.3f} nats<extra></extra>",
        name="codes",
    )
    fig.add_hline(float(entropy.mean()), line={"color": INK, "dash": "dash"})
    fig.update_xaxes(title_text="tokens of the code", type="log")
    fig.update_yaxes(title_text="mean entropy of its tokens, nats", rangemode="tozero")
    # Ranks, for the relation need not be a line.
    ranks = [np.argsort(np.argsort(v, kind="stable")) for v in (counts[used], mean)]
    relation = np.corrcoef(*ranks)[0, 1] if len(used) > 2 else float("nan")
    return titled(
        fig,
        f"Least sure are codes {', '.join(map(str, used[:5]))}; rank correlation of doubt and use "
        f"{relation:+.2f} over {len(used)} used codes",
        "Dashed: mean over tokens. Doubt that grows with use is crowding: many tokens share few "
        "codes that lie close together.",
    )


def _bare(fig: go.Figure, row: int, col: int) -> None:
    Panel(fig, row, col).square()
    axes = fig.get_subplot(row, col)
    for axis in (axes.xaxis, axes.yaxis):
        axis.update(showticklabels=False, showgrid=False, zeroline=False, ticks="")


def _nats(value: float) -> str:
    return "10⁻⁴" if value < 1e-4 else f"{value:.2g}"
