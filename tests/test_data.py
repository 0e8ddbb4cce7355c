"""Batches are crops of the images, the same for a seed and a step; splits do not mix."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lgqlib.config import DataConfig
from lgqlib import data
from lgqlib.data import sources
from lgqlib.data.store import ImageSet


def image_set(*sizes: tuple[int, int], by_area: bool) -> ImageSet:
    """Make a set whose every pixel tells where it is: (image, row, column)."""
    arrays = [
        np.stack(np.broadcast_arrays(i, np.arange(h)[:, None], np.arange(w)), -1).astype(np.uint8)
        for i, (h, w) in enumerate(sizes)
    ]
    heights, widths = torch.tensor(sizes).T
    lengths = heights * widths * 3
    return ImageSet(
        pixels=torch.from_numpy(np.concatenate([array.ravel() for array in arrays])),
        offsets=lengths.cumsum(0) - lengths,
        heights=heights,
        widths=widths,
        labels=torch.arange(len(sizes)) * 10,
        classes=("x",),
        names=tuple(str(i) for i in range(len(sizes))),
        skipped=(),
        by_area=by_area,
        content="0",
    )


def batches(images: ImageSet, **arguments) -> data.TrainingBatches:
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


SIZES = ((9, 30), (40, 11), (8, 8), (25, 17))


@pytest.mark.parametrize("by_area", [True, False])
def test_crops_lie_within_their_image(by_area):
    images = image_set(*SIZES, by_area=by_area)
    crops, labels = batches(images, batch_size=400).batch(3)
    assert crops.shape == (400, 3, 8, 8) and crops.dtype == torch.uint8 and crops.is_contiguous()
    flips = 0
    for crop, label in zip(crops, labels, strict=True):
        image, top, left, flipped = place(crop)
        assert label == image * 10
        assert top + 8 <= SIZES[image][0] and left + 8 <= SIZES[image][1]
        flips += flipped
    assert 140 < flips < 260


def test_every_crop_of_a_photograph_is_equally_likely():
    sizes = ((9, 10), (12, 8), (8, 8))
    crops, _ = batches(image_set(*sizes, by_area=True), batch_size=12 * 200).batch(0)
    counts = torch.zeros(3, 5, 3)
    for crop in crops:
        image, top, left, _ = place(crop)
        counts[image, top, left] += 1
    possible = counts[counts > 0]
    assert len(possible) == 2 * 3 + 5 * 1 + 1
    # Five standard deviations of a binomial count around 200.
    assert (possible - 200).abs().max() < 5 * 200**0.5


def test_an_epoch_visits_every_image_once_and_the_next_in_another_order():
    images = image_set(*[(8, 8)] * 12, by_area=False)
    seen = torch.cat([batches(images, batch_size=5).batch(step)[1] // 10 for step in range(12)])
    epochs = seen.view(5, 12)
    assert (epochs.sort(1).values == torch.arange(12)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


@pytest.mark.parametrize("by_area", [True, False])
def test_a_batch_is_a_function_of_seed_and_step(by_area):
    images = image_set(*SIZES, by_area=by_area)
    straight = [batches(images).batch(step) for step in range(6)]
    one = batches(images)
    for step in (5, 2, 2, 0, 4):
        for now, then in zip(one.batch(step), straight[step], strict=True):
            assert torch.equal(now, then)
    assert not torch.equal(straight[0][0], straight[1][0])
    assert not torch.equal(straight[0][0], batches(images, seed=1).batch(0)[0])


@pytest.mark.parametrize("by_area", [True, False])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_partition_the_batch(by_area, world_size):
    images = image_set(*SIZES, by_area=by_area)
    parts = [
        batches(images, rank=rank, world_size=world_size).batch(7) for rank in range(world_size)
    ]
    whole = batches(images).batch(7)
    for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), expected)


def test_without_flips_the_same_crops_are_straight():
    images = image_set(*SIZES, by_area=True)
    mirrored, straight = batches(images).batch(0)[0], batches(images, flip=False).batch(0)[0]
    for crop, other in zip(mirrored, straight, strict=True):
        assert place(crop)[:3] == place(other)[:3] and not place(other)[3]


def test_batches_refuse_what_cannot_be():
    images = image_set(*SIZES, by_area=True)
    exceeds = "data.size = 9: a crop of it exceeds 2, whose short side is 8"
    with pytest.raises(ValueError, match=exceeds):
        batches(images, size=9)
    with pytest.raises(ValueError, match="a batch of 16 does not divide by 3 ranks"):
        batches(images, world_size=3)


def test_the_evaluation_grid_covers_photographs_without_overlap():
    images = image_set((20, 33), (8, 17), by_area=True)
    crops, labels, ids = data.evaluation_images(images, size=8)
    assert len(crops) == 2 * 4 + 1 * 2
    seen = set()
    for crop, label, i in zip(crops, labels, ids, strict=True):
        image, top, left, flipped = place(crop)
        assert image == i and label == 10 * i and not flipped
        cells = {(image, top + y, left + x) for y in range(8) for x in range(8)}
        assert not seen & cells
        seen |= cells
    # Centered: the margin is the same on both sides, or one pixel more.
    assert place(crops[0])[1:3] == (2, 0) and place(crops[8])[1:3] == (0, 0)
    # Every second one of ten, and all when there are fewer than asked.
    assert torch.equal(data.evaluation_images(images, size=8, limit=5)[0], crops[1::2])
    assert torch.equal(data.evaluation_images(images, size=8, limit=99)[0], crops)


def test_other_sets_are_evaluated_at_the_center():
    crops, _, ids = data.evaluation_images(image_set(*SIZES, by_area=False), size=8)
    assert ids.tolist() == [0, 1, 2, 3]
    assert [place(crop)[1:3] for crop in crops] == [(0, 11), (16, 1), (0, 0), (8, 4)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return {split: data.load(DataConfig(), split, cache=cache) for split in data.SPLITS}


def test_photographs_are_split_by_photograph(photos):
    train, val = photos["train"], photos["val"]
    assert train.names == ("astronaut", "china", "flower", "motorcycle")
    assert val.names == ("chelsea", "coffee", "rocket")
    assert train.classes == val.classes and not set(train.labels.tolist()) & set(
        val.labels.tolist()
    )
    for images in (train, val):
        for i, (name, label) in enumerate(zip(images.names, images.labels, strict=True)):
            assert images.classes[label] == name
            _, package, file = sources.PHOTOGRAPHS[name]
            [folder] = find_spec(package).submodule_search_locations
            with Image.open(Path(folder) / file) as photograph:
                assert (images.image(i).numpy() == np.asarray(photograph)).all()


def test_enough_is_held_out(photos):
    crops, _, ids = data.evaluation_images(photos["val"], size=32)
    assert torch.bincount(ids).tolist() == [126, 216, 260]
    assert len(torch.unique(crops, dim=0)) > 500
    assert len(data.evaluation_images(photos["val"], size=32, limit=512)[0]) == 512
    assert len(data.evaluation_images(photos["train"], size=32)[0]) == 1121


def test_a_training_crop_is_found_in_its_photograph(photos):
    crops, labels = batches(photos["train"], size=32, batch_size=8, flip=False).batch(0)
    for crop, label in zip(crops, labels, strict=True):
        i = photos["train"].labels.tolist().index(int(label))
        windows = photos["train"].image(i).unfold(0, 32, 1).unfold(1, 32, 1)
        corner = (windows[..., 0, 0] == crop[:, 0, 0]).all(-1).nonzero()
        assert any(torch.equal(windows[y, x], crop) for y, x in corner.tolist())


def test_fingerprints_tell_sets_apart(photos):
    assert len({data.fingerprint(images) for images in photos.values()}) == 2


def test_bytes_to_the_model_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    scaled = data.to_model(values)
    assert scaled.min() == -1 and scaled.max() == 1 and scaled.dtype == torch.float32
    assert torch.equal(data.to_uint8(scaled), values)
    assert (data.to_unit(scaled) - values / 255).abs().max() < 1e-7
    assert data.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@settings(max_examples=100, deadline=None)
@given(st.floats(-1, 1, width=32))
def test_rounding_to_bytes_moves_by_half_a_step(value):
    x = torch.tensor([value])
    assert (data.to_model(data.to_uint8(x)) - x).abs() <= 1 / 255 + 1e-6


def test_load_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="split must be one of"):
        data.load(DataConfig(), "test", cache=tmp_path)
    with pytest.raises(ValueError, match="photos are embedded"):
        data.load(DataConfig(root="somewhere"), "train", cache=tmp_path)
