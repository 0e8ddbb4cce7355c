"""The first page of a study's report: nine blocks, a finding each, computed from its runs.

    python -m lgqlib.study.story runs/quick docs/readme.png      # the README's picture

What takes long is kept beside the runs (story.json) and computed again when an evaluation changes.
Words follow the intervals over seeds; for what these runs cannot tell, a line says why.
"""

import contextlib
import hashlib
import logging
import re
import sys
from dataclasses import asdict
from functools import cached_property
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Float
from pandas import DataFrame
from PIL import Image, ImageDraw, ImageFont

from lgqlib.figures import story as draw
from lgqlib.figures.pictures import detail
from lgqlib.figures.style import name_of
from lgqlib.files import read_json, replacing, write_json
from lgqlib.measure import metric
from lgqlib.measure.codecs import CODECS, QUALITIES, coded
from lgqlib.measure.images import psnr_bytes
from lgqlib.quantizers import METHODS
from lgqlib.run import Run
from lgqlib.study.blocks import BLOCKS, PRICED, Block, Column, Encoded, NotTold, columns
from lgqlib.study.claims import CLAIMS, MARGIN, claims_table
from lgqlib.study.comparison import cohorts, difference, mean_interval, plain, side
from lgqlib.study.results import finished

LOG = logging.getLogger(__name__)
VERSION = 3
"""Of what is kept: raise it when pictures or words change."""
ORDER = ("kmeans", "pca_kmeans", "fsq", "ifsq", "simvq", "vq", "lgq")
PAPER = "Altun et al. 2026, arXiv 2602.16086"
PLAIN_CLAIMS = {
    "C1": "Its pictures are distributed more like photographs than FSQ’s, with as many codes",
    "C2": "It uses about half as many codes as FSQ",
    "C3": "It is better than SimVQ and uses fewer codes",
    "C4": "More codes do not go to waste, as they do with VQ",
    "C5": "It is as faithful as FSQ with fewer codes",
    "C6": "In the cold, every soft choice becomes the nearest code",
    "C7": "Soft choices are those of a mixture of Gaussians, and the best at their temperature",
    "C8": "Its usage term makes it use codes more evenly",
}
THEOREMS = {
    "C6": "a theorem, checked in numbers; not where two codes are equally near",
    "C7": "a theorem, checked in numbers; not for the distance in the paper’s first version",
}
SIGNS = {"reproduced": ("✓", "holds"), "not reproduced": ("✗", "fails")}


# Methods against each other ----------------------------------------------------------------------


class Standing(NamedTuple):
    """How LGQ stands to another, in dB, with the interval over seeds."""

    label: str
    mean: float
    low: float
    high: float
    seeds: int

    @property
    def word(self) -> str:
        """Say it by the interval, or of one seed as what was seen."""
        if self.seeds < 2:
            return "beside" if abs(self.mean) < MARGIN else "above" if self.mean > 0 else "below"
        if direction := side(self.low, self.high):
            return "ahead of" if direction > 0 else "behind"
        near = self.low >= -MARGIN and self.high <= MARGIN
        return "level with" if near else "not told apart from"

    def __str__(self) -> str:
        interval = " (one seed)" if self.seeds < 2 else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.mean:+.2f} dB{interval}".replace("-", "−")


def said(standings: list[Standing]) -> str:
    """Join standings to one sentence, the same words together: `ahead of A (+1.0) and B (+0.5)`."""
    parts = []
    for word in (
        "ahead of",
        "above",
        "level with",
        "beside",
        "not told apart from",
        "behind",
        "below",
    ):
        own = sorted((s for s in standings if s.word == word), key=lambda s: -s.mean)
        if own:
            digits = [2 if abs(s.mean) < 0.095 else 1 for s in own]
            named = [f"{s.label} ({s.mean:+.{n}f} dB)" for s, n in zip(own, digits, strict=True)]
            seen = " on one seed" if own[0].seeds < 2 else ""
            parts.append(f"{word} {_listed(named)}{seen}".replace("(-", "(−"))
    return ", ".join(parts)


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


