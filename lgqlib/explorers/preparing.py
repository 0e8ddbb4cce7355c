"""What the explorer knows: per code, per photograph and per temperature, packed into one blob."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from lgqlib.backbone import Decoder
from lgqlib.data import to_unit
from lgqlib.explorers.layout import arrange, settle, trust
from lgqlib.explorers.opening import Opened, spread
from lgqlib.quantizers import METHODS
from lgqlib.quantizers.assignment import energies

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

    def add(self, name: str, array: np.ndarray | Tensor, kind: str) -> None:
        """Add numbers as `kind` (u8, u16, u32, i16, f16, f32), aligned for a typed view."""
        values = np.ascontiguousarray(np.asarray(array), dtype=f"<{kind[0]}{int(kind[1:]) // 8}")
        self._append(name, values.tobytes(), kind)

    def picture(self, name: str, pixels: np.ndarray | Tensor, quality: int = 0) -> None:
        """Add a picture [H, W, 3] or [H, W] as WebP; quality 0 is lossless."""
        image, file = Image.fromarray(np.asarray(pixels)), io.BytesIO()
        image.save(file, "WEBP", lossless=not quality, quality=quality or 40, method=3)
        self._append(name, file.getvalue(), "webp")

    def _append(self, name: str, data: bytes, kind: str) -> None:
        self.arrays[name] = [self.size, len(data), kind]
        padded = data + bytes(-len(data) % 8)
        self.parts.append(padded)
        self.size += len(padded)

    @property
    def blob(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)


@torch.no_grad()
def prepare(
    tokenizers: Sequence[Opened], *, shown: int = 3, temperatures: int = 9, title: str = ""
) -> tuple[dict[str, Any], bytes, list[dict[str, Any]]]:
    """Compute `meta`, `blob` and, for Python, each tokenizer's values per code.

    Raises ValueError when the tokenizers did not see the same photographs.
    """
    first = tokenizers[0]
    for other in tokenizers[1:]:
        same = other.names == first.names and len(other.images) == len(first.images)
        if not same or any(
            a.shape != b.shape for a, b in zip(first.images, other.images, strict=True)
        ):
            raise ValueError("two tokenizers are compared on the same photographs: give images=.")
    if any(len(o.sites) > 65_535 for o in tokenizers):
        raise ValueError("codebooks of at most 65,535 codes can be drawn.")
    kept, looked = _kept(first), spread(len(first.indices), shown)
    packed = Packed({"title": title, "photographs": [], "tokenizers": [], "kept": len(kept)})
    order = [*looked, *(n for n in kept if n not in looked)]
    for n, source in enumerate(order):
        about = {"name": first.names[source], "shown": n < len(looked), "pixels": None}
        if first.images:
            about["pixels"] = list(first.images[source].shape[1:])
            packed.picture(f"p{n}", rearrange(first.images[source], "c h w -> h w c"), 82)
        packed.meta["photographs"].append(about)
    tables: list[dict[str, Any]] = []
    bar = tqdm(desc="codebooks", total=len(tokenizers) * (2 + len(looked)), leave=False, delay=1)
    for m, o in enumerate(tokenizers):
        table = _codes(packed, m, o, order, tables[0] if tables else None)
        bar.update(2)
        _training(packed, m, o)
        _temperatures(packed, m, o, temperatures)
        _network(packed, m, o)
        for n, source in enumerate(looked):
            photograph(packed, m, o, n, source)
            bar.update()
        tables.append(table)
    bar.close()
    packed.meta["arrays"] = packed.arrays
    return packed.meta, packed.blob, tables


def _kept(o: Opened) -> list[int]:
    """Choose the photographs that patches are taken from: as many as PIXELS allow."""
    if not o.images:
        return []
    each = max(i.shape[1] * i.shape[2] for i in o.images)
    return spread(len(o.images), max(1, min(64, PIXELS // each)))


def patches(image: Tensor, factor: int) -> Tensor:
    """Cut [3, H, W] into the tokens' patches [h, w, f, f, 3]."""
    return rearrange(image, "c (h a) (w b) -> h w a b c", a=factor, b=factor)


