"""Crops of images: what the model trains and is evaluated on."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lgqlib.config import Config
from lgqlib.data.store import ImageSet
from lgqlib.files import require

TILED = 4  # crops that the area of an image must have room for, in the median, to be cut into tiles
GOLDEN = 0.6180339887498949


class TrainingBatches:
    """Random square crops of a set, as a pure function of the seed and the step.

    From a few large photographs every crop position is equally likely, over all of them; from other
    sets each epoch visits every image once, in a new order, at a random position.
    """

    def __init__(
        self,
        image_set: ImageSet,
        *,
        size: int,
        batch_size: int,
        seed: int,
        flip: bool,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Prepare batches of `batch_size` crops over all ranks; this one gets its equal share."""
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} does not divide by {world_size} ranks")
        _check_sides(image_set, size=size)
        self.images, self.device = image_set.to(device), device
        self.size, self.batch_size, self.seed, self.flip = size, batch_size, seed, flip
        share = batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        self._rows = (image_set.heights - size + 1).numpy()
        self._columns = (image_set.widths - size + 1).numpy()
        self._ends = np.cumsum(self._rows * self._columns)
        self.by_area = is_tiled(image_set, size=size)
        self._order = lru_cache(2)(  # from another stream than the batches', seeded by two numbers
            lambda epoch: np.random.default_rng([seed, epoch, 1]).permutation(len(image_set))
        )

    @property
    def num_crops(self) -> int:
        """How many different crops there are, flipped ones too."""
        return int(self._ends[-1]) * (2 if self.flip else 1)

    def batch(
        self, step: int
    ) -> tuple[UInt8[Tensor, "batch 3 size size"], Int64[Tensor, " batch"]]:
        """Give this rank's crops at `step`, with their labels."""
        image, top, left, flipped = (torch.from_numpy(x[self.share]) for x in self._draw(step))
        crops = _crops(self.images, image, top, left, size=self.size, flipped=flipped & self.flip)
        return crops.to(self.device), self.images.labels[image].to(self.device)

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw images, positions and flips of the whole batch, the same on every rank."""
        random = np.random.default_rng([self.seed, step])
        if self.by_area:
            place = random.integers(self._ends[-1], size=self.batch_size)
            image = np.searchsorted(self._ends, place, side="right")
            place -= self._ends[image] - self._rows[image] * self._columns[image]
            top, left = np.divmod(place, self._columns[image])
        else:
            # Epochs, each in its own order, follow each other without end.
            count, first = len(self.images), step * self.batch_size
            epochs = range(first // count, (first + self.batch_size - 1) // count + 1)
            orders = np.concatenate([self._order(epoch) for epoch in epochs])
            image = orders[first % count :][: self.batch_size]
            top = random.integers(self._rows[image])
            left = random.integers(self._columns[image])
        return image, top, left, random.random(self.batch_size) < 0.5


def training_batches(config: Config, image_set: ImageSet, **more: Any) -> TrainingBatches:
    """Prepare the batches that a run trains on; `more`: the device, and a rank of a world size."""
    shape = {"size": config.data.size, "batch_size": config.train.batch_size}
    return TrainingBatches(image_set, seed=config.seed, flip=config.data.flip, **shape, **more)


def evaluation_images(
    image_set: ImageSet, *, size: int, limit: int = 0
) -> tuple[UInt8[Tensor, "crops 3 size size"], Int64[Tensor, " crops"], Int64[Tensor, " crops"]]:
    """Give fixed crops to evaluate on, with their labels and the image that each is from.

    Images much larger than a crop (`is_tiled`) are cut into tiles of a centered grid; of others it
    is the center. Of more than `limit` crops (0 takes all) that many are taken, as many of each
    image as it has, and spread over it.
    """
    require(least=0, most=2**63, **{"limit (num_images)": limit})
    _check_sides(image_set, size=size)
    rows, columns = image_set.heights // size, image_set.widths // size
    if not is_tiled(image_set, size=size):
        rows, columns = torch.ones_like(rows), torch.ones_like(columns)
    counts = rows * columns
    image = torch.arange(len(image_set)).repeat_interleave(counts)
    cell = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
    row, column = cell // columns[image], cell % columns[image]
    if 0 < limit < len(image):
        # One tile of every image, then a second, and so on; multiples of the golden ratio order
        # tiles, and images, so that the first few are spread over all of them.
        order = np.lexsort((cell * GOLDEN % 1, image))
        turn = np.empty(len(order), dtype=np.int64)
        turn[order] = np.arange(len(order)) - (counts.cumsum(0) - counts)[image[order]].numpy()
        chosen = torch.from_numpy(np.sort(np.lexsort((image * GOLDEN % 1, turn))[:limit]))
        image, row, column = image[chosen], row[chosen], column[chosen]
    top = (image_set.heights - rows * size)[image] // 2 + row * size
    left = (image_set.widths - columns * size)[image] // 2 + column * size
    return _crops(image_set, image, top, left, size=size), image_set.labels[image], image


def whole_images(
    image_set: ImageSet, *, multiple: int, limit: int, largest: int = 1024
) -> list[tuple[str, UInt8[Tensor, "3 H W"]]]:
    """Give up to `limit` whole images by name, their sides cut to a multiple, at most `largest`."""
    chosen = np.unique(np.linspace(0, len(image_set) - 1, min(limit, len(image_set))).astype(int))
    stems = [Path(name).stem for name in image_set.names]
    names = stems if len(set(stems)) == len(stems) else image_set.names
    found = []
    for i in chosen.tolist():
        image = image_set.image(i)
        height, width = (min(side, largest) // multiple * multiple for side in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        crop = image[top : top + height, left : left + width]
        found.append((names[i], rearrange(crop, "h w c -> c h w").clone()))
    return found


def is_tiled(image_set: ImageSet, *, size: int) -> bool:
    """Say whether images are so much larger than a crop that tiles of them are the examples."""
    areas = (image_set.heights * image_set.widths).double()
    return bool(areas.median() >= TILED * size**2)


def to_model(images: UInt8[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Map bytes to the model's range [-1, 1]."""
    return images.float() / 127.5 - 1


