"""How sure each assignment is: over an image, over tokens, over training; and how even codes are
used.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8

from lgqlib.figures.evaluation import square
from lgqlib.figures.geometry import label_of, run_color
from lgqlib.figures.pixels import data_uri
from lgqlib.figures.strips import strips
from lgqlib.figures.style import (
    BLUE,
    COLORS,
    GREEN,
    INK,
    ORANGE,
    RED,
    figure,
    legend_in,
    titled,
)
from lgqlib.geometry import lorenz, occupancy
from lgqlib.theory import FreeEnergyCurve

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
) -> go.Figure:
    """Draw patches from each decile of assignment entropy, the surest on top."""
    return strips(
        patches,
        [
            f"{_nats(low)} to {_nats(high)}" if high >= 1e-4 else "below 10⁻⁴"
            for low, high in bounds
        ],
        axis="entropy of the decile, nats",
        finding=f"The surest tenth of the tokens is below {_nats(bounds[0][1])} nats, the least "
        f"sure above {_nats(bounds[-1][0])}",
        look_for="Top: patches that one code answers for. Bottom: patches between codes. Look for "
        "what they have in common: flat against textured, common against rare.",
    )


def uncertain_codes(
    indices: Int[np.ndarray, " N"], entropy: Float[np.ndarray, " N"], num_codes: int
) -> go.Figure:
    """Draw the mean entropy of each code's tokens against how many it has."""
    counts = np.bincount(indices, minlength=num_codes)
    used = np.flatnonzero(counts)
    mean = np.bincount(indices, entropy, num_codes)[used] / counts[used]
    order = used[np.argsort(-mean, kind="stable")]
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
        f"Least sure are codes {', '.join(map(str, order[:5]))}; rank correlation of doubt and use "
        f"{relation:+.2f} over {len(used)} used codes",
        "Dashed: mean over tokens. Doubt that grows with use is crowding: many tokens share few "
        "codes that lie close together.",
    )


def information(
    curves: Mapping[str, FreeEnergyCurve], taus: Mapping[str, float], scales: Mapping[str, float]
) -> go.Figure:
    """Draw entropy of usage, mean token entropy and their difference over temperature."""
    fig = figure(height=440)
    for key, curve in curves.items():
        x, color = curve.taus / scales[key], run_color(key)
        for values, name, dash in (
            (curve.usage_entropy, "H(u), of usage", "solid"),
            (curve.entropy, "E H(p), of a token", "dot"),
            (curve.mutual_information, "I, what a code tells", "dash"),
        ):
            fig.add_scatter(
                x=x,
                y=values / np.log(2),
                mode="lines",
                line={"color": color, "dash": dash},
                name=f"{label_of(key)}: {name}",
            )
        fig.add_vline(taus[key] / scales[key], line={"color": color, "width": 1})
    fig.update_xaxes(title_text="τ / τ<sub>c</sub>", type="log")
    fig.update_yaxes(title_text="bits a token", rangemode="tozero")
    parts = []
    for key, curve in curves.items():
        i = int(np.abs(np.log(curve.taus / taus[key])).argmin())
        known, used = curve.mutual_information[i] / np.log(2), curve.usage_entropy[i] / np.log(2)
        parts.append(f"{label_of(key)} {known:.2f} of {used:.2f} bits")
    return titled(
        fig,
        "At its own temperature (thin line) a code tells about its token: " + "; ".join(parts),
        "H(u) is what evenness of use allows; E H(p) is lost to doubt; the difference is mutual "
        "information. Hot, doubt eats everything.",
    )


def entropy_history(
    histories: Mapping[str, Sequence], *, num_codes: Mapping[str, int]
) -> go.Figure:
    """Draw both entropies and their difference over the steps of training."""
    fig = figure(cols=2, titles=("Entropies of the probe", "Temperature of the step"), height=400)
    legend = legend_in(fig, 1, 1, y=0.5)
    for key, moments in histories.items():
        steps, color = [m.step + 1 for m in moments], run_color(key)
        for values, name, dash in (
            ([m.usage for m in moments], "H(u)", "solid"),
            ([m.token for m in moments], "E H(p)", "dot"),
            ([m.information for m in moments], "I", "dash"),
        ):
            fig.add_scatter(
                x=steps,
                y=np.array(values) / np.log(2),
                mode="lines+markers",
                line={"color": color, "dash": dash},
                name=f"{label_of(key)}: {name}",
                legend=legend,
                row=1,
                col=1,
            )
        fig.add_scatter(
            x=steps,
            y=[m.tau for m in moments],
            mode="lines+markers",
            line={"color": color},
            name=label_of(key),
            legend=legend_in(fig, 1, 2),
            row=1,
            col=2,
        )
        top = np.log2(num_codes[key])
        fig.add_hline(top, line={"color": color, "dash": "dot", "width": 1}, row=1, col=1)
    fig.update_xaxes(title_text="training step + 1", type="log")
    fig.update_yaxes(title_text="bits a token", rangemode="tozero", row=1, col=1)
    fig.update_yaxes(title_text="τ, units of the energy", type="log", row=1, col=2)
    parts = [
        f"{label_of(k)} from {m[0].information / np.log(2):.2f} to "
        f"{m[-1].information / np.log(2):.2f} bits"
        for k, m in histories.items()
    ]
    return titled(
        fig,
        "Mutual information of token and code: " + "; ".join(parts),
        "Thin dotted line: log2 K. As τ falls doubt goes, and what a code tells comes to equal the "
        "entropy of its use.",
    )


