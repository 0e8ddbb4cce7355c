"""How good a tokenizer is: its images beside the originals, its codes in an image, how evenly they
work.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas
import plotly.graph_objects as go
from jaxtyping import Float, Int
from torch import Tensor

from lgqlib.figures.style import INK, WIDTH, color_of, figure, legend_in, name_of, titled

Array = np.ndarray | Tensor


def reconstructions(
    originals: Float[Array, "n 3 S S"],
    decoded: Float[Array, "m 3 T T"],
    *,
    labels: Sequence[str] | None = None,
) -> go.Figure:
    """Put originals, reconstructions and error maps side by side; images in [0, 1], one a column.

    The error is the mean absolute difference over the three colors, on one scale for all images.
    """
    x, y = _images(originals), _images(decoded)
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            f"originals {x.shape} and decoded {y.shape}: expected one shape, [n, 3, S, S]."
        )
    count = len(x)
    error = np.abs(x - y).mean(-1)  # (n, S, S)
    fig = figure(
        rows=3,
        cols=count,
        titles=labels,
        height=int(110 + 3 * (WIDTH - 90) / max(count, 4)),
        horizontal_spacing=0.01,
        vertical_spacing=0.02,
        row_titles=("original", "decoded", "error"),
    )
    for i in range(count):
        for row, image in ((1, x[i]), (2, y[i])):
            fig.add_image(z=np.round(image * 255).astype("uint8"), row=row, col=i + 1)
        fig.add_heatmap(
            z=error[i].astype("float32"), coloraxis="coloraxis", row=3, col=i + 1, hoverongaps=False
        )
    _bare(fig)
    for row in range(1, 4):
        for col in range(1, count + 1):
            square(fig, row, col)
    fig.update_layout(
        coloraxis={
            "colorscale": "Inferno",
            "cmin": 0,
            "colorbar": {"title": "|error|", "len": 0.32, "y": 0.16, "x": 1.04, "thickness": 12},
        },
        margin={"l": 10, "r": 90, "b": 10},
    )
    mse = np.square(x - y).mean((1, 2, 3))
    psnr = -10 * np.log10(np.maximum(mse, 1e-10))
    return titled(
        fig,
        f"Mean error {error.mean():.3f} of the full range; PSNR {psnr.min():.1f} to "
        f"{psnr.max():.1f} dB "
        f"in these {count} images",
        "Error gathers at edges and fine texture; an even glow over a whole image is a missed "
        "color.",
    )


def code_map(
    image: Float[Array, "3 S S"], indices: Int[Array, "h w"], sites: Float[Array, "K D"]
) -> go.Figure:
    """Show an image beside its tokens, each in the color of its code: like colors are like
    codes.
    """
    picture, tokens = _images(np.asarray(image)[None])[0], np.asarray(indices)
    colors = code_colors(sites)
    fig = figure(cols=2, titles=("image", "code of each token"), height=480)
    fig.add_image(z=np.round(picture * 255).astype("uint8"), row=1, col=1)
    fig.add_image(
        z=colors[tokens],
        customdata=tokens[..., None],
        hovertemplate="row %{y}, column %{x}<br>code %{customdata[0]}<extra></extra>",
        row=1,
        col=2,
    )
    _bare(fig)
    for col in (1, 2):
        square(fig, 1, col)
    distinct = len(np.unique(tokens))
    return titled(
        fig,
        f"{distinct} distinct codes in the {tokens.size} tokens of this image",
        "A color is the place of a code in the codebook (its first three principal components, by "
        "rank): flat regions "
        "repeat a code, edges change it.",
    )


def code_colors(sites: Float[Array, "K D"]) -> np.ndarray:
    """Give each code a color, uint8 [K, 3]: the ranks of its first three principal components as
    red, green, blue.
    """
    e = np.asarray(sites, dtype=np.float64)
    e = e - e.mean(0)
    _, _, axes = np.linalg.svd(e, full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    places = np.zeros((len(e), 3))
    places[:, : min(3, len(axes))] = e @ axes[:3].T
    ranks = places.argsort(0).argsort(0) / max(len(e) - 1, 1)
    return np.round(40 + 200 * ranks).astype("uint8")


def usage_histogram(counts: Int[Array, " K"], *, method: str = "") -> go.Figure:
    """Draw how often each code is used, most used first, and the histogram of these counts."""
    n = np.sort(np.asarray(counts, dtype=np.int64))[::-1]
    total, active = int(n.sum()), int((n > 0).sum())
    share = n[n > 0] / max(total, 1)
    perplexity = float(np.exp(-(share * np.log(share)).sum())) if active else 0.0
    fig = figure(cols=2, titles=("Uses by rank", "Codes by their uses"), height=400)
    color = color_of(method)
    legend = legend_in(fig, 1, 1)
    fig.add_scatter(
        x=np.arange(1, active + 1, dtype="int32"),
        y=n[:active].astype("int32"),
        line={"color": color},
        name=name_of(method) or "codes",
        legend=legend,
        row=1,
        col=1,
    )
    fig.add_scatter(
        x=[1, len(n)],
        y=[total / len(n)] * 2,
        mode="lines",
        line={"color": INK, "dash": "dash"},
        name="even use",
        legend=legend,
        row=1,
        col=1,
    )
    heights, edges = np.histogram(n, bins=min(40, max(int(n[0]), 1)))
    fig.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=heights,
        width=np.diff(edges),
        marker_color=color,
        showlegend=False,
        row=1,
        col=2,
    )
    fig.update_xaxes(title_text="rank of the code", type="log", row=1, col=1)
    fig.update_yaxes(title_text="tokens", type="log", row=1, col=1)
    fig.update_xaxes(title_text="tokens on a code", row=1, col=2)
    fig.update_yaxes(title_text="codes", row=1, col=2)
    return titled(
        fig,
        f"{active} of {len(n)} codes used by {total} tokens; perplexity {perplexity:.0f}, "
        f"{100 * perplexity / len(n):.0f} % of K",
        "The lower and the flatter the curve, the more even the use; a bar at 0 on the right is "
        "dead codes.",
    )


METRICS = {
    "psnr": ("PSNR", "dB", ".2f", "higher"),
    "ssim": ("SSIM", "", ".4f", "higher"),
    "ms_ssim": ("MS-SSIM", "", ".4f", "higher"),
    "l1": ("L1, images in [0, 1]", "", ".4f", "lower"),
    "perceptual": ("perceptual distance", "", ".4f", "lower"),
    "kid": ("KID", "", ".5f", "lower"),
    "fd": ("Fréchet distance", "", ".2f", "lower"),
    "active": ("active codes", "codes", "d", ""),
    "perplexity": ("perplexity", "codes", ".1f", ""),
    "gini": ("Gini of code use", "", ".3f", ""),
    "entropy": ("entropy of code use", "bits a token", ".3f", ""),
    "entropy_miller_madow": ("the same, Miller-Madow", "bits a token", ".3f", ""),
    "bits_per_token_nominal": ("rate by name, log2 K", "bits a token", ".3f", ""),
    "bits_per_token_coded": ("rate really coded", "bits a token", ".3f", "lower"),
    "bits_per_pixel_coded": ("rate really coded", "bits a pixel", ".4f", "lower"),
    "num_images": ("images", "", "d", ""),
    "num_tokens": ("tokens", "", "d", ""),
}
"""By name in `evaluation.json`: what it is called, its unit, its format, and which way is
better.
"""


def metric_table(numbers: Mapping[str, object]) -> pandas.DataFrame:
    """Lay out an evaluation's numbers as a table: value, unit, which way is better; names it lacks
    are left out.
    """
    rows = {}
    for name, (label, unit, form, better) in METRICS.items():
        if numbers.get(name) is not None:
            value = format(numbers[name], form)
            error = numbers.get(f"{name}_se")
            value += f" ± {error:{form}}" if error is not None else ""
            rows[f"{label} ({unit})" if unit else label] = {"value": value, "better": better}
    if numbers.get("extractor") is not None:
        rows["features of KID and Fréchet distance"] = {"value": numbers["extractor"], "better": ""}
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["value", "better"])


def square(fig: go.Figure, row: int, col: int) -> None:
    """Give a subplot of an image square pixels, the first row on top."""
    subplot = fig.get_subplot(row, col)
    anchor = subplot.yaxis.anchor or "x"
    subplot.yaxis.update(autorange="reversed", scaleanchor=anchor, constrain="domain")
    subplot.xaxis.update(constrain="domain")


def _images(images: Array) -> np.ndarray:
    """Give images as numpy [n, S, S, 3] in [0, 1]."""
    return np.clip(np.moveaxis(np.asarray(images, dtype=np.float32), 1, -1), 0, 1)


def _bare(fig: go.Figure) -> None:
    for axes in (fig.update_xaxes, fig.update_yaxes):
        axes(showticklabels=False, showgrid=False, zeroline=False, ticks="")
