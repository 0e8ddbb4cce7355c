"""Images: where they come from, how they lie on the disk, and batches of them."""
# ruff: noqa: F401

from lgqlib.data.batches import (
    TrainingBatches,
    evaluation_images,
    is_tiled,
    to_model,
    to_uint8,
    to_unit,
    training_batches,
    whole_images,
)
from lgqlib.data.sources import SOURCES, SPLITS, identified, load
from lgqlib.data.store import ImageSet
