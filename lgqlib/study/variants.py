"""Named settings of LGQ and its peers for the quantizer laboratory: overrides of a run's config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lgqlib.presets import AUTHORS_LGQ
from lgqlib.quantizers import METHODS

ANNEALING: dict[str, Any] = {
    "temperature.kind": "exponential",
    "temperature.start": 1.0,
    "temperature.end": 0.003,
    "temperature.reduced": True,
}
"""From the first critical temperature down, instead of from 1 to 0.1 whatever the latents are."""
CHANGES: dict[str, dict[str, Any]] = {
    "free energy": {"quantizer.lgq.codebook_loss": "free_energy"},
    "annealing": ANNEALING,
    "entropy usage": {"quantizer.lgq.usage": "entropy", "loss.usage": 0.03},
    "identity": {"quantizer.lgq.identity": 1.0},
}
"""The four hypotheses, each as what it changes in the authors' setting."""
REST: dict[str, Any] = {"loss.peak": 0.0, "loss.commit": 0.25}
"""What changes besides when all are together: no peak term, and the commitment of VQ."""


@dataclass(frozen=True)
class Variant:
    """A named setting of a method."""

    name: str
    method: str = "lgq"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the config, by dotted name."""
    lr: float = 0.0
    """Learning rate of the quantizer; 0 is the experiment's."""


def together(
    *, bench: str = "linear", without: str = "", name: str = "all together", **changes: Any
) -> Variant:
    """Return all changes to the authors' LGQ, or all but one of them.

    On the `fixed` bench there is no encoder and no identity path, which would only keep the
    authors' loss from the codes.
    Raises ValueError when the one left out is unknown.
    """
    names = changes_on(bench)
    if without and without not in names:
        raise ValueError(f"without = {without!r}: it must be one of {', '.join(names)}")
    setting = dict(AUTHORS_LGQ) | REST
    for change in names:
        setting |= {} if change == without else CHANGES[change]
    return Variant(f"all but {without}" if without else name, changes=setting | changes)


def changes_on(bench: str) -> list[str]:
    """Return the names of the changes that a bench can test."""
    return [name for name in CHANGES if bench == "linear" or name != "identity"]


def lgq_variants(bench: str = "fixed") -> list[Variant]:
    """Return the authors' LGQ, each change alone, all of them, and all but one."""
    names = changes_on(bench)
    alone = [Variant(f"+ {name}", changes=AUTHORS_LGQ | CHANGES[name]) for name in names]
    rest = [together(bench=bench, without=name) for name in names]
    return [Variant("authors", changes=AUTHORS_LGQ), *alone, together(bench=bench), *rest]


def peer_variants() -> list[Variant]:
    """Return VQ, VQ-EMA, SimVQ and FSQ with their recommended weights."""
    names = {"vq": "VQ", "vq_ema": "VQ-EMA", "simvq": "SimVQ", "fsq": "FSQ"}
    return [Variant(name, method, METHODS[method].weights) for method, name in names.items()]


def energy_variants() -> list[Variant]:
    """Return the authors' LGQ with each energy, at their temperatures and a hundred times colder.

    Their loss, as the free energy of a dot product has no minimum over the codes.
    """
    cold = {"temperature.kind": "exponential", "temperature.end": 0.001}
    return [
        Variant(
            f"{energy}, tau 1 to {'0.001' if colder else '0.1'}",
            changes=AUTHORS_LGQ | {"quantizer.lgq.energy": energy} | (cold if colder else {}),
        )
        for energy in ("squared", "norm", "cosine", "dot")
        for colder in (False, True)
    ]


def schedule_variants() -> list[Variant]:
    """Return all changes together under other schedules of the temperature."""
    units = {"temperature.reduced": True}
    absolute = {"temperature.kind": "linear", "temperature.end": 0.1, "temperature.reduced": False}
    schedules = {
        "exponential, 1 to 0.003 tau_c": {},
        "linear, 1 to 0.003 tau_c": units | {"temperature.kind": "linear"},
        "cosine, 1 to 0.003 tau_c": units | {"temperature.kind": "cosine"},
        "exponential, 0.1 to 0.003 tau_c": units | {"temperature.start": 0.1},
        "constant, 0.1 tau_c": units | {"temperature.kind": "constant", "temperature.start": 0.1},
        "constant, 0.003 tau_c": units
        | {"temperature.kind": "constant", "temperature.start": 0.003},
        "linear, 1 to 0.1 (the authors')": absolute,
    }
    return [together(bench="fixed", name=name, **changes) for name, changes in schedules.items()]


def settings(changes: Mapping[str, Any]) -> str:
    """Write overrides as a command line does."""
    return " ".join(f"{name}={value}" for name, value in changes.items())
