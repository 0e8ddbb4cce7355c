"""Explore a codebook by hand: the map, an image's tokens, and what each code stands for."""

import html
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np

from lgqlib.explorers.codes import Codes
from lgqlib.explorers.controls import (
    Explorer,
    Throttled,
    dropdown,
    fill,
    picture,
    play,
    slider,
    whole,
)
from lgqlib.explorers.map import codebook_map, codes_picture, colored_by, rest_of
from lgqlib.explorers.quantities import clickable
from lgqlib.explorers.selection import enclosed, parse
from lgqlib.figures.pictures import data_uri

MAX_SELECTED = 500
"""Selected codes that are marked on the map."""
MAX_TRAILS = 40
"""Selected codes whose way through training is drawn."""


class CodebookExplorer(Explorer):
    """Show the map of a codebook; hover, click, lasso, pick an image and a token, scrub through
    training.

    Its state is plain: `code`, `selection`, `image`, `token`, `step`; set one and call the method
    that follows it, or move the control of the same name.

    Args:
        codes: what is known about each code.
        folder: where an exported selection goes.
    """

    name = "Codebook explorer"

    def __init__(self, codes: Codes, *, folder: Path | str = "."):
        self.codes, self.view, self.folder = codes, codes.view, Path(folder)
        view = self.view
        first = next(iter(codes.quantities.values()))
        self.drawn = clickable(view.counts)
        super().__init__(
            codebook_map(
                codes.map,
                first,
                view.counts,
                image=view.pixels(view.first_image),
                grid=view.grid,
                drawn=self.drawn,
                frame=codes.frame,
            )
        )
        self.code = int(view.counts.argmax())
        self.selection: np.ndarray = np.zeros(0, dtype=np.int64)
        self.image, self.place, self.step = view.first_image, 0, len(codes.frames) - 1
        self._controls()
        self._listen()
        self.choose(self.code)
        self.select([])

    # What follows a change ------------------------------------------------------------------------

    def choose(self, code: int) -> None:
        """Make a code the chosen one: its place, its neighbors, its evidence, its trail."""
        self.code = int(code)
        xy, near = self.codes.map.codes, self.codes.neighbors(self.code)
        self.show(
            self.finding(),
            chosen=_at(xy[[self.code]]),
            neighbors=_at(xy[near]),
            trails=self._trails(),
        )
        fill(self.evidence, self.codes.evidence(self.code))
        self.about.value = self._about(near)
        if self.code_field.value != self.code:
            self.code_field.value = self.code

    def finding(self) -> str:
        """Say what the chosen code is."""
        count, total = int(self.view.counts[self.code]), int(self.view.counts.sum())
        return (
            f"Code {self.code}: {count} of {total} tokens ({100 * count / max(total, 1):.2f} %; "
            f"even use would be {100 / self.view.num_codes:.2g} %)"
        )

    def look_at(self, image: int, place: int) -> None:
        """Look at one token of an image: the image's tokens and the token's shares on the map."""
        self.image, self.place = int(image), int(place)
        view, xy = self.view, self.codes.map.codes
        tokens = view.tokens(self.image)
        best, shares = view.shares(int(tokens[self.place]), view.tau)
        grid = self.traces["grid"]
        hits = np.flatnonzero(np.isin(view.indices[tokens], self.selection))
        self.show(
            self.finding(),
            image={"source": data_uri(view.pixels(self.image))},
            tokens=_at(xy[np.unique(view.indices[tokens])]),
            shares={**_at(xy[best]), "marker": {"size": 4 + 20 * np.sqrt(shares)}},
            bars={"x": [f"k{k}" for k in best], "y": shares.astype("float32")},
            token={"x": [grid.x[self.place]], "y": [grid.y[self.place]]},
            hits={"x": np.asarray(grid.x)[hits], "y": np.asarray(grid.y)[hits]},
        )

    def select(self, codes: Any) -> None:
        """Select codes: where they occur, what they look like; ready for export."""
        self.selection = np.unique(np.asarray(codes, dtype=np.int64))
        xy, marked = self.codes.map.codes, self.selection[:MAX_SELECTED]
        images = np.argsort(-self.codes.image_counts(self.selection), kind="stable")[:8]
        self.show(self.finding(), selected=_at(xy[marked]), trails=self._trails())
        chosen = self.selection
        fill(self.looks, self.codes.looks(chosen) if len(chosen) else None)
        fill(self.gallery, self.codes.places_of(chosen) if len(chosen) else None)
        tokens = int(np.isin(self.view.indices, self.selection).sum())
        self.selected.value = (
            f"{len(self.selection)} codes selected, {tokens} of {len(self.view.indices)} tokens. "
            "What they look like, most used first; below, the images that use them most, theirs "
            "bright:"
            if len(self.selection)
            else "Nothing selected: lasso codes on the map, or write their numbers."
        )
        where = int(images[0]) if len(self.selection) else self.image
        if self.image_field.value == where:
            self.look_at(where, self.place)
        else:
            self.image_field.value = where

    def _trails(self) -> dict[str, np.ndarray]:
        """Give the ways of the chosen code and of the selected ones, up to the step."""
        codes = np.append(self.selection[:MAX_TRAILS], self.code)
        return _at(self.codes.trails(codes, self.step))

    def scrub(self, step: int) -> None:
        """Show where codes were at a snapshot, and the chosen code's way there."""
        self.step = int(step)
        self.show(
            self.finding(),
            moved=_at(self.codes.places(self.step)),
            trails=self._trails(),
        )
        self.happened.value = self._happened()

    def color_by(self, name: str) -> None:
        """Color the map by another quantity; this sends every code's color, once."""
        quantity = self.codes.quantities[name]
        with self.figure.batch_update():
            self.traces["codes"].update(colored_by(quantity, self.drawn))
            if "rest" in self.traces:
                rest = rest_of(self.drawn, self.view.num_codes)
                picture = codes_picture(self.codes.map, quantity, rest)
                self.traces["rest"].source = data_uri(picture)

    def export(self) -> Path:
        """Write the selection, or the chosen code, as CSV; give its path."""
        chosen = self.selection if len(self.selection) else [self.code]
        path = self.codes.export(chosen, self.folder / "selection.csv")
        self.selected.value = f"{len(chosen)} codes written to {html.escape(str(path))}"
        return path

    # Controls -------------------------------------------------------------------------------------

    def _controls(self) -> None:
        view = self.view
        self.color = dropdown("Color by", list(self.codes.quantities))
        self.code_field = whole("Code", view.num_codes - 1, value=self.code)
        self.image_field = whole("Image", len(view.images) - 1, value=self.image)
        self.token_field = whole("Token", view.num_tokens - 1)
        self.numbers_field = ipywidgets.Text(
            placeholder="3, 17-20",
            description="Select codes",
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "260px"},
        )
        self.export_button = ipywidgets.Button(
            description="Export selection (CSV)", layout={"width": "auto"}
        )
        self.evidence, self.looks, self.gallery = picture(), picture(), picture()
        self.about, self.selected = ipywidgets.HTML(), ipywidgets.HTML()
        self.happened = ipywidgets.HTML()
        rows = [
            [self.color, self.code_field, self.image_field, self.token_field],
            [self.numbers_field, self.export_button],
            self.figure,
        ]
        if len(self.codes.snapshots) > 1:
            steps = [(str(s.step), i) for i, s in enumerate(self.codes.snapshots)]
            self.scrubber = slider("Training step", steps, index=len(steps) - 1)
            self.scrubber.observe(Throttled(lambda c: self.scrub(self.scrubber.value)), "value")
            rows.append([play(self.scrubber, milliseconds=600), self.scrubber, self.happened])
        self.lay_out(*rows, self.about, self.evidence, self.selected, self.looks, self.gallery)

    def _listen(self) -> None:
        self.color.observe(lambda c: self.color_by(self.color.value), "value")
        self.code_field.observe(Throttled(self._code_written), "value")
        look = Throttled(lambda c: self.look_at(self.image_field.value, self.token_field.value))
        self.image_field.observe(look, "value")
        self.token_field.observe(look, "value")
        self.numbers_field.observe(
            lambda c: self.select(parse(c["new"], self.view.num_codes)), "value"
        )
        self.export_button.on_click(lambda button: self.export())
        self.traces["codes"].on_hover(Throttled(self._pointed))
        self.traces["codes"].on_click(self._pointed)
        self.traces["codes"].on_selection(self._lassoed)
        self.traces["grid"].on_click(self._token_clicked)

    def _code_written(self, change: Any) -> None:
        # `choose` writes the field itself: only another code than its own is news.
        if self.code_field.value != self.code:
            self.choose(self.code_field.value)

    def _pointed(self, trace: Any, points: Any, state: Any) -> None:
        if points.point_inds and self.drawn[points.point_inds[0]] != self.code:
            self.choose(int(self.drawn[points.point_inds[0]]))

    def _lassoed(self, trace: Any, points: Any, selector: Any) -> None:
        # Among many codes only some are points, but a line is drawn around all that lie there.
        found = (
            self.drawn[points.point_inds]
            if selector is None
            else enclosed(self.codes.map.codes, selector)
        )
        if len(found):
            self.select(found)
            # The lasso itself goes away: while it stays, a browser ignores changes of the trace.
            self.figure.plotly_relayout({"selections": []})

    def _token_clicked(self, trace: Any, points: Any, state: Any) -> None:
        if points.point_inds:
            self.token_field.value = points.point_inds[0]

    # Text -----------------------------------------------------------------------------------------

    def _about(self, near: np.ndarray) -> str:
        style = "padding-right:1.5em; vertical-align:bottom"
        rows = "".join(
            f"<td style='{style}'>{html.escape(name)}<br><b>{_number(value)}</b></td>"
            for name, value in self.codes.numbers(self.code).items()
        )
        return (
            f"<table><tr>{rows}</tr></table>First row: code {self.code} decoded, then its nearest "
            f"codes {', '.join(map(str, near))}; each inside images that it fits best. Below: real "
            "patches assigned to it, nearest first."
        )

    def _happened(self) -> str:
        history, note = self.codes.history, self.codes.moving.note
        if self.step == 0:
            return f"step {history.steps[0]}: the start. {note}"
        i = self.step - 1
        return (
            f"since step {history.steps[i]}: {history.births[i]} born, {history.deaths[i]} died, "
            f"{100 * history.churn[i]:.0f} % of the probe's tokens changed code. {note}"
        )


def _at(xy: np.ndarray) -> dict[str, np.ndarray]:
    xy = np.asarray(xy, dtype=np.float32)
    return {"x": xy[:, 0], "y": xy[:, 1]}


def _number(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.4g}"
