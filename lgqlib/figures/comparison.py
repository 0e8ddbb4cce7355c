"""Methods over sizes of codebook: fidelity against rate, codes that work, the cost of a step.

Tables of `study.comparison.points` and `.tabulated` in, a figure out.
"""

from collections.abc import Sequence

import pandas
import plotly.graph_objects as go

from lgqlib.figures.style import (
    FAINT,
    Panel,
    color_of,
    dash_of,
    figure,
    name_of,
    panels,
    titled,
)
from lgqlib.measure import METRICS, metric

INTERVAL = "Bars are Student's 95 % intervals over seeds; a point without one has a single seed."
FIDELITY = ("psnr", "kid")
RATES = ("active", "bits_per_token_entropy", "bits_per_token_coded")
"""The three meanings of rate; the paper's is the first."""


def rate_distortion(points: pandas.DataFrame) -> go.Figure:
    """Draw PSNR and KID against the three meanings of rate, a line a method through its K.

    Variants of a method that stands there plain are single marks.
    """
    shown = [key for key in FIDELITY if key in points]
    fig, grid = panels(
        rows=len(shown),
        cols=len(RATES),
        height=90 + 300 * len(shown),
        horizontal_spacing=0.08,
        vertical_spacing=0.1,
    )
    for i, panel in enumerate(grid):
        fidelity, rate = shown[i // len(RATES)], RATES[i % len(RATES)]
        _lines(panel, points, rate, fidelity, legend=i == 0)
        _variants(panel, points, rate, fidelity, legend=i == 0)
        first = rate == RATES[0]
        y = METRICS[fidelity].title if first else ""
        panel.axes(METRICS[rate].title, y, log="x" if first else "")
    fig.update_layout(legend={"orientation": "h", "y": -0.12})
    return titled(
        fig,
        _best(points),
        f"Up and to the left is better for PSNR, down and to the left for KID. {INTERVAL} "
        "Hover for the runs.",
    )


def _plain(points: pandas.DataFrame) -> pandas.DataFrame:
    return points[~points["ablation"]].sort_values("num_codes")


def _lines(panel: Panel, points: pandas.DataFrame, x: str, y: str, *, legend: bool) -> None:
    """Draw a line a method through its sizes of codebook, with intervals."""
    for method, part in _plain(points).groupby("method", sort=False):
        if x not in part or y not in part:
            continue
        ends = {
            f"error_{axis}": (part[f"{key}.low"], part[f"{key}.high"])
            for axis, key in (("x", x), ("y", y))
            if f"{key}.low" in part
        }
        panel.dots(
            *(part[x], part[y], name_of(method), color_of(method)),
            **{"mode": "lines+markers", "line": {"dash": dash_of(method)}, "size": 8, **ends},
            **{"legendgroup": method, "showlegend": legend},
            customdata=part[["num_codes", "seeds", "runs"]].to_numpy(),
            hovertemplate=f"{name_of(method)}, K = %{{customdata[0]}}<br>%{{x:.4g}}, %{{y:.4g}}"
            "<br>%{customdata[1]} seeds: %{customdata[2]}<extra></extra>",
        )


def _variants(panel: Panel, points: pandas.DataFrame, x: str, y: str, *, legend: bool) -> None:
    part = points[points["ablation"]]
    if not len(part) or x not in part or y not in part:
        return
    panel.dots(
        *(part[x], part[y], "variants (see the ablations)", part["method"].map(color_of)),
        size=7,
        symbol="x-thin-open",
        text=part["name"],
        hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        legendgroup="variants",
        showlegend=legend,
    )


def _best(points: pandas.DataFrame) -> str:
    """Say which method is best in which metric at the largest K that most methods have."""
    plain = _plain(points)
    sizes = plain["num_codes"].value_counts()
    num_codes = max(sizes[sizes == sizes.max()].index)
    at = plain[plain["num_codes"] == num_codes]
    said = []
    for key in FIDELITY:
        if key in at and at[key].notna().any():
            best = at.loc[(METRICS[key].better * at[key]).idxmax()]
            said.append(f"{name_of(best['method'])} in {METRICS[key].label} ({best[key]:.4g})")
    return f"At K = {num_codes:,} the best means are of {' and '.join(said)}"


def codes_over_sizes(points: pandas.DataFrame) -> go.Figure:
    """Draw active codes, perplexity and the share that is active against K."""
    keys = ("active", "perplexity", "active_share")
    titles = ("Active codes", "Perplexity", "Share of codes that are active")
    fig, grid = panels(cols=3, height=420, titles=titles, horizontal_spacing=0.08)
    sizes = sorted(_plain(points)["num_codes"].unique())
    for key, panel in zip(keys, grid, strict=True):
        _lines(panel, points, "num_codes", key, legend=key == "active")
        share = key == "active_share"
        if not share:
            all_of = {"name": "all K", "showlegend": key == "active", "hoverinfo": "skip"}
            panel.line(sizes, sizes, color=FAINT, dash="dot", **all_of)
        axes = {"y_rangemode": "tozero", "y_tickformat": ".0%"} if share else {}
        panel.axes(
            *("K, codes", METRICS[key].title),
            log="x" if share else "xy",
            **{"x_tickvals": sizes, "x_tickformat": ","},
            **axes,
        )
    fig.update_layout(legend={"orientation": "h", "y": -0.2})
    return titled(
        fig,
        _growth(_plain(points)),
        "A method that collapses stays flat where K grows. Counts grow with the tokens looked at, "
        f"so a share falls when K nears their number. {INTERVAL}",
    )


def _growth(plain: pandas.DataFrame) -> str:
    said = []
    for method, part in plain.groupby("method", sort=False):
        if len(part) > 1 and "perplexity" in part:
            ends = part.sort_values("num_codes")["perplexity"].iloc[[0, -1]].to_numpy()
            said.append(f"{name_of(method)} {ends[1] / ends[0]:.1f}")
    if said:
        return (
            f"Perplexity from the smallest to the largest K grows by a factor of {', '.join(said)}"
        )
    return "How many codes each method uses at this size of codebook"


def cost(points: pandas.DataFrame) -> go.Figure:
    """Draw the median training speed of each method at each K, images a second."""
    fig, (panel,) = panels(height=400)
    for method, part in _plain(points).groupby("method", sort=False):
        panel.bars(
            [f"K = {k:,}" for k in part["num_codes"]],
            part.get("images_per_second"),
            *(name_of(method), color_of(method)),
            customdata=part["runs"],
            hovertemplate="%{x}: %{y:.0f} images/s<br>%{customdata}<extra></extra>",
        )
    speed = METRICS["images_per_second"].title
    panel.axes("size of the codebook", speed, y_rangemode="tozero")
    return titled(
        fig,
        _slowest(_plain(points)),
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
    said = [f"{at['lgq'] / at[m]:.2f} of {name_of(m)}'s" for m in at.index if m != "lgq"]
    return f"At K = {num_codes:,} LGQ trains at {', '.join(said) or 'its own'} speed"


def forest(differences: pandas.DataFrame, keys: Sequence[str], *, of: str) -> go.Figure:
    """Draw differences with their intervals, a panel a metric: filled where zero is excluded.

    `differences`: of `comparison.tabulated`. `keys`: of METRICS, in the order of the panels.
    """
    shown = [key for key in keys if key in set(differences["metric"])]
    if not shown:
        fig = figure(height=200).update_xaxes(visible=False).update_yaxes(visible=False)
        return titled(fig, f"No difference of {of} to show", "It needs runs that share a seed.")
    fig, grid = panels(
        cols=len(shown),
        titles=[metric(key).title for key in shown],
        height=int(150 + 24 * differences["metric"].value_counts()[shown].max()),
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    for key, panel in zip(shown, grid, strict=True):
        part = differences[differences["metric"] == key]
        decided = part["verdict"] != "undecided"
        names = zip(part["a"], part["b"], part["at"], strict=True)
        panel.dots(
            part["difference"],
            [f"{a} less {b}, {at}" for a, b, at in names],
            color=part["b"].map(color_of),
            size=9,
            symbol=decided.map({True: "circle", False: "circle-open"}),
            error_x=(part["low"], part["high"]),
            customdata=part[["low", "high", "seeds", "verdict"]].to_numpy(),
            hovertemplate="%{y}<br>%{x:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}], "
            "%{customdata[2]} seeds: %{customdata[3]}<extra></extra>",
        )
        panel.rule(x=0)
        panel.axes(y_autorange="reversed", y_showgrid=False)
    counts = differences["verdict"].value_counts()
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return titled(
        fig,
        f"{len(differences)} differences of {of}: {said}",
        "Mean difference with its 95 % interval over paired seeds (Student's; of seeds and images "
        "with a single seed, which decides nothing). Filled where zero is excluded.",
    )