def decoded(o: Opened, vectors: Tensor) -> Tensor:
    """Decode [h, w, C] into bytes' range [3, H, W], float."""
    images = o.decode(rearrange(vectors, "h w c -> 1 c h w"))
    return to_unit(torch.as_tensor(images).float())[0].clamp(0, 1) * 255


# Codes -------------------------------------------------------------------------------------------


def _codes(
    packed: Packed, m: int, o: Opened, order: Sequence[int], before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Add all that is known of each code: its numbers, place, tile, patches and nearest codes."""
    num = len(o.sites)
    flat = torch.cat([i.flatten() for i in o.indices])
    z = torch.cat([p.flatten(0, 1) for p in o.points])
    count = flat.bincount(minlength=num)
    away = (z - o.sites[flat]).square().sum(1)
    tiles, real, errors = _tiles(o, count)
    error = errors if errors is not None else away / o.width
    mse = torch.zeros(num).index_add_(0, flat, error) / count.clamp(min=1)
    entropy, looked = _entropy(o, z, flat, count)
    near = _nearest(o.sites, torch.arange(num), min(NEAREST, num - 1))
    used = count.nonzero()[:, 0]
    gap = torch.full((num,), torch.nan)
    if len(used) > 1:
        for rows in torch.arange(num).split(max(1, 2**24 // len(used))):
            d = torch.cdist(o.sites[rows], o.sites[used])
            d[rows[:, None] == used] = torch.inf
            gap[rows] = d.amin(1) / math.sqrt(max(o.width * o.sites.shape[1] / 2, 1e-12))
    pixels = tiles.reshape(num, -1)
    if before is None:
        cells = arrange(o.sites.double().numpy())
    else:
        same = pixels.shape[1] == before["pixels"].shape[1]
        one, two = (pixels, before["pixels"]) if same else (_mean(tiles), before["mean"])
        start = settle(one.double().numpy(), two.double().numpy(), before["cell"])
        cells = arrange(o.sites.double().numpy(), start=start)
    kept, there = trust(cells, near.numpy())
    prefix = f"{m}/"
    for name, values, kind in (
        ("cell", cells, "u16"),
        ("count", count, "u32"),
        ("mse", mse, "f32"),
        ("entropy", entropy, "f32"),
        ("gap", gap, "f32"),
        ("trust", kept, "u8"),
        ("around", there, "u8"),
        ("near", _padded(near[:, :PATCHES]), "u16"),
        ("places", _places(o, away, flat, count, order), "u16"),
    ):
        packed.add(prefix + name, values, kind)
    side = _atlas(packed, prefix + "tiles", tiles)
    _atlas(packed, prefix + "real", real)
    scale = max(o.sites.abs().max().item(), *(p.abs().max().item() for p in o.points)) / 32767
    packed.add(prefix + "sites", (o.sites / scale).round(), "i16")
    if o.widths is not None:
        packed.add(prefix + "widths", o.widths, "f32")
    packed.meta["tokenizers"].append(
        {
            "name": o.name,
            "color": COLORS.get(o.name.rstrip(" 123456789"), ""),
            "K": num,
            "C": o.codebook.shape[1],
            "D": o.sites.shape[1],
            "energy": o.energy,
            "width": o.width,
            "tau_c": o.tau_c / o.width if math.isfinite(o.tau_c) else None,
            "scale": scale,
            "tile": tiles.shape[1],
            "atlas": side,
            "factor": o.factor,
            "tokens": o.num_tokens,
            "total": o.total,
            "entropies": looked,
            "images": len(o.images),
            "pixels": errors is not None,
            "decodes": o.decode is not None,
            "grids": [],
            "psnr": [],
            "soft_psnr": [],
        }
    )
    return {
        "cell": cells,
        "pixels": pixels,
        "mean": _mean(tiles),
        "count": count.numpy(),
        "mse": mse.numpy(),
        "entropy": entropy.numpy(),
        "gap": gap.numpy(),
        "trust": kept,
        "around": there,
    }


def _mean(tiles: Tensor) -> Tensor:
    return tiles.float().mean((1, 2))


def _padded(near: Tensor) -> Tensor:
    return F.pad(near, (0, PATCHES - near.shape[1]), value=NONE)


def _nearest(sites: Tensor, rows: Tensor, num: int) -> Tensor:
    """Give the nearest other codes [rows, num], by the square of the distance."""
    found = []
    for part in rows.split(max(1, 2**24 // len(sites))):
        d = energies(sites[part], sites)
        d[torch.arange(len(part)), part] = torch.inf
        found.append(d.topk(num, largest=False)[1])
    return torch.cat(found)


def _entropy(o: Opened, z: Tensor, flat: Tensor, count: Tensor) -> tuple[Tensor, int]:
    """Give each code's mean entropy at tau = 2 D / C in bits, over a sample where there are many.

    A code none of whose tokens are in the sample has NaN, as one without tokens has.
    """
    most = int(PAIRS / len(o.sites))
    random = torch.Generator().manual_seed(0)
    rows = torch.arange(len(z)) if len(z) <= most else torch.randperm(len(z), generator=random)
    rows = rows[:most]
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
        colors = _colors(o.sites).view(num, 1, 1, 3).expand(num, 4, 4, 3)
        return colors, colors, None
    sums = torch.zeros(2, num, f * f * 3)
    errors = []
    for image, indices in zip(o.images, o.indices, strict=True):
        flat = indices.flatten()
        real = patches(image.float(), f).flatten(0, 1).flatten(1)
        sums[1].index_add_(0, flat, real)
        if o.decode is not None:
            made = patches(decoded(o, o.codebook[indices]), f).flatten(0, 1).flatten(1)
            sums[0].index_add_(0, flat, made)
            errors.append((made.round() - real).square().mean(1))
    means = sums / count.clamp(min=1)[:, None]
    unused = (count == 0).nonzero()[:, 0]
    tiles = means[0] if o.decode is not None else means[1]
    tiles[unused] = 128.0
    if o.decode is not None:
        tiles[unused] = _alone(o, o.codebook[unused]).flatten(1)
    means[1][unused] = 128.0
    small = min(f, 16 if num <= 4096 else 8)
    found = [_scaled(x.view(num, f, f, 3), small) for x in (tiles, means[1])]
    return found[0], found[1], torch.cat(errors) if errors else None


def _alone(o: Opened, codes: Tensor) -> Tensor:
    """Decode codes [n, C], each alone in a field of itself: [n, f, f, 3] in bytes' range."""
    f, found = o.factor, [torch.empty(0, o.factor, o.factor, 3)]
    for part in codes.split(256):
        made = o.decode(part[:, :, None, None].expand(-1, -1, 5, 5).contiguous())
        made = to_unit(torch.as_tensor(made).float()).clamp(0, 1) * 255
        found.append(made[:, :, 2 * f : 3 * f, 2 * f : 3 * f].permute(0, 2, 3, 1))
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


def _colors(sites: Tensor) -> Tensor:
    """Give colors [K, 3] by the ranks along the codes' three longest axes: luminance first."""
    x = (sites - sites.mean(0)).double()
    axes = torch.linalg.svd(x, full_matrices=False)[2][:3]
    along = F.pad(x @ axes.T, (0, 3 - len(axes)))
    ranks = along.argsort(0).argsort(0) / max(1, len(x) - 1)
    ranks[:, len(axes) :] = 0.5
    y, u, v = 40 + 185 * ranks[:, 0], 160 * (ranks[:, 1] - 0.5), 160 * (ranks[:, 2] - 0.5)
    rgb = torch.stack([y + 1.4 * v, y - 0.34 * u - 0.71 * v, y + 1.77 * u], 1)
    return rgb.clamp(0, 255).round().float()


def _places(
    o: Opened, away: Tensor, flat: Tensor, count: Tensor, order: Sequence[int]
) -> np.ndarray:
    """Choose eight tokens of each code, from the nearest to the farthest: [K, 8, 3].

    Photograph (its number in `order`), row, column; NONE where a code has fewer.
    """
    number = {source: n for n, source in enumerate(order)}
    where, sizes = [], [i.numel() for i in o.indices]
    for source, grid in enumerate(o.indices):
        n = torch.full((grid.numel(),), number.get(source, NONE))
        row, column = torch.meshgrid(*(torch.arange(s) for s in grid.shape), indexing="ij")
        where.append(torch.stack([n, row.flatten(), column.flatten()], 1))
    places = torch.cat(where)
    assert len(places) == sum(sizes)
    seen = (places[:, 0] != NONE).nonzero()[:, 0]
    ranked = seen[np.lexsort((away[seen].numpy(), flat[seen].numpy()))]
    have = flat[seen].bincount(minlength=len(count)).numpy()
    begin = have.cumsum() - have
    out = np.full((len(count), PATCHES, 3), NONE)
    taken = np.minimum(have, PATCHES)
    for j in range(PATCHES):
        codes = (taken > j).nonzero()[0]
        step = (have[codes] - 1) * j // np.maximum(taken[codes] - 1, 1)
        out[codes, j] = places[ranked[begin[codes] + step]].numpy()
    return out


def _atlas(packed: Packed, name: str, tiles: Tensor) -> int:
    """Add tiles side by side in one picture; give how many a row."""
    side = math.ceil(math.sqrt(len(tiles)))
    padded = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, side * side - len(tiles)))
    sheet = rearrange(padded, "(r c) a b d -> (r a) (c b) d", r=side).to(torch.uint8)
    packed.picture(name, sheet, 0 if sheet.shape[0] <= 512 else 90)
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
    z = torch.cat([p.flatten(0, 1) for p in o.points])
    most = min(CURVE, max(256, int(PAIRS / 25 / len(o.sites))))
    z = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:most]]
    low, high = about["temperatures"][0], about["temperatures"][-1]
    taus = np.geomspace(low, high, 25)
    bits = o.soften(z, (o.width * taus).tolist())[1].mean(1).numpy()
    above = np.flatnonzero(bits >= 1)
    one = None
    if len(above) and above[0] > 0:
        one = float(
            np.exp(np.interp(1, bits[above[0] - 1 :][:2], np.log(taus[above[0] - 1 :][:2])))
        )
    about["curve"] = {"tau": taus.tolist(), "bits": bits.tolist(), "one": one, "tokens": len(z)}


