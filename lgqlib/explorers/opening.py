"""Any tokenizer opens: ours, arrays, a file, or an object with the usual methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
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
    def crop_of(self) -> Int[Tensor, " N"]:
        """Each token's crop of 8 x 8 tokens, in the same order."""
        found, begin = [], 0
        for h, w in (grid.shape for grid in self.indices):
            wide = -(-w // 8)
            found.append(begin + torch.arange(h)[:, None] // 8 * wide + torch.arange(w) // 8)
            begin += -(-h // 8) * wide
        return torch.cat([crops.flatten() for crops in found])

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
        [(name, pixels)] = photographs([(name, image)], multiple=self.factor)
        points, indices = _tokens(self, pixels)
        return replace(
            self,
            points=[points, *self.points],
            indices=[indices, *self.indices],
            images=[pixels, *self.images],
            names=[name, *self.names],
            total=self.total + indices.numel(),
        )


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
    if isinstance(source, str | Path) and Path(source).suffix in (".npz", ".safetensors"):
        return from_arrays(**read(Path(source)), decode=decode, name=Path(source).stem)
    if isinstance(source, str | Path):
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
    if codebook is None or latents is None:
        raise ValueError(f"codebook and latents must both be given: {SHAPES}.")
    both = {"codebook": codebook, "latents": latents}
    sites, z = (as_tensor(_numeric(name, x)).float() for name, x in both.items())
    given = None if indices is None else torch.as_tensor(_numeric("indices", indices)).long()
    fits = sites.ndim == 2 and len(sites) >= 2 and z.ndim in (2, 4) and z.numel() > 0
    if not fits or z.shape[1] != sites.shape[1]:
        raise ValueError(
            f"codebook {tuple(sites.shape)} and latents {tuple(z.shape)} do not fit: {SHAPES}."
        )
    if not (z.isfinite().all() and sites.isfinite().all()):
        raise ValueError("codebook and latents must be finite numbers.")
    if given is not None:
        shape = (len(z),) if z.ndim == 2 else (len(z), *z.shape[2:])
        if z.ndim == 2 and given.ndim == 3 and given.numel() == len(z):
            b, h, w = given.shape
            z = rearrange(z, "(b h w) c -> b c h w", b=b, h=h, w=w)
        elif given.shape != shape:
            raise ValueError(f"indices {tuple(given.shape)} do not fit {shape}: {SHAPES}.")
        if not 0 <= int(given.min()) <= int(given.max()) < len(sites):
            raise ValueError(f"indices must lie in [0, {len(sites)}), the rows of the codebook.")
    pictures = [] if images is None else photographs(images)
    if pictures:
        sides = {tuple(p.shape[1:]) for _, p in pictures}
        h, w = z.shape[2:] if z.ndim == 4 else (0, 0)
        right = z.ndim == 4 and len(pictures) == len(z) and len(sides) == 1
        (high, wide), *_ = sides
        if not right or high % h or wide % w or high // h != wide // w:
            raise ValueError(
                f"{len(pictures)} images of {sorted(sides)} do not fit latents "
                f"{tuple(z.shape)}: {SHAPES}."
            )
    total = z[:, 0].numel()
    if z.ndim == 2:
        points, grids = _as_maps(z, given)
    else:  # maps that are spread evenly, at most LIMIT latents
        kept = spread(len(z), LIMIT // (z.shape[2] * z.shape[3]))
        points = [z[i].movedim(0, -1) for i in kept]
        grids = [] if given is None else [given[i] for i in kept]
        pictures = [pictures[i] for i in kept] if pictures else []
    if given is None:
        grids = [nearest(p.flatten(0, 1), sites).view(p.shape[:2]) for p in points]
    return _finished(
        Opened(
            name=name,
            codebook=sites,
            sites=sites,
            points=points,
            indices=grids,
            images=[p for _, p in pictures],
            names=[n for n, _ in pictures] or [f"tokens {i}" for i in range(len(points))],
            decode=decode,
            total=total,
        )
    )


def spread(total: int, most: int) -> list[int]:
    """Choose at most `most` of `total` numbers, evenly, at least one of some."""
    few = min(total, max(1, most))
    return np.unique(np.linspace(0, total - 1, few).astype(int)).tolist()


def _as_maps(z: Tensor, given: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """Lay a list of latents [N, C] out in rows of maps; the few that fill no row are left out."""
    wide = min(int(min(len(z), LIMIT) ** 0.5), 128)
    rows = min(len(z), LIMIT) // wide
    random = torch.Generator().manual_seed(0)
    kept = torch.randperm(len(z), generator=random)[: rows * wide].sort()[0]
    points = list(z[kept].view(rows, wide, -1).split(128))
    return points, [] if given is None else list(given[kept].view(rows, wide).split(128))


def from_run(
    run: Run, *, images: Any = None, cache: Path | str | None = None, num_images: int = 256
) -> Opened:
    """Open a run with what it kept of its training."""
    name = METHODS[run.config.quantizer.method].label
    tokenizer = run.tokenizer()
    o = from_tokenizer(tokenizer, images=images, cache=cache, name=name, num_images=num_images)
    kept = run.snapshots()
    if tokenizer.quantizer.energy == "cosine":
        unit = [{k: _on_sphere(getattr(s, k)) for k in ("codebook", "latents")} for s in kept]
        kept = [replace(s, **arrays) for s, arrays in zip(kept, unit, strict=True)]
    about = f"{run.name}: step {run.step}."
    return replace(o, snapshots=kept, about=about, notebooks=run.path / "notebooks")


def _on_sphere(x: np.ndarray) -> np.ndarray:
    return F.normalize(torch.from_numpy(x), dim=1).numpy()


def held_out(
    config: DataConfig, cache: Path | str | None, multiple: int, num_images: int = 256
) -> list[tuple[str, Tensor]]:
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
    tokenizer = tokenizer.eval()
    quantizer, factor = tokenizer.quantizer, tokenizer.config.backbone.downsample
    if images is None:
        images = held_out(tokenizer.config.data, cache, factor, num_images)
    sites, energy = quantizer.sites.detach().float(), quantizer.energy
    softly = isinstance(quantizer, LGQ | ScalarLGQ)
    normalized = energy == "cosine"  # 1 - cos is half of the squared distance on the sphere

    def encode(x: Tensor) -> Tensor:
        points = quantizer.points(tokenizer.latents(x))
        return F.normalize(points, dim=-1) if normalized else points

    bare = Opened(
        name=name or type(quantizer).__name__,
        codebook=quantizer.codebook.detach().float(),
        sites=F.normalize(sites, dim=1) if normalized else sites,
        decode=tokenizer.decode_latents,
        encode=encode,
        energy="squared" if normalized else energy,
        widths=None if quantizer.widths is None else quantizer.widths.detach(),
        width=float("nan") if normalized else tokenizer.width,
        tau_c=float("nan") if normalized else tokenizer.tau_c,
        tau=tokenizer.trained_tau.item() * (2 if normalized else 1) if softly else float("nan"),
    )
    return _encoded(bare, photographs(images, multiple=factor))


@torch.no_grad()
def from_vqmodel(model: Any, *, images: Any = None) -> Opened:
    """Open what answers as diffusers' VQModel: `encode(x).latents`, `quantize.embedding`, `decode`.

    Its decoder is called with `force_not_quantize=True`, on vectors that are codes already.
    """
    name = type(model).__name__
    if images is None:
        raise ValueError(f"{name} needs images: [B, 3, H, W], or a list of photographs.")
    codes = model.quantize.embedding.weight.detach().float()
    channels = getattr(getattr(model, "config", None), "block_out_channels", None)
    factor = 2 ** (len(channels) - 1) if channels else 16
    bare = Opened(
        name=name,
        codebook=codes,
        sites=codes,
        decode=lambda z: model.decode(z, force_not_quantize=True).sample,
        encode=lambda x: rearrange(model.encode(x).latents, "b c h w -> b h w c"),
    )
    return _encoded(bare, photographs(images, multiple=factor))


@torch.no_grad()
def from_module(
    module: Any, *, latents: Any, indices: Any, images: Any, decode: Vectors | None
) -> Opened:
    """Open a module of vector-quantize-pytorch with latents [B, C, h, w], before its projection.

    VectorQuantize (one head, Euclidean or cosine) and SimVQ; decoding undoes the projection.
    """
    name = type(module).__name__
    codes = as_tensor(module.codebook)
    z = as_tensor(_numeric("latents", latents))
    if codes.ndim != 2 or getattr(module, "heads", 1) != 1:
        raise ValueError(f"{name} has several codebooks: give one codebook [K, C].")
    inside = getattr(module, "project_in", None)
    if inside is not None:
        z = inside(z.movedim(1, -1)).movedim(-1, 1) if z.ndim == 4 else inside(z)
    if getattr(module, "use_cosine_sim", False):
        z, codes = F.normalize(z, dim=1), F.normalize(codes, dim=1)
    outside = getattr(module, "project_out", None)
    back = decode
    if decode is not None and outside is not None:

        def back(vectors: Tensor) -> Tensor:
            return decode(outside(vectors.movedim(1, -1)).movedim(-1, 1))

    return from_arrays(codes, z, indices, images, decode=back, name=name)


def read(file: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by their names; pickled objects are refused."""
    try:
        if file.suffix == ".safetensors":
            arrays: Mapping[str, np.ndarray] = load_file(file)
        else:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {k: archive[k] for k in archive.files if k in NAMES}
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist.") from None
    except (ValueError, OSError, SafetensorError) as error:
        why = "pickled objects" if "pickle" in str(error).lower() else str(error)
        raise ValueError(f"{file} cannot be read ({why}): it must hold {SHAPES}.") from None
    found = {k: arrays[k] for k in NAMES if k in arrays}
    if not {"codebook", "latents"} <= found.keys():
        raise ValueError(f"{file} holds {', '.join(arrays) or 'nothing'}: it must hold {SHAPES}.")
    return found


def photographs(images: Any, *, multiple: int = 1) -> list[tuple[str, Tensor]]:
    """Give photographs as bytes [3, H, W] with their names, cropped to whole tokens.

    `images`: [B, 3, H, W] or [B, H, W, 3] in bytes, [0, 1] or [-1, 1]; or a list of arrays, PIL
    images, files, or (name, image). ValueError names the one that cannot be read.
    """
    if isinstance(images, str | Path):
        path = Path(images)
        images = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 3:
        images = images[None]
    if not isinstance(images, Tensor | np.ndarray | Sequence) or len(images) == 0:
        raise ValueError("images must be [B, 3, H, W], or a list with at least one photograph.")
    pairs = [x if isinstance(x, tuple) else (_name(x, i), x) for i, x in enumerate(images)]
    found = []
    for name, image in pairs:
        pixels = _pixels(name, image)
        sides = pixels.shape[1:]
        if multiple > 1:
            sides = [min(s, LARGEST) // multiple * multiple for s in sides]
        if 0 in sides:
            raise ValueError(f"photograph {name} is smaller than one token of {multiple} pixels.")
        top, left = ((a - b) // 2 for a, b in zip(pixels.shape[1:], sides, strict=True))
        crop = pixels[:, top : top + sides[0], left : left + sides[1]]
        found.append((str(name), crop.contiguous()))
    return found


def _name(image: Any, number: int) -> str:
    return Path(image).stem if isinstance(image, str | Path) else f"photograph {number}"


def _pixels(name: str, image: Any) -> Tensor:
    """Give one photograph as bytes [3, H, W]."""
    try:
        if isinstance(image, str | Path | bytes):
            image = decode_file(Path(image) if isinstance(image, str) else image)
        elif isinstance(image, Image.Image):
            image = decode_file(image.copy())  # which closes what it is given
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"photograph {name} cannot be read: {error}.") from None
    array = _numeric(f"photograph {name}", image)
    x = torch.as_tensor(np.array(array))
    if x.ndim == 3 and x.shape[0] != 3 and x.shape[2] == 3:
        x = x.movedim(-1, 0)
    if x.ndim != 3 or x.shape[0] != 3:
        raise ValueError(f"photograph {name} is {tuple(x.shape)}: it must be [3, H, W].")
    if not x.is_floating_point():
        return x.clamp(0, 255).to(torch.uint8)
    unit = (x + 1) / 2 if x.min() < 0 else x
    return (unit.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)


def _numeric(name: str, array: Any) -> np.ndarray:
    array = array.detach().cpu() if isinstance(array, Tensor) else array
    array = array.float() if isinstance(array, Tensor) and array.dtype == torch.bfloat16 else array
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, not {array.dtype}.")
    return array


@torch.no_grad()
def _tokens(bare: Opened, image: Tensor) -> tuple[Tensor, Tensor]:
    points = bare.encode(to_model(image[None])).float()[0]
    flat = points.flatten(0, 1)
    found = nearest(flat, bare.sites, energy=bare.energy, widths=bare.widths)
    return points, found.view(points.shape[:2])


def _encoded(bare: Opened, images: list[tuple[str, Tensor]]) -> Opened:
    """Encode photographs, as many as LIMIT latents allow, spread evenly."""
    (_, high, wide), (h, w) = images[0][1].shape, _tokens(bare, images[0][1])[1].shape
    if high % h or high // h != wide / w:
        raise ValueError(
            f"{bare.name} gives {h} x {w} tokens for {high} x {wide} pixels: images must be a "
            "multiple of its tokens."
        )
    total = sum(p.shape[1] * p.shape[2] for _, p in images) // (high // h) ** 2
    kept = [images[i] for i in spread(len(images), len(images) * LIMIT // total)]
    tokens = [_tokens(bare, pixels) for _, pixels in kept]
    return _finished(
        replace(
            bare,
            points=[p for p, _ in tokens],
            indices=[i for _, i in tokens],
            images=[p for _, p in kept],
            names=[n for n, _ in kept],
            total=total,
        )
    )


def _finished(o: Opened) -> Opened:
    """Fill in the unit of temperatures, and tau_c, where the tokenizer does not say them."""
    z, width, tau_c = o.latents, o.width, o.tau_c
    if not width > 0:
        width = 2 * (z - o.sites[o.codes]).square().sum(1).mean().item() / z.shape[1]
        width = width if width > 0 else 1e-6 * (z.var(0).mean().item() or 1.0)
    if not tau_c > 0 and o.energy in ("squared", "norm") and len(z) > 1:
        tau_c = critical_temperature(z[:20_000], energy=o.energy)
    return replace(o, width=width, tau_c=tau_c)
