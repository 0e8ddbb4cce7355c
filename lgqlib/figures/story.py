"""Pictures and small charts of a report's first page, as strings of HTML that need no script."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from plotly.colors import hex_to_rgb

from lgqlib.figures.pictures import colored, data_uri
from lgqlib.figures.style import name_of
from lgqlib.measure.annealing import Annealing
from lgqlib.quantizers import METHODS

Pixels = UInt8[np.ndarray, "_ _ 3"]
GROUNDS = {"light": (255, 255, 255), "dark": (20, 22, 26)}
WIDE = 1240
"""Pixels across the page."""
CSS = Path(__file__).with_name("story.css")


# Colors ------------------------------------------------------------------------------------------


def _luminance(rgb: Float[np.ndarray, " 3"]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def ink(color: str, ground: str, contrast: float = 4.6) -> str:
    """Darken, or on a dark ground lighten, a color until text in it can be read there."""
    rgb, back = np.array(hex_to_rgb(color)) / 255, np.array(GROUNDS[ground]) / 255
    toward = 0.0 if ground == "light" else 1.0
    for share in np.linspace(0, 1, 51):
        mixed = (1 - share) * rgb + share * toward
        low, high = sorted((_luminance(mixed), _luminance(back)))
        if (high + 0.05) / (low + 0.05) >= contrast:
            break
    return "#" + "".join(f"{round(255 * c):02x}" for c in mixed)


def method_colors(ground: str) -> str:
    """Give every method's color for dots, and its ink for words, as CSS variables."""
    shades = {m: (row.color if ground == "light" else ink(row.color, ground, 4)) for m, row in
              METHODS.items()}  # fmt: skip
    return "".join(f"--{m}:{c};--{m}-ink:{ink(METHODS[m].color, ground)};" for m, c in
                   shades.items())  # fmt: skip


def shade(key: str, kind: str = "") -> str:
    """Give a method's color as CSS, its `-ink` for words."""
    method = key.partition(" ")[0]
    return f"var(--{method}{kind})" if method in METHODS else "var(--muted)"


# Marks -------------------------------------------------------------------------------------------


def tag(name: str, content: str = "", **attributes) -> str:
    """Write an element; `cls` is its class, underscores are hyphens, and values are escaped."""
    names = {"cls": "class"}
    pairs = ((names.get(k, k.replace("_", "-")), v) for k, v in attributes.items() if v != "")
    said = "".join(
        f' {k}="{escape(f"{v:.5g}" if isinstance(v, float) else str(v))}"' for k, v in pairs
    )
    return f"<{name}{said}>{content}</{name}>"


def svg(width: float, height: float, *marks: str, label: str = "") -> str:
    """Wrap marks in a picture of a size."""
    box = f"0 0 {width} {height}"
    more = {"role": "img", "aria_label": label} if label else {}
    return tag("svg", "".join(marks), width=width, height=height, viewBox=box, **more)


def words(x: float, y: float, content: str, cls: str = "lab", **more) -> str:
    """Write text at a place of an SVG; `content` is plain."""
    return tag("text", escape(content), x=x, y=y, cls=cls, **more)


def _line(x1: float, y1: float, x2: float, y2: float, cls: str, **more) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, cls=cls, **more)


def _curve(x, y, cls: str, **more) -> str:
    places = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return tag("polyline", points=places, cls=cls, **more)


def _rgb(color) -> str:
    return "#" + "".join(f"{int(c):02x}" for c in color)


class Scale(NamedTuple):
    """An axis: numbers from `low` to `high` are pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value):
        share = (np.asarray(value, dtype=float) - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Give round numbers on the axis."""
        steps = [m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)]
        step = next(s for s in steps if (self.high - self.low) / s <= most)
        first, last = np.ceil(self.low / step - 1e-9), np.floor(self.high / step + 1e-9)
        return [round(step * i, 9) + 0.0 for i in np.arange(first, last + 1)]