def soft_pictures(
    o: Opened, source: int, taus: Sequence[float]
) -> list[tuple[Tensor | None, Tensor, float | None]]:
    """Decode a photograph softly at each tau x 2 D / C: picture [H, W, 3], bits [h, w], and dB."""
    z, found = o.points[source], []
    h, w, _ = z.shape
    vectors, bits = o.soften(z.flatten(0, 1), [o.width * tau for tau in taus])
    for soft, entropy in zip(vectors, bits, strict=True):
        if o.decode is None:
            found.append((None, entropy.view(h, w), None))
            continue
        image = decoded(o, soft.view(h, w, -1)).round()
        pixels = rearrange(image, "c h w -> h w c").to(torch.uint8)
        noise = psnr(image, o.images[source]) if o.images else None
        found.append((pixels, entropy.view(h, w), noise))
    return found


def psnr(image: Tensor, original: Tensor) -> float:
    """Give the peak signal-to-noise ratio of bytes, in dB; 99 for equal pictures."""
    mse = (image.float() - original.float()).square().mean().item()
    return 10 * math.log10(255**2 / mse) if mse > 0 else 99.0


def grays(bits: Tensor, num_codes: int) -> np.ndarray:
    """Give entropies as bytes, 255 for log2 K bits, in 64 steps."""
    return ((bits / math.log2(num_codes)).clamp(0, 1) * 63).round().to(torch.uint8).numpy() * 4


