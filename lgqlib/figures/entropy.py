"""How sure each assignment is, over images, tokens and training; how even the use of codes is.

Runs are keyed by method, `lgq`, or with something behind it, `lgq seed 1`.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8

from lgqlib.figures.pictures import colored, enlarge, picture_grid
from lgqlib.figures.style import (
    BLUE,
    COLORS,
    GREEN,
    ORANGE,
    RED,
    Panel,
    color_of,
    name_of,
    panels,
    titled,
)
from lgqlib.measure.geometry import lorenz, occupancy
from lgqlib.measure.temperature import FreeEnergyCurve

Patches = Sequence[Sequence[UInt8[np.ndarray, "P P 3"]]]

HEAT = "Cividis"
"""Colors of an entropy map: dark is sure."""
MANY = 10
"""Tokens a code from which on counting them no longer bounds what is measured."""
PATCH = 44
"""Side of a patch of an image in pixels."""


def entropy_picture(entropy: Float[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "H W 3"]:
    """Color the entropies of an image's tokens, on a scale of their own, as large as the image."""
    return enlarge(colored(entropy, scale=HEAT, high=max(float(entropy.max()), 1e-3)), side)


def entropy_maps(
    images: Sequence[UInt8[np.ndarray, "S S 3"]],
    maps: Mapping[str, Sequence[Float[np.ndarray, "h w"]]],
) -> go.Figure:
    """Draw images and below each its entropy maps; `maps`: one an image, by the temperature."""
    rows, hover = {"image": images}, [[]]
    for label, of_images in maps.items():
        rows[label] = [entropy_picture(e, len(images[0])) for e in of_images]
        hover.append(
            [f"{label}: mean {e.mean():.3g}, at most {e.max():.3g} nats" for e in of_images]
        )
    means = [f"{np.mean(of_images):.3g} nats at {label}" for label, of_images in maps.items()]
    return titled(
        picture_grid(rows, hover=hover, tile=150),
        f"Mean entropy of a token: {'; '.join(means)}",
        "Each map has its own scale, dark is surest; hover it for its numbers. Look for edges and "
        "texture that stay bright as the temperature falls: there the codebook has no clear "
        "answer.",
    )


def decile_examples(
    patches: Patches, bounds: Sequence[tuple[float, float]], *, places: Sequence[Sequence[str]]
) -> go.Figure:
    """Draw patches from each decile of assignment entropy, the surest on top.

    `bounds`: the least and the largest entropy of each, in nats; `places`: where each patch is
    from.
    """
    ranges = [
        f"{_nats(low)} to {_nats(high)}" if high >= 1e-4 else "below 10⁻⁴" for low, high in bounds
    ]
    rows = {
        f"{i}: {span}": row for i, (span, row) in enumerate(zip(ranges, patches, strict=True), 1)
    }
    return titled(
        picture_grid(rows, hover=places, tile=PATCH, axis="decile: its entropy, nats"),
        f"The surest tenth of the tokens is below {_nats(bounds[0][1])} nats, the least sure above "
        f"{_nats(bounds[-1][0])}",
        "Top: patches that one code answers for. Bottom: patches between codes. Look for what they "
        "have in common: flat against textured, common against rare. Hover a patch for its place.",
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
    patches: Patches,
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
        picture_grid(rows, hover=places, tile=PATCH, axis="code: mean entropy, nats"),
        f"The least sure codes: {codes[0]} has {_nats(means[0])} nats a token",
        "Real patches assigned to each, its least sure token first. Patches of a row that do not "
        "agree are of a code that answers for what no other does. Hover a patch for its place.",
    )


def uncertain_codes(
    indices: Int[np.ndarray, " N"], entropy: Float[np.ndarray, " N"], num_codes: int
) -> go.Figure:
    """Draw the mean entropy of each code's tokens against how many it has."""
    used, mean = least_sure_codes(indices, entropy, num_codes)
    uses = np.bincount(indices, minlength=num_codes)[used]
    fig, (panel,) = panels(height=400)
    panel.dots(
        *(uses, mean.astype("float32"), "codes", BLUE),
        size=5,
        opacity=0.6,
        customdata=used.astype("int32"),
        hovertemplate="code %{customdata}: %{x} tokens, %{y:.3f} nats<extra></extra>",
    )
    panel.rule(y=float(entropy.mean()), dash="dash")
    panel.axes(
        "tokens of the code", "mean entropy of its tokens, nats", log="x", y_rangemode="tozero"
    )
    # Ranks, for the relation need not be a line.
    ranks = [np.argsort(np.argsort(v, kind="stable")) for v in (uses, mean)]
    relation = np.corrcoef(*ranks)[0, 1] if len(used) > 2 else float("nan")
    return titled(
        fig,
        f"Least sure are codes {', '.join(map(str, used[:5]))}; rank correlation of doubt and use "
        f"{relation:+.2f} over {len(used)} used codes",
        "Dashed: mean over tokens. Doubt that grows with use is crowding: many tokens share few "
        "codes that lie close together.",
    )


