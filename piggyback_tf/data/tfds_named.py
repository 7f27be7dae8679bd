"""Images of a TFDS split with what the data set calls them, in turn and without labels, which contests hide."""

from collections.abc import Iterator

import numpy as np

from piggyback_tf.data.images import DataError, decode_image
from piggyback_tf.data.record_files import READERS
from piggyback_tf.data.tfds_builder import make_prepared, open_builder
from piggyback_tf.data.tfds_source import shards_of
from piggyback_tf.foreign_text import reason


class NamedImages:
    """The images of one split of a data set of TensorFlow Datasets, each with its feature `name`.

    Args:
        name: The data set, such as `"visual_domain_decathlon/dtd"`; one that is not there is downloaded.
        split: The split.
        data_dir: Where prepared data sets are; None for the default of TensorFlow Datasets.

    Raises:
        DataError: If there are no such data, or they have no features `image`, `label` and `name`.
    """

    def __init__(self, name: str, split: str, data_dir: str | None):
        import tensorflow_datasets as tfds

        builder = open_builder(name, data_dir)
        features = builder.info.features
        there = dict(features.items()) if hasattr(features, "items") else {}
        if missing := [feature for feature in ("image", "label", "name") if feature not in there]:
            raise DataError(f"Data set {name!r} has no feature {missing[0]!r}, but {', '.join(there) or 'none'}.")
        make_prepared(builder, name, data_dir)
        self.class_names = tuple(there["label"].names)
        self._title = f"tfds:{name} {split}"
        self._shards = shards_of(builder, split, f"tfds:{name}")
        self._reader = READERS[builder.info.file_format.value]()
        self._features = tfds.decode.PartialDecoding({"image": True, "name": True}).extract_features(features)
        self._decoders = {"image": tfds.decode.SkipDecoding()}

    def __len__(self) -> int:
        return sum(shard.take for shard in self._shards)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the name of each image, and the image, uint8 `[H, W, 3]`.

        Raises:
            DataError: If a file or an image is damaged.
        """
        for shard in self._shards:
            try:
                for _, record in self._reader.scan(shard):
                    example = self._features.deserialize_example_np(record, decoders=self._decoders)
                    name = bytes(example["name"]).decode()
                    yield name, decode_image(bytes(example["image"]), f"{self._title} {name}")
            except DataError:
                raise
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"File {shard.path!r} of {self._title} cannot be read: {reason(error)}.") from error
