"""A run as a value: what was trained, on what, and how; standard library only.

Every field is a plain scalar or a tuple of integers, so that a config is JSON, a command line and a
hash. What fields may hold stands in their lines, and what they must be together in `_together`.
"""

import dataclasses
import hashlib
import json
import math
import shlex
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from typing import Any

ENERGIES = ("squared", "norm", "cosine", "dot")
STARTS = ("", "random", "kmeans", "gaussian", "uniform", "far", "mean")
UNITS = ("absolute", "tau_c", "self")
TERMS = ("commit", "peak", "usage", "floor", "free_energy", "codebook", "entropy", "widths")
"""Names that a quantizer's terms may have; each has its weight in `LossConfig`."""
VERSION = 1
SMALLEST = 11  # side of the smallest image that SSIM can judge, in pixels
LATER = {"data.content": "", "train.after": "", "evaluation.prior_steps": 200}
"""Fields that a file of an older run may lack, and what they then are."""


def number(default: Any, least: float, most: float = math.inf, *, above: bool = False) -> Any:
    """Make a field that holds numbers from `least`, or `above` it, to `most`."""
    sign = ">" if above else ">="
    right = f"a finite number {sign} {least}" + (f" and <= {most:g}" if most < math.inf else "")

    def fits(value: float) -> bool:
        return math.isfinite(value) and least <= value <= most and not (above and value == least)

    return field(default=default, metadata={"fits": fits, "right": right})


def one_of(default: str, *choices: str) -> Any:
    """Make a field that holds one of some words."""
    right = "one of " + ", ".join(map(repr, choices))
    return field(default=default, metadata={"fits": choices.__contains__, "right": right})


def _require(condition: bool, name: str, value: Any, right: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value!r}: it must be {right}.")


class _Section:
    """A part of the config, whose fields are checked when it is made."""

    PREFIX = ""

    def __post_init__(self):
        for item in fields(self):
            if fits := item.metadata.get("fits"):
                value = getattr(self, item.name)
                _require(fits(value), self.PREFIX + item.name, value, item.metadata["right"])
        for holds, name, right in self._together():
            _require(holds, self.PREFIX + name, attrgetter(name)(self), right)

    def _together(self) -> Iterable[tuple[bool, str, str]]:
        """Give what must hold of fields together: if it does, the field to blame, what is right."""
        return ()


@dataclass(frozen=True)
class DataConfig(_Section):
    PREFIX = "data."
    name: str = one_of("photos", "photos", "cifar10", "imagenette", "imagefolder")
    """`photos` (embedded, no download), `cifar10`, `imagenette`, or `imagefolder` (any images)."""
    root: str = ""  # a folder or tar of one's own; `imagefolder` needs it
    content: str = ""  # digest of what lies at `root`: it decides the run, not the place
    size: int = number(32, 8, 4096)  # side of the square images that the model sees, in pixels
    resize: int = number(0, 0, 8192)  # short side of the stored images, in pixels; 0 keeps it
    flip: bool = True  # mirror half of the training crops
    eval_crops: int = number(512, 0)  # held-out crops that an evaluation looks at; 0 is all

    def _together(self):
        right = "a folder of images when data.name is 'imagefolder'"
        yield self.name != "imagefolder" or bool(self.root), "root", right
        right = f"0 or at least data.size = {self.size}, for a crop cannot exceed its image"
        yield self.resize == 0 or self.resize >= self.size, "resize", right


@dataclass(frozen=True)
class BackboneConfig(_Section):
    PREFIX = "backbone."
    family: str = one_of("patch", "patch", "vqgan", "linear")
    """Residual blocks on the tokens, the paper's pyramid, or the linear path alone."""
    start: str = one_of("pca", "pca", "whitened", "random")
    """Of the linear path: principal components, with one scale for all channels or unit variance
    each; `random` has no such path (the paper).
    """
    downsample: int = number(4, 1, 256)  # image side over latent side; 32 / 4: 64 tokens
    width: int = number(96, 8, 4096)  # channels of the residual blocks (`vqgan`: of the first)
    depth: int = number(2, 1, 256)  # residual blocks in encoder and decoder each (`vqgan`: a stage)
    dim: int = number(5, 1, 4096)  # C, channels of a latent
    norm: str = one_of("layer", "layer", "group", "group+layer", "none")
    """Before the quantizer: `layer` (a token over channels), `group` (the whole map), or both."""

    def _together(self):
        right = "'pca' or 'whitened' with backbone.family = 'linear'"
        yield self.family != "linear" or self.start != "random", "start", right
        yield self.downsample & (self.downsample - 1) == 0, "downsample", "a power of two"
        yield self.width % 8 == 0, "width", "a multiple of 8"
        right = f"'group' or 'none' with backbone.dim = {self.dim}: "
        right += "a token normalized over so few channels has no freedom left"
        yield self.dim > 2 or "layer" not in self.norm, "norm", right


