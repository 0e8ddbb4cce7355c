"""What happened while a run trained: its terms, fidelity, codes and temperature over the steps."""

from itertools import cycle

import pandas
import plotly.graph_objects as go

from lgqlib.figures import style

NOT_TERMS = ("step", "split", "psnr", "active", "perplexity", "tau", "tau_c", "lr", "grad_norm")
"""Columns of the training metrics that are no term of the loss."""
LOOK_FOR = (
    "Terms that fall together train together; a perplexity far below the active codes is uneven "
    "use; codes come to life when τ passes below the first critical temperature."
)


def training_curves(
    metrics: pandas.DataFrame, *, method: str = "", num_codes: int | None = None
) -> go.Figure:
    """Draw the terms of the loss, PSNR, codes in use (of K) and temperature of a run's metrics."""
    train, val = (_split(metrics, split) for split in ("train", "val"))
    titles = ("Terms of the loss, unweighted", "Fidelity", "Codes in use", "Temperature")
    spaces = {"horizontal_spacing": 0.1, "vertical_spacing": 0.14}
    fig, grid = style.panels(rows=2, cols=2, height=620, titles=titles, **spaces)
    terms, fidelity, codes, temperature = grid
    names = [name for name in train.columns if name not in NOT_TERMS]
    colors = dict(zip(names, cycle(style.COLORS), strict=False)) | {"loss": style.INK}
    marked = {"mode": "lines+markers"}
    curves = [
        *((terms, train, name, name, colors[name], {}) for name in names),
        (fidelity, train, "psnr", "training batch", style.color_of(method), {}),
        (fidelity, val, "psnr", "held out", style.INK, marked),
        (codes, train, "active", "active", style.GREEN, {}),
        (codes, train, "perplexity", "perplexity", style.BLUE, {}),
        (temperature, train, "tau", "τ", style.RED, {}),
        (temperature, train, "tau_c", "first critical temperature", style.ORANGE, {"dash": "dash"}),
    ]
    for panel, table, column, name, color, more in curves:
        if column in table:  # one that was never logged is left out
            values = table[column].to_numpy(dtype="float32")
            panel.legend().line(table["step"].to_numpy(), values, name, color, **more)
    if num_codes is not None:
        codes.rule(y=num_codes)
    positive = names and (train[names].min() > 0).all()
    terms.axes("training step", "term", log="y" if positive else "")
    fidelity.axes("training step", "PSNR, dB")
    codes.axes("training step", "codes, tokens of a log interval")
    temperature.axes("training step", "temperature, units of the energy", log="y")
    return style.titled(fig, _finding(train, val, method), LOOK_FOR)


def _split(metrics: pandas.DataFrame, split: str) -> pandas.DataFrame:
    part = metrics[metrics["split"] == split]
    return part.sort_values("step").dropna(axis="columns", how="all")


def _finding(train: pandas.DataFrame, val: pandas.DataFrame, method: str) -> str:
    if not len(train):
        return f"{style.name_of(method)}: nothing logged yet".lstrip(": ")
    last = {
        "held-out PSNR {:.1f} dB": val.get("psnr"),
        "{:.0f} active codes": train.get("active"),
        "τ = {:.3g}": train.get("tau"),
    }
    parts = [text.format(values.iloc[-1]) for text, values in last.items() if values is not None]
    parts = [f"step {train['step'].iloc[-1]:.0f}", *parts]
    return f"{style.name_of(method)}: ".lstrip(": ") + ", ".join(parts)