# Pictures ----------------------------------------------------------------------------------------


def picture(
    pixels: UInt8[np.ndarray, "H W 3"],
    width: float,
    *,
    over: str = "",
    sharp: bool = False,
    cls: str = "",
    alt: str = "",
) -> str:
    """Show a picture `width` pixels wide with marks over it.

    A `sharp` one is kept exactly, its pixels magnified; another is made smaller first.
    """
    height, across = pixels.shape[:2]
    tall = width * height / across
    if not sharp and across > 1.4 * width:
        size = round(1.4 * width), round(1.4 * tall)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    source = data_uri(pixels, quality=0 if sharp else 88)
    look = "sharp" if sharp else ""
    image = f'<img src="{source}" class="{look}" width="{width:g}" height="{tall:g}" '
    image += f'alt="{escape(alt)}">'
    style = f"width:{width:g}px;height:{tall:g}px"
    return tag("div", image + over, cls=f"pic {cls}".strip(), style=style)


def frame(x: float, y: float, w: float, h: float, label: str = "") -> str:
    """Frame a part of a picture, white with a black outline, with a badge at its right."""
    style = f"left:{x - 2:.1f}px;top:{y - 2:.1f}px;width:{w + 4:.1f}px;height:{h + 4:.1f}px"
    badge = tag("b", escape(label), cls="badge", style=f"left:{x + w + 5:.1f}px;top:{y - 1:.1f}px")
    return tag("i", cls="box", style=style) + (badge if label else "")


def panel(body: str, width: float, *lines: str, head: str = "", cls: str = "") -> str:
    """Put a picture between a head and a caption; both may hold markup."""
    top = tag("p", head, cls="head") if head else ""
    below = tag("figcaption", "<br>".join(lines)) if lines else ""
    return tag("figure", top + body + below, style=f"width:{width:g}px", cls=cls)


def row(*parts: str, cls: str = "") -> str:
    """Set parts side by side over the width of the page."""
    return tag("div", "".join(parts), cls=f"row {cls}".strip())


def arrow(word: str) -> str:
    """Point from one part of a row to the next."""
    return tag("div", tag("span", escape(word)) + "→", cls="arrow")


def numbers(indices: Int[np.ndarray, "h w"], colors: Float[np.ndarray, "K 3"], width: float) -> str:
    """Write tokens as numbers, each on its code's mean color."""
    rows, cols = indices.shape
    step, marks = width / cols, []
    for (i, j), k in np.ndenumerate(indices):
        rgb = colors[k]
        at = {"x": j * step, "y": i * step, "width": step - 1, "height": step - 1}
        marks.append(tag("rect", fill=_rgb(rgb), **at))
        style = f"fill:{'#fff' if rgb @ [0.3, 0.6, 0.1] < 140 else '#000'}"
        at = {"x": (j + 0.5) * step, "y": (i + 0.66) * step}
        size = 9.5 if step > 20 else 8
        marks.append(tag("text", str(k), text_anchor="middle", font_size=size, style=style, **at))
    return svg(width, round(step * rows), *marks, label="codes of the framed part")


def color_bar(width: float, low: str, high: str) -> str:
    """Show the scale of a map of numbers."""
    shades = colored(np.linspace(0, 1, 40)).astype(int)
    step = width / 40
    bars = [
        tag("rect", x=i * step, y=4, width=step + 0.4, height=8, fill=_rgb(c))
        for i, c in enumerate(shades)
    ]
    right = words(width, 26, high, "small", text_anchor="end")
    return svg(width, 30, *bars, words(0, 26, low, "small"), right)


# Charts ------------------------------------------------------------------------------------------


