"""What the explorer knows: per code, per photograph and per temperature, packed into one blob."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgqlib.backbone import Decoder, PatchUnfolding
from lgqlib.data import to_uint8
from lgqlib.explorers.layout import arrange, settle, trust
from lgqlib.explorers.opening import Opened, sample, spread
from lgqlib.measure.distances import nearest_others
from lgqlib.measure.geometry import spectrum
from lgqlib.measure.images import psnr_bytes
from lgqlib.quantizers import METHODS
from lgqlib.quantizers.assignment import nearest

NEAREST = 24
"""Nearest codes among which a neighbor on the map counts as one in the codebook."""
PATCHES = 8
"""Real patches that are shown of a code, and nearest codes."""
NONE = 65535
"""In an index: nothing is there."""
PIXELS = 3_000_000
"""Of the photographs that are kept to take patches from."""
PAIRS = 4e8
"""Tokens x codes of the entropies; beyond it a sample of tokens is taken."""
COLORS = {method.label: method.color for method in METHODS.values()}
"""Of methods, by the names that runs have here."""
MOMENTS = 8
"""Snapshots of training that the slider has, at most."""
CURVE = 4096
"""Tokens of the curve of entropies."""


@dataclass
class Packed:
    """Arrays and pictures one after the other in a blob, and where each begins."""

    meta: dict[str, Any]
    arrays: dict[str, list] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, name: str, values: np.ndarray | Tensor | bytes, kind: str = "webp") -> None:
        """Add a picture's file, or numbers as `kind` (u8, u16, u32, i16, f32), aligned."""
        if kind != "webp":
            dtype = f"<{kind[0]}{int(kind[1:]) // 8}"
            values = np.ascontiguousarray(np.asarray(values), dtype=dtype).tobytes()
        self.arrays[name] = [self.size, len(values), kind]
        self.parts.append(values + bytes(-len(values) % 8))
        self.size += len(self.parts[-1])


def webp(pixels: np.ndarray, quality: int = 0) -> bytes:
    """Give a picture [H, W, 3] or [H, W] as WebP; quality 0 is lossless."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(file, "WEBP", lossless=not quality, quality=quality or 40, method=3)
    return file.getvalue()


@torch.no_grad()
def prepare(
    tokenizers: Sequence[Opened], *, shown: int = 3, temperatures: int = 9, title: str = ""
) -> tuple[dict[str, Any], bytes, list[dict[str, Any]]]:
    """Compute `meta`, `blob` and, for Python, each tokenizer's values per code.

    Raises ValueError when the tokenizers did not see the same photographs.
    """
    first = tokenizers[0]
    for other in tokenizers[1:]:
        shapes = [[image.shape for image in o.images] for o in (first, other)]
        if other.names != first.names or shapes[0] != shapes[1]:
            raise ValueError("two tokenizers are compared on the same photographs: give images=.")
    if any(o.num_codes > NONE for o in tokenizers):
        raise ValueError("codebooks of at most 65,535 codes can be drawn.")
    each = max((i.shape[1] * i.shape[2] for i in first.images), default=1)
    kept = spread(len(first.images), min(64, PIXELS // each))
    looked = spread(len(first.indices), shown)
    order = [*looked, *(n for n in kept if n not in looked)]
    packed = Packed({"title": title, "photographs": [], "tokenizers": []})
    for n, source in enumerate(order):
        about = {"name": first.names[source], "shown": n < len(looked), "pixels": None}
        if first.images:
            about["pixels"] = list(first.images[source].shape[1:])
            packed.add(f"p{n}", webp(upright(first.images[source]), 82))
        packed.meta["photographs"].append(about)
    tables: list[dict[str, Any]] = []
    bar = tqdm(desc="codebooks", total=len(tokenizers) * (2 + len(looked)), leave=False, delay=1)
    for m, o in enumerate(tokenizers):
        tables.append(_codes(packed, m, o, order, tables[0] if tables else None))
        bar.update(2)
        _training(packed, m, o)
        _temperatures(packed, m, o, temperatures)
        _network(packed, m, o)
        for n, source in enumerate(looked):
            _photograph(packed, m, o, n, source)
            bar.update()
    bar.close()
    return packed.meta | {"arrays": packed.arrays}, b"".join(packed.parts), tables


def upright(image: Tensor) -> np.ndarray:
    """Give [3, H, W] as pixels [H, W, 3]."""
    return image.movedim(0, -1).numpy()


def patches(image: Tensor, factor: int) -> Tensor:
    """Cut [3, H, W] into the tokens' patches [h w, f, f, 3]."""
    return rearrange(image, "c (h a) (w b) -> (h w) a b c", a=factor, b=factor)