# Photographs -------------------------------------------------------------------------------------


def photograph(packed: Packed, m: int, o: Opened, n: int, source: int) -> None:
    """Add what one tokenizer makes of one shown photograph, hard and at each temperature."""
    about, prefix = packed.meta["tokenizers"][m], f"{m}/"
    indices = o.indices[source]
    about["grids"].append(list(indices.shape))
    packed.add(f"{prefix}i{n}", indices, "u16")
    packed.add(f"{prefix}z{n}", (o.points[source] / about["scale"]).round(), "i16")
    hard = None
    if o.decode is not None:
        with _Watched(o) as watched:
            image = decoded(o, o.codebook[indices]).round()
        if watched.statistics:
            packed.add(f"{prefix}gn{n}", torch.stack(watched.statistics), "f32")
        packed.picture(f"{prefix}hard{n}", rearrange(image, "c h w -> h w c").to(torch.uint8), 80)
        if o.images:
            hard = psnr(image, o.images[source])
            error = patches((image - o.images[source]).square(), o.factor).mean((2, 3, 4)).sqrt()
            packed.picture(f"{prefix}error{n}", (2 * error).clamp(0, 255).to(torch.uint8))
    about["psnr"].append(hard)
    noise = []
    soft = soft_pictures(o, source, about["temperatures"])
    for j, (pixels, bits, value) in enumerate(soft):
        packed.picture(f"{prefix}entropy{n}/{j}", grays(bits, len(o.sites)))
        if pixels is not None:
            packed.picture(f"{prefix}soft{n}/{j}", pixels, 68)
        noise.append(value)
    about["soft_psnr"].append(noise)