def doubt_chart(
    doubt: Float[np.ndarray, " N"], error: Float[np.ndarray, " N"], *, side: tuple[float, float]
) -> str:
    """Draw tokens' errors over their doubts, a dot a token, and the mean of each tenth of them."""
    x = Scale(0, float(np.quantile(doubt, 0.999)), 34, side[0] - 4)
    y = Scale(0, float(np.quantile(error, 0.97)), side[1] - 4, 6)
    some = np.random.default_rng(0).permutation(len(doubt))[:700]
    inside = (error[some] <= y.high) & (doubt[some] <= x.high)
    places = zip(x(doubt[some][inside]), y(error[some][inside]), strict=True)
    marks = [tag("circle", cx=float(a), cy=float(b), r=1.5, cls="speck") for a, b in places]
    tenths = np.array_split(np.argsort(doubt), 10)
    means = [doubt[t].mean() for t in tenths], [error[t].mean() for t in tenths]
    marks += [_curve(x(means[0]), y(np.minimum(means[1], y.high)), "curve")]
    for value in y.ticks(4):
        marks += [words(30, float(y(value)) + 4, f"{value:g}", "small", text_anchor="end")]
        marks += [_line(34, float(y(value)), side[0], float(y(value)), "grid")]
    for value in x.ticks(5):
        marks += [words(float(x(value)), side[1] + 14, f"{value:g}", "small", text_anchor="middle")]
    marks += [words(40, 14, "error of a token, gray levels")]
    marks += [words(side[0], side[1] + 32, "its doubt, bits", text_anchor="end")]
    return svg(side[0], side[1] + 36, *marks, label="error of a token against its doubt")


def temperature_chart(
    warmth: Float[np.ndarray, " T"],
    bits: Float[np.ndarray, " T"],
    panels: Sequence[float],
    centers: Sequence[float],
    marks_at: Mapping[float, str],
) -> str:
    """Draw a token's entropy over a logarithmic axis of temperature on which panels are centered.

    `warmth` and `panels` are in the natural width; `marks_at`: what a temperature is called.
    """
    x = Scale(*np.log([panels[0], panels[-1]]), centers[0], centers[-1])
    top = max(1.0, float(np.ceil(bits.max())))
    y, low = Scale(0, top, 132, 24), 132
    at = x(np.log(warmth))
    shown = (at > 0) & (at < centers[-1] + 70)
    marks = []
    for value in y.ticks(3):
        marks.append(_line(0, float(y(value)), centers[-1] + 70, float(y(value)), "grid"))
        marks.append(words(0, float(y(value)) - 4, f"{value:g} bits", "small"))
    for value, said in marks_at.items():
        place, is_high = (
            float(x(np.log(value))),
            np.interp(-np.log(value), -np.log(warmth), bits) > top / 2,
        )
        marks += [_line(place, -4, place, low, "mark")]
        marks += [words(place + 6, low - 10 if is_high else 40, said)]
    marks.append(_curve(at[shown], y(bits[shown]), "curve"))
    for value, place in zip(panels, centers, strict=True):
        entropy = np.interp(-np.log(value), -np.log(warmth), bits)
        marks += [tag("circle", cx=place, cy=float(y(entropy)), r=5, cls="dot")]
        marks += [words(place + 9, float(y(entropy)) - 9, _codes(2**entropy), "lab b")]
        said = f"{value:.2g}" if value < 10 else f"{value:.0f}"
        marks += [words(place, low + 18, said, text_anchor="middle")]
    end = WIDE - centers[0]
    marks += [words(0, low + 18, "hotter", "small"), tag("circle", cx=end, cy=low, r=5, cls="dot")]
    marks += [words(end + 9, low - 9, "1 code", "lab b")]
    marks += [words(end, low + 18, "the cold limit", text_anchor="middle")]
    said = "temperature, in units of the natural width"
    marks += [words(WIDE / 2, low + 38, said, text_anchor="middle")]
    return svg(WIDE, 176, *marks, label=said)


def _codes(count: float) -> str:
    return f"{count:.0f} codes" if count >= 9.5 else f"{count:.1f} codes"