class Peers:
    """The plain cohorts of a study at one size of codebook, LGQ's beside the others'."""

    def __init__(self, study: Path, runs: DataFrame, cache: Path = Path()):
        self.study, self.runs, self.cache = study, runs, cache
        rows = plain(runs)
        rank = {name: i for i, name in enumerate(ORDER)}
        names = sorted(rows["method"], key=lambda m: rank.get(m, 4.5))
        every = {c["cohort"].iloc[0]: c for c in cohorts(runs)}
        by_method = dict(zip(rows["method"], rows["cohort"], strict=True))
        self.cohorts = {m: every[by_method[m]] for m in names}

        def known(key):
            return all(key in c and c[key].notna().all() for c in self.cohorts.values())

        rates = ("bits_per_pixel_prior", "whole_bits_per_pixel")
        ways = [("whole_psnr", r) for r in rates if known("whole_psnr") and known(r)]
        self.whole = bool(ways)
        self.keys = ways[0] if ways else ("psnr", "bits_per_pixel_coded")

    @cached_property
    def encoded(self) -> dict[str, Encoded]:
        """A run of each method, that of most dB on crops."""
        best = {m: c.loc[c["psnr"].idxmax(), "run"] for m, c in self.cohorts.items()}
        runs = {m: Run(self.study / name) for m, name in best.items()}
        return {m: Encoded(run, self.cache) for m, run in runs.items()}

    def numbers(self, method: str) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
        """Give the bits a pixel and dB of a method's runs."""
        cohort = self.cohorts[method]
        return tuple(cohort[k].to_numpy(dtype=np.float64) for k in self.keys[::-1])

    def curves(self, photographs) -> dict[str, Float[np.ndarray, "Q 2"]]:
        """Give the codecs' bits a pixel of all photographs together, and mean dB, by quality."""
        most, pixels = 1.25 * max(self.numbers(m)[0].max() for m in self.cohorts), sum(
            x.shape[0] * x.shape[1] for x in photographs.values())  # fmt: skip
        curves = {}
        for name in CODECS:
            points = []
            for quality in QUALITIES:
                found = [(x, *coded(x, name, quality)) for x in photographs.values()]
                bits = sum(b * x.shape[0] * x.shape[1] for x, b, _ in found) / pixels
                points.append((bits, np.mean([psnr_bytes(x, y) for x, _, y in found])))
                if bits > most:
                    break
            curves[name] = np.array(sorted(points))
        return curves


def standings(peers: Peers, jpeg: Float[np.ndarray, "Q 2"] | None) -> dict[str, Standing]:
    """Hold LGQ against every peer, paired by seed; their dB are moved to LGQ's bits along JPEG."""
    bits, _ = (np.mean(v) for v in peers.numbers("lgq"))
    moved = {}
    for method, cohort in peers.cohorts.items():
        b, db = peers.numbers(method)
        shift = 0.0 if jpeg is None else np.interp(bits, *jpeg.T) - np.interp(b, *jpeg.T)
        moved[method] = cohort.assign(story_db=db + shift)
    found = {}
    for method, cohort in moved.items():
        d = difference(moved["lgq"], cohort, "story_db") if method != "lgq" else None
        if d:
            found[method] = Standing(name_of(method), d.difference, d.low, d.high, d.seeds)
    if jpeg is not None:
        values = moved["lgq"]["story_db"].to_numpy() - np.interp(bits, *jpeg.T)
        found["JPEG"] = Standing("JPEG", *mean_interval(values), len(values))
    return found


