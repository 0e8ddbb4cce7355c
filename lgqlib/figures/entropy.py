"""How sure each assignment is, over images, tokens and training; how even the use of codes is."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int, UInt8

from lgqlib.figures.pictures import picture_grid
from lgqlib.figures.style import BLUE, RED, Panel, RunStyle, each, panels, runs_of, titled
from lgqlib.measure.temperature import FreeEnergyCurve, Moment
from lgqlib.measure.usage import code_usage

MANY = 10  # tokens a code from which on counting them no longer bounds what is measured
BINS = 48
UNIT = "τ, in units of 2 D / C"


def histogram(bits: Float[np.ndarray, " N"], num_codes: int) -> go.Figure:
    """Draw how many tokens have which entropy at a temperature; `bars` gives changes of it."""
    fig, (panel,) = panels(height=340)
    panel.legend()
    top = float(np.log2(num_codes))
    for (name, change), color in zip(bars(bits, bits < 0, top).items(), (BLUE, RED), strict=True):
        panel.bars(name=name, color=color, **change)
    fig.update_layout(barmode="overlay", bargap=0)
    panel.axes("entropy of a token's assignment, bits", "tokens, %", x_range=[0, top])
    sure = f"{100 * (bits < 0.1).mean():.0f} % of the tokens are sure (below 0.1 bits)"
    doubt = f"{100 * (bits > 1).mean():.0f} % hesitate between two codes or more (above 1 bit)"
    return titled(
        fig,
        f"At τ = 2 D / C {sure}, {doubt}",
        f"Of {len(bits)} tokens, evenly over the photographs. It follows the temperature and the "
        "selected codes of the explorer above.",
    )


def bars(
    bits: Float[np.ndarray, " N"], chosen: Bool[np.ndarray, " N"], top: float
) -> dict[str, dict]:
    """Give the changes of a histogram for other entropies, or another choice among the tokens."""
    edges = np.linspace(0, top, BINS + 1)
    middles, whole = (edges[:-1] + edges[1:]) / 2, max(len(bits), 1)
    parts = {"all tokens": bits, "tokens of the selected codes": bits[chosen]}
    percent = {name: 100 * np.histogram(part, edges)[0] / whole for name, part in parts.items()}
    return {name: {"x": middles, "y": y, "width": top / BINS} for name, y in percent.items()}


def decile_examples(
    patches: Sequence[Sequence[UInt8[np.ndarray, "P P 3"]]], bounds: Sequence[Sequence]
) -> go.Figure:
    """Draw places from each decile of entropy, the surest on top; `bounds` of each are in bits."""
    rows = {f"{i + 1}: {a:.2f} to {b:.2f}": patches[i] for i, (a, b) in enumerate(bounds)}
    return titled(
        picture_grid(rows, tile=52, axis="decile: its entropy, bits"),
        f"The surest tenth of the tokens is below {bounds[0][1]:.2g} bits, the least sure above "
        f"{bounds[-1][0]:.2g}",
        "Each token in the middle of its surroundings. Top: one code answers; bottom: several "
        "could. Look for what they have in common: flat against textured, common against rare.",
    )


def information(curves: Mapping[str, FreeEnergyCurve], units: Mapping[str, float]) -> go.Figure:
    """Draw H(u), E H(p) and their difference over tau in `units`, the 2 D / C of each run."""
    fig, (panel,) = panels(height=440)
    found, sizes = {}, {}
    for run, curve in runs_of(curves):
        x = curve.taus / units[run.key]
        used, known = _entropies(panel, run, x, curve.usage_entropy, curve.entropy)
        at = int(np.abs(np.log(x)).argmin())
        found[run.key] = f"{known[at]:.2f} of {used[at]:.2f} bits"
        sizes[run.key] = (curve.num_tokens, curve.num_codes)
    panel.rule(x=1, dash="solid")
    panel.axes(UNIT, "bits a token", log="x", y_rangemode="tozero")
    return titled(
        fig,
        f"At τ = 2 D / C (thin line) a code tells about its token: {each(found, str)}",
        "H(u) is what evenness of use allows, E H(p) is lost to doubt, their difference is mutual "
        f"information. {counted_over(panel, sizes)}",
    )


def entropy_history(
    histories: Mapping[str, Sequence[Moment]], *, num_codes: Mapping[str, int]
) -> go.Figure:
    """Draw both entropies and their difference over the steps of training."""
    fig, (panel,) = panels(height=400)
    sizes, found = {}, {}
    for run, moments in runs_of(histories):
        found[run.key] = "has no snapshots of its training"
        if not moments:
            continue
        steps = [m.step + 1 for m in moments]
        usage, token = np.array([(m.usage, m.token) for m in moments]).T
        _, known = _entropies(panel, run, steps, usage, token, mode="lines+markers")
        panel.rule(y=np.log2(num_codes[run.key]), color=run.color)
        sizes[run.key] = (moments[-1].num_tokens, num_codes[run.key])
        found[run.key] = f"from {known[0]:.2f} to {known[-1]:.2f} bits"
    panel.axes("training step + 1", "bits a token", log="x", y_rangemode="tozero")
    return titled(
        fig,
        f"What a code tells about its token, over training: {each(found, str)}",
        "Each step at its own 2 D / C. Thin dotted line: log2 K, all codes used alike. "
        f"{counted_over(panel, sizes)}",
    )


def _entropies(panel: Panel, run: RunStyle, x, usage, token, **line) -> tuple:
    used, doubt = usage / np.log(2), token / np.log(2)
    panel.line(x, used, f"{run.label}: H(u), of usage", run.color, **line)
    panel.line(x, doubt, f"{run.label}: E H(p), of a token", run.color, dash="dot", **line)
    name = f"{run.label}: I, what a code tells"
    panel.line(x, used - doubt, name, run.color, dash="dash", **line)
    return used, used - doubt


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
