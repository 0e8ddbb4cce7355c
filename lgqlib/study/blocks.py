"""One trained tokenizer, told in five blocks: what it does, learned, doubts, and how it cools."""

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from lgqlib.data import load, whole_images
from lgqlib.explorers.layout import arrange
from lgqlib.explorers.opening import Opened, sample, unseeing
from lgqlib.explorers.preparing import decoded, upright
from lgqlib.figures import story as draw
from lgqlib.figures.pictures import DETAILS, colored, data_uri, detail
from lgqlib.figures.style import name_of
from lgqlib.measure.annealing import anneal
from lgqlib.measure.codecs import at_rate
from lgqlib.measure.geometry import spectrum
from lgqlib.measure.images import psnr_bytes
from lgqlib.measure.projection import in_plane
from lgqlib.measure.temperature import free_energy_curve
from lgqlib.quantizers.assignment import probabilities
from lgqlib.run import Run
from lgqlib.study.comparison import mean_interval, side

Pixels = UInt8[np.ndarray, "_ _ 3"]
PLAIN = 6.0
"""Gray levels of standard deviation below which a code's picture counts as one color."""
MOST = 1024
"""Codes on the map, the most used first."""
HUES = {14: "reds", 45: "browns", 70: "yellows", 170: "greens", 260: "blues", 330: "purples"}


PRICED = {
    "bits": "written by a coder that knows how often each code occurs in training photographs",
    "bits_prior": "written by a coder that knows a token’s neighbors and a small prior over tokens",
}


class NotTold(ValueError):
    """Why a block cannot be told of these runs."""


@dataclass(frozen=True)
class Block:
    """One finding of a report's first page; `title` and `caption` are HTML."""

    title: str
    body: str
    caption: str
    details: str = ""
    """Stem of the notebook that has more of it."""


@dataclass(frozen=True)
class Encoded:
    """A run's tokenizer, and held-out photographs through it."""

    run: Run
    cache: Path

    @cached_property
    def tokenizer(self):
        return self.run.tokenizer("cpu")

    @cached_property
    def label(self) -> str:
        return escape(name_of(self.run.config.quantizer.method))

    @property
    def num_images(self) -> int:
        """Images that it was trained on."""
        return len(load(self.run.config.data, "train", cache=self.cache))

    @property
    def factor(self) -> int:
        """Pixels a token is wide."""
        return self.run.config.backbone.downsample

    @cached_property
    def decoded(self) -> dict[str, Pixels]:
        """What the evaluation decoded of whole photographs, by their names."""
        named = self.run.arrays().items()
        return {key[8:]: array for key, array in named if key.startswith("decoded.")}

    @cached_property
    def held_out(self) -> dict[str, UInt8[torch.Tensor, "3 _ _"]]:
        """The whole photographs of the evaluation, in its order."""
        if not self.decoded:
            raise NotTold("this study's images were not seen as whole photographs")
        config = self.run.config
        images = load(config.data, "val", cache=self.cache)
        limit = config.evaluation.photographs
        return dict(whole_images(images, multiple=self.factor, limit=limit))

    @cached_property
    def photographs(self) -> dict[str, Pixels]:
        """The same, those with a known detail first."""
        order = sorted(self.held_out, key=lambda name: name not in DETAILS)
        return {n: self.held_out[n].permute(1, 2, 0).numpy() for n in order if n in self.decoded}

    @cached_property
    def opened(self) -> Opened:
        """The tokenizer, and what it makes of each of them."""
        return unseeing(self.tokenizer).seeing([(n, self.held_out[n]) for n in self.photographs])

    @property
    def points(self) -> dict[str, Float[torch.Tensor, "h w D"]]:
        """Latents of each photograph where the nearest code is chosen."""
        return dict(zip(self.photographs, self.opened.points, strict=True))

    @property
    def indices(self) -> dict[str, Int[np.ndarray, "h w"]]:
        """The codes of each photograph."""
        return {n: i.numpy() for n, i in zip(self.photographs, self.opened.indices, strict=True)}

    @property
    def priced(self) -> str:
        """How the evaluation put a price on tokens; the array of prices is called so too."""
        return "bits_prior" if "whole.bits_prior" in self.run.arrays() else "bits"

    @cached_property
    def bits(self) -> dict[str, float]:
        """Bits a pixel of each photograph."""
        values = self.run.arrays()[f"whole.{self.priced}"].tolist()
        return dict(zip(self.held_out, values, strict=True))

    @cached_property
    def counts(self) -> Int[np.ndarray, " K"]:
        """How often each code occurs in the photographs."""
        return self.opened.codes.bincount(minlength=self.opened.num_codes).numpy()

    @cached_property
    def tiles(self) -> Float[np.ndarray, "K f f 3"]:
        """What each code decodes to, the mean over its tokens; zero for those without any."""
        return self.mean_patches(self.decoded)

    def mean_patches(self, images: Mapping[str, Pixels]) -> Float[np.ndarray, "K f f 3"]:
        """Average the patches of images over the tokens of each code."""
        total = np.zeros((self.tokenizer.num_codes, *(self.factor,) * 2, 3))
        for name, indices in self.indices.items():
            np.add.at(total, indices.ravel(), _patches(images[name], self.factor))
        return total / np.maximum(self.counts, 1)[:, None, None, None]

    @cached_property
    def width(self) -> float:
        """The natural width 2 D / C, a temperature."""
        width = self.tokenizer.width
        if not width > 0 or self.tokenizer.quantizer.energy != "squared":
            raise NotTold("these codes have no natural temperature")
        return width

    def psnr(self, name: str) -> float:
        return psnr_bytes(self.photographs[name], self.decoded[name])


