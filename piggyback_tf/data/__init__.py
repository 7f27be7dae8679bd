"""Images in, batches out: data sets, augmentation, caching."""

from piggyback_tf.data import operations as _operations  # noqa: F401  (registers the operations)
from piggyback_tf.data.augment import (
    AUGMENTATIONS,
    DeterministicOperation,
    Operation,
    RandomOperation,
    at_own_size,
    augmentation_names,
    boxes_at_own_size,
    output_size,
    parse_augment,
    register_augmentation,
)
from piggyback_tf.data.boxes import NO_BOX, BoxTable
from piggyback_tf.data.check import Part, check_images
from piggyback_tf.data.describe import describe_images
from piggyback_tf.data.graph_calls import surface_data_errors
from piggyback_tf.data.images import BrokenImageError, DataError, decode_image, read_image
from piggyback_tf.data.pipeline import make_dataset, original_batches, stream_batches
from piggyback_tf.data.sources import Original, Renumbered, Source, Subset, TaskData, carve_validation
from piggyback_tf.data.specs import DATA_KINDS, DataRequest, data_kinds, load_data, register_data
from piggyback_tf.data.unusable_files import DataProblems, UnusableFile
from piggyback_tf.targets import TARGETS

__all__ = [
    "AUGMENTATIONS",
    "DATA_KINDS",
    "NO_BOX",
    "TARGETS",
    "BoxTable",
    "BrokenImageError",
    "DataError",
    "DataProblems",
    "DataRequest",
    "DeterministicOperation",
    "Operation",
    "Original",
    "Part",
    "RandomOperation",
    "UnusableFile",
    "Renumbered",
    "Source",
    "Subset",
    "TaskData",
    "at_own_size",
    "augmentation_names",
    "boxes_at_own_size",
    "carve_validation",
    "check_images",
    "data_kinds",
    "decode_image",
    "describe_images",
    "load_data",
    "make_dataset",
    "original_batches",
    "output_size",
    "parse_augment",
    "read_image",
    "register_augmentation",
    "register_data",
    "stream_batches",
    "surface_data_errors",
]
