"""Batches are crops of the images, the same for a seed and a step; splits do not mix."""

import dataclasses
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lgqlib import data
from lgqlib.config import DataConfig

SIZES = ((9, 30), (40, 11), (8, 8), (25, 17))
SMALL = (*SIZES[:3], (15, 17))
"""One pixel too few in the median for four crops of 8 x 8: not cut into tiles, as `SIZES` are."""
either = pytest.mark.parametrize("sizes", [SIZES, SMALL], ids=["tiles", "images"])


def image_set(*sizes: tuple[int, int]) -> data.ImageSet:
    """Make a set whose every pixel tells where it is: (image, row, column)."""
    places = [[i, row, x] for i, (h, w) in enumerate(sizes) for row in range(h) for x in range(w)]
    pixels = torch.tensor(places, dtype=torch.uint8).flatten()
    heights, widths = torch.tensor(sizes).T
    lengths = heights * widths * 3
    labels, names = torch.arange(len(sizes)) * 10, tuple(str(i) for i in range(len(sizes)))
    said = dict(classes=("x",), names=names, skipped=(), content="0")
    return data.ImageSet(pixels, lengths.cumsum(0) - lengths, heights, widths, labels, **said)


def batches(images: data.ImageSet, **arguments) -> data.TrainingBatches:
    defaults = {"size": 8, "batch_size": 16, "seed": 0, "flip": True, "device": "cpu"}
    return data.TrainingBatches(images, **{**defaults, **arguments})


def place(crop: torch.Tensor) -> tuple[int, int, int, bool]:
    """Read image, top, left and flip off a crop, and check that it is that part of that image."""
    size = crop.shape[-1]
    flipped = bool(crop[2, 0, 0] > crop[2, 0, -1])
    straight = crop.flip(-1) if flipped else crop
    image, top, left = (int(value) for value in straight[:, 0, 0])
    assert (straight[0] == image).all()
    assert (straight[1] == (torch.arange(size) + top)[:, None]).all()
    assert (straight[2] == torch.arange(size) + left).all()
    return image, top, left, flipped


@either
def test_crops_lie_within_their_image(sizes):
    images = image_set(*sizes)
    crops, labels = batches(images, batch_size=400).batch(3)
    straight, _ = batches(images, batch_size=400, flip=False).batch(3)
    flips = 0
    for crop, label, other in zip(crops, labels, straight, strict=True):
        image, top, left, flipped = place(crop)
        assert label == image * 10 and place(other) == (image, top, left, False)
        assert top + 8 <= sizes[image][0] and left + 8 <= sizes[image][1]
        flips += flipped
    assert 140 < flips < 260


def test_every_crop_of_a_photograph_is_equally_likely():
    images = image_set((3, 6), (8, 2), (2, 2))
    crops, _ = batches(images, size=2, batch_size=18 * 200).batch(0)
    counts = Counter(place(crop)[:3] for crop in crops)
    assert 2 * len(counts) == batches(images, size=2).num_crops == 2 * (2 * 5 + 7 * 1 + 1)
    # Five standard deviations of a binomial count around 200.
    assert max(abs(count - 200) for count in counts.values()) < 5 * 200**0.5


def test_an_epoch_visits_every_image_once_and_the_next_in_another_order():
    images = image_set(*[(8, 8)] * 12)
    seen = torch.cat([batches(images, batch_size=5).batch(step)[1] // 10 for step in range(12)])
    epochs = seen.view(5, 12)
    assert (epochs.sort(1).values == torch.arange(12)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


@either
def test_a_batch_is_a_function_of_seed_and_step_whoever_asks(sizes):
    images = image_set(*sizes)
    straight = [batches(images).batch(step) for step in range(6)]
    one = batches(images)
    for step in (5, 2, 2, 0, 4):
        for now, then in zip(one.batch(step), straight[step], strict=True):
            assert torch.equal(now, then)
    assert not torch.equal(straight[0][0], straight[1][0])
    assert not torch.equal(straight[0][0], batches(images, seed=1).batch(0)[0])
    parts = [batches(images, rank=rank, world_size=4).batch(5) for rank in range(4)]
    for part, whole in zip(zip(*parts, strict=True), straight[5], strict=True):
        assert torch.equal(torch.cat(part), whole)


def test_batches_refuse_what_cannot_be_and_bytes_come_back():
    images = image_set(*SIZES)
    exceeds = "data.size = 9: a crop of it exceeds 2, whose short side is 8"
    for refused in (batches, data.evaluation_images):
        with pytest.raises(ValueError, match=exceeds):
            refused(images, size=9)
    with pytest.raises(ValueError, match="a batch of 16 does not divide by 3 ranks"):
        batches(images, world_size=3)
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.to_model(values)), values)
    assert data.to_uint8(torch.tensor([-3.0, -1.0, 1.0, 3.0])).tolist() == [0, 0, 255, 255]


def test_the_evaluation_grid_covers_photographs_without_overlap():
    images = image_set((20, 33), (8, 33))
    crops, labels, ids = data.evaluation_images(images, size=8)
    found = [place(crop) for crop in crops]
    # Centered: the margin is the same on both sides, or one pixel more.
    tops, lefts = {0: (2, 10), 1: (0,)}, (0, 8, 16, 24)
    assert found == [(i, y, x, False) for i in (0, 1) for y in tops[i] for x in lefts]
    assert [(10 * i, i) for i, *_ in found] == [*zip(labels.tolist(), ids.tolist(), strict=True)]


def test_other_sets_are_evaluated_at_the_center_and_whole_in_multiples_of_the_patch():
    crops, _, ids = data.evaluation_images(image_set(*SMALL), size=8)
    assert ids.tolist() == [0, 1, 2, 3]
    assert [place(crop)[1:3] for crop in crops] == [(0, 11), (16, 1), (0, 0), (3, 4)]
    found = data.whole_images(image_set(*SIZES), multiple=4, limit=3, largest=24)
    assert [(name, *crop.shape[1:]) for name, crop in found] == [
        ("0", 8, 24),
        ("1", 24, 8),
        ("3", 24, 16),
    ]
    assert [crop[:, 0, 0].tolist() for _, crop in found] == [[0, 0, 3], [1, 8, 1], [3, 0, 0]]
    twins = dataclasses.replace(image_set((8, 8), (8, 8)), names=("cat/1.png", "dog/1.png"))
    assert len(dict(data.whole_images(twins, multiple=8, limit=9))) == 2


def test_photographs_are_split_by_photograph(cache):
    sets = [data.load(DataConfig(), split, cache=cache) for split in data.SPLITS]
    names = [{Path(name).parts[1] for name in images.names} for images in sets]
    assert [len(side) for side in names] == [18, 9] and not names[0] & names[1]
    for images in sets:
        assert images.classes == sets[0].classes and data.is_tiled(images, size=32)
        for i, label in enumerate(images.labels):
            _, package, file = data.SOURCES["photos"].photographs[images.classes[label]]
            [folder] = find_spec(package).submodule_search_locations
            with Image.open(Path(folder) / file) as original:
                assert (images.image(i).numpy() == np.asarray(original)).all()
    crops, _, ids = data.evaluation_images(sets[1], size=32, limit=512)
    assert torch.bincount(ids).sort().values.tolist() == [56] + [57] * 8
    assert len(torch.unique(crops, dim=0)) > 500, "enough is held out"
