"""Any tokenizer opens: ours, arrays, a file, or an object with the usual methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor, nn

from lgqlib.data import load, to_model, whole_images
from lgqlib.data.store import decode as decode_file
from lgqlib.measure.temperature import as_tensor, critical_temperature
from lgqlib.quantizers.assignment import nearest
from lgqlib.run import Run

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
    points: list[Tensor]  # [h, w, D] a photograph, in the space of the sites
    indices: list[Tensor]  # [h, w] a photograph
    images: list[Tensor] = field(default_factory=list)  # uint8 [3, H, W]; none without images
    names: list[str] = field(default_factory=list)
    decode: Vectors | None = None  # vectors [b, C, h, w] to images [b, 3, H, W] in [-1, 1]
    encode: Vectors | None = None  # images in [-1, 1] to points [b, h, w, D]
    energy: str = "squared"
    widths: Tensor | None = None
    width: float = float("nan")  # 2 D / C, the unit of temperatures
    tau_c: float = float("nan")
    total: int = 0  # latents before sampling

    @property
    def num_tokens(self) -> int:
        """How many tokens are looked at."""
        return sum(i.numel() for i in self.indices)

    @property
    def factor(self) -> int:
        """Pixels of a token's side; 1 without images."""
        return self.images[0].shape[1] // self.indices[0].shape[0] if self.images else 1

    def with_photograph(self, name: str, image: Any) -> "Opened":
        """Add one photograph; ValueError where there is no encoder, or it is none."""
        if self.encode is None:
            raise ValueError(f"{self.name} has no encoder here: open the tokenizer itself.")
        [(name, pixels)] = photographs([(name, image)], multiple=self.factor)
        points, indices = _tokens(self, pixels)
        return replace(
            self,
            points=[*self.points, points],
            indices=[*self.indices, indices],
            images=[*self.images, pixels],
            names=[*self.names, name],
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
    if isinstance(source, str | Path) and Path(source).suffix in (".npz", ".safetensors"):
        return from_arrays(**read(Path(source)), decode=decode, name=Path(source).stem)
    if isinstance(source, str | Path):
        source = Run(source)
    if isinstance(source, Run):
        run, source = source, source.tokenizer()
        name = run.config.quantizer.method.upper()
        return from_tokenizer(source, images=images, cache=cache, name=name)
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
    sites, z = as_tensor(_numeric("codebook", codebook)), as_tensor(_numeric("latents", latents))
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
    total = z.shape[0] if z.ndim == 2 else z.shape[0] * z.shape[2] * z.shape[3]
    points, grids = _grids(z, given, pictures)
    if given is None:
        grids = [nearest(p.flatten(0, 1), sites).view(p.shape[:2]) for p in points]
    pictures = [pictures[i] for i in _looked_at(z)] if pictures else []
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


def _looked_at(z: Tensor) -> list[int]:
    """Choose which of the maps [B, C, h, w] are looked at: spread evenly, at most LIMIT latents."""
    most = max(1, LIMIT // (z.shape[2] * z.shape[3]))
    return np.unique(np.linspace(0, len(z) - 1, min(most, len(z))).astype(int)).tolist()


def _grids(
    z: Tensor, given: Tensor | None, pictures: Sequence
) -> tuple[list[Tensor], list[Tensor]]:
    """Give latents as maps [h, w, C]; a list [N, C] becomes a square and a row of what is left."""
    if z.ndim == 4:
        kept = _looked_at(z)
        return [z[i].movedim(0, -1) for i in kept], [] if given is None else [
            given[i] for i in kept
        ]
    if len(z) > LIMIT:
        chosen = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:LIMIT].sort()[
            0
        ]
        z, given = z[chosen], None if given is None else given[chosen]
    side = min(int(len(z) ** 0.5), 128)
    cut = [(k, min(k + side * side, len(z))) for k in range(0, len(z), side * side)]
    points, grids = [], []
    for first, last in cut:
        rows = (last - first) // side
        for a, b, w in ((first, first + rows * side, side), (first + rows * side, last, 1)):
            if b > a:
                points.append(z[a:b].view(-1, w, z.shape[1]))
                grids += [] if given is None else [given[a:b].view(-1, w)]
    return points, grids


@torch.no_grad()
def from_tokenizer(
    tokenizer: nn.Module, *, images: Any = None, cache: Path | str | None = None, name: str = ""
) -> Opened:
    """Open a `Tokenizer`; without images, on held-out photographs of what it was trained on."""
    tokenizer = tokenizer.eval()
    quantizer, factor = tokenizer.quantizer, tokenizer.config.backbone.downsample
    if images is None:
        val = load(tokenizer.config.data, "val", cache=cache or "data/cache")
        few = whole_images(val, multiple=factor, limit=PHOTOGRAPHS, largest=LARGEST)
        small = max(few[0][1].shape[1:]) < 96  # crops: many of them make a codebook's statistics
        images = whole_images(val, multiple=factor, limit=256) if small else few
    sites, energy = quantizer.sites.detach().float(), quantizer.energy
    codes = quantizer.codebook.detach().float()
    normalized = energy == "cosine"
    bare = Opened(
        name=name or type(quantizer).__name__,
        codebook=codes,
        sites=F.normalize(sites, dim=1) if normalized else sites,
        points=[],
        indices=[],
        decode=tokenizer.decode_latents,
        encode=lambda x: _unit(quantizer.points(tokenizer.latents(x)), normalized),
        energy="squared" if normalized else energy,
        widths=None if quantizer.widths is None else quantizer.widths.detach(),
        width=float("nan") if normalized else tokenizer.width,
        tau_c=float("nan") if normalized else tokenizer.tau_c,
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
        points=[],
        indices=[],
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
        crop = multiple > 1
        high, wide = (
            (min(s, LARGEST) if crop else s) // multiple * multiple for s in pixels.shape[1:]
        )
        if not high or not wide:
            raise ValueError(f"photograph {name} is smaller than one token of {multiple} pixels.")
        top, left = (pixels.shape[1] - high) // 2, (pixels.shape[2] - wide) // 2
        found.append((str(name), pixels[:, top : top + high, left : left + wide].contiguous()))
    return found


def _name(image: Any, number: int) -> str:
    return Path(image).stem if isinstance(image, str | Path) else f"photograph {number}"


def _pixels(name: str, image: Any) -> Tensor:
    """Give one photograph as bytes [3, H, W]."""
    if isinstance(image, str | Path | bytes):
        try:
            image = decode_file(Path(image) if isinstance(image, str) else image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"photograph {name} cannot be read: {error}.") from None
    array = _numeric(
        f"photograph {name}",
        np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image,
    )
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


def _unit(points: Tensor, normalized: bool) -> Tensor:
    """Put cosine's latents on the sphere, where the nearest is the one of the least angle."""
    return F.normalize(points, dim=-1) if normalized else points


@torch.no_grad()
def _tokens(bare: Opened, image: Tensor) -> tuple[Tensor, Tensor]:
    points = bare.encode(to_model(image[None])).float()[0]
    flat = points.flatten(0, 1)
    found = nearest(flat, bare.sites, energy=bare.energy, widths=bare.widths)
    return points, found.view(points.shape[:2])


def _encoded(bare: Opened, images: list[tuple[str, Tensor]]) -> Opened:
    """Encode photographs, as many as LIMIT latents allow, spread evenly."""
    first = _tokens(bare, images[0][1])
    high, wide = first[1].shape
    if images[0][1].shape[1] % high or images[0][1].shape[1] // high != (
        images[0][1].shape[2] // wide
    ):
        raise ValueError(
            f"{bare.name} gives {high} x {wide} tokens for {tuple(images[0][1].shape)} pixels: "
            "images must be a multiple of its tokens."
        )
    factor = images[0][1].shape[1] // high
    total = sum(p.shape[1] * p.shape[2] for _, p in images) // factor**2
    keep = max(1, int(len(images) * min(1, LIMIT / total)))
    kept = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, keep).astype(int))]
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
    z = torch.cat([p.flatten(0, 1) for p in o.points])
    flat = torch.cat([i.flatten() for i in o.indices])
    distortion = (z - o.sites[flat]).square().sum(1).mean().item()
    width, tau_c = o.width, o.tau_c
    if not width > 0:
        width = 2 * distortion / z.shape[1]
        width = width if width > 0 else 1e-6 * (z.var(0).mean().item() or 1.0)
    if not tau_c > 0 and o.energy in ("squared", "norm") and len(z) > 1:
        tau_c = critical_temperature(z[:20_000], energy=o.energy)
    return replace(o, width=width, tau_c=tau_c)
