"""What there is to know about each code of a run, without any widget."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas
from jaxtyping import Float, Int, UInt8

from lgqlib.explorers.moving import moving
from lgqlib.explorers.quantities import CodeValues, dominant_class, frame_label
from lgqlib.explorers.view import Index, View
from lgqlib.figures.pictures import sheet
from lgqlib.files import replacing
from lgqlib.measure.geometry import Drift, Geometry, drift, measure_geometry
from lgqlib.measure.projection import (
    Faithfulness,
    Projection,
    faithfulness,
    in_plane,
    project,
    stratified_sample,
)
from lgqlib.run import Snapshot

MAX_LATENTS = 20000
"""Tokens that a map is made from."""

PLACES = "places, image:row:column"
"""Column of a table that says where a code occurs."""
MAX_PLACES = 8
"""Places of a code that a table names."""


class Codes:
    """The codes of a view: their geometry, their place on a map, their evidence and their history.

    Args:
        view: the run, on held-out images.
        snapshots: of its training, in order; the last stands for the codebook as it is.
        method: projection of the map: `pca`, `umap`, or `plane` where there are two channels; None
            is the plane itself where there are two channels, else `pca`.
        cache: folder where UMAP's results are kept.
    """

    def __init__(
        self,
        view: View,
        snapshots: Sequence[Snapshot] = (),
        *,
        method: str | None = None,
        cache: Path | str | None = None,
    ):
        self.view, self.snapshots = view, list(snapshots)
        self.geometry: Geometry = measure_geometry(
            view.sites, view.points, view.indices, counts=view.counts, groups=view.groups
        )
        self.shown = stratified_sample(view.indices, MAX_LATENTS)
        method = method or ("plane" if view.sites.shape[1] == 2 else "pca")
        self.map, self.frames = self._placed(method, None if cache is None else Path(cache))
        self.quantities = self._quantities()
        self.moving = moving(view.counts, [s.counts for s in self.snapshots])

    @cached_property
    def history(self) -> Drift | None:
        """How the codebook moved over the snapshots; None with fewer than two."""
        if len(self.snapshots) < 2:
            return None
        s = self.snapshots
        return drift(
            [x.step for x in s],
            [x.codebook for x in s],
            [x.indices for x in s],
            [x.counts for x in s],
        )

    @cached_property
    def trust(self) -> Faithfulness | None:
        """How far to trust the map of the codes; None with fewer than three codes."""
        num_neighbors = min(15, self.view.num_codes // 3)
        if not num_neighbors:
            return None
        return faithfulness(self.view.sites, self.map.codes, num_neighbors=num_neighbors)

    @cached_property
    def frame(self) -> str:
        """What the map's axes are and, of a UMAP, how far to trust them: PCA's variance says it."""
        label = frame_label(self.map)
        if self.map.method != "umap" or self.trust is None:
            return label
        return (
            f"{label}: trustworthiness {self.trust.trustworthiness:.3f}, "
            f"continuity {self.trust.continuity:.3f}"
        )

    def _placed(
        self, method: str, cache: Path | None
    ) -> tuple[Projection, list[Float[np.ndarray, "K 2"]]]:
        """Place codes and latents, and the codes of every snapshot in the same frame."""
        if method == "umap" and self.snapshots:
            # UMAP follows the same tokens from step to step: the map is of the probe then.
            chain = project(
                [s.codebook for s in self.snapshots],
                [s.latents for s in self.snapshots],
                method=method,
                cache=cache,
            )
            return chain[-1], [p.codes for p in chain]
        latents = self.view.points[self.shown]
        (now,) = project([self.view.sites], [latents], method=method, cache=cache)
        return now, [in_plane(now.basis, s.codebook) for s in self.snapshots]

    def _quantities(self) -> dict[str, CodeValues]:
        view, p = self.view, self.geometry
        own = np.bincount(view.indices, minlength=view.num_codes)
        sums = np.bincount(view.indices, view.entropies(view.tau), view.num_codes)
        entropy = np.divide(sums, own, out=np.full(view.num_codes, np.nan), where=own > 0)
        found = {
            "usage": CodeValues(view.counts.astype(float), "tokens", log=True),
            "assignment entropy": CodeValues(entropy, "mean entropy, nats"),
            "quantization error": CodeValues(p.partial.mse, "mean |z − e|²"),
            "cell volume": CodeValues(p.log_volume, "log volume"),
            "anisotropy": CodeValues(p.shape.anisotropy - p.shape.expected, "above a round cell's"),
            "distance to nearest code": CodeValues(p.spacing.distance, "distance"),
        }
        if self.snapshots:
            last = self.snapshots[-1]
            age = np.where(last.last_used >= 0, last.step - last.last_used, np.nan)
            found["age of last use"] = CodeValues(age.astype(float), "steps")
        if len(np.unique(view.labels)) > 1:
            label = dominant_class(view.indices, view.labels[view.groups], view.num_codes)
            found["dominant class"] = CodeValues(
                np.where(label >= 0, label, np.nan), "class", names=view.classes
            )
        return found

    # Evidence ------------------------------------------------------------------------------------

    @cached_property
    def _by_code(self) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " K1"]]:
        """Tokens sorted by code and, within one, by distance; and where each code's begin."""
        view = self.view
        away = np.square(view.points - view.sites[view.indices]).sum(1)
        order = np.lexsort((away, view.indices))
        return order, np.searchsorted(view.indices[order], np.arange(view.num_codes + 1))

    def tokens_of(self, code: Index, *, limit: int = 24) -> Int[np.ndarray, " n"]:
        """Give tokens assigned to a code: those nearest to it first."""
        order, begin = self._by_code
        return order[begin[code] : begin[code + 1]][:limit]

    def neighbors(self, code: int, *, count: int = 8) -> Int[np.ndarray, " n"]:
        """Give a code's nearest other codes."""
        return self.geometry.spacing.neighbors[code, :count]

    def evidence(self, code: int) -> UInt8[np.ndarray, "H W 4"]:
        """Picture a code: the decoder's patch and its neighbors' on top, real patches below."""
        view = self.view
        decoded = view.code_patches(np.concatenate([[code], self.neighbors(code)]))
        real = [view.patch(t) for t in self.tokens_of(code, limit=2 * len(decoded))]
        return sheet([*decoded, *real], cols=len(decoded), gap=2)

    def numbers(self, code: int) -> dict[str, float]:
        """Give a code's value of every quantity."""
        return {f"{name}, {q.unit}": float(q.values[code]) for name, q in self.quantities.items()}

    # Selections ----------------------------------------------------------------------------------

    def table(self, codes: Sequence[int] | Int[np.ndarray, " n"]) -> pandas.DataFrame:
        """Give a row for each of some codes: its quantities, and the places of its nearest tokens.

        A place is `image:row:column`, counted from 0; a code that these images do not use has none.
        """
        codes = np.unique(np.asarray(codes, dtype=np.int64))
        columns = {f"{name}, {q.unit}": q.values[codes] for name, q in self.quantities.items()}
        frame = pandas.DataFrame({"code": codes, **columns})
        frame[PLACES] = [self._written(self.tokens_of(k, limit=MAX_PLACES)) for k in codes]
        return frame.set_index("code")

    def _written(self, tokens: Int[np.ndarray, " n"]) -> str:
        """Write where tokens are, `image:row:column`, counted from 0."""
        images, places = np.divmod(tokens, self.view.num_tokens)
        rows, cols = np.divmod(places, self.view.grid[1])
        return " ".join(f"{i}:{r}:{c}" for i, r, c in zip(images, rows, cols, strict=True))

    def looks(self, codes: Int[np.ndarray, " n"], *, limit: int = 24) -> UInt8[np.ndarray, "..."]:
        """Picture what some codes look like: the decoder's patches, the most used codes first."""
        busiest = codes[np.argsort(-self.view.counts[codes], kind="stable")][:limit]
        return sheet(list(self.view.code_patches(busiest)), cols=12, gap=2)

    def places_of(
        self, codes: Int[np.ndarray, " n"], *, limit: int = 8
    ) -> UInt8[np.ndarray, "..."]:
        """Picture where some codes occur: the images that have most of them, all else dim."""
        view, images = self.view, np.argsort(-self.image_counts(codes), kind="stable")[:limit]
        hits = [np.flatnonzero(np.isin(view.indices[view.tokens(i)], codes)) for i in images]
        tiles = [view.marked(i, at) for i, at in zip(images, hits, strict=True)]
        return sheet(tiles, cols=8, tile=96, gap=3)

    def image_counts(self, codes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " M"]:
        """Count, for each image, its tokens that have one of these codes."""
        hit = np.isin(self.view.indices, codes)
        return np.bincount(self.view.groups[hit], minlength=len(self.view.images))

    def export(self, codes: Sequence[int] | Int[np.ndarray, " n"], path: Path | str) -> Path:
        """Write the table of some codes as CSV, whole; give its path.

        A file that is there stays: the new one then has the next free number, `selection-2.csv`.
        """
        free = path = Path(path)
        number = 1
        while free.exists():
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")
        with replacing(free) as temporary:
            self.table(codes).to_csv(temporary)
        return free

    # History -------------------------------------------------------------------------------------

    def places(self, index: int) -> Float[np.ndarray, "n 2"]:
        """Give where the moving codes were at a snapshot, in the frame of the map."""
        return self.frames[index][self.moving.codes]

    def trails(
        self, codes: Sequence[int] | Int[np.ndarray, " n"], index: int
    ) -> Float[np.ndarray, "m 2"]:
        """Give the paths of codes up to a snapshot as one broken line, NaN between two codes."""
        steps = self.frames[: index + 1]
        if not steps or not len(codes):
            return np.zeros((0, 2), dtype=np.float32)
        paths = np.stack([np.stack([s[c] for s in steps]) for c in codes])  # (n, steps, 2)
        breaks = np.full((len(paths), 1, 2), np.nan, dtype=np.float32)
        return np.concatenate([paths, breaks], 1).reshape(-1, 2).astype(np.float32)

    def examples(self, *, count: int = 8, each: int = 12) -> tuple[list[int], list[list]]:
        """Give codes from the most used to the rarest, with the decoder's patch and real ones."""
        used = np.argsort(-self.view.counts, kind="stable")[: int((self.view.counts > 0).sum())]
        picked = used[np.linspace(0, len(used) - 1, min(count, len(used))).astype(int)]
        decoded = self.view.code_patches(picked)
        rows = [
            [patch, *(self.view.patch(t) for t in self.tokens_of(int(k), limit=each))]
            for k, patch in zip(picked, decoded, strict=True)
        ]
        return picked.tolist(), rows
