"""Sources: labelled images with random access, and the deterministic split of one source into two."""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from piggyback_tf.data.geometry import VOID
from piggyback_tf.data.images import DataError
from piggyback_tf.data.unusable_files import UnusableFile
from piggyback_tf.targets import USUAL

if TYPE_CHECKING:
    from piggyback_tf.data.cache import CachedImages


class Source(abc.ABC):
    """Labelled images that can be read in any order and from several threads.

    A source is a description until something is asked of it; making one reads no image.

    Attributes:
        image_size: `(height, width)` if every image is known to have it, otherwise `None`.
        has_maps: Whether each image comes with a label map: the class of every pixel.
    """

    image_size: tuple[int, int] | None = None
    has_maps: bool = False
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

        Of images that may be of several classes: 0 or 1 for each of them, `(len(self), classes)`.
        """

    @abc.abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Returns an image as a uint8 array of shape `(height, width, channels)`.

        The first three are RGB; a fourth is the label map, with `VOID` for a pixel that belongs to no class.

        Raises:
            BrokenImageError: If the image's bytes are not a whole image.
            DataError: If the bytes cannot be had.
        """

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
        self.image_size, self.has_maps = source.image_size, source.has_maps

    @cached_property
    def labels(self) -> np.ndarray:
        return self._source.labels[self._indices]

    def read(self, index: int) -> np.ndarray:
        return self._source.read(int(self._indices[index]))

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
