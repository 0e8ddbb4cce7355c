"""The explorer of a codebook: one widget for notebooks, and one file without a kernel."""

import base64
import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache as once
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pandas
import torch
import traitlets
from IPython.display import display

from lgqlib import files
from lgqlib.explorers.opening import Opened, from_arrays, opened
from lgqlib.explorers.preparing import decoded, prepare, quality, soft_pictures, upright, webp

MODULES = ("values", "drawing", "assigning", "style", "screen", "widget")
"""Of `static/`, each after those that it imports."""
IMPORT = re.compile(r'^import .* from "\./\w+\.js";\n', re.MULTILINE)


@once
def script() -> str:
    """Join the modules into one, which a widget and a page can load without a server."""
    folder = resources("lgqlib.explorers") / "static"
    texts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    bare = [re.sub(r"^export (?!default)", "", IMPORT.sub("", text), flags=re.M) for text in texts]
    return "\n".join(bare)


def explore(
    *sources: Any,
    codebook: Any = None,
    latents: Any = None,
    indices: Any = None,
    images: Any = None,
    decode: Callable | None = None,
    names: list[str] | None = None,
    cache: Path | str | None = None,
    **options: Any,
) -> "Explorer":
    """Open one tokenizer, or two side by side, in the explorer.

        explore(tokenizer, images=photographs)         ours, or diffusers' VQModel
        explore("runs/NAME", "runs/OTHER")             folders of runs, on held-out photographs
        explore(codebook=E, latents=Z, images=X)       arrays, NumPy's or torch's
        explore("codes.npz")                           a file with those names, or .safetensors

    Args:
        sources: tokenizers, runs or their folders, files, or modules of vector-quantize-pytorch.
        codebook: [K, C]; `latents`: [B, C, h, w] or [N, C]; `indices`: [B, h, w] or [N], by default
            the nearest codes; `images`: [B, 3, H, W], or a list of photographs, files or folders.
        decode: vectors [b, C, h, w] to images [b, 3, H, W] in [-1, 1]; without one there are no
            soft pictures. A module's `decode` gets what the module itself gives.
        names: what to call the tokenizers.
        cache: folder of decoded photographs, for runs without `images`.
        options: of `Explorer`.

    Raises ValueError, in one sentence with the expected shapes, for what cannot be opened.
    """
    arrays = {"latents": latents, "indices": indices, "images": images, "decode": decode}
    found: list[Opened] = []
    if codebook is not None or (not sources and latents is not None):
        found.append(from_arrays(codebook, latents, indices, images, decode=decode))
    for source in sources:
        if found and images is None:  # the second sees what the first saw
            arrays["images"] = list(zip(found[0].names, found[0].images, strict=False)) or None
        found.append(opened(source, cache=cache, **arrays))
    if not 1 <= len(found) <= 2:
        raise ValueError("give one tokenizer or two: explore(tokenizer), or explore(one, other).")
    return Explorer(found, names=names, **options)