def _patches(image: np.ndarray, f: int) -> np.ndarray:
    return rearrange(image, "(h a) (w b) c -> (h w) a b c", a=f, b=f)


class Column(NamedTuple):
    """A way to keep photographs: what came back, and its bits a pixel, by their names."""

    key: str
    label: str
    decoded: dict
    bits: dict


def columns(
    encoded: Mapping[str, Encoded], codecs: Sequence[str] = ("JPEG",)
) -> tuple[dict[str, Pixels], list[Column]]:
    """Give the photographs, and what methods and, at LGQ's bits, codecs make of them."""
    found = [Column(m, name_of(m), e.decoded, e.bits) for m, e in encoded.items()]
    target = next((c for c in found if c.key == "lgq"), found[-1])
    photographs = next(iter(encoded.values())).photographs
    for codec in codecs:
        files = {n: at_rate(x, codec, target.bits[n]) for n, x in photographs.items()}
        parts = {n: y for n, (_, y) in files.items()}, {n: bits for n, (bits, _) in files.items()}
        found.append(Column(codec, codec, *parts))
    return photographs, found


# 1: what a tokenizer does ------------------------------------------------------------------------


def what_it_does(p: Encoded) -> Block:
    """Follow one photograph into numbers and back."""
    name, f = next(iter(p.photographs)), p.factor
    image, indices = p.photographs[name], p.indices[name]
    x, y, w, h = detail(name, image, 12 * f, 8 * f, multiple=f)
    part = np.s_[y : y + h, x : x + w]
    tokens, means = np.s_[y // f : (y + h) // f, x // f : (x + w) // f], p.tiles.mean((1, 2))
    wide, scale = 272, 272 / image.shape[1]
    tall = wide * image.shape[0] / image.shape[1]
    mark = draw.frame(x * scale, y * scale, w * scale, h * scale)

    def end(pixels, alt):
        inset = f'<img src="{data_uri(pixels[part])}" class="sharp inset" width="126" alt="">'
        return draw.picture(pixels, wide, over=mark + inset, alt=alt)

    bits, db = p.bits[name], p.psnr(name)
    every = mean_interval(np.array([p.psnr(n) for n in p.photographs]))[0]
    colors = draw.picture(means[indices].astype(np.uint8), wide, over=mark, sharp=True, alt="codes")
    grid = indices[tokens]
    numbered = draw.numbers(grid, means, min(wide, tall * grid.shape[1] / grid.shape[0]))
    last = p.tokenizer.num_codes - 1
    body = draw.row(
        draw.panel(end(image, "photograph"), wide, f"<b>Photograph</b> {_size(image)} pixels",
                   "24 bits a pixel"),
        draw.arrow("encode"),
        draw.panel(colors, wide, f"<b>Tokens</b> {_size(indices)}, each one code,",
                   "drawn in its code’s mean color"),
        draw.arrow("magnify"),
        draw.panel(numbered, wide, "<b>What is stored</b> one integer a token,", f"0 to {last:,}"),
        draw.arrow("decode"),
        draw.panel(end(p.decoded[name], "decoded"), wide, f"<b>Decoded</b> {db:.1f} dB",
                   f"{bits:.2f} bits a pixel, coded"),
        cls="top",
    )  # fmt: skip
    raw = np.log2(p.tokenizer.num_codes) / f**2
    train = p.run.config.train
    seen = f"{train.num_steps:,} steps of {train.batch_size} crops from {p.num_images:,} images"
    caption = f"Follow the white frame: {w} × {h} pixels become {w // f} × {h // f} numbers, and "
    caption += "the numbers alone become pixels again. "
    caption += (
        f"dB (PSNR) says how close: {db:.1f} here, {every:.1f} on average over all "
        f"{len(p.photographs)} held-out photographs. "
    )
    caption += f"Uncoded, integers take {raw:.3f} bits a pixel; {PRICED[p.priced]}, {bits:.3f}"
    caption += " (more: this photograph uses other codes)." if bits > raw else "."
    caption += f" This tokenizer saw {seen}." if train.num_steps else ""
    title = f"{p.label} turns this photograph into {indices.size:,} integers, "
    title += f"{24 / bits:.0f} times smaller; it comes back at {db:.1f} dB"
    return Block(title, body, caption, "02_evaluate")


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} × {image.shape[0]}"


