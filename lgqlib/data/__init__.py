"""Images: where they come from, how they lie on the disk, and batches of them."""

from lgqlib.data.batches import TrainingBatches, evaluation_images, to_model, to_uint8, to_unit
from lgqlib.data.sources import SOURCES, SPLITS, load
from lgqlib.data.store import ImageSet

__all__ = [
    "SOURCES",
    "SPLITS",
    "ImageSet",
    "TrainingBatches",
    "evaluation_images",
    "load",
    "to_model",
    "to_uint8",
    "to_unit",
]