class Explorer(anywidget.AnyWidget):
    """Show codebook, photographs and temperature together; `save` writes a page that needs nothing.

    Args:
        tokenizers: one, or two that saw the same photographs.
        names: what to call them.
        shown: how many photographs can be looked at; others give real patches.
        temperatures: how many are prepared; between them a live kernel is asked.
        title: of the page.
        theme: `light`, `dark` or `auto`.
        quantity: what the map shows first: `picture`, `mass`, `entropy`, `error`, `isolation`,
            `trust` or `unused`.
        layer: what the photograph shows first: `original`, `hard`, `soft`, `entropy` or `error`.
    """

    _esm = traitlets.Unicode().tag(sync=True)
    meta = traitlets.Dict().tag(sync=True)
    blob = traitlets.Bytes().tag(sync=True)
    selection = traitlets.List(traitlets.Int()).tag(sync=True)
    """Selected codes of the tokenizer number `tokenizer`; setting them moves the view."""
    tokenizer = traitlets.Int(0).tag(sync=True)
    temperature = traitlets.Float(1.0).tag(sync=True)
    """In units of 2 D / C."""
    photograph = traitlets.Int(0).tag(sync=True)
    """Number of the photograph that is shown."""
    place = traitlets.List(traitlets.Int()).tag(sync=True)
    """Photograph, row and column of the kept token, which setting it moves to; else empty."""
    theme = traitlets.Enum(("auto", "light", "dark"), "auto").tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)
    asked = traitlets.Dict().tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        tokenizers: list[Opened],
        *,
        names: list[str] | None = None,
        shown: int = 3,
        temperatures: int = 9,
        title: str = "",
        theme: str = "auto",
        quantity: str = "picture",
        layer: str = "",
    ):
        named = zip(tokenizers, _names(tokenizers, names), strict=True)
        self.tokenizers = [replace(o, name=str(name)) for o, name in named]
        self.options = {"shown": shown, "temperatures": temperatures, "title": title}
        meta, blob, self.tables = prepare(self.tokenizers, **self.options)
        view = {"quantity": quantity, "layer": layer}
        super().__init__(_esm=script(), meta=meta, blob=blob, theme=theme, view=view)
        self.observe(self._answer, "asked")

    # What is selected ----------------------------------------------------------------------------

    @property
    def tokens(self) -> np.ndarray:
        """Give photograph, row and column of all tokens that have a selected code: [n, 3].

        Photographs are numbered as they were given, not as they are shown.
        """
        o = self.tokenizers[self.tokenizer]
        return o.places[torch.isin(o.codes, torch.tensor(self.selection).long())].numpy()

    def token_frame(self) -> pandas.DataFrame:
        """Give the same as a table, with the photographs' names and each token's code."""
        o = self.tokenizers[self.tokenizer]
        table = pandas.DataFrame(self.tokens, columns=["photograph", "row", "column"])
        codes = [int(o.indices[n][row, column]) for n, row, column in self.tokens]
        return table.assign(photograph=[o.names[n] for n in table["photograph"]], code=codes)

    def frame(self) -> pandas.DataFrame:
        """Give the selected codes as a table, or all codes where none is selected."""
        table = self.tables[self.tokenizer]
        count, errors = table["count"], table["count"] * table["mse"]
        columns = {
            "tokens": count,
            "share": count / max(count.sum(), 1),
            "entropy_bits": table["entropy"],
            "error_share": errors / max(float(errors.sum()), 1e-30),
            "spacing_rms_errors": table["gap"],
            "trusted": table["trust"],
            "neighbors": table["around"],
        }
        everything = pandas.DataFrame(columns).rename_axis("code")
        return everything.loc[list(self.selection)] if self.selection else everything

    def to_csv(self, path: Path | str) -> None:
        """Write the table of the selected codes."""
        with files.replacing(Path(path)) as temporary:
            self.frame().to_csv(temporary)

    def open_photograph(self, image: Any, name: str = "own") -> None:
        """Add a photograph (a file, its bytes, or pixels) and show it first.

        Raises ValueError where a tokenizer has no encoder, or the file is not an image.
        """
        more = [o.with_photograph(name, image) for o in self.tokenizers]
        meta, blob, self.tables = prepare(more, **self.options)
        self.tokenizers = more
        with self.hold_sync():
            self.photograph, self.meta, self.blob = 0, meta, blob

    # The kernel's part ---------------------------------------------------------------------------

    def _answer(self, change: Any) -> None:
        """Compute what the page asks for; a problem is said on the page, never raised into it."""
        asked = change["new"]
        answers = {"soft": self._soft, "paint": self._painted, "photograph": self._dropped}
        try:
            self.answer = answers[asked["kind"]](asked)
        except ValueError as error:
            self.answer = {"problem": str(error)}

    def _source(self, n: int) -> int:
        return self.tokenizers[0].names.index(self.meta["photographs"][n]["name"])

    def _dropped(self, asked: dict) -> dict:
        self.open_photograph(bytes(asked["data"]), Path(asked["name"]).stem)
        return {}

    def _soft(self, asked: dict) -> dict:
        n, tau, pictures, noise = asked["photograph"], asked["tau"], {}, {}
        for m in asked["tokenizers"]:
            at = f"{n}@{asked['text']}"  # the temperature as JavaScript writes it
            found = soft_pictures(self.tokenizers[m], self._source(n), [tau])
            [(pixels, bits, noise[f"{m}/{at}"])] = found
            pictures[f"{m}/entropy{at}"] = webp(bits)
            if pixels is not None:
                pictures[f"{m}/soft{at}"] = webp(pixels, 80)
        return {"pictures": pictures, "psnr": noise}

    def _painted(self, asked: dict) -> dict:
        [m], n = asked["tokenizers"], asked["photograph"]
        o, source = self.tokenizers[m], self._source(n)
        if o.decode is None:
            return {}
        grid = np.frombuffer(bytes(asked["indices"]), "<u2").reshape(o.indices[source].shape)
        image = decoded(o, o.codebook[torch.from_numpy(grid.astype(np.int64))])
        pictures = {"painted": webp(upright(image), 80)}
        return {"pictures": pictures, "painted": f"{m},{n}", "noise": quality(o, source, image)}

    # The page ------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> Path:
        """Write one page with everything in it: no kernel, no network, nothing beside it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(Path(path)) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return Path(path)

    def show(self) -> None:
        """Display the widget and, for where no kernel runs, its page in a frame.

        A notebook with the live widget hides the frame (`static/style.js`); an executed notebook,
        and its HTML, hold both.
        """
        display(self)
        frame = f'<iframe class="lgx-page" srcdoc="{html.escape(self.html())}" loading="lazy"'
        frame += ' style="width:100%;height:880px;border:0"></iframe>'
        display({"text/html": frame, "text/plain": "the explorer as a page"}, raw=True)

    def html(self) -> str:
        """Give the page as text."""
        kept = ("meta", "theme", "view", "temperature", "photograph", "tokenizer", "selection")
        state = json.dumps({name: getattr(self, name) for name in kept}, allow_nan=False)
        parts = {
            "TITLE": html.escape(self.meta["title"] or "Codebook"),
            "STATE": state.replace("<", "\\u003c"),  # which would end the script that holds it
            "BLOB": base64.b64encode(self.blob).decode(),
            "SCRIPT": script().replace("</script", "<\\/script"),
        }
        empty = (resources("lgqlib.explorers") / "static" / "page.html").read_text(encoding="utf-8")
        return re.sub("|".join(f"@{key}@" for key in parts), lambda m: parts[m[0][1:-1]], empty)


def _names(tokenizers: list[Opened], names: list[str] | None) -> list[str]:
    found = list(names) if names else [o.name for o in tokenizers]
    if len(found) != len(tokenizers):
        raise ValueError(f"names {found}: give one for each of {len(tokenizers)} tokenizers.")
    return [f"{n} {i + 1}" if found.count(n) > 1 else n for i, n in enumerate(found)]
