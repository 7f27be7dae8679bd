"""Several tasks as one: all images, and the classes of one task behind those of another."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from piggyback_tf.data.images import DataError
from piggyback_tf.data.sources import Source, TaskData, digest
from piggyback_tf.data.unusable_files import UnusableFile


class Joined(Source):
    """The images of several sources, one behind another.

    Args:
        sources: The sources.
        first_classes: The number that class 0 of each source has here.
    """

    def __init__(self, sources: Sequence[Source], first_classes: Sequence[int]):
        self._sources, self._first_classes = list(sources), list(first_classes)
        sizes = {source.image_size for source in self._sources}
        self.image_size = sizes.pop() if len(sizes) == 1 else None
        self.has_files = all(source.has_files for source in self._sources)
        if any(source.moves_targets for source in self._sources):
            raise DataError(
                "Tasks with label maps or boxes cannot be learned as one; their classes are those of pixels or boxes."
            )

    @cached_property
    def labels(self) -> np.ndarray:
        if any(source.labels.ndim > 1 for source in self._sources):
            raise DataError("Tasks whose images are of several classes cannot be learned as one.")
        return np.concatenate(
            [source.labels + first for source, first in zip(self._sources, self._first_classes, strict=True)]
        )

    def read(self, index: int) -> np.ndarray:
        number, place = self._find(index)
        return self._sources[number].read(place)

    def read_file(self, index: int) -> bytes:
        number, place = self._find(index)
        return self._sources[number].read_file(place)

    def describe(self, index: int) -> str:
        number, place = self._find(index)
        return self._sources[number].describe(place)

    def key(self, index: int) -> str:
        number, place = self._find(index)
        return f"{number}/{self._sources[number].key(place)}"

    def stored_bytes(self, index: int) -> int | None:
        number, place = self._find(index)
        return self._sources[number].stored_bytes(place)

    def fingerprint(self) -> str:
        return digest(*(source.fingerprint() for source in self._sources))

    def check_header(self, index: int) -> None:
        number, place = self._find(index)
        self._sources[number].check_header(place)

    @property
    def left_out(self) -> list[UnusableFile]:
        return [problem for source in self._sources for problem in source.left_out]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self._sources])

    def _find(self, index: int) -> tuple[int, int]:
        """Returns which source has an image, and its place there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)


def join_tasks(tasks: Mapping[str, TaskData]) -> TaskData:
    """Returns all tasks as one, whose classes are `"TASK/CLASS"`; the classes of a task follow those before it.

    Args:
        tasks: The data of each task, by name.
    """
    firsts = np.cumsum([0, *(len(data.class_names) for data in tasks.values())])[:-1].tolist()
    return TaskData(
        spec="+".join(data.spec for data in tasks.values()),
        name="+".join(tasks),
        class_names=tuple(f"{task}/{name}" for task, data in tasks.items() for name in data.class_names),
        train=Joined([data.train for data in tasks.values()], firsts),
        validation=Joined([data.validation for data in tasks.values()], firsts),
        test=None,
    )
