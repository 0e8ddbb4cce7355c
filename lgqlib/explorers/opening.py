"""Any tokenizer opens: ours, arrays, a file, or an object with the usual methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor, nn

from lgqlib.config import DataConfig
from lgqlib.data import load, to_model, whole_images
from lgqlib.data.store import decode as decode_file
from lgqlib.measure.temperature import as_tensor, critical_temperature, soften
from lgqlib.quantizers import METHODS
from lgqlib.quantizers.assignment import nearest
from lgqlib.quantizers.lgq import LGQ
from lgqlib.quantizers.scalar import ScalarLGQ
from lgqlib.run import Run, Snapshot

LIMIT = 200_000
"""Latents that are looked at; of more, a sample."""
PHOTOGRAPHS = 9
"""Held-out photographs that are taken where none were given."""
LARGEST = 512
"""Pixels of a photograph's side, at most; larger ones are cropped around the center."""
NAMES = ("codebook", "latents", "indices", "images")
SHAPES = (
    "codebook [K, C], latents [B, C, h, w] or [N, C], indices [B, h, w] or [N], "
    "images [B, 3, H, W] with H and W the same multiple of h and w"
)
Vectors = Callable[[Tensor], Tensor]
Images = list[tuple[str, Tensor]]  # names, and bytes [3, H, W]


