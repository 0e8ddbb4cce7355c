"""Methods over sizes of codebook: fidelity against rate, codes that work, the cost of a step."""

from collections.abc import Sequence

import pandas
import plotly.graph_objects as go

from lgqlib.figures.style import FAINT, Panel, color_of, dash_of, name_of, panels, titled
from lgqlib.measure import METRICS, metric

SEEDS = "A small dot is a seed, the large one their mean."
FIDELITY = ("psnr", "kid")
RATES = ("active", "bits_per_token_coded", "bits_per_token_prior")  # the paper's is first


def rate_distortion(points: pandas.DataFrame) -> go.Figure:
    """Draw PSNR and KID against the three meanings of rate, a line a method; variants are marks."""
    shown = [key for key in FIDELITY if key in points]
    rates = [key for key in RATES if key in points]
    plain, variants = points[~points["ablation"]], points[points["ablation"]]
    size = {"rows": len(shown), "cols": len(rates), "height": 90 + 300 * len(shown)}
    fig, grid = panels(**size, horizontal_spacing=0.08, vertical_spacing=0.1)
    for i, panel in enumerate(grid):
        y, x = shown[i // len(rates)], rates[i % len(rates)]
        _lines(panel, plain, x, y, legend=i == 0)
        if len(variants) and x in points:
            panel.dots(
                *(variants[x], variants[y], "variants (see the ablations)"),
                **{"color": variants["method"].map(color_of), "size": 7, "symbol": "x-thin-open"},
                **{"text": variants["name"], "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}"},
                **{"legendgroup": "variants", "showlegend": i == 0},
            )
        first = x == rates[0]
        panel.axes(METRICS[x].title, METRICS[y].title if first else "", log="x" if first else "")
    fig.update_layout(legend={"orientation": "h", "y": -0.12})
    at = plain[plain["num_codes"] == plain["num_codes"].mode().max()]
    best = {key: at.loc[(METRICS[key].better * at[key]).idxmax()] for key in shown}
    said = [f"{name_of(r['method'])} in {METRICS[k].label} ({r[k]:.4g})" for k, r in best.items()]
    return titled(
        fig,
        f"At K = {at['num_codes'].iloc[0]:,} the best means are of {' and '.join(said)}",
        f"Up and to the left is better for PSNR, down and to the left for KID. {SEEDS} "
        "Hover for the runs.",
    )


def _lines(panel: Panel, plain: pandas.DataFrame, x: str, y: str, *, legend: bool) -> None:
    """Draw a line a method through its means at each size of codebook, and the seeds as dots."""
    for method, part in plain.sort_values("num_codes").groupby("method", sort=False):
        if x in part and y in part:
            part, color = part.dropna(subset=[x, y]), color_of(method)
            every = ([v for row in part[f"{key}.seeds"] for v in row] for key in (x, y))
            of = {"legendgroup": method}
            panel.dots(*every, color=color, size=5, opacity=0.45, hoverinfo="skip", **of)
            panel.dots(
                *(part[x], part[y], name_of(method), color),
                **{"mode": "lines+markers", "line": {"dash": dash_of(method)}, "size": 10},
                **of | {"showlegend": legend},
                customdata=part[["num_codes", "runs"]].to_numpy(),
                hovertemplate="K = %{customdata[0]}<br>%{x:.4g}, %{y:.4g}<br>%{customdata[1]}",
            )


def codes_over_sizes(points: pandas.DataFrame) -> go.Figure:
    """Draw active codes, perplexity and the share that is active against K."""
    keys = ("active", "perplexity", "active_share")
    titles = ("Active codes", "Perplexity", "Share of codes that are active")
    fig, grid = panels(cols=3, height=420, titles=titles, horizontal_spacing=0.08)
    plain = points[~points["ablation"]].sort_values("num_codes")
    sizes = sorted(plain["num_codes"].unique())
    for key, panel in zip(keys, grid, strict=True):
        _lines(panel, plain, "num_codes", key, legend=key == "active")
        share = {"y_rangemode": "tozero", "y_tickformat": ".0%"} if key == "active_share" else {}
        if not share:
            panel.line(sizes, sizes, "all K", FAINT, dash="dot", showlegend=key == "active")
        ticks = {"x_tickvals": sizes, "x_tickformat": ","}
        panel.axes("K, codes", METRICS[key].title, log="x" if share else "xy", **ticks, **share)
    fig.update_layout(legend={"orientation": "h", "y": -0.2})
    counts = plain.groupby("method", sort=False)["perplexity"]
    grown = {name_of(m): n.iloc[-1] / n.iloc[0] for m, n in counts if len(n) > 1}
    said = ", ".join(f"{name} {factor:.1f}" for name, factor in grown.items())
    return titled(
        fig,
        f"Perplexity from the smallest to the largest K grows by a factor of {said}"
        if said
        else "How many codes each method uses at this size of codebook",
        "A method that collapses stays flat where K grows. Counts grow with the tokens looked at, "
        f"so a share falls when K nears their number. {SEEDS}",
    )


def cost(points: pandas.DataFrame) -> go.Figure:
    """Draw the median training speed of each method at each K, images a second."""
    fig, (panel,) = panels(height=400)
    # A study may have several variants of a method and none without a name: their mean.
    names = ["num_codes", "method", "images_per_second"]
    plain = points[~points["ablation"]].reindex(columns=names)
    speeds = plain.groupby(names[:2], sort=False)[names[2]].mean().unstack("method").sort_index()
    sizes, hover = [f"K = {num_codes:,}" for num_codes in speeds.index], "%{x}: %{y:.0f} images/s"
    for method, speed in speeds.items():
        panel.bars(sizes, speed, name_of(method), color_of(method), hovertemplate=hover)
    panel.axes("size of the codebook", METRICS["images_per_second"].title, y_rangemode="tozero")
    finding = "What a training step costs"
    if "lgq" in speeds:
        at = speeds[speeds["lgq"].notna()].iloc[-1].dropna()
        said = [f"{at['lgq'] / at[m]:.2f} of {name_of(m)}'s" for m in at.index if m != "lgq"]
        finding = f"At K = {at.name:,} LGQ trains at {', '.join(said) or 'its own'} speed"
    return titled(
        fig,
        finding,
        "Median over a run's steps, whole training steps with the backbone; the machine's own "
        "noise is in it, so read differences below a tenth as none.",
    )


def forest(differences: pandas.DataFrame, keys: Sequence[str], *, of: str) -> go.Figure:
    """Draw differences, as `tabulated`, with their intervals: a panel a metric of `keys`."""
    shown = [key for key in keys if key in set(differences["metric"])]
    height = int(150 + 24 * differences["metric"].value_counts()[shown].max())
    titles, spaces = [metric(k).title for k in shown], {"horizontal_spacing": 0.03}
    fig, grid = panels(cols=len(shown), titles=titles, height=height, shared_yaxes=True, **spaces)
    for key, panel in zip(shown, grid, strict=True):
        part = differences[differences["metric"] == key]
        decided = part["verdict"] != "undecided"
        panel.dots(
            part["difference"],
            part["a"].map(name_of) + " less " + part["b"].map(name_of) + ", " + part["at"],
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
    said = ", ".join(f"{n} {v}" for v, n in differences["verdict"].value_counts().items())
    return titled(
        fig,
        f"{len(differences)} differences of {of}: {said}",
        "Mean difference with Student's 95 % interval over paired seeds; one seed has none and "
        "decides nothing. Filled where zero is excluded.",
    )
