"""LGQ on points in the plane, where all that the temperature does can be seen; and the staircase.

A place of the plane has the tints of the codes it is assigned to, mixed by their probabilities.
"""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, UInt8

from lgqlib.figures.pictures import data_uri
from lgqlib.figures.style import BLUE, GREEN, INK, ORANGE, RED, SKY, Panel, panels, titled
from lgqlib.measure.annealing import Annealing
from lgqlib.quantizers.assignment import ENERGIES, probabilities

Points = Float[np.ndarray, "N 2"]
Codes = Float[np.ndarray, "K 2"]


def clusters(num_points: int = 600, *, seed: int = 0) -> Points:
    """Draw points in the plane from five unequal Gaussians, the same for a seed."""
    rng = np.random.default_rng(seed)
    centers = np.array([[-2.2, 1.0], [-1.6, -1.4], [0.4, 0.2], [1.9, 1.5], [2.3, -1.1]])
    widths = np.array([0.35, 0.5, 0.3, 0.45, 0.4])
    which = rng.choice(5, num_points, p=[0.25, 0.15, 0.2, 0.15, 0.25])
    return centers[which] + widths[which, None] * rng.standard_normal((num_points, 2))


def code_tints(codebook: Codes) -> UInt8[np.ndarray, "K 3"]:
    """Give each code a tint of its own: hue by direction from the mean, lightness in turns."""
    away = codebook - codebook.mean(0)
    order = np.argsort(np.argsort(np.arctan2(away[:, 1], away[:, 0])))
    shades = [colorsys.hls_to_rgb(i / len(away), (0.45, 0.65)[i % 2], 0.75) for i in order]
    return np.round(255 * np.array(shades)).astype(np.uint8)


def soft_partition(
    around: Points,
    codebook: Codes,
    tints: UInt8[np.ndarray, "K 3"],
    tau: float,
    *,
    energy: str = "squared",
    size: int = 72,
    margin: float = 0.1,
) -> dict:
    """Picture the plane around points, and a `margin` of their range, as arguments of a trace."""
    (x0, y0), step, grid = _grid(around, size, margin)
    mixed = _assign(grid, codebook, tau, energy) @ tints.astype(np.float64)
    pixels = np.full((size, size, 4), 120, dtype=np.uint8)
    pixels[..., :3] = np.round(mixed).reshape(size, size, 3)
    return {"source": data_uri(pixels), "x0": x0, "y0": y0, "dx": step[0], "dy": step[1]}


def draw_plane(panel: Panel, points: Points, codebook: Codes, picture: dict) -> None:
    """Draw points and codes over a picture of the plane."""
    panel.picture(**picture, name="plane")
    panel.dots(*_xy(points), "points", INK, size=3, opacity=0.8)
    border = {"line": {"color": "white", "width": 1}}
    panel.dots(*_xy(codebook), "codes", RED, size=10, marker=border)
    panel.axes(y_autorange=True)  # a picture has its first row on top; a plane has it below


