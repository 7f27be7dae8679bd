"""`tfds:NAME`: data sets of TensorFlow Datasets, read in place and in any order."""

import contextlib
import dataclasses
import io
import itertools
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from piggyback_tf.data.boxes import COLUMNS, BoxError, BoxTable, box_faults, some_faults
from piggyback_tf.data.cache import compute_once
from piggyback_tf.data.images import DataError, decode_image
from piggyback_tf.data.label_maps import check_size
from piggyback_tf.data.record_files import READERS, Shard, shared_records
from piggyback_tf.data.sources import Source, TaskData, carve_validation, class_counts, digest
from piggyback_tf.data.specs import DataRequest, register_data
from piggyback_tf.data.split_folders import file_state
from piggyback_tf.data.tfds_builder import HINT, Fields, find_fields, make_prepared, open_builder, parse_options
from piggyback_tf.foreign_text import counted

# What a scan finds out about each record, as numbers.
_NUMBERS = ("place", "size", "checksum", "image_size", "label")
# Images of a split that are looked at for boxes: one may have none.
_LOOKED_AT = 100
VALIDATION_NAMES = ("validation", "val", "valid", "dev")


class TfdsSource(Source):
    """One split of a prepared data set. Nothing is read before the labels or an image are asked for.

    Args:
        name: What to call it, for example `"tfds:oxford_flowers102"`.
        shards: Where the records are, in order.
        file_format: How they are stored, a name in `READERS`.
        fields: Which features of a record are learned.
        train: The source whose classes are learned, if that is another one; this one may have no others.
        cache_dir: The cache folder; `None` for the user's.
    """

    def __init__(
        self,
        name: str,
        shards: list[Shard],
        file_format: str,
        fields: Fields,
        train: Source | None,
        cache_dir: str | None,
    ):
        self.name = name
        self.shards = shards
        self.image_size, self.has_maps = fields.image_size, fields.maps is not None
        self.has_boxes = fields.boxes is not None
        self.has_files = not self.moves_targets
        # How many boxes an image of the data set has at most; whoever knows all of its splits says so.
        self.most_boxes: int | None = None
        self._reader = READERS[file_format]()
        self._fields = fields
        self._train = train
        self._cache_dir = cache_dir
        self._firsts = np.cumsum([0] + [shard.take for shard in shards])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @cached_property
    def _index(self) -> dict[str, np.ndarray]:
        def scan() -> dict[str, np.ndarray]:
            logging.info("Scanning the records of %s for their labels, and checking them.", self._title)
            records = [record for shard in self.shards for record in self._scan(shard)]
            columns = np.array([record.numbers for record in records], dtype=np.int64).reshape(-1, len(_NUMBERS))
            found: dict[str, np.ndarray] = {name: columns[:, place] for place, name in enumerate(_NUMBERS)}
            if self.has_boxes:
                found["box_sizes"] = np.array([record.boxes_for for record in records], np.int32).reshape(-1, 2)
                found["box_counts"] = np.array([len(record.boxes) for record in records], np.int64)
                found["box_rows"] = np.concatenate([np.zeros([0, COLUMNS], np.float32), *(r.boxes for r in records)])
            if self._fields.several:
                rows = [record.classes for record in records]
                found["classes"] = np.array(rows, np.uint8).reshape(-1, len(self._fields.class_names))
            return found

        # The number goes up when a scan finds other things: what is in the cache was found by an older one.
        version = "boxes 1" if self.has_boxes else "classes 1" if self._fields.several else "records 2"
        return compute_once("records", digest(version, self.fingerprint()), scan, self._cache_dir)

    @property
    def _title(self) -> str:
        return f"{self.name} {'+'.join(dict.fromkeys(shard.part for shard in self.shards))}"

    @cached_property
    def boxes(self) -> BoxTable:
        index, classes = self._index, len(self._fields.class_names)
        numbers = index["box_rows"][:, 4]
        if wrong := [int(number) for number in np.unique(numbers) if not 0 <= number < classes]:
            raise DataError(
                f"{self._title} has a box of class number {wrong[0]}, but its classes are 0 to {classes - 1}."
            )
        scale = np.tile(np.repeat(index["box_sizes"], index["box_counts"], axis=0), [1, 2])
        rows = np.concatenate([index["box_rows"][:, :4] * scale, index["box_rows"][:, 4:]], axis=1).astype(np.float32)
        counts = index["box_counts"]
        most = self.most_boxes or max(1, int(counts.max(initial=1)))
        return BoxTable(rows, np.cumsum(counts), index["box_sizes"], most)

    @cached_property
    def labels(self) -> np.ndarray:
        if self.has_boxes:
            return self.boxes.by_class(len(self._fields.class_names))
        if self._fields.several:
            return self._index["classes"].astype(np.int32)
        labels = self._index["label"].astype(np.int32)
        if (labels < 0).any():
            raise DataError(
                f"{self._title} has images without a label; choose other splits behind the name, as in {HINT}."
            )
        if (labels >= (count := len(self._fields.class_names))).any():
            raise DataError(f"{self._title} has the label {labels.max()}, but only {count} classes.")
        if self._train is not None:
            strange = np.setdiff1d(labels, self._train.labels)
            if len(strange):
                raise DataError(
                    f"{self._title} has images of class number {strange[0]}, which no training image has, "
                    f"so that it cannot be learned."
                )
        return labels

    def share_most(self, most: int) -> None:
        """Takes over how many boxes an image has at most, of all splits."""
        self.most_boxes = most
        vars(self).pop("boxes", None)

    def is_labelled(self) -> bool:
        """Returns whether the first image has a label, or one of the first ones a box; no others are looked at."""
        shard = self.shards[0]
        first = self._scan(dataclasses.replace(shard, take=min(shard.take, _LOOKED_AT if self.has_boxes else 1)))
        return any(len(record.boxes) if self.has_boxes else record.label >= 0 for record in first)

    def read_file(self, index: int) -> bytes:
        import tensorflow as tf
        from google.protobuf.message import DecodeError

        record = self._read_record(index)
        # TensorFlow Datasets takes a millisecond to parse a record, ten times as long.
        with contextlib.suppress(DecodeError):
            found = tf.train.Example.FromString(record).features.feature
            if self._fields.image in found and len(values := found[self._fields.image].bytes_list.value) == 1:
                return values[0]
        return self._parse(index, record)[0]

    def _parse(self, index: int, record: bytes) -> tuple[bytes, Any]:
        """Returns an image as it is stored, and its label."""
        with self._errors_of(self.shards[self._shard_of(index)]):
            return self._fields.parse(record)

    def _read_record(self, index: int) -> bytes:
        shard = self.shards[self._shard_of(index)]
        place, size, checksum = (int(self._index[name][index]) for name in ("place", "size", "checksum"))
        with self._errors_of(shard):
            record = self._reader.read(shard, place, size)
            # The scan may have been long ago, and a disk that loses a bit leaves the file's time as it was.
            if zlib.crc32(record) != checksum:
                raise ValueError(f"the record of {self.key(index)} is not the one that was scanned")
        return record

    def read(self, index: int) -> np.ndarray:
        encoded, label = self._parse(index, self._read_record(index))
        name = self.describe(index)
        image = decode_image(encoded, name)
        if self.has_boxes:
            self._check_boxes(index, image, name)
        if self._fields.maps is None:
            return image
        assert isinstance(label, bytes), "a label map is a PNG or JPEG"
        labels = self._fields.maps.decode(label, name)
        check_size(labels, image, name, name)
        return np.concatenate([image, labels[..., None]], axis=-1)

    def _check_boxes(self, index: int, image: np.ndarray, name: str) -> None:
        self.boxes.check_size(index, image, name)
        own = self.boxes.of(index)[:, :4]
        if faults := box_faults([f"object {place}" for place in range(len(own))], own, self.boxes.size(index)):
            raise BoxError(f"Boxes of image {name!r} cannot be used: {some_faults(faults)}.")

    def describe(self, index: int) -> str:
        return f"{self.name} {self.key(index)}"

    def key(self, index: int) -> str:
        # Counted within the split, not within the file: how many files there are may differ between machines.
        part = self.shards[self._shard_of(index)].part
        before = next(first for first, shard in zip(self._firsts, self.shards, strict=False) if shard.part == part)
        return f"{part} #{index - int(before)}"

    def stored_bytes(self, index: int) -> int:
        return int(self._index["image_size"][index])

    @cached_property
    def _fingerprint(self) -> str:
        parts = [file_state(str(shard), Path(shard.path), f" of {self.name}") for shard in self.shards]
        fields = self._fields
        if (fields.image, fields.label, fields.maps, fields.boxes) != ("image", "label", None, None):
            boxes = f" {fields.boxes}" if fields.boxes else ""
            parts.append(f"{fields.image} {fields.label} {fields.maps!r}{boxes}")
        return digest("tfds", self.name, *parts)

    def fingerprint(self) -> str:
        return self._fingerprint

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1

    def _scan(self, shard: Shard) -> Iterator["_Record"]:
        with self._errors_of(shard):
            for place, record in self._reader.scan(shard):
                image, label = self._fields.parse(record)
                # A label map, boxes and any number of classes are no number.
                found = _Record(place, len(record), zlib.crc32(record), len(image), label if type(label) is int else 0)
                if isinstance(label, np.ndarray) and self.has_boxes:
                    found = dataclasses.replace(found, boxes=label, boxes_for=_stored_size(image))
                elif isinstance(label, np.ndarray):
                    found = dataclasses.replace(found, classes=label)
                yield found

    @contextlib.contextmanager
    def _errors_of(self, shard: Shard) -> Iterator[None]:
        """Puts the name of a file before what is wrong with it."""
        try:
            yield
        except OSError as error:
            raise DataError(f"File {shard.path!r} of {self.name} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise DataError(f"File {shard.path!r} of {self.name} is damaged: {error}.") from error


@dataclasses.dataclass(frozen=True, eq=False)
class _Record:
    """What a scan finds out about a record: where it is, its bytes and their CRC-32, its image's bytes, its label.

    Beside these numbers are its boxes, relative to the `(height, width)` of the image as it is stored, or 0 or 1 for
    each class, where an image may be of any number of them.
    """

    place: int
    size: int
    checksum: int
    image_size: int
    label: int
    boxes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros([0, COLUMNS], np.float32))
    boxes_for: tuple[int, int] = (0, 0)
    classes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint8))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers, in the order of `_NUMBERS`."""
        return tuple(getattr(self, name) for name in _NUMBERS)


def _stored_size(encoded: bytes) -> tuple[int, int]:
    """Returns the `(height, width)` of an encoded image by its header; zeros if it has none."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width
    except Exception:  # Whoever decodes it says what is wrong.
        return 0, 0