def to_unit(images: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Map the model's range [-1, 1] to the metrics' [0, 1], without clamping."""
    return (images + 1) / 2


def to_uint8(images: Float[Tensor, "*batch"]) -> UInt8[Tensor, "*batch"]:
    """Map the model's range to bytes, clamped and rounded as in a saved file: undo `to_model`."""
    return (to_unit(images.float()).clamp(0, 1) * 255).round().to(torch.uint8)


def _check_sides(image_set: ImageSet, *, size: int) -> None:
    shortest, i = torch.minimum(image_set.heights, image_set.widths).min(0)
    if shortest < size:
        text = f"a crop of it exceeds {image_set.names[i]}, whose short side is {shortest}"
        raise ValueError(f"data.size = {size}: {text}")


def _crops(image_set: ImageSet, image, top, left, *, size: int, flipped=None) -> Tensor:
    """Cut squares out of images in one gather: each line of a crop is a run of 3 * size bytes."""
    pixels, run = image_set.pixels, 3 * size
    start = image_set.offsets[image] + (top * image_set.widths[image] + left) * 3
    line = torch.arange(size) * image_set.widths[image][:, None] * 3
    runs = pixels.as_strided((len(pixels) - run + 1, run), (1, 1))
    rows = start[:, None] + line
    mirror = torch.empty(0, dtype=torch.int64) if flipped is None else flipped.nonzero()[:, 0]
    if pixels.device.type == "cpu":
        # NumPy stays on this thread; to wake others for a millisecond of copying costs more, and
        # fifty times more when the cores are busy.
        crops = rearrange(runs.numpy()[rows.numpy()], "b h (w c) -> b h w c", c=3)
        crops[mirror.numpy()] = crops[mirror.numpy(), :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(rearrange(crops, "b h w c -> b c h w")))
    crops = rearrange(runs[rows.to(pixels.device)], "b h (w c) -> b c h w", c=3).contiguous()
    mirror = mirror.to(pixels.device)
    crops[mirror] = crops[mirror].flip(-1)
    return crops