def plane(
    points: Float[np.ndarray, "N 2"],
    shades: Sequence[str],
    codes: Float[np.ndarray, "K 2"],
    inks: Sequence[str],
    side: float,
    *,
    within: Float[np.ndarray, "_ 2"],
    radius: float = 6,
) -> str:
    """Draw points and codes of the plane; `within`: points that decide what part of it is shown."""
    (x0, y0), (x1, y1) = np.quantile(within, (0.002, 0.998), axis=0)
    half = max(x1 - x0, y1 - y0) / 2 * 1.06 or 1.0
    tall = round(side * float(np.clip((y1 - y0) / (x1 - x0 or 1.0) * 1.5, 0.5, 1)))
    x = Scale((x0 + x1) / 2 - half, (x0 + x1) / 2 + half, 4, side - 4)
    half *= (tall - 8) / (side - 8)
    y = Scale((y0 + y1) / 2 - half, (y0 + y1) / 2 + half, tall - 4, 4)

    def dots(places, fills, **more):
        kept = [p for p in zip(x(places[:, 0]), y(places[:, 1]), fills, strict=True)
                if 0 <= p[0] <= side and 0 <= p[1] <= tall]  # fmt: skip
        return [tag("circle", cx=f"{a:.1f}", cy=f"{b:.1f}", fill=c, **more) for a, b, c in kept]

    ground = tag("rect", width=side, height=tall, cls="ground")
    few = dots(points, shades, r=1.6, opacity=0.75)
    return svg(side, tall, ground, *few, *dots(codes, inks, r=radius, cls="ring" if radius > 4 else
               "code-dot"))  # fmt: skip


def split_chart(annealing: Annealing, width: float) -> str:
    """Draw how many colors there are as the temperature falls; the first split as two marks."""
    reduced = annealing.taus / annealing.predicted
    x = Scale(*np.log([reduced[0], reduced[-1]]), 40, width - 4)
    y = Scale(0, float(annealing.num_distinct.max()), 128, 14)
    at, high = x(np.log(reduced)), y(annealing.num_distinct)
    marks = [_curve(np.repeat(at, 2)[1:], np.repeat(high, 2)[:-1], "curve")]
    for value in y.ticks(3):
        marks += [words(34, float(y(value)) + 4, f"{value:g}", "small", text_anchor="end")]
        marks += [_line(40, float(y(value)), width, float(y(value)), "grid")]
    seen = annealing.observed / annealing.predicted
    theory, found = (float(x(np.log(v))) for v in (1, seen))
    marks += [tag("path", d=f"M{theory:.1f} 34l-7 -12h14z", cls="up"),
              words(theory + 10, 32, "first split, by theory: 1")]  # fmt: skip
    marks += [tag("path", d=f"M{found:.1f} 46l-7 12h14z", cls="down"),
              words(found + 10, 58, f"as it happened: {seen:.3f}", "lab b")]  # fmt: skip
    marks += [_line(found, 58, found, 128, "mark")]
    for value in [v for v in (1, 0.3, 0.1, 0.03, 0.01, 0.003) if reduced[-1] <= v]:
        said = {"text_anchor": "middle"}
        marks += [words(float(x(np.log(value))), 146, f"{value:g}", "small", **said)]
    marks += [words(40, 10, "colors", "small")]
    said = "temperature, in units of the first split by theory (falling)"
    marks += [words(width / 2, 164, said, "small", text_anchor="middle")]
    return svg(width, 168, *marks, label="number of colors against temperature")


class Group(NamedTuple):
    """Runs of one method in the chart of rate and fidelity."""

    key: str
    bits: Float[np.ndarray, " S"]
    decibels: Float[np.ndarray, " S"]


