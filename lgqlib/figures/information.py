"""How even the use of codes is, what a code tells about its token, and what moves both."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from lgqlib.figures.style import (
    BLUE,
    COLORS,
    GREEN,
    INK,
    ORANGE,
    RED,
    Panel,
    color_of,
    figure,
    legend_in,
    name_of,
    titled,
)
from lgqlib.measure.geometry import lorenz, occupancy
from lgqlib.measure.temperature import FreeEnergyCurve

MANY = 10
"""Tokens a code from which on counting them no longer bounds what is measured."""


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


def information(
    curves: Mapping[str, FreeEnergyCurve],
    taus: Mapping[str, float],
    scales: Mapping[str, float],
    *,
    num_codes: Mapping[str, int],
) -> go.Figure:
    """Draw entropy of usage, mean token entropy and their difference over temperature.

    A dashed line is log2 of the number of tokens, where that bounds what is measured.
    """
    fig = figure(height=440)
    sizes = {key: (curve.num_tokens, num_codes[key]) for key, curve in curves.items()}
    for key, curve in curves.items():
        x, color = curve.taus / scales[key], color_of(key)
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
                name=f"{name_of(key)}: {name}",
            )
        fig.add_vline(taus[key] / scales[key], line={"color": color, "width": 1})
    _mark_caps(fig, sizes.values())
    fig.update_xaxes(title_text="τ / τ<sub>c</sub>", type="log")
    fig.update_yaxes(title_text="bits a token", rangemode="tozero")
    parts = []
    for key, curve in curves.items():
        i = int(np.abs(np.log(curve.taus / taus[key])).argmin())
        known, used = curve.mutual_information[i] / np.log(2), curve.usage_entropy[i] / np.log(2)
        parts.append(f"{name_of(key)} {known:.2f} of {used:.2f} bits")
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
    histories = {key: moments for key, moments in histories.items() if len(moments)}
    fig = figure(cols=2, titles=("Entropies of the probe", "Temperature of the step"), height=400)
    sizes = {key: (m[-1].num_tokens, num_codes[key]) for key, m in histories.items()}
    for key, moments in histories.items():
        steps, color = [m.step + 1 for m in moments], color_of(key)
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
                name=f"{name_of(key)}: {name}",
                row=1,
                col=1,
            )
        fig.add_scatter(
            x=steps,
            y=[m.tau for m in moments],
            mode="lines+markers",
            line={"color": color},
            name=name_of(key),
            showlegend=False,
            row=1,
            col=2,
        )
        top = np.log2(num_codes[key])
        fig.add_hline(top, line={"color": color, "dash": "dot", "width": 1}, row=1, col=1)
    _mark_caps(fig, sizes.values(), row=1, col=1)
    fig.update_xaxes(title_text="training step + 1", type="log")
    fig.update_yaxes(title_text="bits a token", rangemode="tozero", row=1, col=1)
    fig.update_yaxes(title_text="τ, units of the energy", type="log", row=1, col=2)
    parts = [
        f"{name_of(k)} from {m[0].information / np.log(2):.2f} to "
        f"{m[-1].information / np.log(2):.2f} bits"
        for k, m in histories.items()
    ]
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
    fig = figure(cols=3, titles=titles, height=420, horizontal_spacing=0.08)
    parts, legend = [], legend_in(fig, 1, 1, y=0.05)
    for key, entropies in populations.items():
        color, own = color_of(key), np.sort(entropies[starts[key]])
        fig.add_scatter(
            x=own,
            y=100 * np.arange(1, len(own) + 1) / len(own),
            mode="lines",
            line={"color": color},
            name=f"{name_of(key)}, {len(own)} tokens",
            legend=legend,
            row=1,
            col=1,
        )
        around = np.quantile(entropies, [0.1, 0.5, 0.9], axis=1)
        Panel(fig, 1, 2).band(taus[key], around[0], around[2], color)
        Panel(fig, 1, 2).line(taus[key], around[1], color=color)
        moments = histories.get(key, ())
        if len(moments):
            of_step = np.array([m.deciles for m in moments])[:, [0, 4, 8]].T
            steps = [m.step + 1 for m in moments]
            Panel(fig, 1, 3).band(steps, of_step[0], of_step[2], color)
            Panel(fig, 1, 3).line(steps, of_step[1], color=color)
        parts.append(f"{name_of(key)} {100 * (own < 0.1).mean():.0f} %")
    fig.update_xaxes(title_text="entropy of a token, nats", rangemode="tozero", row=1, col=1)
    fig.update_yaxes(title_text="tokens below it, %", range=[0, 102], row=1, col=1)
    fig.update_xaxes(title_text="τ / τ<sub>c</sub>", type="log", row=1, col=2)
    fig.update_xaxes(title_text="training step + 1", type="log", row=1, col=3)
    for col in (2, 3):
        fig.update_yaxes(title_text="nats", rangemode="tozero", row=1, col=col)
    return titled(
        fig,
        f"Tokens that are sure (below 0.1 nats) at the run's temperature: {'; '.join(parts)}",
        "Line: the median token; band: from the surest tenth to the least sure. A wide band is a "
        "temperature, or a step, at which some tokens have decided and others have not."
        + (f" Not over training: {' '.join(absent)}" if absent else ""),
    )


def evenness(counts: Mapping[str, Int[np.ndarray, " K"]]) -> go.Figure:
    """Draw the Lorenz curve of code use, and uses by rank."""
    fig = figure(cols=2, titles=("Lorenz curve", "Uses by rank"), height=420)
    parts = []
    for key, n in counts.items():
        color, about = color_of(key), occupancy(n)
        codes, mass = lorenz(n)
        keep = np.unique(np.linspace(0, len(codes) - 1, 400).astype(int))
        fig.add_scatter(
            x=100 * codes[keep],
            y=100 * mass[keep],
            mode="lines",
            line={"color": color},
            name=f"{name_of(key)}, Gini {about.gini:.2f}",
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
            name=f"{name_of(key)}, {about.active} active",
            legend=legend_in(fig, 1, 2),
            row=1,
            col=2,
        )
        parts.append(f"{name_of(key)} {about.gini:.2f}")
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


def _counted_over(sizes: Mapping[str, tuple[int, int]]) -> str:
    if not sizes:
        return ""
    told = "; ".join(f"{name_of(key)} {counted(*size)}" for key, size in sizes.items())
    line = " (dashed line)" if any(is_capped(*size) for size in sizes.values()) else ""
    return f"Counted over: {told}{line}."


def _mark_caps(fig: go.Figure, sizes: Iterable[tuple[int, int]], **place: int) -> None:
    for num_tokens in sorted({n for n, k in sizes if is_capped(n, k)}):
        line = {"color": INK, "dash": "dash", "width": 1}
        fig.add_hline(np.log2(num_tokens), line=line, name="log2 N", **place)