# 2: what the codebook learned --------------------------------------------------------------------


def kind_of(tile: Float[np.ndarray, "f f 3"]) -> tuple[str, str]:
    """Say which region of a codebook a code's picture belongs to, and what it shows itself."""
    color, gray = tile.mean((0, 1)), tile @ [0.299, 0.587, 0.114]
    if gray.std() < PLAIN:
        hue, light = colorsys.rgb_to_hsv(*color / 255)[0] * 360, gray.mean()
        if np.ptp(color) < min(26, 0.4 * color.max() + 4):
            name = "whites" if light > 190 else "blacks" if light < 55 else "grays"
        else:
            name = next((name for top, name in HUES.items() if hue < top), "reds")
        return name, f"plain {name[:-1]}"
    half = len(gray) // 2
    across = gray[:, -half:].mean() - gray[:, :half].mean()
    down = gray[-half:].mean() - gray[:half].mean()
    if max(abs(across), abs(down)) < 0.7 * gray.std():
        return "stripes and spots", "a stripe or a spot"
    if abs(across) > 2 * abs(down):
        return "upright edges", "light left, dark right" if across < 0 else "dark left, light right"
    if abs(down) > 2 * abs(across):
        return "level edges", "light above, dark below" if down < 0 else "dark above, light below"
    return "slanted edges", "a slanted edge"


