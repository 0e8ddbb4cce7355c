"""A trained run on held-out images, held in memory: all that the explorers look at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lgqlib.data import evaluation_images, load, to_model, to_uint8
from lgqlib.measure.temperature import critical_temperature
from lgqlib.quantizers.assignment import energies, soft_assign
from lgqlib.quantizers.lgq import LGQ
from lgqlib.quantizers.scalar import ScalarLGQ
from lgqlib.run import Run
from lgqlib.tokenizer import Tokenizer

Index = int | np.integer
UNDERFLOW = -80.0
"""Smallest exponent: below it a CPU's exponential is ten times slower, and the weight is
nothing.
"""
LENS = 0.01
"""Temperature to look through where a method has none, in units of tau_c."""

MAX_CONTEXTS = 4
"""Places in held-out images at which a code is decoded."""
PATCH_PIXELS = 4 * 64 * 64
"""Pixels decoded to show one code: images larger than 64 x 64 give it fewer places."""


@dataclass(frozen=True)
class Soft:
    """The soft assignment of one image's T tokens at a temperature."""

    entropy: Float[np.ndarray, " T"]
    """Entropy of each token's assignment, in nats."""
    mean_energy: Float[np.ndarray, " T"]
    """Energy averaged with the assignment."""
    free_energy: Float[np.ndarray, " T"]
    """-tau log sum exp(-d / tau)."""
    average: Float[Tensor, "T C"]
    """The soft code that a decoder would receive."""