def information(
    curves: Mapping[str, FreeEnergyCurve], taus: Mapping[str, float], scales: Mapping[str, float]
) -> go.Figure:
    """Draw entropy of usage, mean token entropy and their difference over temperature.

    `taus`: each run's own temperature; `scales`: its unit, tau_c. A dashed line is log2 of the
    number of tokens, where that bounds what is measured.
    """
    fig, (panel,) = panels(height=440)
    parts = []
    for key, curve in curves.items():
        x, name, color = curve.taus / scales[key], name_of(key), color_of(key)
        used, doubt, known = (
            values / np.log(2)
            for values in (curve.usage_entropy, curve.entropy, curve.mutual_information)
        )
        panel.line(x, used, f"{name}: H(u), of usage", color)
        panel.line(x, doubt, f"{name}: E H(p), of a token", color, dash="dot")
        panel.line(x, known, f"{name}: I, what a code tells", color, dash="dash")
        panel.rule(x=taus[key] / scales[key], color=color, dash="solid")
        own = int(np.abs(np.log(curve.taus / taus[key])).argmin())
        parts.append(f"{name} {known[own]:.2f} of {used[own]:.2f} bits")
    sizes = {key: (curve.num_tokens, curve.num_codes) for key, curve in curves.items()}
    mark_caps(panel, sizes.values())
    panel.axes("τ / τ<sub>c</sub>", "bits a token", log="x", y_rangemode="tozero")
    return titled(
        fig,
        "At its own temperature (thin line) a code tells about its token: " + "; ".join(parts),
        "H(u) is what evenness of use allows; E H(p) is lost to doubt; the difference is mutual "
        f"information. Hot, doubt eats everything. {_counted_over(sizes)}",
    )


