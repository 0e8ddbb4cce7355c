"""Quantizers behind one contract; METHODS is the table of them, a row a method."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from lgqlib.config import QuantizerConfig
from lgqlib.quantizers.base import Quantizer
from lgqlib.quantizers.fsq import BSQ, FSQ, IFSQ, LFQ
from lgqlib.quantizers.lgq import LGQ
from lgqlib.quantizers.scalar import ScalarLGQ
from lgqlib.quantizers.vq import EMAVQ, IBQ, VQ, KMeansVQ, SimVQ


@dataclass(frozen=True)
class Method:
    """A quantizer as the project knows it: one row makes it train, compare and keep its color."""

    name: str  # in configs, folders and tables
    build: Callable[[QuantizerConfig, int], Quantizer]  # from the config and C
    label: str  # what people read
    color: str  # the same in every figure
    weights: Mapping[str, float] = field(default_factory=dict)
    """Overrides of the config: the weights in the method's paper or its authors' code."""
    baseline: bool = False  # fitted, not learned: what a method has to be better than


def _lgq(config: QuantizerConfig, dim: int) -> Quantizer:
    options = asdict(config.lgq)
    if options.pop("per_channel"):
        return ScalarLGQ(config.levels, **options)
    return LGQ(config.num_codes, dim, **options)


def _table(kind: Callable[..., Quantizer], **options) -> Callable[..., Quantizer]:
    return lambda config, dim: kind(config.num_codes, dim, **options)


def _levels(kind: Callable[..., Quantizer]) -> Callable[..., Quantizer]:
    return lambda config, dim: kind(config.num_codes, dim, levels=config.levels, scale=config.scale)


_ROWS = (
    Method("lgq", _lgq, "LGQ", "#D55E00"),
    Method("fsq", _levels(FSQ), "FSQ", "#0072B2"),
    # van den Oord et al. 2017; its appendix A.1; Fifty et al. 2024; Zhu et al. 2024
    Method("vq", _table(VQ), "VQ", "#009E73", {"loss.commit": 0.25, "loss.codebook": 1.0}),
    Method("vq_ema", _table(EMAVQ), "VQ-EMA", "#E69F00", {"loss.commit": 0.25}),
    Method(
        "rotation", _table(EMAVQ, rotate=True), "rotation trick", "#CC79A7", {"loss.commit": 0.25}
    ),
    Method("simvq", _table(SimVQ), "SimVQ", "#56B4E9", {"loss.commit": 0.25, "loss.codebook": 1.0}),
    # Yu et al. 2023, as in Open-MAGVIT2; Zhao et al. 2024 and Shi et al. 2024, the authors' code
    Method("lfq", _table(LFQ), "LFQ", "#8c8c8c", {"loss.commit": 0.25, "loss.entropy": 0.1}),
    Method("bsq", _table(BSQ), "BSQ", "#a6761d", {"loss.commit": 0.0, "loss.entropy": 0.1}),
    Method(
        *("ibq", _table(IBQ), "IBQ", "#7570b3"),
        {"loss.commit": 1.0, "loss.codebook": 0.25, "loss.entropy": 0.05},
    ),
    Method("ifsq", _levels(IFSQ), "iFSQ", "#1b9e9e"),
    Method("kmeans", _table(KMeansVQ), "k-means", "#666666", baseline=True),
    Method("pca_kmeans", _table(KMeansVQ), "PCA + k-means", "#8a6d9e", baseline=True),
)
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
"""By name: the single registry of quantizers."""


def build(config: QuantizerConfig, dim: int) -> Quantizer:
    """Build the quantizer of a config; ValueError for another method or a size it cannot have."""
    return METHODS[known(config.method)].build(config, dim)


def known(method: str) -> str:
    """Give a method's name back. Raises ValueError, with the known ones, for another."""
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: it must be one of {', '.join(METHODS)}.")
    return method
