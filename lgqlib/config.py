"""A run as a value: what was trained, on what, and how; standard library only.

Every field is a plain scalar or a tuple of integers, so that a config is JSON, a command line and a
hash.
"""

import dataclasses
import hashlib
import json
import math
import shlex
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

ENERGIES = ("squared", "norm", "cosine", "dot")
INITIALIZATIONS = ("random", "kmeans", "gaussian", "uniform")
VERSION = 1
SMALLEST = 11
"""Side of the smallest image that SSIM can judge, in pixels."""


def _require(condition: bool, name: str, value: Any, right: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value!r}: it must be {right}.")


def _one_of(name: str, value: Any, choices: tuple) -> None:
    _require(value in choices, name, value, "one of " + ", ".join(map(repr, choices)))


def _at_least(name: str, value: float, least: float) -> None:
    _require(math.isfinite(value) and value >= least, name, value, f"a finite number >= {least}")


def _within(name: str, value: float, least: float, most: float) -> None:
    """Refuse what no machine can hold by its name, rather than by an allocation that fails."""
    right = f"a finite number >= {least}" if value < least else f"between {least} and {most}"
    _require(math.isfinite(value) and least <= value <= most, name, value, right)


def _positive(name: str, value: float, most: float) -> None:
    _require(math.isfinite(value) and value > 0, name, value, "a finite number > 0")
    _require(value <= most, name, value, f"at most {most:g}")


def _share(name: str, value: float) -> None:
    _require(0 <= value <= 1, name, value, "between 0 and 1")


@dataclass(frozen=True)
class DataConfig:
    name: str = "photos"
    """`photos` (embedded, no download), `cifar10`, `imagenette`, or `imagefolder` (any directory of
    images).
    """
    root: str = ""
    """A folder (or tar) given by the user; required by `imagefolder`, instead of a download for the
    others.
    """
    size: int = 32
    """Side of the square images that the model sees, in pixels."""
    resize: int = 0
    """Short side of the stored images, in pixels; 0 keeps them as they are."""
    flip: bool = True
    """Mirror half of the training crops."""
    eval_crops: int = 512
    """How many held-out crops an evaluation looks at; 0 is all of them."""

    def __post_init__(self):
        _one_of("data.name", self.name, ("photos", "cifar10", "imagenette", "imagefolder"))
        _require(
            self.name != "imagefolder" or bool(self.root),
            "data.root",
            self.root,
            "a folder of images when data.name is 'imagefolder'",
        )
        _within("data.size", self.size, 8, 4096)
        _within("data.resize", self.resize, 0, 8192)
        _require(
            self.resize == 0 or self.resize >= self.size,
            "data.resize",
            self.resize,
            f"0 or at least data.size = {self.size}, for a crop cannot exceed its image",
        )
        _at_least("data.eval_crops", self.eval_crops, 0)


@dataclass(frozen=True)
class BackboneConfig:
    family: str = "patch"
    """`patch`: space-to-depth, then residual blocks at the latent resolution. `vqgan`: the paper's
    pyramid.
    """
    downsample: int = 4
    """Image side over latent side; 32 / 4 gives 8 x 8 = 64 tokens."""
    width: int = 96
    """Channels of the residual blocks (`vqgan`: of the first stage)."""
    depth: int = 2
    """Residual blocks in encoder and decoder each (`vqgan`: a stage)."""
    dim: int = 5
    """C, channels of a latent."""
    norm: str = "layer"
    """Before the quantizer: `layer` (each token over channels), `group` (the whole map),
    `group+layer`, `none`.
    """

    def __post_init__(self):
        _one_of("backbone.family", self.family, ("patch", "vqgan"))
        _one_of("backbone.norm", self.norm, ("layer", "group", "group+layer", "none"))
        _within("backbone.downsample", self.downsample, 1, 256)
        power = self.downsample & (self.downsample - 1) == 0
        _require(power, "backbone.downsample", self.downsample, "a power of two")
        _within("backbone.width", self.width, 8, 4096)
        _require(self.width % 8 == 0, "backbone.width", self.width, "a multiple of 8")
        _within("backbone.depth", self.depth, 1, 256)
        _within("backbone.dim", self.dim, 1, 4096)
        _require(
            self.dim > 2 or "layer" not in self.norm,
            "backbone.norm",
            self.norm,
            f"'group' or 'none' with backbone.dim = {self.dim}: "
            "a token normalized over so few channels has no freedom left",
        )