@register_data("tfds", targets=("class", "multilabel", "map", "boxes"))
def load_tfds(request: DataRequest) -> TaskData:
    """Answers `tfds:NAME`, with `NAME[/CONFIG][:VERSION][?train=SPLITS&validation=SPLITS&test=SPLITS]`.

    `image=` and `label=` name other features than these two. A label that is an image is a label map, or one of its
    channels as in `label=annotation[0]`; `classes=` names its classes, separated by commas or in a file, a line each,
    and `values=1:0,2:1,*:255` says which class each of its values stands for. A label that is a sequence of classes, or
    0 or 1 for each of the classes that `classes=` names, says that an image may be of any number of classes.
    `boxes=objects` names a feature of boxes, each with a `bbox` and a `label`; those that are `is_crowd` or
    `is_difficult` are ignored.

    Splits are written as TensorFlow Datasets does: `train`, `train+validation`, `train[:80%]`.
    Without them `train`, `validation` and `test` are used. Where there is no test split with
    labels, the validation split is the test split, and validation images are carved out of train;
    they are also where there is no validation split or it is a part of `train=`.
    """
    name, _, query = request.argument.partition("?")
    if not name:
        raise DataError(
            f"The data spec must name a data set, as in 'tfds:oxford_flowers102', but was {request.spec!r}."
        )
    chosen = parse_options(query, request.spec)
    builder = open_builder(name, request.data_dir)
    fields = find_fields(builder, chosen, request.spec)  # Before anything is downloaded.
    make_prepared(builder, name, request.data_dir)
    file_format = builder.info.file_format.value if builder.info.file_format else None
    if file_format not in READERS:
        raise DataError(f"{name!r} is prepared in the format {file_format!r}. Valid: {', '.join(READERS)}.")

    def source(split: str, train: Source | None) -> TfdsSource:
        shards = shards_of(builder, split, request.spec)
        return TfdsSource(f"tfds:{name}", shards, file_format, fields, train, request.cache_dir)

    splits = list(builder.info.splits)
    if "train" not in chosen and "train" not in splits:
        raise DataError(f"{name!r} has no split 'train' but {', '.join(splits)}; name them, as in {HINT}.")
    pool = source(chosen.get("train", "train"), None)
    if fields.boxes is not None:
        if not len(pool.boxes.rows):
            raise DataError(f"The training images of {request.spec!r} have no boxes.")
    elif fields.maps is None:
        counts = class_counts(pool.labels, len(fields.class_names))
        if (counts > 0).sum() < 2 and not fields.several:
            raise DataError(f"The training images of {request.spec!r} are all of one class; a task needs two.")
        if not counts.all():
            logging.warning("%d class(es) of %s have no training images.", (counts == 0).sum(), request.spec)

    # A split is taken for what its name says only if none of its images is in train already.
    spare = next((split for split in VALIDATION_NAMES if split in splits), None)
    if spare and _overlap(source(spare, None), pool):
        spare = None
    test_split, validation_split = chosen.get("test"), chosen.get("validation")
    if test_split is None and "test" in splits and not _overlap(source("test", None), pool):
        test_split = "test"
        # Contests keep the labels of their test images. One label is looked at to know.
        if validation_split is None and spare and not source("test", None).is_labelled():
            logging.info("The test split of %s has no labels; its split %s is used in its place.", name, spare)
            test_split = None
    if test_split is None and validation_split is None and spare:
        test_split = spare
    test = source(test_split, pool) if test_split else None
    if validation_split is None and spare and not (test and _overlap(source(spare, None), test)):
        validation_split = spare
    train: Source
    validation: Source
    if validation_split:
        train, validation = pool, source(validation_split, pool)
    else:
        train, validation = carve_validation(pool, request.val_fraction, request.seed, request.spec)

    held_out: list[tuple[str, Any, Any, str]] = [("test", test, pool, "train")]
    if validation_split:
        held_out += [("validation", validation, pool, "train"), ("validation", validation, test, "test")]
    for one, first, second, other in held_out:
        if first and second and (shared := _overlap(first, second)):
            raise DataError(f"In {request.spec!r} the {one} and the {other} splits share {shared} images.")
    target = fields.target
    if fields.boxes is not None:
        whole = [found for found in (pool, validation, test) if isinstance(found, TfdsSource)]
        most = max(found.boxes.most for found in whole)
        for found in whole:
            found.share_most(most)
    return TaskData(request.spec, builder.name, fields.class_names, train, validation, test, target=target)


