"""Methods side by side: the same images through each of them."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from torch import Tensor

from lgqlib.figures.evaluation import code_colors
from lgqlib.figures.style import WIDTH, figure, titled

Array = np.ndarray | Tensor
GAP = 2
"""Pixels between two images of a strip."""


def side_by_side(
    originals: Float[Array, "n 3 S S"], decoded: Mapping[str, Float[Array, "n 3 S S"]]
) -> go.Figure:
    """Show originals in the first row and each method's reconstructions below; images in [0, 1].

    `decoded`: by the label of the row. Raises ValueError when shapes differ.
    """
    rows = {"original": originals, **decoded}
    shapes = {name: tuple(images.shape) for name, images in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"images of shapes {shapes}: expected one shape, [n, 3, S, S].")
    count, _, side, _ = shapes["original"]
    cell = (WIDTH - 130) / count
    fig = figure(rows=len(rows), vertical_spacing=0.008, height=int(90 + len(rows) * (cell + 4)))
    for row, (name, images) in enumerate(rows.items(), start=1):
        fig.add_image(
            z=_strip(np.asarray(images)), colormodel="rgba256", hoverinfo="skip", row=row, col=1
        )
        fig.update_yaxes(title={"text": name.replace(", ", "<br>"), "standoff": 6}, row=row, col=1)
    fig.update_xaxes(visible=False)
    fig.update_yaxes(showticklabels=False, showgrid=False, ticks="", zeroline=False)
    fig.update_layout(margin={"l": 110, "r": 10, "b": 8})
    return titled(
        fig,
        f"The same {count} held-out crops of {side} x {side} pixels through each tokenizer",
        "Look at fine texture and at edges: that is where the methods differ.",
    )


def codes_side_by_side(
    original: Float[Array, "3 S S"],
    decoded: Mapping[str, Float[Array, "3 S S"]],
    codes: Mapping[str, tuple[Int[np.ndarray, "h w"], np.ndarray]],
) -> go.Figure:
    """Show one image through every method, with the map of its codes below.

    `codes`: by the label of a column, the indices of the image's tokens and the codes' sites.
    Raises ValueError when a method has images but no codes, or the other way round.
    """
    if set(decoded) != set(codes):
        raise ValueError(f"images of {sorted(decoded)}, codes of {sorted(codes)}: give both.")
    labels = ["original", *decoded]
    fig = figure(
        rows=2,
        cols=len(labels),
        titles=labels,
        height=int(90 + 2 * (WIDTH - 40) / len(labels)),
        horizontal_spacing=0.01,
        vertical_spacing=0.02,
    )
    for col, image in enumerate([original, *decoded.values()], start=1):
        pixels = np.moveaxis(np.asarray(image), 0, -1)
        fig.add_image(z=np.round(pixels * 255).astype("uint8"), row=1, col=col)
    told = []
    for col, (label, (indices, sites)) in enumerate(codes.items(), start=2):
        fig.add_image(
            z=code_colors(sites)[indices],
            customdata=indices[..., None],
            hovertemplate=f"{label}, code %{{customdata[0]}}<extra></extra>",
            row=2,
            col=col,
        )
        told.append(f"{label} {len(np.unique(indices))}")
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    fig.update_layout(margin={"l": 10, "r": 10, "b": 8})
    return titled(
        fig,
        f"Distinct codes in this image's {indices.size} tokens: {', '.join(told)}",
        "Below each reconstruction, its codes: like colors are neighbors in that method's own "
        "codebook, so compare patterns, not colors, between methods.",
    )


def _strip(images: Float[np.ndarray, "n 3 S S"]) -> np.ndarray:
    """Put images in one row, with a transparent gap between them."""
    count, _, side, _ = images.shape
    strip = np.zeros((side, count * (side + GAP) - GAP, 4), np.uint8)
    for i, image in enumerate(np.moveaxis(images, 1, -1)):
        left = i * (side + GAP)
        strip[:, left : left + side, :3] = np.round(image * 255)
        strip[:, left : left + side, 3] = 255
    return strip
