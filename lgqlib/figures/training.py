"""What happened while a run trained: its terms, fidelity, codes and temperature over the steps."""

import pandas
import plotly.graph_objects as go

from lgqlib.figures.style import (
    BLUE,
    COLORS,
    GREEN,
    INK,
    ORANGE,
    RED,
    color_of,
    figure,
    legend_in,
    name_of,
    titled,
)

NOT_TERMS = ("step", "split", "psnr", "active", "perplexity", "tau", "tau_c", "lr", "grad_norm")
"""Columns of the training metrics that are no term of the loss."""


def training_curves(
    metrics: pandas.DataFrame, *, method: str = "", num_codes: int | None = None
) -> go.Figure:
    """Draw the terms of the loss, PSNR, codes in use and temperature over the steps.

    `metrics`: a run's table, a row a line of its log, with `step`, `split` (`train`, `val`) and a
    column a name; it may be empty. `num_codes` marks K.
    """
    train = _split(metrics, "train")
    val = _split(metrics, "val")
    fig = figure(
        rows=2,
        cols=2,
        height=620,
        titles=("Terms of the loss, unweighted", "Fidelity", "Codes in use", "Temperature"),
        horizontal_spacing=0.1,
        vertical_spacing=0.14,
    )
    _terms(fig, train)
    _line(fig, train, "psnr", "training batch", color_of(method), row=1, col=2)
    _line(fig, val, "psnr", "held out", INK, row=1, col=2, mode="lines+markers")
    _line(fig, train, "active", "active", GREEN, row=2, col=1)
    _line(fig, train, "perplexity", "perplexity", BLUE, row=2, col=1)
    if num_codes is not None:
        fig.add_hline(num_codes, line={"dash": "dot", "color": INK}, row=2, col=1)
    _line(fig, train, "tau", "τ", RED, row=2, col=2)
    _line(fig, train, "tau_c", "first critical temperature", ORANGE, row=2, col=2, dash="dash")
    for (row, col), title in {
        (1, 1): "term",
        (1, 2): "PSNR, dB",
        (2, 1): "codes, tokens of a log interval",
        (2, 2): "temperature, units of the energy",
    }.items():
        fig.update_yaxes(title_text=title, row=row, col=col)
    fig.update_xaxes(title_text="training step", row=2)
    fig.update_yaxes(type="log", row=2, col=2)
    return titled(fig, _finding(train, val, method), LOOK_FOR)


LOOK_FOR = (
    "Terms that fall together train together; a perplexity far below the active codes is uneven "
    "use; "
    "codes come to life when τ passes below the first critical temperature."
)


def _split(metrics: pandas.DataFrame, split: str) -> pandas.DataFrame:
    part = metrics[metrics["split"] == split]
    return part.sort_values("step").dropna(axis="columns", how="all")


def _terms(fig: go.Figure, train: pandas.DataFrame) -> None:
    names = [name for name in train.columns if name not in NOT_TERMS]
    for i, name in enumerate(names):
        dash = "solid" if i < len(COLORS) else "dot"
        color = INK if name == "loss" else COLORS[i % len(COLORS)]
        _line(fig, train, name, name, color, row=1, col=1, dash=dash)
    if names and (train[names].min() > 0).all():
        fig.update_yaxes(type="log", row=1, col=1)


def _line(
    fig: go.Figure,
    table: pandas.DataFrame,
    column: str,
    name: str,
    color: str,
    *,
    row: int,
    col: int,
    dash: str = "solid",
    mode: str = "lines",
) -> None:
    """Add a column over the steps; one that was never logged is left out."""
    if column in table:
        fig.add_scatter(
            x=table["step"].to_numpy(),
            y=table[column].to_numpy(dtype="float32"),
            name=name,
            mode=mode,
            line={"color": color, "dash": dash, "width": 2},
            legend=legend_in(fig, row, col),
            row=row,
            col=col,
        )


def _finding(train: pandas.DataFrame, val: pandas.DataFrame, method: str) -> str:
    if not len(train):
        return f"{name_of(method)}: nothing logged yet".lstrip(": ")
    last = train.iloc[-1]
    parts = [f"step {int(last['step'])}"]
    if "psnr" in val:
        parts.append(f"held-out PSNR {val['psnr'].iloc[-1]:.1f} dB")
    if "active" in train:
        parts.append(f"{int(last['active'])} active codes")
    if "tau" in train:
        parts.append(f"τ = {last['tau']:.3g}")
    return f"{name_of(method)}: ".lstrip(": ") + ", ".join(parts)