def annealing_frames(
    points: Points, annealing: Annealing, indices: Sequence[int], *, width: float, size: int = 56
) -> go.Figure:
    """Draw points, codes and partition at several taus, also named in units of `width`, 2 D / C."""
    reduced, distinct = annealing.taus / annealing.predicted, annealing.num_distinct
    own = annealing.taus / width
    titles = [
        f"τ = {reduced[i]:.2g} τ<sub>c</sub> = {own[i]:.2g} widths: {distinct[i]} distinct"
        for i in indices
    ]
    rows, spaces = -(-len(indices) // 3), {"horizontal_spacing": 0.03, "vertical_spacing": 0.1}
    fig, frames = panels(rows=rows, cols=3, titles=titles, height=90 + 300 * rows, **spaces)
    tints = code_tints(annealing.codebooks[-1])
    for panel, i in zip(frames, indices, strict=False):
        codes = annealing.codebooks[i]
        picture = soft_partition(points, codes, tints, annealing.taus[i], size=size)
        draw_plane(panel, points, codes, picture)
    fig.update_layout(showlegend=False)
    first, last = indices[0], indices[-1]
    return titled(
        fig,
        f"The codebook falls from {distinct[first]} place to {distinct[last]} as τ falls "
        f"{reduced[first] / reduced[last]:.0f}-fold",
        "Each place has the tints of its codes, mixed by their probabilities: one blend when hot, "
        "a Voronoi partition when cold. A split shows as one tint becoming two.",
    )


def staircase(annealing: Annealing) -> go.Figure:
    """Draw the number of distinct codes against temperature, and each split as it was predicted."""
    titles = ("Distinct codes", "Splits, predicted and seen")
    fig, (steps, splits) = panels(cols=2, titles=titles, height=420)
    stairs(steps, annealing)
    high, low, predicted = np.array(annealing.splits).reshape(-1, 3).T
    splits.legend(x=0.01)
    name, bars = "a split (bar: step of the schedule)", (low, high)
    splits.dots(predicted, np.sqrt(high * low), name, BLUE, size=8, error_y=bars)
    ends = [annealing.taus[-1], annealing.taus[0]]
    splits.line(ends, ends, "as predicted", dash="dash")
    names = ("2 λ<sub>max</sub> of the latents at the place", "temperature of the split")
    splits.axes(*names, log="xy")
    off = round(100 * (annealing.observed / annealing.predicted - 1), 1) + 0.0  # never "-0.0"
    return titled(
        fig,
        f"First split at τ = {annealing.observed:.3f}; 2 λmax(Cov z) predicts "
        f"{annealing.predicted:.3f} ({off:+.1f} %)",
        "Each step is a phase transition: a place of codes splits along the longest axis of its "
        "latents when τ passes twice their largest eigenvalue.",
    )


def stairs(panel: Panel, annealing: Annealing) -> None:
    """Draw the number of distinct codes against temperature."""
    distinct, top = annealing.num_distinct, [0, int(annealing.num_distinct.max())]
    panel.legend()
    panel.line(annealing.taus, distinct, "distinct", line={"color": BLUE, "shape": "hv"})
    name = "τ<sub>c</sub> = 2 λ<sub>max</sub>"
    panel.line([annealing.predicted] * 2, top, name, ORANGE, dash="dash")
    panel.line([annealing.observed] * 2, top, "first split seen", SKY, dash="dot")
    panel.axes("τ, units of the energy", "distinct codes", log="x", y_rangemode="tozero")


def soft_code_path(
    point: Float[np.ndarray, " 2"], points: Points, codebook: Codes, taus: Float[np.ndarray, " T"]
) -> tuple[go.Figure, Float[np.ndarray, "T 2"]]:
    """Follow one point's soft code as the temperature falls; return the figure and the path."""
    path = np.concatenate([_assign(point[None], codebook, tau) @ codebook for tau in taus])
    hard = codebook[np.square(codebook - point).sum(1).argmin()]
    away = np.linalg.norm(path - hard, axis=1)
    titles = ("Path of the soft code", "Soft to hard code")
    fig, (left, right) = panels(cols=2, titles=titles, height=440)
    left.legend(x=0.01, y=0.01)
    left.dots(*_xy(points), "points", INK, size=3, opacity=0.5)
    left.dots(*_xy(codebook), "codes", RED, size=9)
    along = {"mode": "lines+markers", "marker": {"size": 4}}
    left.line(*_xy(path), "soft code, τ falling", GREEN, **along)
    left.dots(*_xy(point[None]), "the point", BLUE, size=13, symbol="x")
    left.square()
    still = {"x_showgrid": False, "y_showgrid": False, "y_autorange": True}
    left.axes("z<sub>1</sub>", "z<sub>2</sub>", **still)
    right.line(taus, away, color=GREEN)
    right.axes("τ, units of the energy", "distance to the nearest code", log="x")
    finding = (
        f"The soft code moves from the mean of the codes to the nearest one: {away[0]:.2f} away at "
        f"τ = {taus[0]:.2g}, {away[-1]:.1g} at τ = {taus[-1]:.2g}"
    )
    look_for = (
        "Forward, the decoder receives the nearest code; backward, the gradient is that of the "
        "green curve. Where they part, the straight-through gradient is a stand-in."
    )
    return titled(fig, finding, look_for), path


def four_energies(codebook: Codes, taus: Mapping[str, float], *, size: int = 72) -> go.Figure:
    """Draw the soft partition of one codebook under each of the four energies, at its own tau."""
    titles = [f"{energy}, τ = {taus[energy]:.2g}" for energy in ENERGIES]
    fig, frames = panels(cols=4, titles=titles, height=330)
    shown, nearest, tints = {"size": size, "margin": 0.4}, {}, code_tints(codebook)
    grid = _grid(codebook, **shown)[2]
    for panel, energy in zip(frames, ENERGIES, strict=True):
        nearest[energy] = _assign(grid, codebook, taus[energy], energy).argmax(1)
        picture = soft_partition(codebook, codebook, tints, taus[energy], energy=energy, **shown)
        draw_plane(panel, codebook[:0], codebook, picture)
    fig.update_layout(showlegend=False)
    same = {energy: 100 * np.mean(nearest[energy] == nearest["squared"]) for energy in ENERGIES}
    return titled(
        fig,
        f"Of the plane, {same['norm']:.0f} % has the same nearest code by distance as by its "
        f"square, {same['cosine']:.0f} % by cosine, {same['dot']:.0f} % by dot product",
        "Cosine and dot cut the plane into wedges from the origin. Distance and its square differ "
        "only in how doubt spreads.",
    )


def _xy(points: Points) -> Float[np.ndarray, "2 N"]:
    return np.asarray(points, dtype="float32").T


def _grid(points: Points, size: int, margin: float) -> tuple[np.ndarray, ...]:
    """Give the first place, the step along each axis, and all places row by row."""
    low, high = np.min(points, 0), np.max(points, 0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    x, y = np.linspace(low, high, size).T
    return low, (high - low) / (size - 1), np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def _assign(points, codebook, tau: float, energy: str = "squared") -> Float[np.ndarray, "N K"]:
    z, codes = (torch.as_tensor(np.asarray(x, dtype=np.float64)) for x in (points, codebook))
    return probabilities(z, codes, float(tau), energy=energy).numpy()
