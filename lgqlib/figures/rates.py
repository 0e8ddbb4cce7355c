"""Methods over sizes of codebook: what fidelity costs in rate, how many codes work, what a step
takes. Tables of `comparison.points` in, a figure out.
"""

from collections.abc import Mapping

import numpy as np
import pandas
import plotly.graph_objects as go

from lgqlib.figures.style import (
    FAINT,
    INK,
    color_of,
    dash_of,
    figure,
    name_of,
    titled,
)

INTERVAL = "Bars are Student's 95 % intervals over seeds; a point without one has a single seed."
FIDELITY = {"psnr": "PSNR, dB", "kid": "KID"}
RATE = {
    "active": "active codes",
    "bits_per_token_entropy": "entropy, bits a token",
    "bits_per_token_coded": "coded, bits a token",
}


def rate_distortion(points: pandas.DataFrame) -> go.Figure:
    """Draw PSNR and KID against the three meanings of rate, a line a method through its K.

    Variants of a method that stands there plain are single marks.
    """
    metrics = [m for m in FIDELITY if m in points]
    fig = figure(
        rows=len(metrics),
        cols=len(RATE),
        height=90 + 300 * len(metrics),
        horizontal_spacing=0.08,
        vertical_spacing=0.1,
    )
    for row, metric in enumerate(metrics, start=1):
        for col, rate in enumerate(RATE, start=1):
            for method, part in _plain(points).groupby("method", sort=False):
                _line(fig, part, rate, metric, str(method), row, col, legend=row == col == 1)
            _variants(fig, points, rate, metric, row, col)
            fig.update_xaxes(title_text=RATE[rate], row=row, col=col)
        fig.update_yaxes(title_text=FIDELITY[metric], row=row, col=1)
        fig.update_xaxes(type="log", row=row, col=1)
    fig.update_layout(legend={"orientation": "h", "y": -0.12})
    return titled(
        fig,
        _best(points),
        f"Up and to the left is better for PSNR, down and to the left for KID. {INTERVAL} "
        "Hover for the runs.",
    )


def _plain(points: pandas.DataFrame) -> pandas.DataFrame:
    return points[~points["ablation"]].sort_values("num_codes")


def _line(
    fig: go.Figure,
    part: pandas.DataFrame,
    x: str,
    y: str,
    method: str,
    row: int,
    col: int,
    *,
    legend: bool,
) -> None:
    if x not in part or y not in part:
        return
    fig.add_scatter(
        x=part[x],
        y=part[y],
        mode="lines+markers",
        name=name_of(method),
        legendgroup=method,
        showlegend=legend,
        line={"color": color_of(method), "dash": dash_of(method), "width": 2},
        marker={"size": 8},
        error_y=_bars(part, y, color_of(method)),
        error_x=_bars(part, x, color_of(method)),
        customdata=np.stack([part["num_codes"], part["seeds"], part["runs"]], axis=1),
        hovertemplate=f"{name_of(method)}, K = %{{customdata[0]}}<br>%{{x:.4g}}, %{{y:.4g}}"
        "<br>%{customdata[1]} seeds: %{customdata[2]}<extra></extra>",
        row=row,
        col=col,
    )


def _bars(part: pandas.DataFrame, key: str, color: str) -> dict | None:
    if f"{key}.high" not in part:
        return None
    return {
        "type": "data",
        "array": (part[f"{key}.high"] - part[key]).fillna(0),
        "arrayminus": (part[key] - part[f"{key}.low"]).fillna(0),
        "thickness": 1,
        "width": 3,
        "color": color,
    }


def _variants(fig: go.Figure, points: pandas.DataFrame, x: str, y: str, row: int, col: int) -> None:
    part = points[points["ablation"]]
    if not len(part) or x not in part or y not in part:
        return
    fig.add_scatter(
        x=part[x],
        y=part[y],
        mode="markers",
        name="variants (see the ablations)",
        legendgroup="variants",
        showlegend=row == col == 1,
        marker={"color": [color_of(m) for m in part["method"]], "size": 7, "symbol": "x-thin-open"},
        text=part["name"],
        hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        row=row,
        col=col,
    )


def _best(points: pandas.DataFrame) -> str:
    """Say which method is best in which metric at the largest K that most methods have."""
    plain = _plain(points)
    sizes = plain["num_codes"].value_counts()
    num_codes = max(sizes[sizes == sizes.max()].index)
    at = plain[plain["num_codes"] == num_codes]
    told = []
    for metric, label in FIDELITY.items():
        if metric in at and at[metric].notna().any():
            best = at.loc[at[metric].idxmax() if metric == "psnr" else at[metric].idxmin()]
            told.append(f"{name_of(best['method'])} in {label.split(',')[0]} ({best[metric]:.4g})")
    return f"At K = {num_codes:,} the best means are of {' and '.join(told)}"