@dataclass(frozen=True)
class LGQConfig:
    energy: str = "squared"
    """d(z, e) of the soft assignment: squared distance, distance, 1 - cosine, or minus the dot
    product.
    """
    codebook_loss: str = "commit"
    """What trains the codes: `commit` (the paper; mean (z_q - z)^2, nothing detached) or
    `free_energy`.
    """
    identity: float = 0.0
    """Share of the identity path in the encoder's gradient; 0 is the paper's straight-through
    average.
    """
    usage: str = "square"
    """`square`: K sum u^2 (the paper); `entropy`: 1 - H(u) / log K, free of K."""
    initialization: str = "random"
    """How the codebook starts from real latents: `random`, `kmeans`, `gaussian`, `uniform`."""
    widths: bool = False
    """Learn a width s_k for each code: d_nk / (tau s_k)."""
    per_channel: bool = False
    """Learn scalar bins for each channel (`quantizer.levels`), the learned counterpart of FSQ."""
    active_floor: float = 0.0
    """P_min of the floor term: the perplexity under which it acts, in codes (with bins per channel,
    in values of a channel).
    """
    engine: str = "auto"
    """Engine of the soft assignment: `auto`, `dense`, `streaming`, `triton`."""

    def __post_init__(self):
        _one_of("quantizer.lgq.energy", self.energy, ENERGIES)
        _one_of("quantizer.lgq.codebook_loss", self.codebook_loss, ("commit", "free_energy"))
        _one_of("quantizer.lgq.usage", self.usage, ("square", "entropy"))
        _one_of("quantizer.lgq.initialization", self.initialization, INITIALIZATIONS)
        _one_of("quantizer.lgq.engine", self.engine, ("auto", "dense", "streaming", "triton"))
        _share("quantizer.lgq.identity", self.identity)
        _at_least("quantizer.lgq.active_floor", self.active_floor, 0)
        _require(
            not (self.per_channel and (self.widths or self.energy != "squared")),
            "quantizer.lgq.per_channel",
            self.per_channel,
            "False with learnable widths or an energy other than 'squared'",
        )


@dataclass(frozen=True)
class QuantizerConfig:
    method: str = "lgq"
    """Which quantizer: a row of `quantizers.METHODS`."""
    num_codes: int = 1024
    """K, the size of the codebook."""
    levels: tuple[int, ...] = ()
    """Levels a channel for FSQ-like quantizers; their product is K. Empty: chosen to match
    `num_codes`.
    """
    lgq: LGQConfig = field(default_factory=LGQConfig)

    def __post_init__(self):
        _within("quantizer.num_codes", self.num_codes, 1, 2**24)
        for level in self.levels:
            _within("quantizer.levels", level, 2, 2**24)
        product = math.prod(self.levels)
        _require(
            not self.levels or product == self.num_codes,
            "quantizer.levels",
            self.levels,
            f"levels whose product is quantizer.num_codes = {self.num_codes}, not {product}",
        )
        _require(
            not self.lgq.per_channel or bool(self.levels),
            "quantizer.levels",
            self.levels,
            "given when quantizer.lgq.per_channel is set, e.g. (8, 8, 4, 4)",
        )


@dataclass(frozen=True)
class TemperatureConfig:
    kind: str = "linear"
    """`linear`, `cosine`, `exponential` from start to end, or `constant` at start."""
    start: float = 1.0
    end: float = 0.1
    reduced: bool = False
    """Read start and end in units of the first critical temperature tau_c of the running latents.
    """
    span: float = 1.0
    """Share of the steps over which the temperature falls; afterwards it stays at end."""

    def __post_init__(self):
        _one_of("temperature.kind", self.kind, ("linear", "cosine", "exponential", "constant"))
        _positive("temperature.start", self.start, 1e6)
        _positive("temperature.end", self.end, 1e6)
        _require(0 < self.span <= 1, "temperature.span", self.span, "in (0, 1]")

    def at(self, step: int, num_steps: int) -> float:
        """Give the temperature of a step: absolute, or in units of tau_c when `reduced`."""
        if self.kind == "constant":
            return self.start
        share = min(1.0, step / max(1.0, self.span * (num_steps - 1)))
        if self.kind == "linear":
            return self.start + (self.end - self.start) * share
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * share))
        return self.start * (self.end / self.start) ** share


@dataclass(frozen=True)
class LossConfig:
    reconstruction: str = "l1"
    """`l1` or `l2` on images in [-1, 1]."""
    commit: float = 1.0
    """Weight of each of a quantizer's terms, by the term's name."""
    peak: float = 0.005
    usage: float = 0.005
    floor: float = 0.0
    free_energy: float = 1.0
    codebook: float = 1.0
    entropy: float = 1.0
    widths: float = 0.0
    perceptual: float = 0.0
    """Weight of the perceptual distance on EfficientNet-Lite0 features; 0 never builds the network.
    """
    perceptual_side: int = 224
    """Side to which images are enlarged for the perceptual loss, in pixels."""
    adversarial: float = 0.0
    """Weight of the PatchGAN's term; 0 never builds the discriminator."""
    adversarial_start: float = 0.5
    """Share of the steps after which the discriminator takes part."""
    adaptive: bool = True
    """Scale the adversarial term by VQGAN's ratio of gradients at the decoder's last layer."""
    discriminator_lr: float = 1e-4

    def __post_init__(self):
        _one_of("loss.reconstruction", self.reconstruction, ("l1", "l2"))
        for name in (*TERMS, "perceptual", "adversarial"):
            _within(f"loss.{name}", getattr(self, name), 0, 1e6)
        _within("loss.perceptual_side", self.perceptual_side, 32, 1024)
        _share("loss.adversarial_start", self.adversarial_start)
        _positive("loss.discriminator_lr", self.discriminator_lr, 1.0)