@dataclass(frozen=True)
class LGQConfig(_Section):
    PREFIX = "quantizer.lgq."
    energy: str = one_of("squared", *ENERGIES)  # d(z, e): squared, distance, 1 - cosine or -dot
    codebook_loss: str = one_of("commit", "commit", "free_energy")
    """What trains the codes: mean (z_q - z)^2, nothing detached (the paper), or the free energy."""
    identity: float = number(0.0, 0, 1)  # the identity path's share of the encoder's gradient
    usage: str = one_of("square", "square", "entropy")  # K sum u^2, or 1 - H(u) / log K
    move: bool = False  # move codes that starve beside those with the largest part of the error
    widths: bool = False  # learn a width s_k for each code: d_nk / (tau s_k)
    per_channel: bool = False  # learn scalar bins for each channel (`quantizer.levels`)
    active_floor: float = number(0.0, 0)  # P_min of the floor term, in codes (or in bins)
    num_nearest: int = number(8, 0, 2**24)
    """A token's nearest codes, alone while they hold all but 1e-3 of p on the mean; 0: all."""

    def _together(self):
        whole = self.widths or self.energy != "squared"
        right = "False with learnable widths or an energy other than 'squared'"
        yield not (self.per_channel and whole), "per_channel", right


@dataclass(frozen=True)
class QuantizerConfig(_Section):
    PREFIX = "quantizer."
    method: str = "lgq"  # which quantizer: a row of `quantizers.METHODS`
    num_codes: int = number(1024, 1, 2**24)  # K, the size of the codebook
    levels: tuple[int, ...] = ()  # levels a channel for FSQ and its like; empty: to match K
    start: str = one_of("", *STARTS)  # of codes (`quantizers.start`); empty: the method's own
    prefit: bool = False  # anneal the codes on the first latents, before the encoder moves
    scale: float = number(1.0, 0, 1e3, above=True)  # of latents before the bound of FSQ, iFSQ
    lgq: LGQConfig = field(default_factory=LGQConfig)

    def _together(self):
        product = math.prod(self.levels)
        yield all(2 <= n <= 2**24 for n in self.levels), "levels", "whole numbers >= 2"
        right = f"levels whose product is quantizer.num_codes = {self.num_codes}, not {product}"
        yield not self.levels or product == self.num_codes, "levels", right
        right = "given when quantizer.lgq.per_channel is set, e.g. (8, 8, 4, 4)"
        yield not self.lgq.per_channel or bool(self.levels), "levels", right


@dataclass(frozen=True)
class TemperatureConfig(_Section):
    PREFIX = "temperature."
    kind: str = one_of("linear", "linear", "cosine", "exponential", "constant")  # from start to end
    start: float = number(1.0, 0, 1e6, above=True)
    end: float = number(0.1, 0, 1e6, above=True)
    unit: str = one_of("absolute", *UNITS)  # 1, the latents' tau_c, or 2 D / C as it runs
    span: float = number(1.0, 0, 1, above=True)  # share of the steps over which it falls

    def at(self, step: int, num_steps: int) -> float:
        """Give the temperature of a step, in its `unit`."""
        if self.kind == "constant":
            return self.start
        share = min(1.0, step / max(1.0, self.span * (num_steps - 1)))
        if self.kind == "linear":
            return self.start + (self.end - self.start) * share
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * share))
        return self.start * (self.end / self.start) ** share


