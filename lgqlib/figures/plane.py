"""LGQ on points in the plane: what the temperature does, where all of it can be seen."""

import colorsys
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, UInt8

from lgqlib.figures.pictures import data_uri
from lgqlib.figures.staircase import stairs
from lgqlib.figures.style import BLUE, GREEN, INK, RED, figure, legend_in, titled
from lgqlib.measure.annealing import Annealing
from lgqlib.quantizers.assignment import ENERGIES, probabilities

Pixels = UInt8[np.ndarray, "S S 4"]


def clusters(num_points: int = 600, *, seed: int = 0) -> Float[np.ndarray, "N 2"]:
    """Draw points in the plane from five unequal Gaussians, the same for a seed."""
    rng = np.random.default_rng(seed)
    centers = np.array([[-2.2, 1.0], [-1.6, -1.4], [0.4, 0.2], [1.9, 1.5], [2.3, -1.1]])
    widths = np.array([0.35, 0.5, 0.3, 0.45, 0.4])
    which = rng.choice(5, num_points, p=[0.25, 0.15, 0.2, 0.15, 0.25])
    return centers[which] + widths[which, None] * rng.standard_normal((num_points, 2))


def plane_view(
    points: Float[np.ndarray, "N 2"], annealing: Annealing, index: int, *, size: int = 72
) -> go.Figure:
    """Draw one temperature of an annealing: points, codes and soft cells, beside the staircase.

    Traces by name: `field`, `points`, `codes` in the plane; `distinct`, `here` beside it.
    """
    fig = figure(
        cols=2,
        titles=("Points, codes and soft cells", "Distinct codes"),
        column_widths=[0.56, 0.44],
        height=480,
        horizontal_spacing=0.1,
    )
    colors = code_tints(annealing.codebooks[-1])
    _plane(fig, points, annealing.codebooks[index], colors, annealing.taus[index], size=size)
    stairs(fig, annealing, row=1, col=2)
    fig.add_scatter(
        x=[annealing.taus[index]],
        y=[annealing.num_distinct[index]],
        mode="markers",
        marker={"size": 13, "color": RED},
        name="here",
        showlegend=False,
        row=1,
        col=2,
    )
    return titled(fig, view_finding(annealing, index), LOOK_PLANE)


LOOK_PLANE = (
    "Each place is tinted by the codes that it is assigned to, mixed by their probabilities: one "
    "blend when hot, then soft borders, then the sharp cells of a Voronoi partition."
)


def view_finding(annealing: Annealing, index: int) -> str:
    """Say what one temperature of an annealing shows."""
    tau, distinct = annealing.taus[index], int(annealing.num_distinct[index])
    noun = "place" if distinct == 1 else "places"
    return (
        f"τ = {tau:.3g} = {tau / annealing.predicted:.3g} of the first critical temperature: "
        f"{len(annealing.codebooks[index])} codes at {distinct} {noun}"
    )