def what_it_learned(p: Encoded) -> Block:
    """Show all codes as one map, with regions named and six codes in real photographs."""
    used = np.argsort(-p.counts, kind="stable")[: min(MOST, int((p.counts > 0).sum()))]
    if len(used) < 4:
        raise NotTold("the photographs use fewer than four codes")
    tiles = p.tiles[used]
    small = np.stack([_thumb(tile, 4) for tile in tiles]).reshape(len(used), -1)
    n = int(np.ceil(len(used) ** 0.5))
    grid = np.full(n * n, -1)
    grid[arrange(small)] = np.arange(len(used))
    grid = grid.reshape(n, n)
    kinds = [kind_of(tile) for tile in tiles]
    regions = np.array([kinds[i][0] if i >= 0 else "" for i in grid.ravel()]).reshape(grid.shape)
    side = 640 // n * n
    cell = side / n
    mosaic = np.where(grid[..., None, None, None] >= 0, tiles[grid], 128)
    mosaic = rearrange(mosaic, "i j a b c -> (i a) (j b) c").round().astype(np.uint8)
    centers = _centers(regions, cell)
    strength = [np.ptp(t.mean((0, 1))) + 4 * t.mean(2).std() for t in tiles]
    often = p.counts[used] >= np.median(p.counts[used])
    chosen = _numbered(grid, regions, centers, often * strength)
    lines = f'<s style="background-size:{cell:g}px {cell:g}px"></s>'
    boxes = "".join(
        draw.frame(j * cell, i * cell, cell, cell, str(number))
        for number, (i, j) in enumerate(chosen, 1)
    )
    names = "".join(
        f'<em style="left:{(j + 0.5) * cell:.0f}px;top:{(i + 0.5) * cell:.0f}px">{name}</em>'
        for name, (i, j) in centers.items()
    )
    total, real = p.counts.sum(), p.mean_patches(p.photographs)
    rows = []
    for number, (i, j) in enumerate(chosen, 1):
        code, (_, said) = used[grid[i, j]], kinds[grid[i, j]]
        share = 100 * p.counts[code] / total
        shown = [draw.picture(t.round().astype(np.uint8), 56, sharp=True) for t in
                 (p.tiles[code], real[code])]  # fmt: skip
        shown += [draw.picture(c, 56, sharp=True, cls="ctx") for c in _contexts(p, code)]
        head = f"<b>{said}</b> code {code}, {share:.2f} % of tokens"
        what = draw.tag("div", head + draw.tag("div", "".join(shown), cls="ctxrow"), cls="what")
        badge = draw.tag("b", str(number), cls="badge in")
        rows.append(draw.tag("div", badge + what, cls="code"))
    heads = '<div class="heads"><span>decoded</span><span>real</span>'
    heads += "<span>real places, from typical to far, the code’s own pixels framed</span></div>"
    shown_map = draw.picture(mosaic, side, sharp=True, over=lines + boxes + names, cls="map",
                             alt="map of the codebook")  # fmt: skip
    body = draw.row(shown_map, draw.tag("div", heads + "".join(rows), cls="codes"), cls="top")
    plain = 100 * np.mean([kind[1].startswith("plain") for kind in kinds])
    dead = p.tokenizer.num_codes - int((p.counts > 0).sum())
    caption = "A square is a code: the mean of what its tokens decode to; the map puts alike codes "
    caption += "side by side. A picture counts as one color when its pixels differ by less than "
    caption += f"{PLAIN:.0f} of 255 gray levels (standard deviation). "
    caption += "“Decoded” and “real” are means over the code’s tokens. "
    caption += f"{dead or 'None'} of {p.tokenizer.num_codes:,} codes {'are' if dead > 1 else 'is'} "
    caption += f"unused in the {len(p.photographs)} held-out photographs."
    if len(used) < p.tokenizer.num_codes - dead:
        caption += f" Shown are the {len(used):,} most used."
    learned = "From photographs alone it learned" if p.run.step else "Its codes are"
    title = f"{learned} {p.tokenizer.num_codes:,} tiny pictures: "
    title += f"{plain:.0f} % one color, {100 - plain:.0f} % edges and stripes"
    return Block(title, body, caption, "03_geometry")


def _thumb(tile: Float[np.ndarray, "f f 3"], side: int) -> np.ndarray:
    pixels = np.clip(tile, 0, 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX), float)