@dataclass(frozen=True)
class LossConfig(_Section):
    PREFIX = "loss."
    reconstruction: str = one_of("l1", "l1", "l2")  # on images in [-1, 1]
    commit: float = number(1.0, 0, 1e6)  # weight of each of a quantizer's terms, by the term's name
    peak: float = number(0.005, 0, 1e6)
    usage: float = number(0.005, 0, 1e6)
    floor: float = number(0.0, 0, 1e6)
    free_energy: float = number(1.0, 0, 1e6)
    codebook: float = number(1.0, 0, 1e6)
    entropy: float = number(1.0, 0, 1e6)
    widths: float = number(0.0, 0, 1e6)
    perceptual: float = number(0.0, 0, 1e6)  # weight of Lite0's features; 0 never builds it
    perceptual_side: int = number(224, 32, 1024)  # to which images are enlarged for them, in pixels
    adversarial: float = number(0.0, 0, 1e6)  # weight of the PatchGAN's term; 0 never builds it
    adversarial_start: float = number(0.5, 0, 1)  # share of the steps after which it takes part
    adaptive: bool = True  # scale the adversarial term by VQGAN's ratio of gradients
    discriminator_lr: float = number(1e-4, 0, 1.0, above=True)


@dataclass(frozen=True)
class TrainConfig(_Section):
    PREFIX = "train."
    num_steps: int = number(600, 0)  # 0 keeps the start: a baseline without learning
    after: str = ""  # name of a finished run, with fewer steps, from which this one goes on
    batch_size: int = number(64, 1, 2**20)  # images a step, over all processes
    lr: float = number(2e-3, 0, 1.0, above=True)
    codebook_lr: float = number(1.0, 0, 1e3, above=True)
    """Of all of the quantizer, a multiple of `lr`: Adam moves a code by about the sum of rates."""
    weight_decay: float = number(1e-4, 0, 1e3)
    warmup: float = number(0.05, 0, 1)  # share of the steps over which the learning rate rises
    decay: str = one_of("cosine", "cosine", "constant")  # of the learning rate, after the warm-up
    clip: float = number(1.0, 0)  # largest norm of the gradient; 0 never clips
    ema: float = number(0.0, 0, 0.999999)  # decay of the averaged weights of evaluation; 0: none
    precision: str = one_of("no", "no", "bf16", "fp16")  # mixed precision of `accelerate`
    compile: bool = False  # compile encoder and decoder with `torch.compile`
    log_every: int = number(10, 1)
    eval_every: int = number(200, 0)  # steps between light evaluations; 0 only at the end
    checkpoint_every: int = number(200, 1)
    num_snapshots: int = number(12, 0, 10_000)  # of codebook and probe, at log-spaced steps
    probe: int = number(2048, 1, 2**24)  # latents in each snapshot's fixed probe, in tokens

    def lr_at(self, step: int) -> float:
        """Give the learning rate of a step: linear warm-up, then the decay."""
        warmup = max(1, round(self.warmup * self.num_steps))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.decay == "constant":
            return self.lr
        share = (step - warmup) / max(1, self.num_steps - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class EvaluationConfig(_Section):
    PREFIX = "evaluation."
    extractor: str = "lite2"
    """Features of KID, Fréchet and perceptual distance: `lite2`, `lite0`, empty for none, or the
    path of your own TorchScript network (Inception, say), whose name ends in .pt.
    """
    distance: str = ""  # path of a TorchScript perceptual distance (LPIPS) beside it
    batch_size: int = number(64, 1, 2**20)
    photographs: int = number(16, 0)  # held-out images also seen whole, where cut into tiles
    prior_steps: int = number(200, 0)  # of the small prior that prices held-out tokens; 0: none

    def _together(self):
        own = self.extractor.endswith(".pt")
        known = own or self.extractor in ("lite2", "lite0", "")
        yield known, "extractor", "one of 'lite2', 'lite0', '', 'a file.pt'"
        yield own or not self.distance, "distance", "empty without an extractor of your own"


@dataclass(frozen=True)
class Config(_Section):
    """One run; `run_name` carries a hash of all but its images' place and its evaluation."""

    version: int = VERSION  # of this format; a run of another version is refused
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self):
        if self.version != VERSION:
            said = f"this lgqlib reads configs of version {VERSION}; train the run again."
            raise ValueError(f"version = {self.version!r}: {said}")
        super().__post_init__()

    def _together(self):
        size, factor, lgq = self.data.size, self.backbone.downsample, self.quantizer.lgq
        yield 0 <= self.seed < 2**32, "seed", "between 0 and 2**32 - 1"
        right = f"at least {SMALLEST}, the side of SSIM's window, by which a run is evaluated"
        yield size >= SMALLEST, "data.size", right
        yield size % factor == 0, "data.size", f"a multiple of backbone.downsample = {factor}"
        bins = len(self.quantizer.levels)
        right = f"the number of quantizer.levels, {bins}, with bins per channel"
        yield not lgq.per_channel or bins == self.backbone.dim, "backbone.dim", right
        right = f"'absolute' with quantizer.lgq.energy = {lgq.energy!r}, which has no other unit"
        known = self.temperature.unit == "absolute" or lgq.energy in ("squared", "norm")
        yield known, "temperature.unit", right

    @property
    def latent_side(self) -> int:
        """Tokens along one side of an image."""
        return self.data.size // self.backbone.downsample

    def override(self, changes: Mapping[str, Any] | str = "", /) -> "Config":
        """Change fields by dotted name, strictly: a mapping, or text `name=value name=value`.

        Raises ValueError for an unknown name (with the known ones), or a value that it refuses.
        """
        values = self.to_dict()
        for name, value in pairs(changes).items():
            *path, last = name.split(".")
            section: Any = values
            for part in path:
                section = section.setdefault(part, {})
                if not isinstance(section, dict):
                    raise ValueError(f"override {name!r}: {part!r} has a value of its own.")
            section[last] = value
        return Config.from_dict(values)

    def to_dict(self) -> dict:
        """Give the config as nested dicts that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "Config":
        """Read what `to_dict` wrote: every field but those of `LATER`, and none besides."""
        return _read(cls, values, "")

    @property
    def evaluated(self) -> dict:
        """What decides an evaluation, and no weight."""
        return {"eval_crops": self.data.eval_crops, **dataclasses.asdict(self.evaluation)}

    @property
    def run_name(self) -> str:
        """Name the run, with a hash of all but where its images lie and how it is evaluated."""
        # As it is read back: a whole number in a field of type float is a float.
        values = Config.from_dict(self.to_dict()).to_dict()
        del values["evaluation"], values["data"]["root"], values["data"]["eval_crops"]
        text = json.dumps(values, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        method, num_codes = self.quantizer.method, self.quantizer.num_codes
        return f"{method}-{self.data.name}-K{num_codes}-s{self.seed}-{digest}"


def pairs(changes: Mapping[str, Any] | str) -> dict[str, Any]:
    """Give overrides by name, of a mapping or of text; ValueError for what is neither."""
    if isinstance(changes, Mapping):
        return dict(changes)
    if not isinstance(changes, str):
        raise ValueError(f"overrides = {changes!r}: it must be text, name=value name=value.")
    try:
        items = shlex.split(changes)  # a folder's name may hold a space, inside quotes
    except ValueError as error:
        raise ValueError(f"overrides = {changes!r}: {error}.") from None
    for item in items:
        if "=" not in item:
            raise ValueError(f"override {item!r}: write it as name=value, e.g. train.lr=1e-3.")
    return dict(item.split("=", 1) for item in items)


def _read(kind: Any, value: Any, name: str) -> Any:
    """Read a section, strictly, or the value of a field."""
    if not is_dataclass(kind):
        return _cast(name, value, kind)
    if not isinstance(value, Mapping):
        raise ValueError(f"{name or 'the config'} = {value!r}: it holds fields with dotted names.")
    kinds, prefix = typing.get_type_hints(kind), name and f"{name}."
    for unknown in value.keys() - kinds.keys():
        known = ", ".join(sorted(kinds))
        raise ValueError(f"unknown field {prefix + unknown!r}; known here: {known}.")
    value = {item: LATER[prefix + item] for item in kinds if prefix + item in LATER} | {**value}
    if missing := [prefix + item for item in kinds if item not in value]:
        raise ValueError(f"the config lacks {', '.join(missing)}.")
    return kind(**{item: _read(kinds[item], value[item], prefix + item) for item in kinds})


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _cast(name: str, value: Any, kind: Any) -> Any:
    """Give a value from JSON or text as `kind`, never guessing: a float is no int, 1 no bool."""
    right = KINDS.get(kind, "whole numbers a,b,c")
    is_text = isinstance(value, str)
    if isinstance(kind, types.GenericAlias):
        parts = value.strip("()").replace("x", ",").split(",") if is_text else value
        _require(isinstance(parts, list | tuple), name, value, right)
        return tuple(_cast(name, part, int) for part in parts if part != "")
    if kind is bool and is_text:
        value = {"true": True, "false": False}.get(value.lower(), value)
    elif kind in (int, float) and is_text:
        try:
            value = kind(value)
        except ValueError:
            _require(False, name, value, right)
    fits = isinstance(value, int | float if kind is float else kind)
    _require(fits and isinstance(value, bool) == (kind is bool), name, value, right)
    return kind(value)
