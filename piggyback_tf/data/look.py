"""Looks at every image of a source once: how large it is, and what is wrong with it. What was found is kept."""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import PIL
from absl import logging

from piggyback_tf.data.augment import Operation, Size, apply_operations, chain_size
from piggyback_tf.data.boxes import BoxTable
from piggyback_tf.data.cache import decode_all, read_kept, write_kept
from piggyback_tf.data.images import PIXELS_VERSION, DataError
from piggyback_tf.data.sources import Source, Subset, class_counts, digest
from piggyback_tf.data.unusable_files import KINDS, DataProblems, UnusableFile, unusable_file
from piggyback_tf.foreign_text import some

# The name under which results are kept; the number goes up when a look finds other things.
_KEPT = "looked"
_VERSION = "2"


class UnfitImageError(DataError):
    """An image whose size does not fit the augmentation."""

    kind = "unfit"


@dataclasses.dataclass(frozen=True)
class Look:
    """What a look at a source found.

    Attributes:
        sizes: `(height, width)` of every image, int32 of shape `(n, 2)`; zeros where there is a problem.
        problems: What is wrong with an image, by its index.
    """

    sizes: np.ndarray
    problems: Mapping[int, UnusableFile]

    @property
    def whole(self) -> np.ndarray:
        """The indices of the images that can be used."""
        return np.flatnonzero(~np.isin(np.arange(len(self.sizes)), list(self.problems)))