TERMS = ("commit", "peak", "usage", "floor", "free_energy", "codebook", "entropy", "widths")
"""Names that a quantizer's terms may have; each has its weight in `LossConfig`."""


@dataclass(frozen=True)
class TrainConfig:
    num_steps: int = 600
    batch_size: int = 64
    """Images a step, over all processes."""
    lr: float = 2e-3
    codebook_lr: float = 1.0
    """Learning rate of the quantizer's own parameters, as a multiple of `lr`: Adam moves a code by
    at most about the sum of the rates, which must span the latents where codes start far away.
    """
    weight_decay: float = 1e-4
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    decay: str = "cosine"
    """Learning rate after the warm-up: `cosine` to zero, or `constant`."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 never clips."""
    ema: float = 0.0
    """Decay of the moving average of weights that evaluation uses; 0 keeps none."""
    precision: str = "no"
    """Mixed precision of `accelerate`: `no`, `bf16`, `fp16`."""
    compile: bool = False
    """Compile encoder and decoder with `torch.compile`."""
    log_every: int = 10
    eval_every: int = 200
    """Steps between light evaluations on held-out images; 0 only at the end."""
    checkpoint_every: int = 200
    num_snapshots: int = 12
    """Snapshots of codebook and probe, at log-spaced steps."""
    probe: int = 2048
    """Latents in each snapshot's fixed probe, in tokens."""

    def __post_init__(self):
        for name in ("num_steps", "log_every", "checkpoint_every"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        _within("train.batch_size", self.batch_size, 1, 2**20)
        _within("train.probe", self.probe, 1, 2**24)
        _within("train.num_snapshots", self.num_snapshots, 0, 10_000)
        _positive("train.lr", self.lr, 1.0)
        _positive("train.codebook_lr", self.codebook_lr, 1e3)
        _within("train.weight_decay", self.weight_decay, 0, 1e3)
        for name in ("clip", "eval_every"):
            _at_least(f"train.{name}", getattr(self, name), 0)
        _share("train.warmup", self.warmup)
        _require(0 <= self.ema < 1, "train.ema", self.ema, "in [0, 1)")
        _one_of("train.decay", self.decay, ("cosine", "constant"))
        _one_of("train.precision", self.precision, ("no", "bf16", "fp16"))

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
class EvaluationConfig:
    extractor: str = "lite2"
    """Features of KID, Fréchet and perceptual distance: `lite2`, `lite0`, empty for none, or the
    path of your own TorchScript network (Inception, say), whose name ends in .pt.
    """
    distance: str = ""
    """Path of a TorchScript perceptual distance (LPIPS, say) beside an extractor of your own."""
    batch_size: int = 64

    def __post_init__(self):
        own = self.extractor.endswith(".pt")
        if not own:
            _one_of("evaluation.extractor", self.extractor, ("lite2", "lite0", "", "a file.pt"))
        _require(
            own or not self.distance,
            "evaluation.distance",
            self.distance,
            f"empty with evaluation.extractor = {self.extractor!r}, which has a distance of its own"
            if self.extractor
            else "empty without an evaluation.extractor",
        )
        _within("evaluation.batch_size", self.batch_size, 1, 2**20)


@dataclass(frozen=True)
class Config:
    """Hold one run. Two equal configs are the same run; `run_name` carries the hash."""

    version: int = VERSION
    """Of this format; a run of another version is refused."""
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
            raise ValueError(
                f"version = {self.version!r}: this lgqlib reads configs of "
                f"version {VERSION}; train the run again."
            )
        _require(0 <= self.seed < 2**32, "seed", self.seed, "between 0 and 2**32 - 1")
        _require(
            self.data.size >= SMALLEST,
            "data.size",
            self.data.size,
            f"at least {SMALLEST}, the side of SSIM's window, by which a run is evaluated",
        )
        _require(
            self.data.size % self.backbone.downsample == 0,
            "data.size",
            self.data.size,
            f"a multiple of backbone.downsample = {self.backbone.downsample}",
        )
        _require(
            not self.quantizer.lgq.per_channel or len(self.quantizer.levels) == self.backbone.dim,
            "backbone.dim",
            self.backbone.dim,
            f"the number of quantizer.levels, {len(self.quantizer.levels)}, with bins per channel",
        )
        _require(
            not self.temperature.reduced or self.quantizer.lgq.energy in ("squared", "norm"),
            "temperature.reduced",
            self.temperature.reduced,
            f"False with quantizer.lgq.energy = {self.quantizer.lgq.energy!r}, "
            "which has no first critical temperature",
        )

    @property
    def latent_side(self) -> int:
        """Tokens along one side of an image."""
        return self.data.size // self.backbone.downsample

    def override(self, changes: Mapping[str, Any] | str = "", /) -> "Config":
        """Change fields by dotted name, strictly.

        `changes`: `{"quantizer.num_codes": 4096}`, or the same as text, `quantizer.num_codes=4096
        train.lr=1e-3`.
        Raises ValueError for an unknown name (with the known ones), a value of another type, or a
        refused value.
        """
        if not isinstance(changes, str | Mapping):
            raise ValueError(f"overrides = {changes!r}: it must be text, name=value name=value.")
        pairs = _parse(changes) if isinstance(changes, str) else dict(changes)
        return _replace(self, _nest(pairs), "")

    def to_dict(self) -> dict:
        """Give the config as nested dicts that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping) -> "Config":
        """Read what `to_dict` wrote; every field must be there, and none besides."""
        if not isinstance(value, Mapping):
            raise ValueError(f"the config is {value!r}: it must hold fields.")
        missing = _missing(cls(), value, "")
        if missing:
            raise ValueError(f"the config lacks {', '.join(missing)}.")
        return _replace(cls(), value, "")

    @property
    def run_name(self) -> str:
        """Name the run after what it is, with a hash of everything that it is."""
        # As it is read back: a whole number in a field of type float is a float.
        text = json.dumps(_replace(self, self.to_dict(), "").to_dict(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        method, num_codes = self.quantizer.method, self.quantizer.num_codes
        return f"{method}-{self.data.name}-K{num_codes}-s{self.seed}-{digest}"


def _parse(text: str) -> dict[str, str]:
    pairs = {}
    try:
        items = shlex.split(text)  # a folder's name may hold a space, inside quotes
    except ValueError as error:
        raise ValueError(f"overrides = {text!r}: {error}.") from None
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"override {item!r}: write it as name=value, e.g. train.lr=1e-3.")
        pairs[name] = value
    return pairs


def _nest(pairs: Mapping[str, Any]) -> dict:
    tree: dict = {}
    for name, value in pairs.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(
                    f"override {name!r} goes through {part!r}, which also has a value of its own."
                )
        node[last] = value
    return tree


def _missing(like: Any, value: Any, prefix: str) -> list[str]:
    names = []
    for item in fields(like):
        if item.name not in value:
            names.append(prefix + item.name)
        elif is_dataclass(getattr(like, item.name)) and isinstance(value[item.name], Mapping):
            names += _missing(getattr(like, item.name), value[item.name], f"{prefix}{item.name}.")
    return names


def _replace(old: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(type(old))
    known = {item.name for item in fields(old)}
    new = {}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(
                f"unknown field {prefix + name!r}; known here: {', '.join(sorted(known))}."
            )
        current = getattr(old, name)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{prefix + name} = {value!r}: it holds fields; "
                    "set one of them by its dotted name."
                )
            new[name] = _replace(current, value, f"{prefix}{name}.")
        else:
            new[name] = _cast(prefix + name, value, hints[name])
    return dataclasses.replace(old, **new)


def _cast(name: str, value: Any, kind: Any) -> Any:
    """Give `value` as `kind`, from JSON or from text; never by guessing (a float is no int, a
    number no bool).
    """
    wrong = ValueError(f"{name} = {value!r}: it must be {_describe(kind)}.")
    if isinstance(kind, types.GenericAlias):
        if isinstance(value, str):
            value = [
                part
                for part in value.replace("(", "").replace(")", "").replace("x", ",").split(",")
                if part
            ]
        if not isinstance(value, list | tuple):
            raise wrong
        return tuple(_cast(name, item, int) for item in value)
    if kind is bool:
        value = (
            {"true": True, "false": False}.get(value.lower(), value)
            if isinstance(value, str)
            else value
        )
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if isinstance(value, bool):
        raise wrong
    try:
        number = kind(value) if isinstance(value, str) else value
    except ValueError:
        raise wrong from None
    if kind is int and not isinstance(number, int):
        raise wrong
    if kind is float and not isinstance(number, int | float):
        raise wrong
    return kind(number)


def _describe(kind: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
        kind, "whole numbers a,b,c"
    )