def annealing_frames(
    points: Float[np.ndarray, "N 2"],
    annealing: Annealing,
    indices: Sequence[int],
    *,
    size: int = 56,
) -> go.Figure:
    """Draw several temperatures of an annealing side by side: the slider, standing still."""
    cols = 3
    rows = -(-len(indices) // cols)
    titles = [
        f"τ = {annealing.taus[i] / annealing.predicted:.3g} τ<sub>c</sub>: "
        f"{annealing.num_distinct[i]} distinct"
        for i in indices
    ]
    fig = figure(
        rows=rows,
        cols=cols,
        titles=titles,
        height=90 + 300 * rows,
        horizontal_spacing=0.03,
        vertical_spacing=0.1,
    )
    colors = code_tints(annealing.codebooks[-1])
    for place, i in enumerate(indices):
        row, col = divmod(place, cols)
        _plane(
            fig,
            points,
            annealing.codebooks[i],
            colors,
            annealing.taus[i],
            size=size,
            row=row + 1,
            col=col + 1,
            axis_titles=False,
        )
    fig.update_layout(showlegend=False)
    first, last = annealing.num_distinct[indices[0]], annealing.num_distinct[indices[-1]]
    return titled(
        fig,
        f"The codebook falls from {first} place to {last} as τ falls "
        f"{annealing.taus[indices[0]] / annealing.taus[indices[-1]]:.0f}-fold",
        "Tints are soft cells: one blend when hot, sharp nearest-code cells when cold. A code "
        "keeps "
        "its tint, so a split shows as one tint becoming two.",
    )


def soft_average(
    point: Float[np.ndarray, " 2"],
    points: Float[np.ndarray, "N 2"],
    codebook: Float[np.ndarray, "K 2"],
    taus: Float[np.ndarray, " T"],
) -> tuple[go.Figure, Float[np.ndarray, "T 2"]]:
    """Follow one point's soft code as the temperature falls; return the figure and the path."""
    path = np.stack([_assign(point[None], codebook, tau)[0] @ codebook for tau in taus])
    hard = codebook[np.square(codebook - point).sum(1).argmin()]
    away = np.linalg.norm(path - hard, axis=1)
    fig = figure(cols=2, titles=("Path of the soft code", "Soft to hard code"), height=440)
    _scatter(fig, points, "points", {"size": 3, "color": INK, "opacity": 0.5})
    _scatter(fig, codebook, "codes", {"size": 9, "color": RED})
    fig.add_scatter(
        x=path[:, 0],
        y=path[:, 1],
        mode="lines+markers",
        line={"color": GREEN},
        marker={"size": 4},
        name="soft code, τ falling",
        row=1,
        col=1,
    )
    _scatter(fig, point[None], "the point", {"size": 13, "color": BLUE, "symbol": "x"})
    fig.add_scatter(
        x=taus, y=away, line={"color": GREEN}, name="distance", showlegend=False, row=1, col=2
    )
    fig.update_traces(legend=legend_in(fig, 1, 1, x=0.01, y=0.01), col=1)
    _square_axes(fig, 1, 1)
    fig.update_xaxes(title_text="τ, units of the energy", type="log", row=1, col=2)
    fig.update_yaxes(title_text="distance to the nearest code", row=1, col=2)
    titled(
        fig,
        f"The soft code moves from the mean of the codes to the nearest one: {away[0]:.2f} away at "
        f"τ = {taus[0]:.2g}, {away[-1]:.1g} at τ = {taus[-1]:.2g}",
        "Forward, the decoder receives the nearest code; backward, the gradient is that of the "
        "green "
        "curve. Where they part, the straight-through gradient is a stand-in.",
    )
    return fig, path


def energy_cells(
    codebook: Float[np.ndarray, "K 2"], taus: dict[str, float], *, size: int = 72
) -> go.Figure:
    """Draw the soft cells of one codebook under each of the four energies, at a temperature
    each.
    """
    fig = figure(cols=4, titles=[f"{e}, τ = {taus[e]:.2g}" for e in ENERGIES], height=330)
    x, y, grid = _grid(codebook, size, margin=0.4)
    colors, cells = code_tints(codebook), {}
    for col, energy in enumerate(ENERGIES, start=1):
        p = _assign(grid, codebook, taus[energy], energy=energy)
        cells[energy] = p.argmax(1)
        _field(fig, x, y, _blend(p, colors, size), row=1, col=col)
        _scatter(fig, codebook, "codes", CODE_MARK, row=1, col=col)
        _square_axes(fig, 1, col, titles=False)
    fig.update_layout(showlegend=False)
    same = {e: 100 * np.mean(cells[e] == cells["squared"]) for e in ENERGIES}
    return titled(
        fig,
        f"Of the plane, {same['norm']:.0f} % has the same nearest code by distance as by its "
        "square, "
        f"{same['cosine']:.0f} % by cosine, {same['dot']:.0f} % by dot product",
        "Cosine and dot cut the plane into wedges from the origin; under dot a code inside the "
        "hull of "
        "the others never wins. Distance and its square differ only in how doubt spreads.",
    )


def code_tints(codebook: Float[np.ndarray, "K 2"]) -> UInt8[np.ndarray, "K 3"]:
    """Give each code a tint of its own: hue by direction from the mean, lightness in turns."""
    away = codebook - codebook.mean(0)
    order = np.argsort(np.argsort(np.arctan2(away[:, 1], away[:, 0])))
    shades = [colorsys.hls_to_rgb(i / len(away), (0.45, 0.65)[i % 2], 0.75) for i in order]
    return np.round(255 * np.array(shades)).astype(np.uint8)


def soft_cells(
    points: Float[np.ndarray, "N 2"],
    codebook: Float[np.ndarray, "K 2"],
    colors: UInt8[np.ndarray, "K 3"],
    tau: float,
    *,
    size: int = 72,
) -> Pixels:
    """Mix the codes' tints by the soft assignment of each place around the points."""
    _, _, grid = _grid(points, size)
    return _blend(_assign(grid, codebook, tau), colors, size)


CODE_MARK = {"size": 10, "color": RED, "line": {"color": "white", "width": 1}}


def _plane(fig, points, codebook, colors, tau, *, size, row=1, col=1, axis_titles=True) -> None:
    x, y, _ = _grid(points, size)
    _field(fig, x, y, soft_cells(points, codebook, colors, tau, size=size), row=row, col=col)
    _scatter(fig, points, "points", {"size": 3, "color": INK, "opacity": 0.8}, row=row, col=col)
    _scatter(fig, codebook, "codes", CODE_MARK, row=row, col=col)
    fig.update_traces(legend=legend_in(fig, 1, 1, x=0.01, y=0.01), selector={"type": "scatter"})
    _square_axes(fig, row, col, titles=axis_titles)


def _blend(p: np.ndarray, colors: np.ndarray, size: int) -> Pixels:
    rgb = (p @ colors.astype(np.float64)).reshape(size, size, 3)
    return np.concatenate([np.round(rgb), np.full((size, size, 1), 120)], -1).astype(np.uint8)


def _field(fig, x, y, pixels: Pixels, *, row, col) -> None:
    fig.add_image(
        source=data_uri(pixels),
        x0=float(x[0]),
        dx=float(x[1] - x[0]),
        y0=float(y[0]),
        dy=float(y[1] - y[0]),
        name="field",
        hoverinfo="skip",
        row=row,
        col=col,
    )


def _scatter(fig, points, name, marker, *, row=1, col=1) -> None:
    xy = np.asarray(points, dtype="float32")
    fig.add_scatter(
        x=xy[:, 0], y=xy[:, 1], mode="markers", marker=marker, name=name, row=row, col=col
    )


def _grid(points, size, *, margin=0.1):
    low, high = np.min(points, 0), np.max(points, 0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    x, y = (np.linspace(low[i], high[i], size, dtype="float32") for i in (0, 1))
    return x, y, np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def _assign(points, codebook, tau, *, energy="squared") -> Float[np.ndarray, "N K"]:
    z = torch.as_tensor(np.asarray(points), dtype=torch.float64)
    codes = torch.as_tensor(np.asarray(codebook), dtype=torch.float64)
    return probabilities(z, codes, float(tau), energy=energy).numpy()


def _square_axes(fig, row, col, *, titles=True) -> None:
    axes = fig.get_subplot(row, col)
    axes.yaxis.update(
        scaleanchor=axes.yaxis.anchor, constrain="domain", showgrid=False, autorange=True
    )
    axes.xaxis.update(constrain="domain", showgrid=False)
    if titles:
        axes.xaxis.title.text, axes.yaxis.title.text = "z<sub>1</sub>", "z<sub>2</sub>"
    else:
        axes.xaxis.showticklabels = axes.yaxis.showticklabels = False