class WithoutBroken(Source):
    """Another source less its broken images, which are found by decoding every image once.

    That happens when the source is first used, or when its images are first cached, and the result is kept in the
    cache folder, so that it does not happen again while the files stay as they are.

    Args:
        source: The source, broken images included.
        name: What to call it in the log, for example `"folder:/data/cats train"`.
        cache_dir: The cache folder; `None` for the user's.
        class_names: If given, each of these classes that has images must have one left.
        also: What else was left out.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        cache_dir: str | None = None,
        class_names: tuple[str, ...] | None = None,
        also: Sequence[UnusableFile] = (),
    ):
        self.raw, self.cache_dir = source, cache_dir
        self._name, self._class_names, self._also = name, class_names, list(also)
        self._look: Look | None = None
        self.image_size, self.has_maps, self.has_boxes = source.image_size, source.has_maps, source.has_boxes
        self.has_files = source.has_files

    @property
    def settled(self) -> bool:
        """Whether it is known which images are left out, without decoding any."""
        if self._look is None and (look := recall_look(self.raw, self.cache_dir)) is not None:
            self.settle(look)
        return self._look is not None

    @property
    def look(self) -> Look | None:
        """What is known of the images that are left; `None` if that would take decoding all."""
        return Look(self._look.sizes[self._look.whole], {}) if self.settled else None

    def settle(self, look: Look) -> None:
        """Leaves out what a look at the whole source found.

        Raises:
            DataError: If nothing is left, or nothing of a class.
        """
        whole, broken = look.whole, list(look.problems.values())
        if not len(whole):
            raise DataError(f"Every image of {self._name} is broken, for example {[*broken, *self._also][0].place!r}.")
        if broken:
            examples = some([problem.place for problem in broken])
            logging.warning(
                "Skipped %d broken of %d images of %s: %s.", len(broken), len(look.sizes), self._name, examples
            )
        if self._class_names is not None:
            before, left = (
                class_counts(labels, len(self._class_names)) for labels in (self.raw.labels, self.raw.labels[whole])
            )
            if len(empty := np.flatnonzero((before > 0) & (left == 0))):
                raise DataError(
                    f"Every image of class {self._class_names[empty[0]]!r} in {self._name} is broken; none is left to "
                    "train on."
                )
        self._look = look

    @cached_property
    def _subset(self) -> Source:
        if not self.settled:
            look_through(ReadAndPrepare(self, []))
        return Subset(self.raw, self._look.whole) if self._look.problems else self.raw

    @property
    def labels(self) -> np.ndarray:
        return self._subset.labels

    @property
    def boxes(self) -> BoxTable:
        return self._subset.boxes

    def read(self, index: int) -> np.ndarray:
        return self._subset.read(index)

    def read_file(self, index: int) -> bytes:
        return self._subset.read_file(index)

    def describe(self, index: int) -> str:
        return self._subset.describe(index)

    def key(self, index: int) -> str:
        return self._subset.key(index)

    def stored_bytes(self, index: int) -> int | None:
        return self._subset.stored_bytes(index)

    def check_header(self, index: int) -> None:
        self._subset.check_header(index)

    def fingerprint(self) -> str:
        return self._subset.fingerprint()

    @property
    def left_out(self) -> list[UnusableFile]:
        _ = self._subset  # Looks, if nobody has.
        return [*self._also, *self._look.problems.values()]


class ReadAndPrepare:
    """Reads an image by its index and takes it through some deterministic operations.

    Args:
        source: The images.
        operations: The operations.
    """

    def __init__(self, source: Source, operations: list[Operation]):
        self.source = source
        self.operations = operations

    def __call__(self, index: int) -> np.ndarray:
        return self.prepare(self.source.read(int(index)), int(index))

    def prepare(self, image: np.ndarray, index: int) -> np.ndarray:
        """Returns an image that was read, after the operations."""
        try:
            return apply_operations(self.operations, image)
        except DataError as error:
            raise UnfitImageError(f"Image {self.source.describe(index)!r}: {error}") from None

    def known_size(self) -> Size | None:
        """Returns the size of all images after the operations, where it is known without reading them."""
        return chain_size(self.operations, self.source.image_size)


def all_images(source: Source) -> Source:
    """Returns a source with the images that it would leave out, where which these are is found only by decoding all."""
    return source.raw if isinstance(source, WithoutBroken) and not source.settled else source


def look_at(
    reader: ReadAndPrepare, cache_dir: str | None = None, progress: Callable[[], Any] = lambda: None
) -> Generator[np.ndarray, None, Look]:
    """Yields every image of a source in its order, decoded by several threads, once; at the end, what is wrong is told.

    A source that leaves broken images out, and does not know them yet, gets to know them: all images are decoded, and
    those that are whole are yielded.

    Args:
        reader: Reads and prepares the images.
        cache_dir: The cache folder; `None` for the user's.
        progress: Called after each image.

    Returns:
        What was found.

    Raises:
        DataProblems: At the end, if there is a problem that is not left out; no image is yielded after the first one.
    """
    source, raw = reader.source, all_images(reader.source)
    leaves_out = raw is not source
    cache_dir = source.cache_dir if isinstance(source, WithoutBroken) else cache_dir
    reader = ReadAndPrepare(raw, reader.operations)
    # What is wrong with the whole source, such as a damaged list of images, shows here and not at each image.
    sizes, problems = np.zeros((len(raw.labels), 2), np.int32), {}

    def attempt(index: int) -> np.ndarray | DataError:
        try:
            image = raw.read(index)
            sizes[index] = image.shape[:2]
            return reader.prepare(image, index)
        except DataError as error:
            return error

    for index, found in enumerate(decode_all(attempt, len(raw))):
        progress()
        if isinstance(found, DataError):
            problems[index] = unusable_file(found, raw.describe(index))
        elif leaves_out or not problems:
            yield found
    unfit = [problem for problem in problems.values() if not KINDS[problem.kind].skippable]
    look = Look(sizes, {index: problem for index, problem in problems.items() if KINDS[problem.kind].skippable})
    _keep_look(raw, look, cache_dir)
    if unfit or (problems and not leaves_out):
        raise DataProblems(unfit if leaves_out else list(problems.values()), "the data")
    if leaves_out and isinstance(source, WithoutBroken):
        source.settle(look)
    return look


def look_through(
    reader: ReadAndPrepare, cache_dir: str | None = None, progress: Callable[[], Any] = lambda: None
) -> Look:
    """Looks at every image as `look_at` does, keeps none, and returns what was found."""
    images = look_at(reader, cache_dir, progress)
    while True:
        try:
            next(images)
        except StopIteration as end:
            return end.value


def known_look(source: Source, cache_dir: str | None) -> Look | None:
    """Returns what is known of the images of a source without decoding any; `None` if nobody has looked yet."""
    return source.look if isinstance(source, WithoutBroken) else recall_look(source, cache_dir)


def recall_look(source: Source, cache_dir: str | None) -> Look | None:
    """Returns what an earlier look at the same images found, `None` if there was none."""
    found = read_kept(_KEPT, _key(source), cache_dir)
    if found is None or len(found["sizes"]) != len(source):
        return None
    rows = zip(found["indices"], found["kinds"], found["sentences"], strict=True)
    return Look(
        found["sizes"],
        {int(index): UnusableFile(source.describe(int(index)), str(kind), str(text)) for index, kind, text in rows},
    )


def unfit_images(source: Source, sizes: np.ndarray, operations: list[Operation]) -> list[UnusableFile]:
    """Returns the images whose sizes, `(n, 2)`, do not fit some operations; those of size 0 are passed over."""
    problems = []
    for size in np.unique(sizes, axis=0):
        try:
            if size.all():
                chain_size(operations, (int(size[0]), int(size[1])))
        except DataError as error:
            for index in np.flatnonzero((sizes == size).all(axis=1)):
                place = source.describe(int(index))
                problems.append(unusable_file(UnfitImageError(f"Image {place!r}: {error}"), place))
    return problems


def _keep_look(source: Source, look: Look, cache_dir: str | None) -> None:
    # A file that cannot be read now may be readable later, and stays the same. What is stored nowhere is not slow.
    unreadable = any(problem.kind == "unreadable" for problem in look.problems.values())
    if unreadable or not len(source) or source.stored_bytes(0) is None:
        return
    problems = list(look.problems.values())
    arrays = {
        "sizes": look.sizes,
        "indices": np.array(list(look.problems), np.int64),
        "kinds": np.array([problem.kind for problem in problems], np.str_),
        "sentences": np.array([problem.sentence for problem in problems], np.str_),
    }
    write_kept(_KEPT, _key(source), arrays, cache_dir)


def _key(source: Source) -> str:
    return digest(_VERSION, PIXELS_VERSION, PIL.__version__, source.fingerprint())
