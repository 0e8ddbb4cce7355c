"""How sure each assignment is, over images, tokens and training; how even the use of codes is."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int, UInt8

from lgqlib.figures.pictures import colored, enlarge, picture_grid
from lgqlib.figures.style import BLUE, COLORS, Panel, RunStyle, each, panels, runs_of, titled
from lgqlib.measure.temperature import FreeEnergyCurve
from lgqlib.measure.usage import code_usage

Patches = Sequence[Sequence[UInt8[np.ndarray, "P P 3"]]]
Texts = Sequence[Sequence[str]]

HEAT = "Cividis"  # an entropy map's colors: dark is sure
MANY = 10  # tokens a code from which on counting them no longer bounds what is measured


def entropy_picture(entropy: Float[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "H W 3"]:
    """Color the entropies of an image's tokens, on a scale of their own, as large as the image."""
    return enlarge(colored(entropy, scale=HEAT, high=max(float(entropy.max()), 1e-3)), side)


def entropy_maps(
    images: Sequence[UInt8[np.ndarray, "S S 3"]],
    maps: Mapping[str, Sequence[Float[np.ndarray, "h w"]]],
) -> go.Figure:
    """Draw images and below each its entropy maps; `maps`: one an image, by the temperature."""
    rows, hover, means = {"image": images}, [[]], []
    for label, of_images in maps.items():
        rows[label] = [entropy_picture(e, len(images[0])) for e in of_images]
        said = "{}: mean {:.3g}, at most {:.3g} nats"
        hover.append([said.format(label, e.mean(), e.max()) for e in of_images])
        means.append(f"{np.mean(of_images):.3g} nats at {label}")
    return titled(
        picture_grid(rows, hover=hover, tile=150),
        f"Mean entropy of a token: {'; '.join(means)}",
        "Each map has its own scale, dark is surest; hover it for its numbers. Edges and texture "
        "that stay bright as the temperature falls are where the codebook has no clear answer.",
    )


def decile_examples(
    patches: Patches, bounds: Sequence[tuple[float, float]], *, places: Texts
) -> go.Figure:
    """Draw patches from each decile of assignment entropy, the surest on top.

    `bounds`: the least and the largest entropy of each, in nats; `places`: where each is from.
    """
    ranges = [
        f"{_nats(low)} to {_nats(high)}" if high >= 1e-4 else "below 10⁻⁴" for low, high in bounds
    ]
    rows = {f"{i + 1}: {ranges[i]}": row for i, row in enumerate(patches)}
    return titled(
        picture_grid(rows, hover=places, tile=44, axis="decile: its entropy, nats"),
        f"The surest tenth of the tokens is below {_nats(bounds[0][1])} nats, the least sure above "
        f"{_nats(bounds[-1][0])}",
        "Top: patches that one code answers for. Bottom: patches between codes. Look for what they "
        "have in common: flat against textured, common against rare.",
    )


def uncertain_examples(
    patches: Patches, codes: Sequence[int], means: Sequence[float], *, places: Texts
) -> go.Figure:
    """Draw real patches of some codes, the least sure code on top.

    `means`: mean entropy of each code's tokens, in nats; `places`: where each patch is from.
    """
    rows = {f"code {codes[i]}: {_nats(means[i])}": row for i, row in enumerate(patches)}
    return titled(
        picture_grid(rows, hover=places, tile=44, axis="code: mean entropy, nats"),
        f"The least sure codes: {codes[0]} has {_nats(means[0])} nats a token",
        "Real patches assigned to each, its least sure token first. Patches of a row that do not "
        "agree are of a code that answers for what no other does.",
    )


def uncertain_codes(
    codes: Int[np.ndarray, " n"], means: Float[np.ndarray, " n"], uses: Int[np.ndarray, " n"]
) -> go.Figure:
    """Draw the mean entropy of codes' tokens against how many they have, the least sure first."""
    fig, (panel,) = panels(height=400)
    hover = "code %{customdata}: %{x} tokens, %{y:.3f} nats<extra></extra>"
    look = {"size": 5, "opacity": 0.6, "customdata": codes.astype("int32"), "hovertemplate": hover}
    panel.dots(uses, means.astype("float32"), "codes", BLUE, **look)
    panel.rule(y=float(np.average(means, weights=uses)), dash="dash")
    names = ("tokens of the code", "mean entropy of its tokens, nats")
    panel.axes(*names, log="x", y_rangemode="tozero")
    # Ranks, for the relation need not be a line.
    ranks = [np.argsort(np.argsort(v, kind="stable")) for v in (uses, means)]
    relation = np.corrcoef(*ranks)[0, 1] if len(codes) > 2 else float("nan")
    return titled(
        fig,
        f"Least sure are codes {', '.join(map(str, codes[:5]))}; rank correlation of doubt and use "
        f"{relation:+.2f} over {len(codes)} used codes",
        "Dashed: mean over tokens. Doubt that grows with use is crowding: many tokens share few "
        "codes that lie close together.",
    )


