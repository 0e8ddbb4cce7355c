"""How good a tokenizer is: its images beside the originals, its codes in an image and their use."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from lgqlib.figures.pictures import as_pixels, colored, data_uri, detail, picture_grid
from lgqlib.figures.style import color_of, name_of, panels, titled
from lgqlib.measure import METRICS
from lgqlib.measure.images import psnr_bytes

Array = np.ndarray | Tensor
Shown, Tokens = Float[Array, "3 S S"], Int[Array, "h w"]
SHOWN, SIDE = 2, 224  # photographs that are drawn, and their sides in pixels


def reconstructions(originals: Array, decoded: Array, *, labels: Sequence[str] = ()) -> go.Figure:
    """Put originals, reconstructions and error maps below each other; [n, 3, S, S] in [0, 1].

    Errors are means over colors, on one scale for all. ValueError where shapes differ.
    """
    x, y = np.asarray(originals), np.asarray(decoded)
    if x.shape != y.shape:
        raise ValueError(f"originals {x.shape} and decoded {y.shape}: expected one shape.")
    error = np.abs(x - y).mean(1)  # (n, S, S)
    top = float(error.max())
    rows = {"original": as_pixels(x), "decoded": as_pixels(y)}
    rows[f"error, 0 to {top:.2f}"] = colored(error, scale="Inferno", high=top)
    psnr = -10 * np.log10(np.maximum(np.square(x - y).mean((1, 2, 3)), 1e-10))
    return titled(
        picture_grid(rows, columns=labels),
        f"Mean error {error.mean():.3f} of the full range; PSNR {psnr.min():.1f} to "
        f"{psnr.max():.1f} dB in these {len(x)} images",
        "Error gathers at edges and fine texture; an even glow over a whole image is a missed "
        "color.",
    )


def photographs(
    originals: Mapping[str, UInt8[np.ndarray, "_ _ 3"]], columns: Sequence[Any]
) -> go.Figure:
    """Put photographs and what was made of them side by side, a magnified detail below each.

    `columns`: each with a `label`, `decoded` pictures and their `bits` a pixel, by name
    (`study.blocks.columns`). Pictures are the largest square around the detail, resized.
    """
    rows, texts = {}, []
    for name, image in [*originals.items()][:SHOWN]:
        x, y, width, height = detail(name, image, 56, 56)
        square = min(image.shape[:2])
        left = int(np.clip(x + width // 2 - square // 2, 0, image.shape[1] - square))
        top = int(np.clip(y + height // 2 - square // 2, 0, image.shape[0] - square))
        every = [image, *(column.decoded[name] for column in columns)]
        for row, part in {
            name: np.s_[top : top + square, left : left + square],
            f"{name}, detail": np.s_[y : y + height, x : x + width],
        }.items():
            shown = (Image.fromarray(np.ascontiguousarray(pixels[part])) for pixels in every)
            how = Image.Resampling.NEAREST if "detail" in row else Image.Resampling.LANCZOS
            rows[row] = [np.asarray(picture.resize((SIDE, SIDE), how)) for picture in shown]
            said = (f"{column.label}: {psnr_bytes(image, pixels):.1f} dB, "
                    f"{column.bits[name]:.2f} bits a pixel" for column, pixels in
                    zip(columns, every[1:], strict=True))  # fmt: skip
            texts.append([f"{name}, 24 bits a pixel", *said])
    db = {c.label: [psnr_bytes(x, c.decoded[n]) for n, x in originals.items()] for c in columns}
    bits = {c.label: [*c.bits.values()] for c in columns}
    return titled(
        picture_grid(rows, columns=["photograph", *db], hover=texts, quality=85),
        f"On {len(originals)} whole photographs: "
        + ", ".join(f"{label} {np.mean(values):.1f} dB" for label, values in db.items()),
        f"Bits a pixel: {', '.join(f'{k} {np.mean(v):.2f}' for k, v in bits.items())}. Codecs "
        "write files of at most LGQ's bits (or of the method alone). Hover for each picture.",
    )


def code_map(image: Shown, indices: Tokens, sites: Float[Array, "K D"]) -> go.Figure:
    """Show an image beside its tokens, each in the color of its code: like colors, like codes."""
    tokens = np.asarray(indices)
    fig, (left, right) = panels(cols=2, titles=("image", "code of each token"), height=480)
    left.picture(data_uri(as_pixels(np.asarray(image)[None])[0]))
    uri = data_uri(code_colors(sites)[tokens])
    right.picture(uri, values=tokens, said="code %{customdata[0]}")
    return titled(
        fig,
        f"{len(np.unique(tokens))} distinct codes in the {tokens.size} tokens of this image",
        "A color is the place of a code in the codebook (its first three principal components, by "
        "rank): flat regions repeat a code, edges change it.",
    )


def code_colors(sites: Float[Array, "K D"]) -> UInt8[np.ndarray, "K 3"]:
    """Give each code a color: the ranks of its first three principal components."""
    e = np.asarray(sites, dtype=np.float64)
    e = e - e.mean(0)
    _, _, axes = np.linalg.svd(e, full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    places = np.zeros((len(e), 3))
    places[:, : min(3, len(axes))] = e @ axes[:3].T
    ranks = places.argsort(0).argsort(0) / max(len(e) - 1, 1)
    return np.round(40 + 200 * ranks).astype("uint8")


def codes_side_by_side(
    original: Shown, decoded: Mapping[str, Shown], codes: Mapping[str, tuple[Tokens, np.ndarray]]
) -> go.Figure:
    """Show one image through every method, with the map of its codes below.

    `codes`: by label, indices and sites. ValueError unless every method has images and codes.
    """
    if set(decoded) != set(codes):
        raise ValueError(f"images of {sorted(decoded)}, codes of {sorted(codes)}: give both.")
    pictures = as_pixels(np.stack([np.asarray(x) for x in (original, *decoded.values())]))
    maps = [np.full_like(pictures[0], 128)]
    for indices, sites in codes.values():
        factor = len(pictures[0]) // len(indices)
        maps.append(code_colors(sites)[indices].repeat(factor, 0).repeat(factor, 1))
    counts = [f"{label} {len(np.unique(tokens))}" for label, (tokens, _) in codes.items()]
    return titled(
        picture_grid({"image": pictures, "codes": maps}, columns=["original", *decoded]),
        f"Distinct codes in this image's tokens: {', '.join(counts)}",
        "Below each reconstruction, its codes: like colors are neighbors in that method's own "
        "codebook, so compare patterns, not colors, between methods.",
    )


def usage_histogram(counts: Int[Array, " K"], *, method: str = "") -> go.Figure:
    """Draw how often each code is used, most used first, and the histogram of these counts."""
    n = np.sort(np.asarray(counts, dtype=np.int64))[::-1]
    total, active = int(n.sum()), int((n > 0).sum())
    share = n[n > 0] / max(total, 1)
    perplexity = float(np.exp(-(share * np.log(share)).sum())) if active else 0.0
    fig, (ranks, uses) = panels(cols=2, titles=("Uses by rank", "Codes by their uses"), height=400)
    color = color_of(method)
    ranks.legend().line(np.arange(1, active + 1), n[:active], name_of(method) or "codes", color)
    ranks.line([1, len(n)], [total / len(n)] * 2, "even use", dash="dash")
    heights, edges = np.histogram(n, bins=min(40, max(int(n[0]), 1)))
    uses.bars((edges[:-1] + edges[1:]) / 2, heights, color=color, width=np.diff(edges))
    ranks.axes("rank of the code", "tokens", log="xy")
    uses.axes("tokens on a code", "codes")
    return titled(
        fig,
        f"{active} of {len(n)} codes used by {total} tokens; perplexity {perplexity:.0f}, "
        f"{100 * perplexity / len(n):.0f} % of K",
        "The lower and the flatter the curve, the more even the use; a bar at 0 on the right is "
        "dead codes.",
    )


def metric_table(numbers: Mapping[str, object]) -> pandas.DataFrame:
    """Lay out the numbers that an evaluation has as a table: value, and which way is better."""
    rows = {}
    for key, metric in METRICS.items():
        if numbers.get(key) is not None:
            error = numbers.get(f"{key}_se")
            value = metric.text(numbers[key]) + (f" ± {metric.text(error)}" if error else "")
            better = {1: "higher", -1: "lower", 0: ""}[metric.better]
            rows[metric.title] = {"value": value, "better": better}
    if numbers.get("extractor") is not None:
        rows["features of KID and Fréchet distance"] = {"value": numbers["extractor"], "better": ""}
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["value", "better"])
