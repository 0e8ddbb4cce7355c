"""How a codebook moved over the snapshots of a run: displacement, births, deaths, churn, age."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from lgqlib.measure.neighbors import Array, as_tensor


@dataclass(frozen=True)
class Drift:
    """What happened between consecutive snapshots; S snapshots, S - 1 intervals."""

    steps: Int[np.ndarray, " S"]
    """Training step of each snapshot."""
    displacement: Float[np.ndarray, "S1 K"]
    """Distance each code moved."""
    births: Int[np.ndarray, " S1"]
    """Codes without tokens before, and with some after."""
    deaths: Int[np.ndarray, " S1"]
    """Codes with tokens before, and without after."""
    churn: Float[np.ndarray, " S1"]
    """Share of the fixed probe's tokens whose code changed."""
    active: Int[np.ndarray, " S"]
    """Codes with tokens at each snapshot."""
    age: Int[np.ndarray, " K"]
    """Steps since each code was last seen in use, at the last snapshot; -1 if never."""


def drift(
    steps: Sequence[int] | Int[np.ndarray, " S"],
    codebooks: Sequence[Float[Array, "K D"]] | Float[np.ndarray, "S K D"],
    indices: Sequence[Int[np.ndarray, " P"]] | Int[np.ndarray, "S P"],
    counts: Sequence[Int[np.ndarray, " K"]] | Int[np.ndarray, "S K"],
) -> Drift:
    """Compare each snapshot with the one before.

    One codebook, the fixed probe's indices and the usage counts for each step. The frame is that of
    the latents as they were at each step: what moves is what the model moved.
    """
    steps = np.asarray(steps, dtype=np.int64)
    if not len(steps) == len(codebooks) == len(indices) == len(counts) > 0:
        raise ValueError(
            "steps, codebooks, indices and counts must have the same positive length, got "
            f"{len(steps)}, {len(codebooks)}, {len(indices)} and {len(counts)}"
        )
    if not (np.diff(steps) > 0).all():
        raise ValueError(f"steps must increase, got {steps}")
    codes = [as_tensor(c) for c in codebooks]
    num_codes = len(codes[0])
    used = np.stack([np.asarray(c) > 0 for c in counts])  # [S, K]
    moved = [(b - a).norm(dim=1).numpy() for a, b in pairwise(codes)]
    changed = [np.mean(a != b) for a, b in pairwise(indices)]
    last = len(steps) - 1 - used[::-1].argmax(0)
    return Drift(
        steps=steps,
        displacement=np.stack(moved) if moved else np.zeros((0, num_codes), np.float32),
        births=(~used[:-1] & used[1:]).sum(1),
        deaths=(used[:-1] & ~used[1:]).sum(1),
        churn=np.asarray(changed, dtype=np.float64),
        active=used.sum(1),
        age=np.where(used.any(0), steps[-1] - steps[last], -1),
    )