def information(
    curves: Mapping[str, FreeEnergyCurve], taus: Mapping[str, float], scales: Mapping[str, float]
) -> go.Figure:
    """Draw entropy of usage, mean token entropy and their difference over temperature.

    `taus`: each run's own temperature; `scales`: its unit, tau_c.
    """
    fig, (panel,) = panels(height=440)
    found, sizes = {}, {}
    for run, curve in runs_of(curves):
        own, scale = taus[run.key], scales[run.key]
        used, known = _entropies(panel, run, curve.taus / scale, curve.usage_entropy, curve.entropy)
        panel.rule(x=own / scale, color=run.color, dash="solid")
        at = int(np.abs(np.log(curve.taus / own)).argmin())
        found[run.key] = f"{known[at]:.2f} of {used[at]:.2f} bits"
        sizes[run.key] = (curve.num_tokens, curve.num_codes)
    panel.axes("τ / τ<sub>c</sub>", "bits a token", log="x", y_rangemode="tozero")
    return titled(
        fig,
        f"At its own temperature (thin line) a code tells about its token: {each(found, str)}",
        "H(u) is what evenness of use allows, E H(p) is lost to doubt, their difference is mutual "
        f"information. {counted_over(panel, sizes)}",
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
    titles = ("Entropies of the probe", "Temperature of the step")
    fig, (bits, temperature) = panels(cols=2, titles=titles, height=400)
    sizes, found = {}, {k: f"cannot be shown: {why}" for k, why in (missing or {}).items() if why}
    for run, moments in runs_of(histories):
        if not moments:
            continue
        steps, line = [m.step + 1 for m in moments], {"mode": "lines+markers"}
        usage, token, taus = np.array([(m.usage, m.token, m.tau) for m in moments]).T
        _, known = _entropies(bits, run, steps, usage, token, **line)
        bits.rule(y=np.log2(num_codes[run.key]), color=run.color)
        temperature.line(steps, taus, color=run.color, **line)
        sizes[run.key] = (moments[-1].num_tokens, num_codes[run.key])
        found[run.key] = f"from {known[0]:.2f} to {known[-1]:.2f} bits"
    bits.axes("training step + 1", "bits a token", log="x", y_rangemode="tozero")
    temperature.axes("training step + 1", "τ, units of the energy", log="xy")
    return titled(
        fig,
        f"Mutual information of token and code: {each(found, str)}",
        "Thin dotted line: log2 K. As τ falls doubt goes, and what a code tells comes to equal the "
        f"entropy of its use. {counted_over(bits, sizes)}",
    )


def _entropies(panel: Panel, run: RunStyle, x, usage, token, **line) -> tuple:
    used, doubt = usage / np.log(2), token / np.log(2)
    panel.line(x, used, f"{run.label}: H(u), of usage", run.color, **line)
    panel.line(x, doubt, f"{run.label}: E H(p), of a token", run.color, dash="dot", **line)
    name = f"{run.label}: I, what a code tells"
    panel.line(x, used - doubt, name, run.color, dash="dash", **line)
    return used, used - doubt


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
    titles = ("At the run's temperature", "Over temperature", "Over training")
    fig, (share, heat, training) = panels(
        cols=3, titles=titles, height=420, horizontal_spacing=0.08
    )
    share.legend(y=0.05)
    sure = {}
    for run, entropies in runs_of(populations):
        own = np.sort(entropies[starts[run.key]])
        percent = 100 * np.arange(1, len(own) + 1) / len(own)
        share.line(own, percent, f"{run.label}, {len(own)} tokens", run.color)
        _median(heat, taus[run.key], *np.quantile(entropies, [0.1, 0.5, 0.9], axis=1), run.color)
        if moments := histories.get(run.key):
            deciles = np.array([m.deciles for m in moments]).T
            _median(training, [m.step + 1 for m in moments], *deciles[[0, 4, 8]], run.color)
        sure[run.key] = f"{100 * (own < 0.1).mean():.0f} %"
    names = ("entropy of a token, nats", "tokens below it, %")
    share.axes(*names, x_rangemode="tozero", y_range=[0, 102])
    heat.axes("τ / τ<sub>c</sub>", "nats", log="x", y_rangemode="tozero")
    training.axes("training step + 1", "nats", log="x", y_rangemode="tozero")
    absent = each({k: f"has no history: {why}" for k, why in (missing or {}).items() if why}, str)
    return titled(
        fig,
        f"Tokens that are sure (below 0.1 nats) at the run's temperature: {each(sure, str)}",
        "Line: the median token; shaded: from the surest tenth to the least sure. Where that is "
        f"wide, some tokens have decided and others have not. {absent}",
    )


def _median(panel: Panel, x, low, middle, high, color: str) -> None:
    panel.band(x, low, high, color)
    panel.line(x, middle, "", color)


def evenness(counts: Mapping[str, Int[np.ndarray, " K"]]) -> go.Figure:
    """Draw the Lorenz curve of code use, and uses by rank."""
    fig, (curve, ranks) = panels(cols=2, titles=("Lorenz curve", "Uses by rank"), height=420)
    curve.legend(x=0.01)
    ranks.legend()
    usage = {key: code_usage(torch.tensor(n)) for key, n in counts.items()}
    for run, n in runs_of(counts):
        share = np.sort(n) / n.sum()
        codes, mass = np.linspace(0, 100, len(n) + 1), 100 * np.append(0, np.cumsum(share))
        keep = np.unique(np.linspace(0, len(n), 400).astype(int))
        gini, active = usage[run.key]["gini"], usage[run.key]["active"]
        curve.line(codes[keep], mass[keep], f"{run.label}, Gini {gini:.2f}", run.color)
        keep = np.unique(np.geomspace(1, active, 300).astype(int))
        ranks.line(keep, share[-keep], f"{run.label}, {active} active", run.color)
    curve.line([0, 100], [0, 100], "even use", dash="dash")
    curve.axes("codes, rarest first, %", "tokens that they have, %")
    ranks.axes("rank of the code", "share of the tokens", log="xy")
    gini = each(usage, lambda of: f"{of['gini']:.2f}")
    return titled(
        fig,
        f"Gini coefficient of code use: {gini} (0 is even, 1 is one code for all)",
        "A flat start of the Lorenz curve is dead codes. Even use is not the optimum: on a "
        "Gaussian, codes far from the mean answer for more space and are used less.",
    )


def term_effects(effects: Sequence, *, tau_label: str) -> go.Figure:
    """Draw what one small step down each term does to both entropies."""
    fig, (panel,) = panels(height=400)
    arrow = {"symbol": ["circle", "arrow"], "size": [1, 14], "angleref": "previous"}
    for effect, color in zip(effects, COLORS, strict=False):
        ends, line = ([0, effect.token], [0, effect.usage]), {"mode": "lines+markers", "width": 3}
        panel.line(*ends, effect.term, color, marker=arrow, **line)
    panel.axes("change of E H(p), doubt of a token, nats", "change of H(u), evenness of use, nats")
    return titled(
        fig,
        "; ".join(f"{e.term}: doubt {e.token:+.3f}, evenness {e.usage:+.3f}" for e in effects),
        f"One step of tokens and codes by 2 % of their spread down each term's gradient, at "
        f"{tau_label}. Left is surer, up is more even: a term that trades one for the other leans.",
    )


def counted(num_tokens: int, num_codes: int) -> str:
    """Say how many tokens use is counted over, and the bits that so few of them cap."""
    if num_tokens >= MANY * num_codes:
        return f"{num_tokens} tokens"
    most = f"at most log<sub>2</sub> N = {np.log2(num_tokens):.1f} bits"
    return f"{num_tokens} tokens for {num_codes} codes, so {most}"


def counted_over(panel: Panel, sizes: Mapping[str, tuple[int, int]], *, axis: str = "y") -> str:
    """Say how many tokens use is counted over; draw a dashed line at log2 N where that is a cap."""
    for num_tokens in sorted({n for n, k in sizes.values() if n < MANY * k}):
        panel.rule(**{axis: np.log2(num_tokens)}, dash="dash", name="log2 N")
    counts = each(sizes, lambda size: counted(*size))
    return f"Counted over {counts}{' (dashed line)' * ('at most' in counts)}." if sizes else ""


def _nats(value: float) -> str:
    return "10⁻⁴" if value < 1e-4 else f"{value:.2g}"
