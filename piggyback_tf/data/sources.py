"""Sources: labelled images with random access, and the deterministic split of one source into two."""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from piggyback_tf.data.boxes import BoxTable
from piggyback_tf.data.geometry import VOID
from piggyback_tf.data.images import DataError
from piggyback_tf.data.unusable_files import UnusableFile
from piggyback_tf.targets import USUAL

if TYPE_CHECKING:
    from piggyback_tf.data.cache import CachedImages


class Original(NamedTuple):
    """What is to be found in an image as it is in its source, before it is prepared.

    Attributes:
        size: `(height, width)` of the image.
        target: Its label map, uint8 of that size, or its boxes, float32 `[n, 6]` in its pixels (`boxes.py`).
    """

    size: tuple[int, int]
    target: np.ndarray


class Source(abc.ABC):
    """Labelled images that can be read in any order and from several threads.

    A source is a description until something is asked of it; making one reads no image.

    Attributes:
        image_size: `(height, width)` if every image is known to have it, otherwise `None`.
        has_maps: Whether each image comes with a label map: the class of every pixel.
        has_boxes: Whether each image comes with boxes.
        has_files: Whether `read` does no more than decode what `read_file` returns; one with its own `read` says so.
    """

    image_size: tuple[int, int] | None = None
    has_maps: bool = False
    has_boxes: bool = False
    has_files: bool = False
    # The last images that were cached in memory, and after which operations (prepared.py).
    _kept_images: "tuple[str | None, CachedImages | None]" = (None, None)

    @property
    def channels(self) -> int:
        """Channels of what `read` returns."""
        return 4 if self.has_maps else 3

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """The class of every image, an int32 array of shape `(len(self),)`; zeros with label maps.

        Of images that may be of several classes, or have boxes of them: 0 or 1 for each, `(len(self), classes)`.
        """

    @property
    def boxes(self) -> BoxTable:
        """The boxes of all images, where `has_boxes`."""
        raise NotImplementedError(f"{type(self).__name__} has no boxes.")

    @property
    def moves_targets(self) -> bool:
        """Whether what is to be found moves when an image does."""
        return self.has_maps or self.has_boxes

    def known_targets(self) -> bytes:
        """Returns all that is known of what is to be found without an image being read."""
        return self.labels.tobytes() + (self.boxes.tobytes() if self.has_boxes else b"")

    def original(self, index: int, image: np.ndarray) -> Original:
        """Returns what is to be found in an image as it is in the source, where the target moves with the image.

        Args:
            index: The image.
            image: What `read` returned of it.
        """
        target = self.boxes.of(index) if self.has_boxes else image[..., 3]
        return Original((image.shape[0], image.shape[1]), target)

    @abc.abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Returns an image as a uint8 array of shape `(height, width, channels)`.

        The first three are RGB; a fourth is the label map, with `VOID` for a pixel that belongs to no class.

        Raises:
            BrokenImageError: If the image's bytes are not a whole image.
            DataError: If the bytes cannot be had.
        """

    def read_file(self, index: int) -> bytes:
        """Returns an image as it is stored, where `has_files`.

        Raises:
            DataError: If the bytes cannot be had.
        """
        raise NotImplementedError(f"{type(self).__name__} has no files.")

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Where an image comes from, for a person: a file's path, or `'tfds:NAME train #12'`."""

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """A name of the image within its data set that is the same on every machine."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A hexadecimal digest that changes when the images or their order may have changed."""

    def stored_bytes(self, index: int) -> int | None:
        """How many bytes an image takes where it is stored; `None` if it is stored nowhere.

        Raises:
            DataError: If the image is not there any more.
        """
        del index
        return None

    def check_header(self, index: int) -> None:
        """Raises what `read` would raise, as far as that can be known without decoding; by default nothing.

        Raises:
            DataError: If something is wrong with the image.
        """
        del index

    @property
    def left_out(self) -> list[UnusableFile]:
        """What was left out, and why."""
        return []

    @property
    def skipped(self) -> list[str]:
        """Descriptions of the images that were left out."""
        return [problem.place for problem in self.left_out]


class Subset(Source):
    """Some of the images of another source.

    Args:
        source: Where the images are.
        indices: Which of them, in this order.
    """

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self._source = source
        self._indices = np.asarray(indices, dtype=np.int64)
        self.image_size, self.has_maps, self.has_boxes = source.image_size, source.has_maps, source.has_boxes
        # A class of which `read` is its own may do more.
        self.has_files = source.has_files and type(self).read is Subset.read

    @cached_property
    def labels(self) -> np.ndarray:
        return self._source.labels[self._indices]

    @cached_property
    def boxes(self) -> BoxTable:
        return self._source.boxes.take(self._indices)

    def read(self, index: int) -> np.ndarray:
        return self._source.read(int(self._indices[index]))

    def read_file(self, index: int) -> bytes:
        return self._source.read_file(int(self._indices[index]))

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._indices[index]))

    def key(self, index: int) -> str:
        return self._source.key(int(self._indices[index]))

    def stored_bytes(self, index: int) -> int | None:
        return self._source.stored_bytes(int(self._indices[index]))

    def check_header(self, index: int) -> None:
        self._source.check_header(int(self._indices[index]))

    def fingerprint(self) -> str:
        return digest(self._source.fingerprint(), self._indices.tobytes())