def shards_of(builder: Any, expression: str, spec: str) -> list[Shard]:
    """Returns where the records of a split expression are, in order.

    Args:
        builder: Of a data set that is prepared.
        expression: As TensorFlow Datasets has it, such as `"train+validation"`.
        spec: What was asked for, for errors.

    Raises:
        DataError: If there is no such split, it has no images, or some of them twice.
    """
    shards: list[Shard] = []
    parts = [part.strip() for part in expression.split("+")]
    for part in parts:
        try:
            instructions = builder.info.splits[part].file_instructions
        except Exception as error:
            splits = ", ".join(builder.info.splits)
            raise DataError(f"There is no split {part!r}, asked for in {spec!r}. Splits: {splits}.") from error
        for run in instructions:
            take = run.examples_in_shard - run.skip if run.take < 0 else run.take
            shards.append(Shard(part, str(run.filename), run.skip, take))
    if not shards:
        raise DataError(f"Split {expression!r}, asked for in {spec!r}, has no images.")
    # Images that are there twice would come into training and validation, once each.
    if shared := sum(first.overlap(second) for first, second in itertools.combinations(shards, 2)):
        raise DataError(
            f"The parts of {expression!r}, asked for in {spec!r}, have {counted(shared, 'image')} in common; each "
            "image may be in one of them only."
        )
    return shards


def _overlap(first: TfdsSource, second: TfdsSource) -> int:
    return shared_records(first.shards, second.shards)
