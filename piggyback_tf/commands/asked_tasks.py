"""What `predict` does with a batch of image files: it reads each, and asks one task or several about it."""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.commands.answers import UsageError
from piggyback_tf.commands.common import choose_base, deciding_task, load_bank
from piggyback_tf.packs import TaskPack
from piggyback_tf.remote import RemoteError, is_url, read_bytes

if TYPE_CHECKING:
    import numpy as np

    from piggyback_tf.commands.shown_answers import AskedImage
    from piggyback_tf.data import Operation
    from piggyback_tf.packs import TaskBank


@dataclasses.dataclass
class ImageAnswers:
    """What tasks say of an image.

    Attributes:
        path: Its file or URL.
        values: The answers as JSON values, by task; one with an `error` is none.
        lines: The same as text, by task.
        error: Why there are none, in a sentence; empty else.
    """

    path: str
    values: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    lines: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    error: str = ""

    def problems(self) -> list[str]:
        """Returns the sentences of all that has no answer."""
        return [*filter(None, [self.error]), *(value["error"] for value in self.values.values() if "error" in value)]


class AskedTasks:
    """Tasks on one base that are asked about images.

    Args:
        packs: The tasks.
        options: Of the command: the base, `batch_size`, `top_k` and `output_dir`.

    Raises:
        UsageError: If the base cannot be found, or a pack does not say how images are prepared.
    """

    def __init__(self, packs: Sequence[TaskPack], options: argparse.Namespace):
        from piggyback_tf.data import DataError, parse_augment
        from piggyback_tf.data.augment import check_draws_nothing

        self._packs, self._options = packs, options
        self._first = deciding_task(packs)
        self._base = choose_base(self._first, options.backbone, options.weights)
        self._operations: dict[str, list[Operation]] = {}
        try:
            for pack in packs:
                self._operations[pack.task] = parse_augment(pack.eval_augment)
                check_draws_nothing(self._operations[pack.task], pack.eval_augment)
        except DataError as error:
            raise UsageError(str(error)) from error

    @functools.cached_property
    def bank(self) -> "TaskBank":
        """The base with all tasks, which takes seconds to load."""
        bank = load_bank(self._first, self._base)
        for pack in self._packs:
            if pack is not self._first:
                bank.add(pack)
        return bank

    def answer(self, paths: Sequence[str]) -> list[ImageAnswers]:
        """Returns what the tasks say of a batch of images, in their order; the network is loaded for one that is read.

        Args:
            paths: Files and URLs.
        """
        answers = [ImageAnswers(path) for path in paths]
        originals: list[tuple[ImageAnswers, np.ndarray]] = []
        for answer in answers:
            try:
                originals.append((answer, _read(answer.path)))
            except _of_an_image() as error:
                answer.error = str(error)
        for pack in self._packs:
            self._ask(pack, originals)
        return answers

    def _ask(self, pack: TaskPack, originals: "Sequence[tuple[ImageAnswers, np.ndarray]]") -> None:
        """Adds what a task says of images to their answers."""
        ready: list[tuple[ImageAnswers, AskedImage]] = []
        images = []
        for answer, original in originals:
            try:
                asked, image = _prepared(answer.path, original, self._operations[pack.task], pack)
            except _of_an_image() as error:
                answer.values[pack.task] = {"error": str(error)}
                continue
            ready.append((answer, asked))
            images.append(image)
        if not images:
            return
        bank = self.bank
        from piggyback_tf.commands.shown_answers import SHOWN

        found = bank.predict(images, task=pack.task, batch_size=self._options.batch_size)
        for (answer, asked), values in zip(ready, found, strict=True):
            answer.values[pack.task], answer.lines[pack.task] = SHOWN[pack.problem].show(
                pack, values, asked, self._options
            )


def _of_an_image() -> tuple[type[Exception], ...]:
    """Returns what is wrong with an image, and no reason to stop."""
    from piggyback_tf.data import DataError

    return DataError, RemoteError


def no_file(path: str) -> str:
    """Returns the sentence for an image file that is not there."""
    return f"There is no image file {path!r}."


def _read(path: str) -> "np.ndarray":
    """Returns the pixels of an image."""
    from piggyback_tf.data import DataError, decode_image, read_image

    if is_url(path):
        return decode_image(read_bytes(path), path)
    if not Path(path).exists():
        raise DataError(no_file(path))
    return read_image(path)


def _prepared(
    path: str, original: "np.ndarray", operations: "list[Operation]", pack: TaskPack
) -> "tuple[AskedImage, np.ndarray]":
    from piggyback_tf.commands.shown_answers import AskedImage
    from piggyback_tf.data import DataError
    from piggyback_tf.data.augment import apply_operations, check_final_size

    try:
        image = apply_operations(operations, original)
        check_final_size(pack.eval_augment, image.shape[:2], pack.image_shape)
    except DataError as error:
        raise DataError(f"Image {path!r} cannot be prepared: {error}") from error
    return AskedImage(path, original, operations), image