@torch.no_grad()
def decoded(o: Opened, vectors: Tensor) -> Tensor:
    """Decode [h, w, C] into bytes [3, H, W]."""
    return to_uint8(torch.as_tensor(o.decode(rearrange(vectors, "h w c -> 1 c h w"))))[0]


# Codes -------------------------------------------------------------------------------------------


def _codes(
    packed: Packed, m: int, o: Opened, order: Sequence[int], before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Add all that is known of each code: its numbers, place, tile, patches and nearest codes."""
    num, flat, z = o.num_codes, o.codes, o.latents
    count = flat.bincount(minlength=num)
    away = (z - o.sites[flat]).square().sum(1)
    tiles, real, errors = _tiles(o, count)
    error = away / o.width if errors is None else errors
    mse = torch.zeros(num).index_add_(0, flat, error) / count.clamp(min=1)
    entropy, looked = _entropy(o, z, flat, count)
    near = nearest_others(o.sites, min(NEAREST, num - 1))[1]
    pixels, mean, start = tiles.flatten(1), tiles.mean((1, 2)), None
    if before is not None:
        same = pixels.shape[1] == before["pixels"].shape[1]
        alike = (pixels, before["pixels"]) if same else (mean, before["mean"])
        start = settle(*(a.double().numpy() for a in alike), before["cell"])
    cells = arrange(o.sites.double().numpy(), start=start)
    kept, there = trust(cells, near)
    table = {
        "cell": cells,
        "count": count.numpy(),
        "mse": mse.numpy(),
        "entropy": entropy.numpy(),
        "gap": _gaps(o, count).numpy(),
        "trust": kept,
        "around": there,
    }
    kinds = ("u16", "u32", "f32", "f32", "f32", "u8", "u8")
    for (name, values), kind in zip(table.items(), kinds, strict=True):
        packed.add(f"{m}/{name}", values, kind)
    first = near[:, :PATCHES]
    missing = [(0, 0), (0, PATCHES - first.shape[1])]
    packed.add(f"{m}/near", np.pad(first, missing, constant_values=NONE), "u16")
    packed.add(f"{m}/places", _places(o, away, order), "u16")
    side = _atlas(packed, f"{m}/tiles", tiles)
    _atlas(packed, f"{m}/real", real)
    scale = max(_scale(o.sites), _scale(z))
    packed.add(f"{m}/sites", (o.sites / scale).round(), "i16")
    if o.widths is not None:
        packed.add(f"{m}/widths", o.widths, "f32")
    tau_c = o.tau_c / o.width if math.isfinite(o.tau_c) else None
    sizes = {"K": num, "C": o.codebook.shape[1], "D": o.sites.shape[1], "factor": o.factor}
    drawn = {"tile": tiles.shape[1], "atlas": side, "scale": scale, "decodes": o.decode is not None}
    seen = {"tokens": o.num_tokens, "total": o.total, "entropies": looked, "images": len(o.images)}
    heat = {"energy": o.energy, "width": o.width, "tau_c": tau_c, "pixels": errors is not None}
    about = {"name": o.name, "color": COLORS.get(o.name.rstrip(" 123456789"), "")}
    each = {"grids": [], "psnr": [], "soft_psnr": []}  # of the photographs that are shown
    packed.meta["tokenizers"].append(about | sizes | drawn | seen | heat | each)
    return table | {"pixels": pixels, "mean": mean}


def _scale(x: Tensor) -> float:
    """Give what a step of 16-bit integers is worth that reach as far as numbers do."""
    return x.abs().max().item() / 32767 or 1.0


def _gaps(o: Opened, count: Tensor) -> Tensor:
    """Give each code's distance to the nearest other code in use, in RMS quantization errors."""
    used, own = count.nonzero()[:, 0], torch.arange(o.num_codes)
    if len(used) < 2:
        return torch.full((o.num_codes,), torch.nan)
    two = used[nearest(o.sites, o.sites[used], 2)]  # one of them may be the code itself
    other = torch.where(two[:, 0] == own, two[:, 1], two[:, 0])
    rms = math.sqrt(max(o.width * o.sites.shape[1] / 2, 1e-12))
    return (o.sites - o.sites[other]).norm(dim=1) / rms


def _entropy(o: Opened, z: Tensor, flat: Tensor, count: Tensor) -> tuple[Tensor, int]:
    """Give each code's mean entropy at tau = 2 D / C in bits, over a sample where there are many.

    A code none of whose tokens are in the sample has NaN, as one without tokens has.
    """
    rows = sample(len(z), int(PAIRS / o.num_codes))
    bits = o.soften(z[rows], [o.width])[1][0]
    hits = flat[rows].bincount(minlength=len(count))
    total = torch.zeros(len(count)).index_add_(0, flat[rows], bits)
    return torch.where(hits > 0, total / hits.clamp(min=1), torch.nan), len(rows)


def _tiles(o: Opened, count: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give tiles and mean real patches [K, t, t, 3], and the squared error of each token in pixels.

    A tile is the mean of the decoded patches of the code's tokens; without a decoder the mean of
    the real ones; without images a color by the code's place among the others.
    """
    num, f = len(o.sites), o.factor
    if not o.images:
        colors = _colors(o).view(num, 1, 1, 3).expand(num, 4, 4, 3)
        return colors, colors, None
    sums = torch.zeros(2, num, f, f, 3)
    errors = []
    for image, indices in zip(o.images, o.indices, strict=True):
        real = patches(image.float(), f)
        sums[1].index_add_(0, indices.flatten(), real)
        if o.decode is not None:
            made = patches(decoded(o, o.codebook[indices]).float(), f)
            sums[0].index_add_(0, indices.flatten(), made)
            errors.append((made - real).square().mean((1, 2, 3)))
    unused = count == 0
    means = sums / count.clamp(min=1)[:, None, None, None] + 128.0 * unused[:, None, None, None]
    tiles = means[1]
    if o.decode is not None:
        tiles = means[0]
        tiles[unused] = _alone(o, o.codebook[unused])
    small = min(f, 16 if num <= 4096 else 8)
    found = [_scaled(x, small) for x in (tiles, means[1])]
    return found[0], found[1], torch.cat(errors) if errors else None


def _alone(o: Opened, codes: Tensor) -> Tensor:
    """Decode codes [n, C], each alone in a field of itself: [n, f, f, 3] in bytes' range."""
    f, found = o.factor, [torch.empty(0, o.factor, o.factor, 3)]
    for part in codes.split(256):
        made = o.decode(part[:, :, None, None].expand(-1, -1, 5, 5).contiguous())
        center = to_uint8(torch.as_tensor(made))[:, :, 2 * f : 3 * f, 2 * f : 3 * f]
        found.append(center.movedim(1, -1).float())
    return torch.cat(found)


def _training(packed: Packed, m: int, o: Opened) -> None:
    """Add the codes at some snapshots of training, as the trained decoder draws them, and uses.

    Only where the codes that the decoder receives are those that snapshots keep.
    """
    moments = packed.meta["tokenizers"][m]["moments"] = []
    if o.decode is None or not o.images or not torch.equal(o.codebook, o.sites):
        return
    for i in spread(len(o.snapshots), MOMENTS if len(o.sites) <= 4096 else MOMENTS // 2):
        snapshot, side = o.snapshots[i], min(o.factor, 8 if len(o.sites) <= 1024 else 4)
        tiles = _scaled(_alone(o, torch.from_numpy(snapshot.codebook)), side)
        # Before the first step nothing was counted: the probe tells.
        probe = np.bincount(snapshot.indices, minlength=len(o.sites))
        uses = snapshot.counts if snapshot.counts.any() else probe
        _atlas(packed, f"{m}/then{len(moments)}", tiles)
        packed.add(f"{m}/uses{len(moments)}", uses, "u32")
        moments.append({"step": snapshot.step, "tile": side})


def _scaled(tiles: Tensor, side: int) -> Tensor:
    small = F.interpolate(tiles.movedim(-1, 1), size=(side, side), mode="area").movedim(1, -1)
    return small.round().clamp(0, 255)


def _colors(o: Opened) -> Tensor:
    """Give colors [K, 3] by the ranks along the codes' three longest axes: luminance first."""
    along = spectrum(o.sites).coordinates(o.sites)[:, :3]
    ranks = np.full((o.num_codes, 3), 0.5)
    ranks[:, : along.shape[1]] = along.argsort(0).argsort(0) / max(1, o.num_codes - 1)
    y, (u, v) = 40 + 185 * ranks[:, 0], 160 * (ranks[:, 1:].T - 0.5)
    rgb = np.stack([y + 1.4 * v, y - 0.34 * u - 0.71 * v, y + 1.77 * u], 1)
    return torch.from_numpy(rgb.clip(0, 255).round()).float()


def _places(o: Opened, away: Tensor, order: Sequence[int]) -> np.ndarray:
    """Choose eight tokens of each code, from the nearest to the farthest: [K, 8, 3].

    Photograph (its number in `order`), row, column; NONE where a code has fewer.
    """
    number = np.full(len(o.indices), NONE)
    number[list(order)] = np.arange(len(order))
    places, codes = o.places.numpy(), o.codes.numpy()
    places[:, 0] = number[places[:, 0]]
    seen = np.flatnonzero(places[:, 0] != NONE)
    ranked = seen[np.lexsort((away[seen].numpy(), codes[seen]))]
    ends = np.bincount(codes[seen], minlength=o.num_codes).cumsum()
    out = np.full((o.num_codes, PATCHES, 3), NONE)
    for code, tokens in enumerate(np.split(ranked, ends[:-1])):
        chosen = tokens[spread(len(tokens), PATCHES)]
        out[code, : len(chosen)] = places[chosen]
    return out


def _atlas(packed: Packed, name: str, tiles: Tensor) -> int:
    """Add tiles side by side in one picture; give how many a row."""
    side = math.ceil(math.sqrt(len(tiles)))
    padded = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, side * side - len(tiles)))
    sheet = rearrange(padded, "(r c) a b d -> (r a) (c b) d", r=side).to(torch.uint8)
    packed.add(name, webp(sheet.numpy(), 0 if sheet.shape[0] <= 512 else 90))
    return side


# Temperatures ------------------------------------------------------------------------------------


def levels(tau_c: float | None, num: int) -> list[float]:
    """Choose temperatures, in units of 2 D / C: 1 and tau_c among them, a tenth to tau_c."""
    top = max(tau_c or 100.0, 2.0)
    cold = max(2, num // 3)
    warm = np.geomspace(1, top, max(2, num - cold))
    return [*np.geomspace(0.1, 1, cold + 1)[:-1].tolist(), *warm.tolist()]


def _temperatures(packed: Packed, m: int, o: Opened, num: int) -> None:
    """Add the curve of the mean entropy, and from where on it is a bit."""
    about = packed.meta["tokenizers"][m]
    about["temperatures"] = levels(about["tau_c"], num)
    z = o.latents[sample(o.num_tokens, min(CURVE, max(256, int(PAIRS / 25 / o.num_codes))))]
    low, high = about["temperatures"][0], about["temperatures"][-1]
    taus = np.geomspace(low, high, 25)
    bits = o.soften(z, (o.width * taus).tolist())[1].mean(1).numpy()
    above = np.flatnonzero(bits >= 1)
    one = None
    if len(above) and above[0] > 0:
        around = slice(above[0] - 1, above[0] + 1)
        one = float(np.exp(np.interp(1, bits[around], np.log(taus[around]))))
        about["temperatures"] = sorted([*about["temperatures"], one])
    about["curve"] = {"tau": taus.tolist(), "bits": bits.tolist(), "one": one, "tokens": len(z)}


def soft_pictures(
    o: Opened, source: int, taus: Sequence[float]
) -> Iterator[tuple[np.ndarray | None, np.ndarray, float | None]]:
    """Decode a photograph softly at each tau x 2 D / C: picture [H, W, 3], entropy [h, w], dB."""
    h, w = o.indices[source].shape
    vectors, bits = o.soften(o.points[source].flatten(0, 1), [o.width * tau for tau in taus])
    for soft, entropy in zip(vectors, bits, strict=True):
        image = None if o.decode is None else decoded(o, soft.view(h, w, -1))
        share = (entropy.view(h, w) / math.log2(o.num_codes)).clamp(0, 1)  # in 64 steps
        grays = (share * 63).round().to(torch.uint8).numpy() * 4
        yield None if image is None else upright(image), grays, quality(o, source, image)


def quality(o: Opened, source: int, image: Tensor | None) -> float | None:
    """Give a picture's peak signal-to-noise ratio in dB against its photograph, where both are."""
    if image is None or not o.images:
        return None
    return psnr_bytes(upright(o.images[source]), upright(image))


# Photographs -------------------------------------------------------------------------------------


def _photograph(packed: Packed, m: int, o: Opened, n: int, source: int) -> None:
    """Add what one tokenizer makes of one shown photograph, hard and at each temperature."""
    about, indices, image, noise = packed.meta["tokenizers"][m], o.indices[source], None, []
    about["grids"].append(list(indices.shape))
    packed.add(f"{m}/i{n}", indices, "u16")
    packed.add(f"{m}/z{n}", (o.points[source] / about["scale"]).round(), "i16")
    if o.decode is not None:
        image, norms = _watched(o, o.codebook[indices])
        if norms:
            packed.add(f"{m}/norms{n}", torch.cat(norms), "f32")
        packed.add(f"{m}/hard{n}", webp(upright(image), 80))
        if o.images:
            error = patches((image.float() - o.images[source]).square(), o.factor).mean((1, 2, 3))
            levels = (2 * error.sqrt()).clamp(0, 255).to(torch.uint8).view(indices.shape)
            packed.add(f"{m}/error{n}", webp(levels.numpy()))
    about["psnr"].append(quality(o, source, image))
    for j, (pixels, bits, value) in enumerate(soft_pictures(o, source, about["temperatures"])):
        packed.add(f"{m}/entropy{n}/{j}", webp(bits))
        if pixels is not None:
            packed.add(f"{m}/soft{n}/{j}", webp(pixels, 68))
        noise.append(value)
    about["soft_psnr"].append(noise)


# The decoder, for painting ----------------------------------------------------------------------


class Step(NamedTuple):
    """A convolution of what step `of` gave (0: the vectors), normed or not, `onto` another's."""

    conv: nn.Conv2d
    norm: nn.GroupNorm | None
    of: int
    onto: int = 0


def _steps(o: Opened) -> list[Step]:
    """List the steps of the decoder if it is one of ours that works at the tokens' resolution."""
    decoder = getattr(getattr(o.decode, "__self__", None), "decoder", None)
    if not isinstance(decoder, Decoder):
        return []
    linear, network = decoder.linear, decoder.network
    steps = [] if linear is None else [Step(linear[0], None, 0)]
    if network is None:
        return steps
    if not isinstance(network, PatchUnfolding):
        return []
    steps.append(Step(network.stem, None, 0))
    for block in network.blocks:
        x = len(steps)
        steps += [Step(block.conv1, block.norm1, x), Step(block.conv2, block.norm2, x + 1, x)]
    return [*steps, Step(network.last, network.norm, len(steps), 0 if linear is None else 1)]


def _watched(o: Opened, vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Decode, and note by how much each norm scales and shifts its channels."""
    found: list[Tensor] = []

    def note(norm: nn.GroupNorm, inputs: tuple[Tensor]) -> None:
        groups = rearrange(inputs[0][0], "(g c) h w -> g (c h w)", g=norm.num_groups)
        width = norm.num_channels // norm.num_groups
        mean, scale = groups.mean(1), (groups.var(1, correction=0) + norm.eps).rsqrt()
        scale = norm.weight * scale.repeat_interleave(width)
        found.append(torch.cat([scale, norm.bias - mean.repeat_interleave(width) * scale]))

    norms = [step.norm for step in _steps(o) if step.norm is not None]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    image = decoded(o, vectors)
    for handle in handles:
        handle.remove()
    return image, found


def _network(packed: Packed, m: int, o: Opened) -> None:
    """Add the decoder's steps and their weights."""
    network = packed.meta["tokenizers"][m]["network"] = []
    for i, (conv, norm, of, onto) in enumerate(_steps(o)):
        weight, scale = rearrange(conv.weight, "o i a b -> (a b) i o"), _scale(conv.weight)
        packed.add(f"{m}/weight{i}", (weight / scale).round(), "i16")  # as the page walks over it
        packed.add(f"{m}/bias{i}", conv.bias, "f32")
        out, inside, side, _ = conv.weight.shape
        sizes = {"out": out, "inside": inside, "side": side, "scale": scale}
        network.append({"of": of, "onto": onto, "norm": norm is not None} | sizes)
    if network and not torch.equal(o.codebook, o.sites):
        packed.add(f"{m}/codes", o.codebook, "f32")
