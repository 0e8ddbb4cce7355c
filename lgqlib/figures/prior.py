"""What a token costs: by which model, where in a photograph, and against JPEG and WebP."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas
import plotly.graph_objects as go
from jaxtyping import Float, UInt8

from lgqlib.figures.pictures import colored, data_uri, picture_grid
from lgqlib.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, color_of, panels, titled

Picture = UInt8[np.ndarray, "H W 3"]
CODEC_COLORS = {"JPEG": ORANGE, "WebP": SKY}
HEADS = {
    "geometric": ("Gaussians at the codes", BLUE),
    "softmax": ("softmax on vectors", GREEN),
    "embeddings": ("softmax on embeddings", PURPLE),
}


def costs(bits: Mapping[str, Float[np.ndarray, " n"]], *, num_codes: int) -> go.Figure:
    """Draw the bits a token under each model: the mean of photographs, and every one as a point."""
    fig, (panel,) = panels(height=380)
    for at, values in enumerate(bits.values()):
        panel.bars([at], [values.mean()], text=f"{values.mean():.2f}", width=0.6)
        spread = np.linspace(-0.2, 0.2, len(values))
        panel.dots(at + spread, values, color=BLUE, size=5)
    nominal = np.log2(num_codes)
    panel.rule(y=nominal, annotation_text=f"by name, log2 K = {nominal:.4g}")
    most = max(nominal, max(v.max() for v in bits.values()))
    ticks = {"x_tickvals": list(range(len(bits))), "x_ticktext": list(bits)}
    panel.axes(y="bits a token", y_range=[0, most * 1.08], **ticks)
    first, last = (list(bits)[at] for at in (0, -1))
    return titled(
        fig,
        f"A token costs {bits[last].mean():.2f} bits when its neighbors are known, "
        f"{bits[first].mean():.2f} by counts of codes alone",
        f"Means of {len(bits[last])} whole held-out photographs; every point is one of them.",
    )


def bit_map(image: Picture, decoded: Picture, bits: Float[np.ndarray, "h w"]) -> go.Figure:
    """Show a photograph, what comes back, and the bits of every token."""
    titles = ("photograph", "decoded", "bits of each token")
    fig, (left, middle, right) = panels(cols=3, titles=titles, height=400)
    left.picture(data_uri(image))
    middle.picture(data_uri(decoded))
    top = float(np.quantile(bits, 0.99))
    uri = data_uri(colored(bits, scale="Inferno", high=top))
    right.picture(uri, values=bits, said="%{customdata[0]:.1f} bits")
    ranked = np.sort(bits.ravel())[::-1]
    share = ranked[: len(ranked) // 4].sum() / ranked.sum()
    return titled(
        fig,
        f"A quarter of the tokens takes {share:.0%} of the bits; the mean is {bits.mean():.2f}",
        f"Black costs nothing, bright {top:.0f} bits or more. Edges and fine texture cost, "
        "whatever continues its neighbors is nearly free.",
    )


def heads(table: pandas.DataFrame) -> go.Figure:
    """Draw the bits a token of every head at each K, a row of `prior.head_rates` each."""
    fig, (panel,) = panels(height=360)
    for head, part in table.groupby("head", sort=False):
        panel.bars(
            [f"K = {k:,}" for k in part["num_codes"]],
            part["bits"],
            *HEADS[head],
            text=[f"{b:.2f}" for b in part["bits"]],
            customdata=part["parameters"],
            hovertemplate="%{x}: %{y:.2f} bits, %{customdata:,} parameters<extra></extra>",
        )
    panel.axes(y="bits a token", y_rangemode="tozero")
    wide = table.pivot(index="num_codes", columns="head", values="bits")
    gain = (wide["softmax"] - wide["geometric"]).items()
    said = [f"{abs(g):.2f} {'below' if g > 0 else 'above'} at K = {k:,}" for k, g in gain]
    return titled(
        fig,
        f"Gaussians at the codes against a softmax on the same vectors, bits a token: "
        f"{', '.join(said)}",
        f"Held-out photographs after {table['steps'].iloc[0]} steps of each. The Gaussians know "
        "where a code lies; a softmax has to meet it first.",
    )


def rate_distortion(
    lines: Mapping[str, Mapping[float, pandas.DataFrame]],
    curves: Mapping[str, Float[np.ndarray, "n Q 2"]],
    *,
    method: str = "lgq",
) -> go.Figure:
    """Draw files of tokens against JPEG and WebP: mean curves, and each photograph's difference.

    `lines`: of two encoders, by weight of bits, `file_rates`; the very first table is of nearest
    codes, the second panel of the other encoder's first. `curves`: by codec, bits a pixel and PSNR.
    """
    fig, (left, right) = panels(cols=2, height=440, horizontal_spacing=0.18)
    for codec, points in curves.items():
        left.line(*points.mean(0).T, codec, CODEC_COLORS[codec], mode="lines+markers")
    shown = [p.mean(0) for p in curves.values()]
    for (label, files), symbol in zip(lines.items(), ("circle-open", "circle"), strict=True):
        means = np.array([t[["bits_per_pixel", "psnr"]].mean() for t in files.values()])
        left.dots(
            *(*means.T, label, color_of(method)),
            mode="lines+markers",
            size=10,
            symbol=symbol,
            text=[f"weight of bits {weight:g}" for weight in files],
            hovertemplate="%{text}<br>%{x:.3f} bits a pixel, %{y:.2f} dB<extra></extra>",
        )
        shown.append(means)
    most = 2.5 * max(means[:, 0].max() for means in shown[len(curves) :])
    heights = [dB for means in shown for bits, dB in means if bits < most]
    axes = {"x_range": [0, most], "y_range": [min(heights), max(heights) + 0.5]}
    left.axes("whole file, bits a pixel", "PSNR, dB", **axes)
    near, best = (next(iter(list(lines.values())[at].values())) for at in (0, -1))
    order = best.sort_values("JPEG", key=lambda jpeg: best["psnr"] - jpeg)
    for codec in curves:
        gains = order["psnr"] - order[codec]
        right.dots(gains, order["name"], codec, CODEC_COLORS[codec], size=9, showlegend=False)
    right.rule(x=0)
    right.axes(f"dB above the codec at equal bits:<br>{list(lines)[-1]}")
    fig.update_layout(legend={"orientation": "h", "y": -0.18})
    gains = [[f"{(t['psnr'] - t[codec]).mean():+.2f}" for codec in curves] for t in (near, best)]
    first, second = map(" and ".join, gains)
    return titled(
        fig,
        f"At equal bits of the whole file, dB against {' and '.join(curves)}: nearest codes "
        f"{first}, {list(lines)[-1]} {second}",
        "Left: means of the photographs; along a line tokens trade error for bits. Right: each "
        "photograph. The weights of tokenizer and prior, which both sides have, are not counted.",
    )


def samples(pictures: Sequence[Picture]) -> go.Figure:
    """Show what the prior draws."""
    return titled(
        picture_grid({"drawn": list(pictures)}),
        "What the prior draws is texture, without objects: it sees two rows and two tokens",
        "Smooth areas, edges and grain continue for a few tokens; nothing holds a shape together.",
    )