def evenness(counts: Mapping[str, Int[np.ndarray, " K"]]) -> go.Figure:
    """Draw the Lorenz curve of code use, and uses by rank."""
    fig = figure(cols=2, titles=("Lorenz curve", "Uses by rank"), height=420)
    parts = []
    for key, n in counts.items():
        color, about = run_color(key), occupancy(n)
        codes, mass = lorenz(n)
        keep = np.unique(np.linspace(0, len(codes) - 1, 400).astype(int))
        fig.add_scatter(
            x=100 * codes[keep],
            y=100 * mass[keep],
            mode="lines",
            line={"color": color},
            name=f"{label_of(key)}, Gini {about.gini:.2f}",
            legend=legend_in(fig, 1, 1, x=0.01),
            row=1,
            col=1,
        )
        share = np.sort(n[n > 0])[::-1] / n.sum()
        keep = np.unique(np.geomspace(1, len(share), 300).astype(int)) - 1
        fig.add_scatter(
            x=keep + 1,
            y=share[keep],
            mode="lines",
            line={"color": color},
            name=f"{label_of(key)}, {about.active} active",
            legend=legend_in(fig, 1, 2),
            row=1,
            col=2,
        )
        parts.append(f"{label_of(key)} {about.gini:.2f}")
    fig.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        line={"color": INK, "dash": "dash"},
        name="even use",
        legend=legend_in(fig, 1, 1, x=0.01),
        row=1,
        col=1,
    )
    fig.update_xaxes(title_text="codes, rarest first, %", row=1, col=1)
    fig.update_yaxes(title_text="tokens that they have, %", row=1, col=1)
    fig.update_xaxes(title_text="rank of the code", type="log", row=1, col=2)
    fig.update_yaxes(title_text="share of the tokens", type="log", row=1, col=2)
    return titled(
        fig,
        f"Gini coefficient of code use: {'; '.join(parts)} (0 is even, 1 is one code for all)",
        "A flat start of the Lorenz curve is dead codes. Even use is not the optimum: on a "
        "Gaussian, "
        "rare cells are larger and used less.",
    )


def term_effects(effects: Sequence, *, tau_label: str) -> go.Figure:
    """Draw what one small step down each term does to both entropies."""
    fig = figure(height=400)
    for effect, color in zip(effects, (RED, BLUE, GREEN, ORANGE, *COLORS), strict=False):
        fig.add_scatter(
            x=[0, effect.token],
            y=[0, effect.usage],
            mode="lines+markers",
            marker={"symbol": ["circle", "arrow"], "size": [1, 14], "angleref": "previous"},
            line={"color": color, "width": 3},
            name=effect.term,
        )
    fig.update_xaxes(title_text="change of E H(p), doubt of a token, nats")
    fig.update_yaxes(title_text="change of H(u), evenness of use, nats")
    return titled(
        fig,
        "; ".join(f"{e.term}: doubt {e.token:+.3f}, evenness {e.usage:+.3f}" for e in effects),
        f"One step of tokens and codes by 2 % of their spread down each term's gradient, at "
        f"{tau_label}. Left is surer, up is more even: a term that trades one for the other leans.",
    )


def _bare(fig: go.Figure, row: int, col: int) -> None:
    square(fig, row, col)
    axes = fig.get_subplot(row, col)
    for axis in (axes.xaxis, axes.yaxis):
        axis.update(showticklabels=False, showgrid=False, zeroline=False, ticks="")


def _nats(value: float) -> str:
    return "10⁻⁴" if value < 1e-4 else f"{value:.2g}"