def rate_chart(
    groups: Sequence[Group],
    curves: Mapping[str, Float[np.ndarray, "Q 2"]],
    bars: Sequence[tuple[float, float, float, str, str]],
) -> str:
    """Draw a dot a run at its bits a pixel and dB, codecs as curves, and what is between them.

    `bars`: bits, from and to which dB, what it is called, and its class. Labels stand on the marks.
    """
    bits, db = (np.concatenate([g[i] for g in groups]) for i in (1, 2))
    pad = max(0.25 * np.ptp(bits), 0.06 * bits.mean())
    x = Scale(bits.min() - pad, bits.max() + pad, 60, WIDE - 40)
    inside = {k: c[_around(c[:, 0], x)] for k, c in curves.items()}
    heights = [db, *(np.interp((x.low, x.high), *c.T) for c in inside.values())]
    low, high = min(map(np.min, heights)), max(map(np.max, heights))
    y = Scale(low - 0.08 * (high - low) - 0.1, high + 0.04 * (high - low) + 0.1, 400, 30)
    marks = []
    for value in y.ticks(7):
        marks += [_line(60, float(y(value)), WIDE - 40, float(y(value)), "grid")]
        marks += [words(50, float(y(value)) + 5, f"{value:g}", text_anchor="end")]
    for value in x.ticks(8):
        marks += [words(float(x(value)), 424, f"{value:.3g}", text_anchor="middle")]
    said = "dB (PSNR): higher is closer to the photograph. Each dot stands at its own bits"
    marks += [words(8, 14, said + "; the title compares at equal bits")]
    marks += [words(WIDE / 2, 448, "bits a pixel", text_anchor="middle")]
    taken, crossed = [], []
    for name, c in inside.items():
        ends = np.linspace(x.low, x.high, 40)
        along = np.interp(ends, *c.T)
        marks += [_curve(x(ends), y(along), "ref")]
        crossed.append(np.stack([x(ends), y(along)], 1))
        at, high = float(x(ends[4])), float(y(along[4])) - 10
        marks += [words(at, high, name, "lab b muted")]
        taken.append((at, high - 12, at + 8.4 * len(name), high + 4))
    dots = [(g, x(g.bits), y(g.decibels)) for g in groups]
    every = np.concatenate([*crossed, *(np.stack([xs, ys], 1) for _, xs, ys in dots)])
    for at, start, end, said, cls in bars:
        place, ends, wide = float(x(at)), (float(y(start)), float(y(end))), 12 + 7.6 * len(said)
        marks += [_line(place, *(ends[0], place, ends[1]), cls)]
        boxes = [
            (left, bottom - 15, left + wide - 5, bottom + 5)
            for bottom in (sum(ends) / 2 + 5, max(ends), min(ends) - 10)
            for left in (place + 5, place - wide)
        ]

        reach = wide / 2 + 7, 19
        near = [(abs(every - np.reshape(b, (2, 2)).mean(0)) < reach).all(1).sum() for b in boxes]
        left, _, _, bottom = box = boxes[int(np.argmin(near))]
        is_left = left < place
        side = {"text_anchor": "end"} if is_left else {}
        marks += [words(place + (-9 if is_left else 9), bottom - 5, said, "lab b", **side)]
        taken += [(place - 4, min(ends), place + 4, max(ends)), box]
    taken += [
        (a - 7, b - 7, a + 7, b + 7) for _, xs, ys in dots for a, b in zip(xs, ys, strict=True)
    ] + [(a - 9, b - 3, a + 9, b + 3) for curve in crossed for a, b in curve]
    for g, xs, ys in dots:
        fill = f"fill:{shade(g.key)}"
        places = zip(map(float, xs), map(float, ys), strict=True)
        marks += [tag("circle", cx=a, cy=b, r=7, cls="dot", style=fill) for a, b in places]
    for g, xs, ys in dots:
        said = f"{name_of(g.key)} {np.mean(g.decibels):.2f}"
        *where, anchor = _free(xs, ys, 8.4 * len(said), taken, (60, 24, WIDE, 405))
        ink_of = f"fill:{shade(g.key, '-ink')}"
        marks += [words(*where, said, "lab b", style=ink_of, text_anchor=anchor)]
    return svg(WIDE, 456, *marks, label="fidelity against rate")