def _centers(regions: np.ndarray, cell: float) -> dict[str, tuple[int, int]]:
    """Place the names of up to nine regions where most of their codes are, none over another."""
    found, (n, _) = {}, regions.shape
    names, counts = np.unique(regions[regions != ""], return_counts=True)
    for name in names[np.argsort(-counts)]:
        density = uniform_filter((regions == name).astype(float), 5, mode="constant")
        for i, j in found.values():
            near = np.s_[max(0, i - int(40 / cell)) : i + int(40 / cell) + 1]
            density[near, max(0, j - int(130 / cell)) : j + int(130 / cell) + 1] = 0
        place = np.unravel_index(density.argmax(), density.shape)
        if density[place] > 0.3 and len(found) < 9:
            margin = min(n // 3, int(4.2 * len(name) / cell))
            found[str(name)] = int(place[0]), int(np.clip(place[1], margin, n - 1 - margin))
    return found


def _numbered(grid, regions, centers, weights) -> list[tuple[int, int]]:
    """Choose up to six codes of large weight near the names of regions, of edges and colors."""
    rows, cols = np.indices(grid.shape)
    order = sorted(centers, key=lambda name: "edges" not in name and "stripes" not in name)
    chosen: list[tuple[int, int]] = []
    for name in [n for pair in zip(order, order[::-1], strict=True) for n in pair]:
        i, j = centers[name]
        away = np.maximum(abs(rows - i), abs(cols - j) / 2)
        fits = (regions == name) & (away >= 2) & (away <= 6) & (cols < len(grid) - 2)
        for a, b in chosen:
            fits &= (abs(rows - a) > 1) | (abs(cols - b) > 2)
        fits = fits if name not in {str(regions[c]) for c in chosen} else np.zeros_like(fits)
        if fits.any() and len(chosen) < 6:
            best = np.where(fits, weights[grid], -1).argmax()
            chosen.append(tuple(map(int, np.unravel_index(best, grid.shape))))
    return sorted(chosen)


def _contexts(p: Encoded, code: int | np.integer, count: int = 6) -> list[Pixels]:
    """Cut out real places of a code with two tokens around, from near to far from the code."""
    places, f = [], p.factor
    for name, indices in p.indices.items():
        inner = np.argwhere(indices[2:-2, 2:-2] == code) + 2
        near = p.points[name][tuple(inner.T)] - p.opened.sites[code]
        away = near.square().sum(1).tolist()
        places += [(d, name, i, j) for d, (i, j) in zip(away, inner.tolist(), strict=True)]
    places.sort()
    picked = sorted({round(q) for q in np.linspace(0, len(places) - 1, count)}) if places else []
    cuts = ((n, f * (i - 2), f * (j - 2)) for _, n, i, j in (places[k] for k in picked))
    return [p.photographs[n][y : y + 5 * f, x : x + 5 * f] for n, y, x in cuts]


# 3: where it is unsure ---------------------------------------------------------------------------


def where_it_is_unsure(p: Encoded) -> Block:
    """Hold the doubt of tokens against their errors."""
    f = p.factor
    doubts, errors, trends = {}, {}, []
    for name, points in p.points.items():
        shape = points.shape[:2]
        doubts[name] = p.opened.soften(points.flatten(0, 1), [p.width])[1].numpy().reshape(shape)
        gap = p.photographs[name].astype(float) - p.decoded[name]
        errors[name] = np.sqrt(_patches(gap**2, f).mean((1, 2, 3))).reshape(shape)
        trends.append(spearmanr(doubts[name].ravel(), errors[name].ravel()).statistic)
    mean, low, high = mean_interval(np.nan_to_num(trends))
    name = [*p.photographs][min(1, len(p.photographs) - 1)]
    doubt, error, wide = doubts[name], errors[name], 288
    picked = {"A": _at(doubt, 0.03), "B": _at(doubt, 0.98)}
    scale = wide / doubt.shape[1]
    frames = "".join(
        draw.frame((j - 1) * scale, (i - 1) * scale, 3 * scale, 3 * scale, letter)
        for letter, (i, j) in picked.items()
    )
    tops = float(np.quantile(doubt, 0.99)), float(np.quantile(error, 0.97))
    maps = [draw.picture(colored(v, high=top), wide, sharp=True, over=frames) for v, top in
            zip((doubt, error), tops, strict=True)]  # fmt: skip
    bars = [draw.color_bar(wide, "sure, 0 bits", f"{tops[0]:.1f} bits or more"),
            draw.color_bar(wide, "0", f"{tops[1]:.0f} gray levels or more")]  # fmt: skip
    every = [np.concatenate([v.ravel() for v in of.values()]) for of in (doubts, errors)]
    tall = wide * doubt.shape[0] / doubt.shape[1]
    shown = {
        "<b>Photograph</b>": draw.picture(p.photographs[name], wide, over=frames),
        "<b>Doubt</b> of each token": maps[0] + bars[0],
        "<b>Error</b> of each token": maps[1] + bars[1],
        "<b>One against the other</b>": draw.doubt_chart(*every, side=(wide, max(tall - 6, 190))),
    }
    body = draw.row(*(draw.panel(part, wide, head=head) for head, part in shown.items()), cls="top")
    choices = (_choices(p, letter, name, at, doubt[at]) for letter, at in picked.items())
    body += draw.row(*choices, cls="bottom")
    direction = side(low, high)
    n = len(trends)
    interval = (
        f"{_signed(mean)}, 95 % interval {_signed(low)} to {_signed(high)} over {n} photographs"
    )
    interval = interval if n > 1 else f"{_signed(mean)} on one photograph, which gives no interval"
    say = {
        -1: "Unsure is not wrong: where tokens waver they err less",
        0: "Unsure is not wrong: doubt does not foretell the error",
        1: "Unsure is also wrong: where tokens waver they err more",
    }
    title = f"{say[direction]} (rank correlation {_signed(mean)})"
    caption = "Doubt is the entropy of a token’s soft choice among the codes: 0 bits, one code; "
    caption += "3 bits, as unsure as between 8. A typical token wavers between "
    caption += (
        f"{2 ** every[0].mean():.1f} codes. The choice is as soft as the codebook is coarse, at "
    )
    caption += "its "
    caption += "“natural width”: a distance counts relative to the mean error of a token "
    caption += "(2 D / C in the notebooks). "
    caption += f"Right: a dot is a token, the line the mean of each tenth. Correlation {interval}."
    return Block(title, body, caption, "04_entropy")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _at(values: np.ndarray, share: float) -> tuple[int, int]:
    """Find a token, not at the border, at a quantile of the values."""
    i, j = (max(2, size // 12) for size in values.shape)
    inner = values[i:-i, j:-j]
    nearest = abs(inner - np.quantile(inner, share)).argmin()
    row, col = np.unravel_index(nearest, inner.shape)
    return int(row + i), int(col + j)


def _choices(p: Encoded, letter: str, name: str, at: tuple[int, int], doubt: np.floating) -> str:
    """Show the codes between which a token wavers, and what is left for all others."""
    shares = probabilities(p.points[name][at][None], p.opened.sites, p.width)[0].numpy()
    best = np.argsort(-shares)[:8]
    best = best[: max(3, int((shares[best] > 0.005).sum()))]
    i, j = (p.factor * v for v in at)
    own = p.photographs[name][i : i + p.factor, j : j + p.factor]
    cells = [draw.panel(draw.picture(own, 48, sharp=True), 52, "real")]
    for k in best:
        tile = p.tiles[k].round().astype(np.uint8)
        shown = draw.picture(tile, 48, sharp=True, cls="" if p.counts[k] else "unused")
        bar = f'<i class="bar" style="height:{60 * shares[k]:.0f}px"></i>'
        cells.append(draw.panel(bar + shown, 52, f"<b>{100 * shares[k]:.0f} %</b>"))
    rest = max(0.0, 100 * (1 - shares[best].sum()))
    cells.append(draw.panel("", 66, f"<b>{rest:.0f} %</b>", "all others"))
    said = f"as unsure as between {2**doubt:.1f} codes" if 2**doubt > 1.05 else "sure of one code"
    said = f"Token <b>{letter}</b>, {doubt:.1f} bits: {said}"
    return draw.panel("".join(cells), 600, head=said, cls="choices")


# 4: what the temperature does --------------------------------------------------------------------


def what_the_temperature_does(p: Encoded) -> Block:
    """Decode one photograph from soft choices, from hot to cold, above the entropy of a token."""
    o, width = p.opened, p.width
    split = o.tau_c / width
    if not split > 4:
        raise NotTold("the first split is not far enough above the natural width")
    step = split ** (1 / 3)
    warmth = [split * step, *np.geomspace(split, 1, 4), 1 / step]
    name = [*p.photographs][min(1, len(p.photographs) - 1)]
    image, points = p.photographs[name], p.points[name]
    if o.sites.shape != o.codebook.shape:
        raise NotTold("its codes are not vectors of their own")
    soft = o.soften(points.flatten(0, 1), [value * width for value in warmth])[0]
    warmed = [upright(decoded(o, codes.view(*points.shape[:2], -1))) for codes in soft]
    side = min(image.shape[:2])
    left, top = (image.shape[1] - side) // 2, (image.shape[0] - side) // 2
    wide, gap = 164, (draw.WIDE - 7 * 164) / 6
    panels, quality = [], []
    for pixels in [*warmed, p.decoded[name]]:
        quality.append(psnr_bytes(image, pixels))
        said = "<b>hard choice</b>" if len(panels) == len(warmed) else ""
        shown = draw.picture(pixels[top : top + side, left : left + side], wide)
        panels.append(draw.panel(shown, wide, f"{said} {quality[-1]:.1f} dB"))
    some = o.latents[sample(o.num_tokens, 4000)]
    along = np.geomspace(warmth[0] * 1.6, warmth[-1] / 2.5, 60)
    curve = free_energy_curve(some, o.sites, along * width)
    bits = curve.entropy / np.log(2)
    centers = [wide / 2 + i * (wide + gap) for i in range(6)]
    chart = draw.temperature_chart(
        along, bits, warmth, centers, {split: "first split", 1.0: "natural width"}
    )
    codes = [2 ** np.interp(-np.log(v), -np.log(along), bits) for v in (split, 1.0)]
    caption = "The same trained tokenizer, only warmer (a higher temperature τ): soft choices "
    caption += "blend codes, and the decoder draws the blend. Below, how many codes a token blends "
    caption += "(2 to its mean entropy). "
    caption += "First split: in theory, above this temperature one code would do as well as many. "
    caption += "Natural width: the mean error of a token, as a temperature; there the picture has "
    caption += f"{quality[4]:.1f} dB, by hard choice {quality[6]:.1f}."
    title = f"Heat melts the codebook: a token blends {codes[0]:.0f} codes at the first split, "
    title += f"{codes[1]:.1f} at the natural width, 1 by hard choice"
    return Block(title, draw.row(*panels) + chart, caption, "05_temperature")


# 5: how it learned -------------------------------------------------------------------------------


def how_it_learned(p: Encoded) -> Block:
    """Anneal the colors of a photograph, as a toy; beside it, the tokenizer's own training."""
    snapshots = p.run.snapshots()
    toy, title, coldest = _toy(p)
    if len(snapshots) < 3:
        return Block(title, toy, "The run kept no snapshots of its own training.", "05_temperature")
    middle = min(snapshots[1:-1], key=lambda s: abs(s.step - snapshots[-1].step / 10))
    shown = [snapshots[0], middle, snapshots[-1]]
    basis, wide = spectrum(shown[-1].latents), 300
    within = in_plane(basis, shown[-1].latents)
    means = p.tiles.mean((1, 2)).astype(int)
    inks = [draw._rgb(c) if n else "#888" for c, n in zip(means, p.counts, strict=True)]
    parts = []
    for s in shown:
        codes, latents = in_plane(basis, s.codebook), in_plane(basis, s.latents)
        some = latents[:900]
        grays = ["var(--muted)"] * len(some)
        drawn = draw.plane(some, grays, codes, inks, wide, within=within, radius=2.6)
        used = len(np.unique(s.indices))
        name = f"<b>step {s.step:,}</b> {used:,} codes for {len(s.indices):,} tokens"
        parts.append(draw.panel(drawn, wide, name))
    colder = [s.tau / s.tau_c for s in snapshots if s.tau_c > 0 and s.tau > 0]
    said = "A dot is a code, in the color it decodes to in the end; a speck is a token, on the two "
    said += "widest axes. "
    if colder:
        ends = [f"1/{1 / v:,.0f}" if v < 0.1 else f"{v:.2g}" for v in (max(colder), min(colder))]
        said += f"Its temperature falls from {ends[0]} to {ends[1]} of the first split’s. "
        if max(colder) < coldest:
            said += "That is colder than any split of the toy: these pictures show no splits. "
    aside = draw.tag("p", "<b>The tokenizer’s own training</b><br>" + said, cls="aside")
    body = toy + draw.row(aside, *parts, cls="top second")
    caption = "Above, the method on the colors of one photograph, nothing of this tokenizer: big "
    caption += "dots are the colors it has, specks the photograph’s pixels, below them the "
    caption += "photograph in these colors. Cooled, a color splits in two wherever pixels differ "
    caption += "most."
    return Block(title, body, caption, "05_temperature")


def _toy(p: Encoded) -> tuple[str, str, float]:
    """Anneal 32 colors of one photograph; give pictures, a finding, and the coldest split."""
    name = max(p.photographs, key=lambda n: np.ptp(p.photographs[n].astype(float), 2).std())
    image = p.photographs[name]
    side = min(image.shape[:2])
    image = np.asarray(
        Image.fromarray(image[:side, :side]).resize((124, 124), Image.Resampling.BOX)
    )
    colors = image.reshape(-1, 3) / 255
    some = colors[np.random.default_rng(0).permutation(len(colors))[:700]]
    basis = spectrum(some)
    tau_c = 2 * float(np.linalg.eigvalsh(np.cov(some.T, bias=True))[-1])
    annealing = anneal(some, 32, tau_c * np.geomspace(1.3, 0.004, 44))
    distinct = annealing.num_distinct
    wanted = (1, 2, 5, 10, 18, int(distinct.max()))
    shown = sorted(
        {int(np.argmin(abs(distinct - w) + 1e-3 * np.arange(len(distinct)))) for w in wanted}
    )
    within, parts = in_plane(basis, some), []
    shades = [draw._rgb(255 * c) for c in some]
    for t in shown:
        codes = np.unique(annealing.codebooks[t].round(6), axis=0)
        fills = [draw._rgb(np.clip(255 * c, 0, 255)) for c in codes]
        drawn = draw.plane(within, shades, in_plane(basis, codes), fills, 130, within=within)
        nearest = cdist(colors, codes).argmin(1)
        painted = (255 * codes[nearest]).round().clip(0, 255).astype(np.uint8)
        painted = draw.picture(painted.reshape(image.shape), 130, sharp=True)
        count = f"{distinct[t]} color{'s' if distinct[t] > 1 else ''}"
        parts.append(draw.panel(drawn + painted, 130, f"<b>{count}</b>", cls="toy"))
    off = abs(annealing.observed / annealing.predicted - 1)
    chart = draw.split_chart(annealing, 380)
    seen = ", ".join(str(distinct[t]) for t in shown[1:])
    title = f"A toy shows how cooling learns: one color becomes {seen}; theory foretells the "
    title += f"first split within {np.ceil(1000 * off + 2.5) / 10:.1f} %"  # bisected to 0.25 %
    coldest = min((s.low for s in annealing.splits), default=0.0) / annealing.predicted
    aside = draw.panel(chart, 380, head="<b>When the toy splits</b>")
    return draw.row(*parts, aside, cls="top"), title, coldest


BLOCKS: tuple[Callable[[Encoded], Block], ...] = (
    what_it_does,
    what_it_learned,
    where_it_is_unsure,
    what_the_temperature_does,
    how_it_learned,
)
"""In their order on the page; the last three are of LGQ only."""