class _Watched:
    """Note mean and variance of each group norm of a decoder that JavaScript runs, in order."""

    def __init__(self, o: Opened):
        self.statistics: list[Tensor] = []
        network = _decoder(o)
        self.norms = [] if network is None else norms(network)

    def __enter__(self) -> "_Watched":
        self.handles = [norm.register_forward_pre_hook(self._note) for norm in self.norms]
        return self

    def _note(self, norm: nn.GroupNorm, inputs: tuple[Tensor]) -> None:
        groups = rearrange(inputs[0][0], "(g c) h w -> g (c h w)", g=norm.num_groups)
        self.statistics.append(torch.stack([groups.mean(1), groups.var(1, correction=0)], 1))

    def __exit__(self, *exception) -> None:
        for handle in self.handles:
            handle.remove()


def _decoder(o: Opened) -> Decoder | None:
    """Give the decoder when it is one of ours that works at the resolution of the tokens."""
    owner = getattr(o.decode, "__self__", None)
    decoder = getattr(owner, "decoder", None)
    if not isinstance(decoder, Decoder):
        return None
    network = decoder.network
    return decoder if network is None or hasattr(network, "blocks") else None


def norms(decoder: Decoder) -> list[nn.Module]:
    """List its group norms in the order in which they act."""
    if decoder.network is None:
        return []
    inside = [n for block in decoder.network.blocks for n in (block.norm1, block.norm2)]
    return [*inside, decoder.network.norm]


def _network(packed: Packed, m: int, o: Opened) -> None:
    """Add the weights with which the page decodes what one paints: of our `patch` family."""
    decoder, about, prefix = _decoder(o), packed.meta["tokenizers"][m], f"{m}/w/"
    about["network"] = None
    if decoder is None:
        return
    if o.codebook is not o.sites and not torch.equal(o.codebook, o.sites):
        packed.add(f"{m}/codes", o.codebook, "f32")
    layers: dict[str, nn.Module] = {}
    if decoder.linear is not None:
        layers["linear"] = decoder.linear[0]
    if decoder.network is not None:
        layers["stem"], layers["last"] = decoder.network.stem, decoder.network.last
        for b, block in enumerate(decoder.network.blocks):
            layers |= {f"{b}a": block.conv1, f"{b}b": block.conv2}
    shapes = {}
    for name, layer in layers.items():  # [taps, in, out], as the page walks over them
        packed.add(f"{prefix}{name}", rearrange(layer.weight, "o i a b -> (a b) i o"), "f16")
        packed.add(f"{prefix}{name}/bias", layer.bias, "f32")
        shapes[name] = list(layer.weight.shape)
    for i, norm in enumerate(norms(decoder)):
        packed.add(f"{prefix}norm{i}", torch.stack([norm.weight, norm.bias]), "f32")
    about["network"] = {
        "layers": shapes,
        "groups": [norm.num_groups for norm in norms(decoder)],
        "eps": [norm.eps for norm in norms(decoder)],
        "depth": 0 if decoder.network is None else len(decoder.network.blocks),
    }