def _around(values: Float[np.ndarray, " Q"], scale: Scale) -> Int[np.ndarray, " _"]:
    """Give the places of ascending values within a scale, and one beyond at either end."""
    first, last = np.searchsorted(values, (scale.low, scale.high))
    return np.arange(max(first - 1, 0), min(last + 1, len(values)))


def _free(xs, ys, width: float, taken: list, room: tuple) -> tuple:
    """Find a place for a label beside its dots that is not taken, and take it; give its anchor."""
    left, right, middle = float(min(xs)) - 12 - width, float(max(xs)) + 12, float(np.mean(ys))
    center = float(np.mean(xs)) - width / 2
    shifts = [0, 16, -16, 30, -30, 46, -46]
    sides = [(left, middle + s) for s in shifts] + [(right, middle + s) for s in shifts]
    sides = [sides[i + j * len(shifts)] for i in range(len(shifts)) for j in (0, 1)]
    sides += [(center, float(max(ys)) + 26), (center, float(min(ys)) - 16)]
    for x, y in sides:
        box = (x, y - 9, x + width, y + 9)
        clear = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)
        if clear and room[0] <= box[0] and box[2] <= room[2] and room[1] <= box[1] <= room[3]:
            break
    taken.append(box)
    anchor = "end" if x == left else "start"
    return x + (width if x == left else 0), y + 5, anchor


def gains_chart(rows: Sequence[tuple[str, str, Float[np.ndarray, " P"]]], width: float) -> str:
    """Draw photographs' gains in dB, a row a rival, a dot a photograph, right of zero a gain.

    `rows`: the rival's key, what its row says, and the gains.
    """
    every = np.concatenate([np.zeros(1), *(gains for _, _, gains in rows)])
    x = Scale(min(every.min(), -0.5) - 0.2, max(every.max(), 0.5) + 0.2, 330, width - 20)
    bottom = 26 * len(rows) + 24
    marks = [_line(float(x(0)), 14, float(x(0)), bottom, "axis")]
    for value in x.ticks(9):
        at = float(x(value))
        marks += [_line(at, 20, at, bottom, "grid"), words(at, bottom + 18, f"{value:+g}" if value
                  else "0", "small", text_anchor="middle")]  # fmt: skip
    marks += [words(float(x(0)) + 8, 12, "LGQ closer →", "small")]
    marks += [words(float(x(0)) - 8, 12, "← LGQ farther", "small", text_anchor="end")]
    for i, (key, said, gains) in enumerate(rows):
        y, fill = 26 * i + 38, f"fill:{shade(key)}"
        marks += [words(0, y + 5, said, style=f"fill:{shade(key, '-ink')}")]
        marks += [
            tag("circle", cx=float(x(g)), cy=y, r=6, cls="dot thin", style=fill) for g in gains
        ]
    marks += [words(width, bottom + 18, "dB", "small", text_anchor="end")]
    return svg(width, bottom + 24, *marks, label="gains of each photograph")


# The page's style --------------------------------------------------------------------------------


def style() -> str:
    """Give the page's CSS, for a light ground, a dark one, and paper."""
    light = "--bg:#fff;--fg:#1a1a1a;--muted:#5c6068;--line:#dcdfe4;--soft:#f4f5f7;--ring:#fff;"
    dark = "--bg:#14161a;--fg:#eceef1;--muted:#a0a6b0;--line:#343941;--soft:#1e2127;--ring:#fff;"
    grounds = f":root{{color-scheme:light dark;{light}{method_colors('light')}}}\n"
    dark = f":root{{{dark}{method_colors('dark')}}}"
    return (
        grounds
        + f"@media screen and (prefers-color-scheme:dark){{{dark}}}\n"
        + CSS.read_text(encoding="utf-8")
    )
