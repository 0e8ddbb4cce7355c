"""Which codes a timeline moves: the busiest, and those that died or were born."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

MAX_MOVING = 1024
"""Codes that the timeline moves."""


@dataclass(frozen=True)
class Moving:
    """The codes of a timeline, ascending, and a sentence that says which they are."""

    codes: Int[np.ndarray, " n"]
    note: str


def moving(
    counts: Int[np.ndarray, " K"],
    history: Sequence[Int[np.ndarray, " K"]],
    *,
    limit: int = MAX_MOVING,
) -> Moving:
    """Choose at most `limit` codes: all, or the busiest half, a spread of those that died and of
    those that were born during training, and the next busiest in the room that is left.

    Args:
        counts: uses of each code at the end.
        history: uses of each code since the snapshot before, for each snapshot; the first, before
            which nothing was counted, tells of no births.
        limit: at least 4.
    """
    if len(counts) <= limit:
        return Moving(np.arange(len(counts)), f"All {len(counts)} codes are shown.")
    used = np.stack([np.asarray(c) > 0 for c in history[1:]]) if len(history) > 2 else None
    none = np.zeros(len(counts), dtype=bool)
    died = none if used is None else (used[:-1] & ~used[1:]).any(0)
    born = none if used is None else (~used[:-1] & used[1:]).any(0)
    busiest = np.argsort(-counts, kind="stable")
    chosen = [busiest[: limit // 2], _some(died, limit // 4), _some(born, limit // 4)]
    taken = np.unique(np.concatenate(chosen))
    room = busiest[~np.isin(busiest, taken)][: limit - len(taken)]
    codes = np.sort(np.concatenate([taken, room]))
    return Moving(
        codes,
        f"{len(codes)} of {len(counts)} codes are shown: the busiest, {died[codes].sum()} of "
        f"{died.sum()} that died between snapshots and {born[codes].sum()} of {born.sum()} that "
        "were born (some did both).",
    )


def _some(which: np.ndarray, limit: int) -> np.ndarray:
    codes = np.flatnonzero(which)
    return codes[np.linspace(0, len(codes) - 1, min(limit, len(codes))).astype(int)]