def entropy_history(
    histories: Mapping[str, Sequence],
    *,
    num_codes: Mapping[str, int],
    missing: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw both entropies and their difference over the steps of training.

    `missing`: why a run's history is empty; it is said instead.
    """
    absent = [f"{name_of(k)} cannot be shown: {why}" for k, why in (missing or {}).items() if why]
    titles = ("Entropies of the probe", "Temperature of the step")
    fig, (bits, temperature) = panels(cols=2, titles=titles, height=400)
    sizes, parts = {}, []
    for key, moments in histories.items():
        if not len(moments):
            continue
        steps, name, color = [m.step + 1 for m in moments], name_of(key), color_of(key)
        marked = {"color": color, "mode": "lines+markers"}
        used, doubt, known = (
            np.array([getattr(m, part) for m in moments]) / np.log(2)
            for part in ("usage", "token", "information")
        )
        bits.line(steps, used, f"{name}: H(u)", **marked)
        bits.line(steps, doubt, f"{name}: E H(p)", dash="dot", **marked)
        bits.line(steps, known, f"{name}: I", dash="dash", **marked)
        bits.rule(y=np.log2(num_codes[key]), color=color)
        temperature.line(steps, [m.tau for m in moments], **marked)
        sizes[key] = (moments[-1].num_tokens, num_codes[key])
        parts.append(f"{name} from {known[0]:.2f} to {known[-1]:.2f} bits")
    mark_caps(bits, sizes.values())
    bits.axes("training step + 1", "bits a token", log="x", y_rangemode="tozero")
    temperature.axes("training step + 1", "τ, units of the energy", log="xy")
    return titled(
        fig,
        "Mutual information of token and code: " + "; ".join(parts + absent),
        "Thin dotted line: log2 K. As τ falls doubt goes, and what a code tells comes to equal the "
        f"entropy of its use. {_counted_over(sizes)}",
    )


def spread(
    populations: Mapping[str, Float[np.ndarray, "T n"]],
    taus: Mapping[str, Float[np.ndarray, " T"]],
    starts: Mapping[str, int],
    histories: Mapping[str, Sequence],
    *,
    missing: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw how a token's entropy is distributed: at the run's temperature, over all, over training.

    `populations`: entropies of tokens at each of `taus`, which are in units of tau_c; `starts`: the
    run's own place among them; `missing`: why a run has no history.
    """
    absent = [f"{name_of(k)}: {why}." for k, why in (missing or {}).items() if why]
    titles = ("At the run's temperature", "Over temperature", "Over training")
    fig, (share, heat, training) = panels(
        cols=3, titles=titles, height=420, horizontal_spacing=0.08
    )
    share.legend(y=0.05)
    parts = []
    for key, entropies in populations.items():
        name, color, own = name_of(key), color_of(key), np.sort(entropies[starts[key]])
        percent = 100 * np.arange(1, len(own) + 1) / len(own)
        share.line(own, percent, f"{name}, {len(own)} tokens", color)
        _median(heat, taus[key], *np.quantile(entropies, [0.1, 0.5, 0.9], axis=1), color)
        if len(moments := histories.get(key, ())):
            deciles = np.array([m.deciles for m in moments]).T
            _median(training, [m.step + 1 for m in moments], *deciles[[0, 4, 8]], color)
        parts.append(f"{name} {100 * (own < 0.1).mean():.0f} %")
    share.axes(
        *("entropy of a token, nats", "tokens below it, %"), x_rangemode="tozero", y_range=[0, 102]
    )
    heat.axes("τ / τ<sub>c</sub>", "nats", log="x", y_rangemode="tozero")
    training.axes("training step + 1", "nats", log="x", y_rangemode="tozero")
    return titled(
        fig,
        f"Tokens that are sure (below 0.1 nats) at the run's temperature: {'; '.join(parts)}",
        "Line: the median token; shaded: from the surest tenth to the least sure. Where that is "
        "wide, some tokens have decided and others have not."
        + (f" Not over training: {' '.join(absent)}" if absent else ""),
    )


def evenness(counts: Mapping[str, Int[np.ndarray, " K"]]) -> go.Figure:
    """Draw the Lorenz curve of code use, and uses by rank."""
    fig, (curve, ranks) = panels(cols=2, titles=("Lorenz curve", "Uses by rank"), height=420)
    curve.legend(x=0.01)
    ranks.legend()
    parts = []
    for key, n in counts.items():
        name, color, about = name_of(key), color_of(key), occupancy(n)
        codes, mass = lorenz(n)
        keep = np.unique(np.linspace(0, len(codes) - 1, 400).astype(int))
        label = f"{name}, Gini {about.gini:.2f}"
        curve.line(100 * codes[keep], 100 * mass[keep], label, color)
        share = np.sort(n[n > 0])[::-1] / n.sum()
        keep = np.unique(np.geomspace(1, len(share), 300).astype(int)) - 1
        ranks.line(keep + 1, share[keep], f"{name}, {about.active} active", color)
        parts.append(f"{name} {about.gini:.2f}")
    curve.line([0, 100], [0, 100], "even use", dash="dash")
    curve.axes("codes, rarest first, %", "tokens that they have, %")
    ranks.axes("rank of the code", "share of the tokens", log="xy")
    return titled(
        fig,
        f"Gini coefficient of code use: {'; '.join(parts)} (0 is even, 1 is one code for all)",
        "A flat start of the Lorenz curve is dead codes. Even use is not the optimum: on a "
        "Gaussian, codes far from the mean answer for more space and are used less.",
    )


def term_effects(effects: Sequence, *, tau_label: str) -> go.Figure:
    """Draw what one small step down each term does to both entropies."""
    fig, (panel,) = panels(height=400)
    arrow = {"symbol": ["circle", "arrow"], "size": [1, 14], "angleref": "previous"}
    for effect, color in zip(effects, (RED, BLUE, GREEN, ORANGE, *COLORS), strict=False):
        ends, shown = ([0, effect.token], [0, effect.usage]), {"mode": "lines+markers"}
        panel.line(*ends, effect.term, color, width=3, marker=arrow, **shown)
    panel.axes("change of E H(p), doubt of a token, nats", "change of H(u), evenness of use, nats")
    return titled(
        fig,
        "; ".join(f"{e.term}: doubt {e.token:+.3f}, evenness {e.usage:+.3f}" for e in effects),
        f"One step of tokens and codes by 2 % of their spread down each term's gradient, at "
        f"{tau_label}. Left is surer, up is more even: a term that trades one for the other leans.",
    )


def is_capped(num_tokens: int, num_codes: int) -> bool:
    """Say whether the tokens are so few that log2 of their number bounds the bits measured."""
    return num_tokens < MANY * num_codes


def counted(num_tokens: int, num_codes: int) -> str:
    """Say how many tokens use is counted over, and the bits that this caps."""
    if not is_capped(num_tokens, num_codes):
        return f"{num_tokens} tokens"
    return (
        f"{num_tokens} tokens for {num_codes} codes, so at most "
        f"log<sub>2</sub> N = {np.log2(num_tokens):.1f} bits"
    )


def mark_caps(panel: Panel, sizes: Iterable[tuple[int, int]], *, axis: str = "y") -> None:
    """Draw a dashed line at log2 N for each number N of tokens that bounds the bits measured."""
    for num_tokens in sorted({n for n, k in sizes if is_capped(n, k)}):
        panel.rule(**{axis: np.log2(num_tokens)}, dash="dash", name="log2 N")


def _counted_over(sizes: Mapping[str, tuple[int, int]]) -> str:
    if not sizes:
        return ""
    counts = "; ".join(f"{name_of(key)} {counted(*size)}" for key, size in sizes.items())
    line = " (dashed line)" if any(is_capped(*size) for size in sizes.values()) else ""
    return f"Counted over: {counts}{line}."


def _median(panel: Panel, x, low, middle, high, color: str) -> None:
    panel.band(x, low, high, color)
    panel.line(x, middle, "", color)


def _nats(value: float) -> str:
    return "10⁻⁴" if value < 1e-4 else f"{value:.2g}"