class View:
    """Encode held-out images once and answer questions about their tokens and codes.

    A token's number is `image * T + row * side + column`. Everything is on the CPU.

    Args:
        tokenizer: in evaluation mode.
        images: uint8 [M, 3, S, S].
        labels: one a image, or any whole numbers.
        tau: the temperature that training ended at; NaN where a method has none.
        counts: uses of each code over a larger set, if there is one; else over these tokens.
        name: what the run is called.
        method: how its codes are chosen, by the config's name.
        classes: names of the labels; numbers where there are none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        images: UInt8[Tensor, "M 3 S S"],
        labels: Int[Tensor, " M"],
        *,
        tau: float = math.nan,
        counts: Int[np.ndarray, " K"] | None = None,
        name: str = "",
        method: str = "",
        classes: Sequence[str] = (),
    ):
        self.tokenizer, self.images, self.labels = tokenizer, images, np.asarray(labels)
        self.name, self.method = name, method
        self.classes = tuple(classes) or tuple(map(str, range(int(self.labels.max()) + 1)))
        quantizer = tokenizer.quantizer
        self.energy = getattr(quantizer, "energy", "squared")
        with torch.no_grad():
            widths = getattr(quantizer, "widths", None)
            self.widths = None if widths is None else widths.detach().float()
            self.codebook = quantizer.codebook.detach().float()
            self._sites = quantizer.sites.detach().float()
            points, indices = [], []
            for batch in images.split(64):
                latents = tokenizer.latents(to_model(batch))
                points.append(quantizer.points(latents).float())
                indices.append(quantizer.encode(latents))
        self._points = torch.cat(points).flatten(0, 2)
        self.grid = tuple(indices[0].shape[1:])
        self.indices = torch.cat(indices).flatten().numpy()
        self.has_temperature = isinstance(quantizer, LGQ | ScalarLGQ) and math.isfinite(tau)
        self.tau = tau if self.has_temperature else LENS * self.scale
        own = np.bincount(self.indices, minlength=len(self._sites))
        self.counts = own if counts is None else np.asarray(counts)
        self._energies = lru_cache(maxsize=4)(self._energies_of)
        self._entropies = lru_cache(maxsize=8)(self._entropies_at)
        self._code_patch = lru_cache(maxsize=4096)(self._code_patch_of)

    @classmethod
    def open(cls, run: Run, *, cache: Path | str, num_images: int = 256) -> "View":
        """Load a run's tokenizer and its first held-out images, evenly spread over the set."""
        config = run.config
        held_out = load(config.data, "val", cache=Path(cache))
        images, labels, _ = evaluation_images(held_out, size=config.data.size, limit=num_images)
        counts = run.arrays()["counts"] if (run.path / "evaluation.json").exists() else None
        return cls(
            run.tokenizer(),
            images,
            labels,
            tau=run.tau,
            counts=counts,
            name=run.name,
            method=config.quantizer.method,
            classes=held_out.classes,
        )

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self._sites)

    @property
    def num_tokens(self) -> int:
        """T, tokens of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def sites(self) -> Float[np.ndarray, "K D"]:
        """Codes in the space where the nearest is chosen."""
        return self._sites.numpy()

    @property
    def points(self) -> Float[np.ndarray, "N D"]:
        """Latents of all tokens in that space."""
        return self._points.numpy()

    @property
    def groups(self) -> Int[np.ndarray, " N"]:
        """Image of each token."""
        return np.arange(len(self.indices)) // self.num_tokens

    @cached_property
    def tau_c(self) -> float:
        """First critical temperature of these latents; NaN for energies that have none."""
        if self.energy not in ("squared", "norm"):
            return math.nan
        return critical_temperature(self._points, energy=self.energy)

    @property
    def scale(self) -> float:
        """Unit of temperature: tau_c, or the spread of the energies where there is no tau_c."""
        if math.isfinite(self.tau_c):
            return self.tau_c
        some = energies(self._points[:256], self._sites[:1024], energy=self.energy)
        return float(some.std())

    @property
    def tau_label(self) -> str:
        """What the default temperature is."""
        if self.has_temperature:
            return f"τ = {self.tau:.3g}, where training ended"
        return f"τ = {self.tau:.3g}, a lens: this method trains without a temperature"

    # One image -----------------------------------------------------------------------------------

    def pixels(self, image: Index) -> UInt8[np.ndarray, "S S 3"]:
        """Give a held-out image."""
        return self.images[image].permute(1, 2, 0).numpy()

    @cached_property
    def first_image(self) -> int:
        """Number of the image with the most contrast: the first to look at."""
        return int(self.images.float().std((1, 2, 3)).argmax())

    def tokens(self, image: Index) -> Int[np.ndarray, " T"]:
        """Give the numbers of an image's tokens."""
        return image * self.num_tokens + np.arange(self.num_tokens)

    def _energies_of(self, image: Index) -> Float[Tensor, "T K"]:
        rows = slice(image * self.num_tokens, (image + 1) * self.num_tokens)
        d = energies(self._points[rows], self._sites, energy=self.energy)
        return d if self.widths is None else d / self.widths

    @torch.no_grad()
    def soft(self, image: Index, tau: float) -> Soft:
        """Assign an image's tokens softly; its energies are computed once and kept."""
        d = self._energies(image)
        lowest = d.amin(1, keepdim=True)
        weights = torch.exp(((lowest - d) / tau).clamp_(min=UNDERFLOW))
        total = weights.sum(1, keepdim=True)
        p = weights.div_(total)
        mean = torch.linalg.vecdot(p, d - lowest)
        log_total = total[:, 0].log()
        return Soft(
            entropy=(log_total + mean / tau).numpy(),
            mean_energy=(mean + lowest[:, 0]).numpy(),
            free_energy=(lowest[:, 0] - tau * log_total).numpy(),
            average=p @ self.codebook,
        )

    @torch.no_grad()
    def shares(
        self, token: Index, tau: float, *, top: int = 12
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Give the codes that a token is assigned to most, and their probabilities."""
        image, place = divmod(token, self.num_tokens)
        p = torch.softmax(-self._energies(image)[place] / tau, 0)
        best = p.topk(min(top, self.num_codes))
        return best.indices.numpy(), best.values.numpy()

    @torch.no_grad()
    def decode(self, vectors: Float[Tensor, "T C"]) -> UInt8[np.ndarray, "S S 3"]:
        """Decode one image's vectors, codes or soft averages, as a saved file would hold them."""
        rows, cols = self.grid
        z_q = vectors.T.reshape(1, -1, rows, cols)
        return to_uint8(self.tokenizer.decode_latents(z_q))[0].permute(1, 2, 0).numpy()

    def reconstruction(self, image: Index) -> UInt8[np.ndarray, "S S 3"]:
        """Decode an image's own codes."""
        return self.decode(self.codebook[self.indices[self.tokens(image)]])

    # All tokens ----------------------------------------------------------------------------------

    def entropies(self, tau: float) -> Float[np.ndarray, " N"]:
        """Give the entropy of every token's assignment, in nats; kept for a few temperatures."""
        return self._entropies(float(tau))

    @torch.no_grad()
    def _entropies_at(self, tau: float) -> Float[np.ndarray, " N"]:
        found = soft_assign(self._points, self._sites, tau, energy=self.energy, widths=self.widths)
        return found.entropy.numpy()

    def patch(self, token: Index) -> UInt8[np.ndarray, "P P 3"]:
        """Cut the pixels under a token out of its image."""
        image, place = divmod(int(token), self.num_tokens)
        side = self.images.shape[-1] // self.grid[0]
        row, col = divmod(place, self.grid[1])
        cut = self.images[image, :, row * side : (row + 1) * side, col * side : (col + 1) * side]
        return cut.permute(1, 2, 0).numpy()

    def marked(self, image: Index, tokens: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "S S 3"]:
        """Give an image with some of its tokens, numbered from 0, as they are and the rest dim."""
        pixels, (rows, cols) = self.pixels(image), self.grid
        weight = np.full(rows * cols, 0.25)
        weight[tokens] = 1
        side = pixels.shape[0] // rows
        weight = np.kron(weight.reshape(rows, cols), np.ones((side, side)))
        return (pixels * weight[:, :, None]).astype(np.uint8)

    def contexts(self, code: Index) -> Int[np.ndarray, " n"]:
        """Give the tokens at which a code is decoded: of its own, those nearest to it.

        For a code without tokens, those of all others that it would win first.
        """
        own = torch.from_numpy(np.flatnonzero(self.indices == code))
        points = self._points[own] if len(own) else self._points
        affordable = PATCH_PIXELS // self.images.shape[-1] ** 2
        count = min(max(affordable, 1), MAX_CONTEXTS, len(points))
        away = torch.cdist(self._sites[[int(code)]], points)[0]
        nearest = away.topk(count, largest=False).indices
        return (own[nearest] if len(own) else nearest).numpy()

    @torch.no_grad()
    def code_patches(self, codes: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n P P 3"]:
        """Decode codes inside held-out images, at their `contexts`; average what comes out there.

        A map of one code alone would not do: the decoder normalizes over the whole map, and
        attends to it, so that without an image around it a code's patch has other colors.
        """
        return np.stack([self._code_patch(int(code)) for code in codes])

    def _code_patch_of(self, code: int) -> UInt8[np.ndarray, "P P 3"]:
        tokens = torch.from_numpy(self.contexts(code))
        images, places = tokens // self.num_tokens, tokens % self.num_tokens
        maps = torch.from_numpy(self.indices).view(-1, self.num_tokens)[images]
        maps[torch.arange(len(maps)), places] = code
        decoded = to_uint8(self.tokenizer.decode(maps.view(-1, *self.grid)))
        side = decoded.shape[-1] // self.grid[1]
        tiles = decoded.unfold(2, side, side).unfold(3, side, side).flatten(2, 3)  # [n, 3, T, P, P]
        crops = tiles[torch.arange(len(maps)), :, places].float()
        return crops.mean(0).round().byte().permute(1, 2, 0).numpy()