def codes_over_sizes(points: pandas.DataFrame) -> go.Figure:
    """Draw active codes, perplexity and the share that is active against K."""
    panels = {"active": "active codes", "perplexity": "perplexity, codes", "active_share": "share"}
    fig = figure(
        cols=3,
        height=420,
        titles=("Active codes", "Perplexity", "Share of codes that are active"),
        horizontal_spacing=0.08,
    )
    plain = _plain(points)
    for col, (metric, label) in enumerate(panels.items(), start=1):
        for method, part in plain.groupby("method", sort=False):
            _line(fig, part, "num_codes", metric, str(method), 1, col, legend=col == 1)
        fig.update_xaxes(type="log", dtick=np.log10(4), title_text="K, codes", row=1, col=col)
        fig.update_yaxes(title_text=label, row=1, col=col)
        if metric != "active_share":
            sizes = sorted(plain["num_codes"].unique())
            fig.add_scatter(
                x=sizes,
                y=sizes,
                mode="lines",
                line={"color": FAINT, "dash": "dot"},
                name="all K",
                showlegend=col == 1,
                hoverinfo="skip",
                row=1,
                col=col,
            )
            fig.update_yaxes(type="log", row=1, col=col)
    fig.update_yaxes(rangemode="tozero", tickformat=".0%", row=1, col=3)
    fig.update_layout(legend={"orientation": "h", "y": -0.2})
    return titled(
        fig,
        _growth(plain),
        "A method that collapses stays flat where K grows. Counts grow with the tokens looked at, "
        f"so a share falls when K nears their number. {INTERVAL}",
    )


def _growth(plain: pandas.DataFrame) -> str:
    told = []
    for method, part in plain.groupby("method", sort=False):
        if len(part) > 1 and "perplexity" in part:
            ends = part.sort_values("num_codes")["perplexity"].iloc[[0, -1]].to_numpy()
            told.append(f"{name_of(str(method))} {ends[1] / ends[0]:.1f}")
    if told:
        return (
            f"Perplexity from the smallest to the largest K grows by a factor of {', '.join(told)}"
        )
    return "How many codes each method uses at this size of codebook"


def cost(points: pandas.DataFrame) -> go.Figure:
    """Draw the median training speed of each method at each K, images a second."""
    fig = figure(height=400)
    plain = _plain(points)
    for method, part in plain.groupby("method", sort=False):
        fig.add_bar(
            x=[f"K = {k:,}" for k in part["num_codes"]],
            y=part.get("images_per_second"),
            name=name_of(str(method)),
            marker={"color": color_of(str(method))},
            customdata=part["runs"],
            hovertemplate="%{x}: %{y:.0f} images/s<br>%{customdata}<extra></extra>",
        )
    fig.update_yaxes(title_text="training speed, images/s", rangemode="tozero")
    fig.update_xaxes(title_text="size of the codebook")
    return titled(
        fig,
        _slowest(plain),
        "Median over a run's steps, whole training steps with the backbone; the machine's own "
        "noise is in it, so read differences below a tenth as none.",
    )


def _slowest(plain: pandas.DataFrame) -> str:
    if "images_per_second" not in plain or "lgq" not in set(plain["method"]):
        return "What a training step costs"
    num_codes = plain[plain["method"] == "lgq"]["num_codes"].max()
    # A study may have several variants of a method and none without a name: their mean.
    at = plain[plain["num_codes"] == num_codes].groupby("method", sort=False)["images_per_second"]
    at = at.mean()
    told = [f"{at['lgq'] / at[m]:.2f} of {name_of(m)}'s" for m in at.index if m != "lgq"]
    return f"At K = {num_codes:,} LGQ trains at {', '.join(told) or 'its own'} speed"


def forest(differences: pandas.DataFrame, labels: Mapping[str, str], *, of: str) -> go.Figure:
    """Draw differences with their intervals, a panel a metric: filled where zero is excluded.

    `differences`: of `comparison.tabulated`. `labels`: by metric, its axis title with the unit.
    """
    metrics = [m for m in labels if m in set(differences["metric"])]
    if not metrics:
        fig = figure(height=200)
        return titled(fig, f"No difference of {of} to show", "It needs runs that share a seed.")
    rows = max((differences["metric"] == m).sum() for m in metrics)
    fig = figure(
        cols=len(metrics),
        titles=[labels[m] for m in metrics],
        height=int(150 + 24 * rows),
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    for col, metric in enumerate(metrics, start=1):
        part = differences[differences["metric"] == metric]
        decided = part["verdict"] != "undecided"
        color = [color_of(m.split(" ")[0]) for m in part["b"]]
        names = zip(part["a"], part["b"], part["at"], strict=True)
        fig.add_scatter(
            x=part["difference"],
            y=[f"{a} less {b}, {at}" for a, b, at in names],
            mode="markers",
            marker={
                "color": color,
                "size": 9,
                "symbol": ["circle" if d else "circle-open" for d in decided],
            },
            error_x={
                "type": "data",
                "array": part["high"] - part["difference"],
                "arrayminus": part["difference"] - part["low"],
                "color": FAINT,
                "thickness": 2,
            },
            customdata=np.stack(
                [part["low"], part["high"], part["seeds"], part["verdict"]], axis=1
            ),
            hovertemplate="%{y}<br>%{x:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}], "
            "%{customdata[2]} seeds: %{customdata[3]}<extra></extra>",
            showlegend=False,
            row=1,
            col=col,
        )
        fig.add_vline(0, line={"color": INK, "width": 1, "dash": "dot"}, row=1, col=col)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    counts = differences["verdict"].value_counts()
    told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return titled(
        fig,
        f"{len(differences)} differences of {of}: {told}",
        "Mean difference with its 95 % interval over paired seeds (Student's; of seeds and images "
        "with a single seed, which decides nothing). Filled where zero is excluded.",
    )