def against_its_peers(peers: Peers, curves: dict) -> Block:
    """Draw every run by rate and fidelity, and say how LGQ stands by the intervals."""
    if len(peers.cohorts) < 2:
        raise NotTold("there is only one method")
    groups = [draw.Group(m, *peers.numbers(m)) for m in peers.cohorts]
    unit = "whole held-out photographs" if peers.whole else "held-out images"
    caption = f"Up and left is better. A dot is one trained run, measured on {unit}: dB are means "
    caption += "over photographs, bits those of all together. " if peers.whole else "over images. "
    bars = []
    if "lgq" in peers.cohorts:
        found = standings(peers, curves.get("JPEG"))
        bits, db = (float(np.mean(v)) for v in peers.numbers("lgq"))
        codec = found.pop("JPEG", None)
        bases = [found[m] for m in found if METHODS[m].baseline]
        if bases:
            base = min(bases, key=lambda s: s.mean)
            text = f"learning: {base.mean:+.1f} dB over {base.label}"
            bars.append((bits, db - base.mean, db, text, "gain"))
        if codec:
            word = "ahead" if codec.mean < 0 else "behind"
            text = f"JPEG is {abs(codec.mean):.1f} dB {word}"
            bars.append((bits, db, db - codec.mean, text, "gap"))
        title = f"At {bits:.2f} bits a pixel LGQ is {said([*found.values()])}"
        title += f"; {bars[-1][3]}" if codec else ""
        alone = f"At {bits:.2f} bits a pixel LGQ has {db:.1f} dB; no peer has its seeds"
        title = escape(title if found else alone)
        moved = [abs(db - np.mean(peers.numbers(m)[1]) - s.mean) for m, s in found.items()]
        if codec and moved:
            caption += "Methods differ in bits, so their dB are first moved to LGQ’s bits along "
            caption += f"JPEG’s curve (by {max(moved):.1f} dB at most). "
        listed = ", ".join(f"{s.label} {s}" for s in found.values())
        caption += "LGQ less each, paired by seed, with 95 % intervals of several seeds: "
        caption += f"{listed or 'none'}. "
        if peers.keys[1] == "bits_per_pixel_prior":
            steps = int(peers.cohorts["lgq"]["prior_steps"].iloc[0])
            caption += "Bits are those of a coder that knows each token’s neighbors, by a small "
            caption += f"prior of the method’s own ({steps} steps on the training photographs). "
        caption += _why(found.get("vq"))
    else:
        best = max(peers.cohorts, key=lambda m: np.mean(peers.numbers(m)[1]))
        title = f"No LGQ here; of {len(groups)} methods {escape(name_of(best))} has the most dB"
    caption += " Tokens are made for a generator to learn, not to store pictures." if curves else ""
    return Block(title, draw.rate_chart(groups, curves, bars), caption, "06_compare")


def _why(vq: Standing | None) -> str:
    """Say what LGQ is for beside VQ, whatever the difference."""
    if vq is None:
        return ""
    more = "what it adds is a temperature, which tells how sure each token is (3) and cools (4, 5)."
    if vq.word == "ahead of":
        return f"Why LGQ and not VQ? It is closer at equal bits; and {more}"
    return f"Why LGQ and not VQ? Not for these dB: it is {vq.word} VQ; {more}"


# Photographs side by side ------------------------------------------------------------------------