class Renumbered(Subset):
    """The images of another source with other numbers for their classes.

    Args:
        source: Where the images are.
        numbers: The new number of each class, by its old one.
        classes: How many classes there are then; by default as many as `numbers` needs.
    """

    def __init__(self, source: Source, numbers: np.ndarray, classes: int | None = None):
        super().__init__(source, np.arange(len(source)))
        self.has_files = source.has_files
        self._numbers = np.asarray(numbers)
        self._classes = classes or int(self._numbers.max()) + 1
        # Those of no class stay so.
        self._of_pixels = np.full(VOID + 1, VOID, np.uint8)
        self._of_pixels[: len(self._numbers)] = self._numbers

    @cached_property
    def labels(self) -> np.ndarray:
        labels = self._source.labels
        if labels.ndim == 1:
            return labels if self.has_maps else self._numbers[labels].astype(np.int32)
        renumbered = np.zeros([len(labels), self._classes], np.int32)
        renumbered[:, self._numbers] = labels
        return renumbered

    @cached_property
    def boxes(self) -> BoxTable:
        return self._source.boxes.renumbered(self._numbers)

    def read(self, index: int) -> np.ndarray:
        image = self._source.read(index)
        if not self.has_maps:
            return image
        return np.concatenate([image[..., :3], self._of_pixels[image[..., 3:]]], axis=-1)

    def fingerprint(self) -> str:
        return digest(super().fingerprint(), self._numbers.tobytes())

    @property
    def left_out(self) -> list[UnusableFile]:
        return self._source.left_out


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The images of one task.

    Attributes:
        spec: What the data were asked for as, for example `"folder:/data/cats"`.
        name: A short name of the data set.
        class_names: The classes, in the order of the labels.
        train: The images to train on.
        validation: The images to choose the best epoch on; none of them is in `train`.
        test: The images of the final score, or `None` if the data set has none. Nothing of them is
            read until they are used.
        problems: By split, files that are where images should be and are none by their names or places. Whoever hands
            the data on has to raise or to leave them out; see `load_data`.
        target: What is to be found in an image, a key of `TARGETS`.
    """

    spec: str
    name: str
    class_names: tuple[str, ...]
    train: Source
    validation: Source
    test: Source | None
    problems: Mapping[str, Sequence[UnusableFile]] = dataclasses.field(default_factory=dict)
    target: str = USUAL

    @property
    def splits(self) -> dict[str, Source]:
        """The sources that there are, by `"train"`, `"validation"` and `"test"`."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: source for name, source in splits.items() if source is not None}


def digest(*parts: str | bytes) -> str:
    """Returns the SHA-256 of some strings, with their boundaries, in hexadecimal."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns how many images are of each class, integers `[classes]`.

    Args:
        labels: As of `Source.labels`.
        classes: How many classes there are.
    """
    return np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(axis=0)


def _strata(labels: np.ndarray) -> np.ndarray:
    """Returns by what images are split, integers `[N]`: their class, or the rarest of theirs, or -1."""
    if labels.ndim == 1:
        return labels
    rarest = np.argsort(labels.sum(axis=0), kind="stable")
    return np.where(labels.any(axis=1), rarest[labels[:, rarest].argmax(axis=1)], -1)


def stratified_split(source: Source, fraction: float, seed: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Splits a source in two, class by class, the same way on every machine; an image of several goes with the rarest.

    Within a class the images are ordered by the SHA-256 of `seed` and the image's key, and the
    first `round(fraction * n)` go to the second part: at least one if the class has two images or
    more, and never all of them.

    Args:
        source: What to split.
        fraction: The share of the second part, between 0 and 1.
        seed: Another seed, another split.

    Returns:
        The indices of the first and of the second part, each in ascending order.
    """
    first, second = [], []
    strata = _strata(source.labels)
    for label in np.unique(strata):
        members = [int(i) for i in np.flatnonzero(strata == label)]
        members.sort(key=lambda index: (digest(str(seed), source.key(index)), source.key(index)))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        second += members[:count]
        first += members[count:]
    return np.array(sorted(first), dtype=np.int64), np.array(sorted(second), dtype=np.int64)


def carve_validation(source: Source, fraction: float, seed: int, name: str) -> tuple[Source, Source]:
    """Returns what is left of a training source, and the validation source carved out of it.

    Raises:
        DataError: If no class has two images.
    """
    train, validation = stratified_split(source, fraction, seed)
    if not len(validation):
        raise DataError(
            f"No validation split can be carved out of the training images of {name}: no class has more than one image."
        )
    return Subset(source, train), Subset(source, validation)
