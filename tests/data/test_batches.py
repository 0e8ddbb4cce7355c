"""Batches are crops of the images, the same for a seed and a step; splits do not mix."""

from pathlib import Path

import pytest
import torch
from skimage import data as sk

from lgqlib import data
from lgqlib.config import DataConfig

SIZES = ((9, 30), (40, 11), (8, 8), (25, 17))


def image_set(*sizes: tuple[int, int], by_area: bool) -> data.ImageSet:
    """Make a set whose every pixel tells where it is: (image, row, column)."""
    places = [[i, row, x] for i, (h, w) in enumerate(sizes) for row in range(h) for x in range(w)]
    pixels = torch.tensor(places, dtype=torch.uint8).flatten()
    heights, widths = torch.tensor(sizes).T
    lengths = heights * widths * 3
    labels, names = torch.arange(len(sizes)) * 10, tuple(str(i) for i in range(len(sizes)))
    said = dict(classes=("x",), names=names, skipped=(), by_area=by_area, content="0")
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


@pytest.mark.parametrize("by_area", [True, False])
def test_crops_are_parts_of_their_image_half_of_them_flipped(by_area):
    images = image_set(*SIZES, by_area=by_area)
    crops, labels = batches(images, batch_size=400).batch(3)
    assert crops.shape == (400, 3, 8, 8) and crops.dtype == torch.uint8 and crops.is_contiguous()
    straight, _ = batches(images, batch_size=400, flip=False).batch(3)
    flips = 0
    for crop, label, other in zip(crops, labels, straight, strict=True):
        image, top, left, flipped = place(crop)
        assert label == image * 10 and place(other) == (image, top, left, False)
        flips += flipped
    assert 140 < flips < 260


def test_every_crop_of_a_photograph_is_equally_likely():
    images = image_set((9, 10), (12, 8), (8, 8), by_area=True)
    crops, _ = batches(images, batch_size=12 * 200).batch(0)
    counts = torch.zeros(3, 5, 3)
    for crop in crops:
        image, top, left, _ = place(crop)
        counts[image, top, left] += 1
    possible = counts[counts > 0]
    assert 2 * len(possible) == batches(images).num_crops == 2 * (2 * 3 + 5 * 1 + 1)
    # Five standard deviations of a binomial count around 200.
    assert (possible - 200).abs().max() < 5 * 200**0.5


def test_an_epoch_visits_every_image_once_and_the_next_in_another_order():
    images = image_set(*[(8, 8)] * 12, by_area=False)
    seen = torch.cat([batches(images, batch_size=5).batch(step)[1] // 10 for step in range(12)])
    epochs = seen.view(5, 12)
    assert (epochs.sort(1).values == torch.arange(12)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


@pytest.mark.parametrize("by_area", [True, False])
def test_a_batch_is_a_function_of_seed_and_step_whoever_asks(by_area):
    images = image_set(*SIZES, by_area=by_area)
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


def test_batches_refuse_what_cannot_be():
    images = image_set(*SIZES, by_area=True)
    exceeds = "data.size = 9: a crop of it exceeds 2, whose short side is 8"
    for refused in (batches, data.evaluation_images):
        with pytest.raises(ValueError, match=exceeds):
            refused(images, size=9)
    with pytest.raises(ValueError, match="a batch of 16 does not divide by 3 ranks"):
        batches(images, world_size=3)


def test_the_evaluation_grid_covers_photographs_without_overlap():
    images = image_set((20, 33), (8, 17), by_area=True)
    crops, labels, ids = data.evaluation_images(images, size=8)
    # Centered: the margin is the same on both sides, or one pixel more.
    grid = [(0, 2 + 8 * row, 8 * column, False) for row in range(2) for column in range(4)]
    assert [place(crop) for crop in crops] == [*grid, (1, 0, 0, False), (1, 0, 8, False)]
    assert ids.tolist() == [0] * 8 + [1] * 2 and labels.tolist() == (ids * 10).tolist()
    # Every second one of ten, and all when there are fewer than asked.
    assert torch.equal(data.evaluation_images(images, size=8, limit=5)[0], crops[1::2])
    assert torch.equal(data.evaluation_images(images, size=8, limit=99)[0], crops)
    crops, _, ids = data.evaluation_images(image_set(*SIZES, by_area=False), size=8)
    assert ids.tolist() == [0, 1, 2, 3], "other sets are evaluated at their centers"
    assert [place(crop)[1:3] for crop in crops] == [(0, 11), (16, 1), (0, 0), (8, 4)]


def test_photographs_are_split_by_photograph(cache):
    train, val = (data.load(DataConfig(), split, cache=cache) for split in data.SPLITS)
    names = [{Path(name).parts[1] for name in images.names} for images in (train, val)]
    assert names[0] == {"astronaut", "china", "flower", "motorcycle"}
    assert names[1] == {"chelsea", "coffee", "rocket"}
    assert train.classes == val.classes and train.by_area and val.by_area
    for images, originals in ((train, [sk.astronaut()]), (val, [sk.chelsea(), sk.coffee()])):
        for i, original in enumerate(originals):
            assert (images.image(i).numpy() == original).all()
    crops, _, ids = data.evaluation_images(val, size=32)
    assert torch.bincount(ids).tolist() == [126, 216, 260]
    assert len(torch.unique(crops, dim=0)) > 500, "enough is held out"


def test_bytes_to_the_model_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    scaled = data.to_model(values)
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert torch.equal(data.to_uint8(scaled), values)
    assert (data.to_unit(scaled) - values / 255).abs().max() < 1e-7
    assert data.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