def side_by_side(photographs: dict, cols: list[Column]) -> Block:
    """Show photographs and details through every method, and the gains on all of them."""
    ours = next((c for c in cols if c.key == "lgq"), None)
    if len(cols) < 3:
        raise NotTold("there is only one method")
    bases = [c for c in cols if c.key in METHODS and METHODS[c.key].baseline]
    every = [Column("", "Photograph", photographs, {}), *(c for c in cols if c not in bases[1:])]
    wide, body = min(168, (draw.WIDE - 11 * (len(every) - 1)) / len(every)), []
    for place, name in enumerate([*photographs][:3]):
        image = photographs[name]
        x, y, w, h = detail(name, image, 56, 56)
        tall = min(image.shape[0], image.shape[1] * 2 // 3)
        top = int(np.clip(y + h // 2 - tall // 2, 0, image.shape[0] - tall))
        scale, parts = wide / image.shape[1], []
        mark = draw.frame(x * scale, (y - top) * scale, w * scale, h * scale)
        for c in every:
            pixels = c.decoded[name]
            shown = draw.picture(pixels[top : top + tall], wide, over=mark, alt=c.label)
            shown += draw.picture(pixels[y : y + h, x : x + w], wide, sharp=True)
            said = (
                f"{psnr_bytes(image, pixels):.1f} dB, {c.bits[name]:.2f} bits"
                if c.bits
                else "24 bits a pixel"
            )
            style = f"color:{draw.shade(c.key, '-ink')}" if c.key in METHODS else ""
            head = draw.tag("b", escape(c.label), style=style) if not place else ""
            parts.append(draw.panel(shown, wide, said, head=head, cls="hit" if c is ours else ""))
        body.append(draw.row(*parts, cls="top side"))
    caption = "dB and bits a pixel of the whole photograph stand below each; details are 56 × 56 "
    caption += "pixels, magnified. One run a method, that of most dB on crops. "
    if ours is None:
        title = "The same photographs through every method"
        return Block(title, "".join(body), caption, "06_compare")
    rows, gains = [], {}
    for c in (c for c in cols if c is not ours):
        gain = np.array([psnr_bytes(x, ours.decoded[n]) - psnr_bytes(x, c.decoded[n]) for n, x in
                         photographs.items()])  # fmt: skip
        gains[c.key] = gain
        rows.append((c.key, f"closer than {c.label} on {(gain > 0).sum()} of {len(gain)}", gain))
    chart = draw.gains_chart(rows, draw.WIDE)
    base = (bases or [c for c in cols if c is not ours])[0]
    gain = gains[base.key]
    title = (
        f"LGQ is closer than {escape(base.label)} on {(gain > 0).sum()} of {len(gain)} photographs "
    )
    title += f"({gain.min():+.1f} to {gain.max():+.1f} dB)".replace("-", "−")
    others = [c for c in cols if c.key in ("vq", "JPEG") and c is not base]
    title += "".join(f", than {c.label} on {(gains[c.key] > 0).sum() or 'none'}" for c in others)
    caption += "Below, a dot is a photograph, at each method’s own bits, JPEG at LGQ’s. "
    if np.median(gains["JPEG"]) < 0:
        caption += "dB are not what eyes see: JPEG’s blocks and color stains score higher here."
    return Block(title, "".join(body) + chart, caption, "02_evaluate")


# What of the paper holds -------------------------------------------------------------------------


def what_holds(runs: DataFrame) -> Block:
    """List the paper's claims with the verdicts that the runs give them."""
    table = claims_table(runs)
    rows, counts = [], dict.fromkeys(("holds", "fails", "open"), 0)
    for id in [id for id in CLAIMS if id in PLAIN_CLAIMS]:
        verdict, evidence = table.loc[id, ["verdict", "evidence"]]
        evidence = re.sub(r" \[[^]]*inf\] \(1 seeds?\)", " (one seed, no interval)", evidence)
        evidence = re.sub(r" \(\d+ seeds\)| at K = [\d,]+", "", evidence).replace("x ", "× ")
        evidence = re.sub(r"-(?=\d)", "−", evidence)
        evidence = re.sub(r"\b[a-z]+\b", lambda m: name_of(m[0]), THEOREMS.get(id, evidence))
        sign, cls = SIGNS.get(verdict, ("?", "open"))
        counts[cls] += 1
        chip = f'<span class="chip {cls}">{sign} {escape(verdict.partition(" at ")[0])}</span>'
        rows.append(f"<tr><th>{id}</th><td>{PLAIN_CLAIMS[id]}</td><td>{chip}</td>"
                    f'<td class="muted">{escape(evidence)}</td></tr>')  # fmt: skip
    title = f"Of the paper’s eight claims these runs reproduce {counts['holds']} and contradict "
    title += f"{counts['fails']}; {counts['open']} stay undecided at this scale"
    caption = "A verdict is computed: only where 95 % intervals over seeds lie on one side, of all "
    caption += "that is claimed. Differences are LGQ’s less the peer’s, × is LGQ’s codes over the "
    caption += "peer’s. KID is a distance between the distributions of pictures and photographs, "
    caption += "lower is better."
    return Block(title, f'<table class="claims">{"".join(rows)}</table>', caption, "06_compare")


# The runs ----------------------------------------------------------------------------------------


def runs_table(study: Path, failed: int) -> Block:
    """Give a row a method, mean and range over its seeds."""
    peers = Peers(study, finished(study))
    keys = [*peers.keys, "active", "perplexity"]
    shown = [metric(k) for k in keys if any(k in c for c in peers.cohorts.values())]
    head = "".join(f"<th>{escape(m.title)}</th>" for m in shown)
    rows = [f"<tr><th>Method</th><th>seeds</th>{head}</tr>"]
    for method, cohort in reversed(peers.cohorts.items()):
        cells = []
        for m in shown:
            v = cohort[m.key].astype(float) if m.key in cohort else np.array([np.nan])
            spread = f"{m.text(v.min())} to {m.text(v.max())}" if len(v) > 1 else ""
            cells.append(f"<td>{m.text(v.mean())} <small>{spread}</small></td>")
        key = f'<i class="key" style="background:{draw.shade(method)}"></i>'
        rows.append(f"<tr><td>{key}{escape(name_of(method))}</td><td>{len(cohort)}</td>"
                    f"{''.join(cells)}</tr>")  # fmt: skip
    count, total = sum(map(len, peers.cohorts.values())), len(peers.runs)
    title = f"The {_counted(count, 'run')} behind this page" + (
        f", of {total}" if total > count else ""
    )
    title += f"; {failed} failed" if failed else ""
    caption = "Mean, and the range over seeds. Codes are counted on crops. Tokens are "
    caption += f"{PRICED['bits_prior' if 'prior' in peers.keys[1] else 'bits']}."
    why = '<p><a href="#Failed">Why runs failed</a></p>' if failed else ""
    return Block(title, f'{why}<table class="runs">{"".join(rows)}</table>', caption, "06_compare")


# The page ----------------------------------------------------------------------------------------


def tell(study: Path, cache: Path) -> list[Block]:
    """Compute blocks 1 to 8; one that cannot be told has no body, and a title that says why."""
    runs = finished(study)
    peers = Peers(study, runs, cache)
    trained = [m for m in peers.cohorts if not METHODS[m].baseline]
    hero = "lgq" if "lgq" in peers.cohorts else [*trained, *peers.cohorts][-1 if not trained else 0]
    encoded = peers.encoded[hero]

    def of_lgq(block):
        if hero != "lgq":
            raise NotTold("no finished run of LGQ at the codebook’s size that most methods have")
        return block(encoded)

    def compared():
        return against_its_peers(peers, peers.curves(encoded.photographs) if peers.whole else {})

    def photographs():
        if not peers.whole:
            raise NotTold("this study’s images were not seen as whole photographs")
        return side_by_side(*columns(peers.encoded))

    tasks = [lambda b=b, i=i: b(encoded) if i < 2 else of_lgq(b) for i, b in enumerate(BLOCKS)]
    tasks += [compared, photographs, lambda: of_lgq(lambda _: what_holds(runs))]
    return [_tried(task) for task in tasks]


def _tried(task) -> Block:
    try:
        return task()
    except NotTold as why:
        return Block(f"Not told: {escape(str(why))}.", "", "")
    except Exception as error:  # of many kinds: a page with a hole is better than none
        LOG.exception("a block of the story")
        return Block(f"Not told: {escape(f'{type(error).__name__}: {error}')}", "", "")


def story_key(study: Path) -> str:
    """Give a hash that changes with any evaluation of a finished run."""
    runs = finished(study)["run"]
    parts = [f"{name} {_digest(study / name / 'evaluation.json')}" for name in runs]
    return hashlib.sha256("\n".join([str(VERSION), *sorted(parts)]).encode()).hexdigest()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def story_html(study: Path, pages: Path, *, failed: int, cache: Path | None = None) -> str:
    """Write the nine blocks; with a `cache` of data, those that are not kept are computed.

    `pages`: the report's folder, whose notebooks are linked. Empty without a finished run.
    """
    try:
        key = story_key(study)
    except ValueError:
        return ""
    file, blocks = study / "story.json", []
    if file.exists():
        try:
            kept = read_json(file)
            blocks = [Block(**b) for b in kept["blocks"]] if kept["key"] == key else []
        except (ValueError, TypeError, KeyError):
            LOG.warning("%s is damaged and is made anew", file)
    if not blocks and cache is not None:
        blocks = tell(study, cache)
        write_json(file, {"key": key, "blocks": [asdict(b) for b in blocks]})
    later = "Blocks 1 to 8 are told when the study is finished."
    parts = [_section(i, b, study, pages) for i, b in enumerate(blocks, 1)]
    parts = parts or [f'<p class="untold">{later}</p>']
    return "\n".join([*parts, _section(9, _tried(lambda: runs_table(study, failed)), study, pages)])


def lead(study: Path) -> str:
    """Say what LGQ is, who wrote of it, and the scale of this study, which decides how to read."""
    text = (
        "A tokenizer turns a photograph into a grid of integers, words for a generator to learn. "
    )
    text += f"LGQ, Learnable Geometric Quantization ({PAPER}), learns its words by soft choices "
    text += "that cool into hard ones."
    with contextlib.suppress(ValueError):  # no finished run
        runs = finished(study)
        learned = runs["train.num_steps"][runs["train.num_steps"] > 0]
        steps, sizes = (
            _listed([f"{n:,}" for n in sorted(set(c))]) for c in (learned, runs["num_codes"])
        )
        images = sorted(set(runs.get("num_images", runs["seed"] * 0).astype(int)))
        scale = f"{_counted(len(runs), 'run')}, {_counted(runs['seed'].nunique(), 'seed')}, "
        scale += f"{steps} steps of training, " if len(learned) else ""
        scale += f"{sizes} codes, data: {_listed(sorted(set(map(str, runs['data.name']))))}, "
        scale += f"{_listed([f'{n:,}' for n in images])} held-out crops"
        if "num_photographs" in runs and runs["num_photographs"].notna().all():
            scale += f", {int(runs['num_photographs'].max())} whole held-out photographs"
        text += f" <strong>Read all numbers at this scale: {escape(scale)}.</strong>"
    return f'<p class="lead">{text}</p>'


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _section(number: int, block: Block, study: Path, pages: Path) -> str:
    if not block.body:
        return f'<p class="untold"><span class="n">{number}</span>{block.title}</p>'
    summary = pages / "summary" / f"{block.details}.html"
    found = [summary] if summary.exists() else sorted(pages.glob(f"*lgq*/{block.details}.html"))
    found = found or sorted(pages.glob(f"*/{block.details}.html"))
    link = ""
    if block.details and found:
        target = quote(found[0].relative_to(pages).as_posix())
        link = f' <a href="{target}">More: {escape(block.details)}</a>'
    head = f'<h2><span class="n">{number}</span><span>{block.title}</span></h2>'
    return f'<section>{head}{block.body}<p class="cap">{block.caption}{link}</p></section>'


# README's picture --------------------------------------------------------------------------------


def readme_picture(study: Path | str, path: Path | str, *, cache: Path | str) -> None:
    """Draw two photographs with a detail through every method as a PNG, 1,600 pixels wide."""
    study = Path(study)
    photographs, cols = columns(Peers(study, finished(study), Path(cache)).encoded)
    cols = [c for c in cols if c.key != "pca_kmeans"][-6:]
    room, side_px, step = 1600, 168, 182
    first = min(300, room - step * (len(cols) + 1) - 34)
    page = Image.new("RGB", (room, 2 * 322 + 66), "white")
    canvas = ImageDraw.Draw(page)
    fonts = {size: ImageFont.load_default(size) for size in (17, 19)}
    for place, name in enumerate([*photographs][:2]):
        image, y0 = photographs[name], 14 + 322 * place
        x, y, w, h = detail(name, image, 56, 56)
        square = min(image.shape[:2])
        left = int(np.clip(x + w // 2 - square // 2, 0, image.shape[1] - square))
        whole = Image.fromarray(image[:square, left : left + square]).resize((first, first))
        page.paste(whole, (20, y0))
        scale = first / square
        box = [20 + (x - left) * scale, y0 + y * scale]
        box += [box[0] + w * scale, box[1] + h * scale]
        canvas.rectangle(box, outline="black", width=5)
        inner = [v + d for v, d in zip(box, (1, 1, -1, -1), strict=True)]
        canvas.rectangle(inner, outline="white", width=3)
        for i, c in enumerate([Column("", "Photograph", photographs, {}), *cols]):
            at = (room - step * (len(cols) + 1 - i), y0 + 30)
            pixels = c.decoded[name]
            part = Image.fromarray(pixels[y : y + h, x : x + w])
            page.paste(part.resize((side_px, side_px), Image.Resampling.NEAREST), at)
            color = draw.ink(METHODS[c.key].color, "light") if c.key in METHODS else "#1a1a1a"
            if c.key == "lgq":
                ends = [at[0] - 4, at[1] - 4, at[0] + side_px + 3, at[1] + side_px + 3]
                canvas.rectangle(ends, outline=color, width=4)
            said = (
                f"{psnr_bytes(image, pixels):.1f} dB, {c.bits[name]:.2f} bits/px"
                if c.bits
                else "24 bits/px"
            )
            under = at[1] + side_px + 8
            canvas.text((at[0], under), c.label, color, fonts[19], stroke_width=0.4)
            canvas.text((at[0], under + 25), said, "#5c6068", fonts[17])
    canvas.text((20, page.height - 62), _point(photographs, cols), "#1a1a1a", fonts[19], spacing=8)
    with replacing(Path(path)) as temporary:
        page.save(temporary, "PNG", optimize=True)
        if temporary.stat().st_size > 490_000:
            page.quantize(256).save(temporary, "PNG", optimize=True)


def _point(photographs: dict, cols: list[Column]) -> str:
    """Say the picture's point in two lines: what LGQ is, and who is closest on all photographs."""
    gaps = {c.label: [psnr_bytes(x, c.decoded[n]) for n, x in photographs.items()] for c in cols}
    means = sorted(((np.mean(v), label) for label, v in gaps.items()), reverse=True)
    listed = ", ".join(f"{label} {db:.1f}" for db, label in means)
    what = "LGQ (Learnable Geometric Quantization) turns photographs into integers, and learns "
    what += f"what each integer means.\nMean dB over all {len(photographs)} held-out photographs, "
    return what + f"one run a method, JPEG at LGQ’s bits: {listed}."


if __name__ == "__main__":
    readme_picture(*sys.argv[1:3], cache=(sys.argv[3:] or ["data/cache"])[0])