@dataclass(frozen=True)
class Opened:
    """A tokenizer and what it makes of photographs: all that the explorer looks at."""

    name: str
    codebook: Tensor  # [K, C], what the decoder receives
    sites: Tensor  # [K, D], where the nearest code is chosen
    points: list[Tensor] = field(default_factory=list)  # [h, w, D] a photograph, among the sites
    indices: list[Tensor] = field(default_factory=list)  # [h, w] a photograph
    images: list[Tensor] = field(default_factory=list)  # uint8 [3, H, W]; none without images
    names: list[str] = field(default_factory=list)
    decode: Vectors | None = None  # vectors [b, C, h, w] to images [b, 3, H, W] in [-1, 1]
    encode: Vectors | None = None  # images in [-1, 1] to points [b, h, w, D]
    energy: str = "squared"
    widths: Tensor | None = None
    width: float = float("nan")  # 2 D / C, the unit of temperatures
    tau_c: float = float("nan")
    total: int = 0  # latents before sampling
    snapshots: Sequence[Snapshot] = ()  # of its training, codes among the sites
    tau: float = float("nan")  # that training ended at; NaN where a method has none
    about: str = ""  # where it is from, in a sentence
    notebooks: Path = Path()  # where a notebook writes what it found

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.sites)

    @property
    def num_tokens(self) -> int:
        """How many tokens are looked at."""
        return sum(i.numel() for i in self.indices)

    @property
    def latents(self) -> Float[Tensor, "N D"]:
        """All tokens' points, photograph by photograph."""
        return torch.cat([p.flatten(0, 1) for p in self.points])

    @property
    def codes(self) -> Int[Tensor, " N"]:
        """All tokens' codes, in the same order."""
        return torch.cat([i.flatten() for i in self.indices])

    @property
    def places(self) -> Int[Tensor, "N 3"]:
        """Each token's photograph, row and column, in the same order."""
        sizes = [
            (torch.tensor([n]), *map(torch.arange, i.shape)) for n, i in enumerate(self.indices)
        ]
        return torch.cat([torch.cartesian_prod(*size) for size in sizes])

    @property
    def factor(self) -> int:
        """Pixels of a token's side; 1 without images."""
        return self.images[0].shape[1] // self.indices[0].shape[0] if self.images else 1

    def soften(self, z: Tensor, taus: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Give soft codes [T, n, C], as the decoder receives them, and entropies in bits [T, n]."""
        options = {"energy": self.energy, "widths": self.widths}
        return soften(z, self.sites, self.codebook, taus, **options)

    def with_photograph(self, name: str, image: Any) -> "Opened":
        """Put one photograph before the others; ValueError without an encoder, or if it is none."""
        if self.encode is None:
            raise ValueError(f"{self.name} has no encoder here: open the tokenizer itself.")
        return self.seeing(photographs([(name, image)], multiple=self.factor))

    @torch.no_grad()
    def seeing(self, images: Images) -> "Opened":
        """Encode photographs, and put them before the others."""
        points = [self.encode(to_model(image[None])).float()[0] for _, image in images]
        options = {"energy": self.energy, "widths": self.widths}
        flat = [nearest(p.flatten(0, 1), self.sites, **options) for p in points]
        indices = [i.view(p.shape[:2]) for i, p in zip(flat, points, strict=True)]
        names, pixels = zip(*images, strict=True)
        more = {"points": points, "indices": indices, "names": names, "images": pixels}
        found = {key: [*new, *getattr(self, key)] for key, new in more.items()}
        return replace(self, **found, total=self.total + sum(i.numel() for i in indices))


def opened(
    source: Any,
    *,
    images: Any = None,
    latents: Any = None,
    indices: Any = None,
    decode: Vectors | None = None,
    cache: Path | str | None = None,
) -> Opened:
    """Open a tokenizer, a run or its folder, a `.npz` or `.safetensors` file, or a module.

    Raises ValueError, in one sentence, for what is none of these or lacks what it needs.
    """
    if isinstance(source, Opened):
        return source
    if isinstance(source, str | Path):
        source = Path(source)
        if source.suffix in (".npz", ".safetensors"):
            return from_arrays(**read(source), decode=decode, name=source.stem)
        source = Run(source)
    if isinstance(source, Run):
        return from_run(source, images=images, cache=cache)
    if hasattr(source, "quantizer") and hasattr(source, "decode_latents"):
        return from_tokenizer(source, images=images, cache=cache)
    if hasattr(source, "quantize") and hasattr(source, "encode") and hasattr(source, "decode"):
        return from_vqmodel(source, images=images)
    if hasattr(source, "codebook") and latents is not None:
        return from_module(source, latents=latents, indices=indices, images=images, decode=decode)
    needs = " together with latents=[B, C, h, w]" if hasattr(source, "codebook") else ""
    raise ValueError(
        f"{type(source).__name__} cannot be opened: give a Tokenizer, a run's folder, a .npz or "
        f".safetensors file, codebook= and latents=, diffusers' VQModel, or a module of "
        f"vector-quantize-pytorch{needs}."
    )


def from_arrays(
    codebook: Any,
    latents: Any = None,
    indices: Any = None,
    images: Any = None,
    *,
    decode: Vectors | None = None,
    name: str = "codebook",
) -> Opened:
    """Open arrays, NumPy's or torch's; ValueError with the expected shapes where they do not fit.

    Latents are taken as they are where the nearest code is chosen; indices default to that code.
    """
    _require(
        codebook is not None and latents is not None,
        f"codebook and latents must both be given: {SHAPES}.",
    )
    sites, z = _numbers("codebook", codebook), _numbers("latents", latents)
    fits = sites.ndim == 2 and len(sites) >= 2 and z.ndim in (2, 4) and z.numel() > 0
    shapes = f"codebook {tuple(sites.shape)} and latents {tuple(z.shape)}"
    _require(fits and z.shape[1] == sites.shape[1], f"{shapes} do not fit: {SHAPES}.")
    finite = z.isfinite().all() and sites.isfinite().all()
    _require(finite, "codebook and latents must be finite numbers.")
    if indices is not None:
        indices = torch.as_tensor(_numeric("indices", indices)).long()
        if z.ndim == 2 and indices.ndim == 3 and indices.numel() == len(z):
            z = z.reshape(*indices.shape, -1).movedim(-1, 1)
        shape, last = (len(z), *z.shape[2:]), len(sites)
        _require(
            indices.shape == shape, f"indices {tuple(indices.shape)} do not fit {shape}: {SHAPES}."
        )
        inside = 0 <= int(indices.min()) <= int(indices.max()) < last
        _require(inside, f"indices must lie in [0, {last}), the rows of the codebook.")
    pictures = [] if images is None else photographs(images)
    if pictures:
        sides, (h, w) = {tuple(p.shape[1:]) for _, p in pictures}, (*z.shape[2:], 0, 0)[:2]
        high, wide = min(sides)
        right = h and len(pictures) == len(z) and len(sides) == 1
        right = right and high % h == wide % w == 0 and high // h == wide // w
        given = f"{len(pictures)} images of {sorted(sides)} do not fit latents {tuple(z.shape)}"
        _require(right, f"{given}: {SHAPES}.")
    total = z[:, 0].numel()
    if z.ndim == 2:  # a list is laid out in rows of maps; the few that fill no row are left out
        most = min(len(z), LIMIT)
        wide = min(int(most**0.5), 128)
        kept = sample(len(z), most // wide * wide).sort()[0]
        maps, grids = (
            None if x is None else x[kept].unflatten(0, (-1, wide)).split(128) for x in (z, indices)
        )
    else:  # maps that are spread evenly, at most LIMIT latents
        kept = spread(len(z), LIMIT // (z.shape[2] * z.shape[3]))
        maps, grids = z[kept].movedim(1, -1), None if indices is None else indices[kept]
        pictures = [pictures[i] for i in kept if pictures]
    if grids is None:
        grids = [nearest(p.flatten(0, 1), sites).view(p.shape[:2]) for p in maps]
    names = [n for n, _ in pictures] or [f"tokens {i}" for i in range(len(maps))]
    parts = {"points": [*maps], "indices": [*grids], "images": [p for _, p in pictures]}
    return _finished(Opened(name, sites, sites, **parts, names=names, decode=decode, total=total))


def spread(total: int, most: int) -> list[int]:
    """Choose at most `most` of `total` numbers, evenly, at least one of some."""
    few = min(total, max(1, most))
    return np.unique(np.linspace(0, total - 1, few).astype(int)).tolist()


def sample(total: int, most: int) -> Tensor:
    """Choose at most `most` of `total` numbers at random, the same each time."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:most]


def from_run(
    run: Run, *, images: Any = None, cache: Path | str | None = None, num_images: int = 256
) -> Opened:
    """Open a run with what it kept of its training."""
    name = METHODS[run.config.quantizer.method].label
    tokenizer = run.tokenizer()
    o = from_tokenizer(tokenizer, images=images, cache=cache, name=name, num_images=num_images)
    kept = run.snapshots()
    if tokenizer.quantizer.energy == "cosine":

        def unit(x: np.ndarray) -> np.ndarray:
            return F.normalize(torch.from_numpy(x), dim=1).numpy()

        kept = [replace(s, codebook=unit(s.codebook), latents=unit(s.latents)) for s in kept]
    about = f"{run.name}: step {run.step}."
    return replace(o, snapshots=kept, about=about, notebooks=run.path / "notebooks")


def held_out(
    config: DataConfig, cache: Path | str | None, multiple: int, num_images: int = 256
) -> Images:
    """Give held-out photographs; of crops many, as a codebook's statistics need."""
    val = load(config, "val", cache=cache or "data/cache")
    few = min(num_images, PHOTOGRAPHS)
    found = whole_images(val, multiple=multiple, limit=few, largest=LARGEST)
    small = max(found[0][1].shape[1:]) < 96
    return whole_images(val, multiple=multiple, limit=num_images) if small else found


@torch.no_grad()
def from_tokenizer(
    tokenizer: nn.Module,
    *,
    images: Any = None,
    cache: Path | str | None = None,
    name: str = "",
    num_images: int = 256,
) -> Opened:
    """Open a `Tokenizer`; without images, on held-out photographs of what it was trained on."""
    factor = tokenizer.config.backbone.downsample
    if images is None:
        images = held_out(tokenizer.config.data, cache, factor, num_images)
    return _encoded(unseeing(tokenizer, name), photographs(images, multiple=factor))


def unseeing(tokenizer: nn.Module, name: str = "") -> Opened:
    """Open a `Tokenizer` that has no photographs yet."""
    tokenizer = tokenizer.eval()
    quantizer, energy, nan = tokenizer.quantizer, tokenizer.quantizer.energy, float("nan")
    softly, sites = isinstance(quantizer, LGQ | ScalarLGQ), quantizer.sites.detach().float()
    normalized = energy == "cosine"  # 1 - cos is half of the squared distance on the sphere

    def encode(x: Tensor) -> Tensor:
        points = quantizer.points(tokenizer.latents(x))
        return F.normalize(points, dim=-1) if normalized else points

    return Opened(
        name or type(quantizer).__name__,
        quantizer.codebook.detach().float(),
        F.normalize(sites, dim=1) if normalized else sites,
        decode=tokenizer.decode_latents,
        encode=encode,
        energy="squared" if normalized else energy,
        widths=None if quantizer.widths is None else quantizer.widths.detach(),
        width=nan if normalized else tokenizer.width,
        tau_c=nan if normalized else tokenizer.tau_c,
        tau=tokenizer.trained_tau.item() * (2 if normalized else 1) if softly else nan,
    )


@torch.no_grad()
def from_vqmodel(model: Any, *, images: Any = None) -> Opened:
    """Open what answers as diffusers' VQModel: `encode(x).latents`, `quantize.embedding`, `decode`.

    Its decoder is called with `force_not_quantize=True`, on vectors that are codes already.
    """
    name = type(model).__name__
    _require(images is not None, f"{name} needs images: [B, 3, H, W], or a list of photographs.")
    codes = model.quantize.embedding.weight.detach().float()
    channels = getattr(getattr(model, "config", None), "block_out_channels", None)
    factor = 2 ** (len(channels) - 1) if channels else 16

    def decode(z: Tensor) -> Tensor:
        return model.decode(z, force_not_quantize=True).sample

    def encode(x: Tensor) -> Tensor:
        return model.encode(x).latents.movedim(1, -1)

    bare = Opened(name, codes, codes, decode=decode, encode=encode)
    return _encoded(bare, photographs(images, multiple=factor))


@torch.no_grad()
def from_module(
    module: Any, *, latents: Any, indices: Any, images: Any, decode: Vectors | None
) -> Opened:
    """Open a module of vector-quantize-pytorch with latents [B, C, h, w], before its projection.

    VectorQuantize (one head, Euclidean or cosine) and SimVQ; decoding undoes the projection.
    """
    name, z = type(module).__name__, _numbers("latents", latents)
    codes = as_tensor(module.codebook)
    single = codes.ndim == 2 and getattr(module, "heads", 1) == 1
    _require(single, f"{name} has several codebooks: give one codebook [K, C].")
    inside, outside = (getattr(module, f"project_{way}", None) for way in ("in", "out"))
    if inside is not None:
        z = inside(z.movedim(1, -1)).movedim(-1, 1)
    if getattr(module, "use_cosine_sim", False):
        z, codes = F.normalize(z, dim=1), F.normalize(codes, dim=1)
    back = decode
    if decode is not None and outside is not None:

        def back(vectors: Tensor) -> Tensor:
            return decode(outside(vectors.movedim(1, -1)).movedim(-1, 1))

    return from_arrays(codes, z, indices, images, decode=back, name=name)


def read(file: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by their names; pickled objects are refused."""
    try:
        if file.suffix == ".safetensors":
            arrays = load_file(file)
        else:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {k: archive[k] for k in archive.files if k in NAMES}
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist.") from None
    except (ValueError, OSError, SafetensorError) as error:
        why = "pickled objects" if "pickle" in str(error).lower() else str(error)
        raise ValueError(f"{file} cannot be read ({why}): it must hold {SHAPES}.") from None
    held = f"{file} holds {', '.join(arrays) or 'nothing'}"
    _require({"codebook", "latents"} <= arrays.keys(), f"{held}: it must hold {SHAPES}.")
    return {k: arrays[k] for k in NAMES if k in arrays}


def photographs(images: Any, *, multiple: int = 1) -> Images:
    """Give photographs as bytes [3, H, W] with their names, cropped to whole tokens.

    `images`: [B, 3, H, W] or [B, H, W, 3] in bytes, [0, 1] or [-1, 1]; or a list of arrays, PIL
    images, files, or (name, image). ValueError names the one that cannot be read.
    """
    if isinstance(images, str | Path):
        path = Path(images)
        images = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 3:
        images = images[None]
    some = isinstance(images, Tensor | np.ndarray | Sequence) and len(images) > 0
    _require(some, "images must be [B, 3, H, W], or a list with at least one photograph.")
    found = []
    for i, image in enumerate(images):
        name = Path(image).stem if isinstance(image, str | Path) else f"photograph {i}"
        name, image = image if isinstance(image, tuple) else (name, image)
        pixels = _pixels(name, image)
        sides = pixels.shape[1:]
        if multiple > 1:
            sides = [min(s, LARGEST) // multiple * multiple for s in sides]
        small = f"photograph {name} is smaller than one token of {multiple} pixels."
        _require(0 not in sides, small)
        top, left = ((a - b) // 2 for a, b in zip(pixels.shape[1:], sides, strict=True))
        crop = pixels[:, top : top + sides[0], left : left + sides[1]]
        found.append((str(name), crop.contiguous()))
    return found


def _pixels(name: str, image: Any) -> Tensor:
    """Give one photograph as bytes [3, H, W]."""
    try:
        if isinstance(image, str | Path | bytes):
            image = decode_file(Path(image) if isinstance(image, str) else image)
        elif isinstance(image, Image.Image):
            image = decode_file(image.copy())  # which closes what it is given
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"photograph {name} cannot be read: {error}.") from None
    x = torch.as_tensor(np.array(_numeric(f"photograph {name}", image)))
    if x.ndim == 3 and x.shape[0] != 3 and x.shape[2] == 3:
        x = x.movedim(-1, 0)
    right = x.ndim == 3 and x.shape[0] == 3
    _require(right, f"photograph {name} is {tuple(x.shape)}: it must be [3, H, W].")
    if not x.is_floating_point():
        return x.clamp(0, 255).to(torch.uint8)
    unit = (x + 1) / 2 if x.min() < 0 else x
    return (unit.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)


def _numeric(name: str, array: Any) -> np.ndarray:
    array = array.detach().cpu() if isinstance(array, Tensor) else array
    array = array.float() if isinstance(array, Tensor) and array.dtype == torch.bfloat16 else array
    array = np.asarray(array)
    _require(array.dtype.kind in "fiub", f"{name} must hold numbers, not {array.dtype}.")
    return array


def _numbers(name: str, array: Any) -> Tensor:
    return as_tensor(_numeric(name, array)).float()


def _require(fits: Any, text: str) -> None:
    if not fits:
        raise ValueError(text)


def _encoded(bare: Opened, images: Images) -> Opened:
    """Encode photographs, as many as LIMIT latents allow, spread evenly."""
    first = bare.seeing(images[:1])
    (_, high, wide), (h, w) = first.images[0].shape, first.indices[0].shape
    given = f"{bare.name} gives {h} x {w} tokens for {high} x {wide} pixels"
    fits = high % h == 0 and high // h == wide / w
    _require(fits, f"{given}: images must be a multiple of its tokens.")
    total = sum(p.shape[1] * p.shape[2] for _, p in images) // first.factor**2
    kept = spread(len(images), len(images) * LIMIT // total)
    return _finished(replace(bare.seeing([images[i] for i in kept]), total=total))


def _finished(o: Opened) -> Opened:
    """Fill in the unit of temperatures, and tau_c, where the tokenizer does not say them."""
    z, width, tau_c = o.latents, o.width, o.tau_c
    if not width > 0:
        width = 2 * (z - o.sites[o.codes]).square().sum(1).mean().item() / z.shape[1]
        width = width if width > 0 else 1e-6 * (z.var(0).mean().item() or 1.0)
    if not tau_c > 0 and o.energy in ("squared", "norm") and len(z) > 1:
        tau_c = critical_temperature(z[:20_000], energy=o.energy)
    return replace(o, width=width, tau_c=tau_c)
