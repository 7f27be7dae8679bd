"""What a network answers to each image of a split: noted while its errors are counted, kept in a small file.

Nothing is measured for it. `AnswerLog` notes what `sequences/measure.py` counts, of a run and for the command
`evaluate`, and pages for people show which images are wrong. The file is JSON, compressed with gzip:

- `"format"`: the number of the shape, `ANSWERS_FORMAT`, which the file's name has, too;
- `"kind"`: what is to be found in an image, as `TaskData.target` has it; `ANSWERS` knows what is noted of each kind;
- `"by"`: what measured them, `"train"` or `"evaluate"`;
- `"task"`, `"class_names"`, `"data"` (the spec), `"split"`;
- `"errors"`, what was measured, and `"after"`, the task that was learned last, of several in turn;
- by image, lists of one length: `"images"`, their keys, `"bytes"`, as they are stored, and those of the kind.
"""

import dataclasses
import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from piggyback_tf.data import DataError, Operation, Original, Source, TaskData
from piggyback_tf.files import write_atomically
from piggyback_tf.foreign_text import reason, shown
from piggyback_tf.registry import Registry

ANSWERS_FORMAT = 1
# Of more images no answers are kept: their file would take more than all other files of a run.
MOST_IMAGES = 1_000_000
# Bytes of JSON that are read at most; a million images take less.
_LARGEST = 1 << 28

Columns = dict[str, list[Any]]


class AnswersError(ValueError):
    """A file of answers that cannot be read; the message, which and why, is a part of a sentence, without a period."""


@dataclasses.dataclass(frozen=True)
class AnswerBatch:
    """Answers to a batch of images, as they are counted.

    Attributes:
        targets: What is to be found, as the data have it.
        scores: What the network answers.
        probabilities: Whether these are probabilities, or the answers themselves; logits otherwise.
        counts: What the problem counted of each image.
        originals: The targets as they are in the source, where the problem judges those.
        operations: How they were prepared.
    """

    targets: np.ndarray
    scores: np.ndarray
    probabilities: bool
    counts: np.ndarray | None = None
    originals: Sequence[Original] = ()
    operations: Sequence[Operation] = ()


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to a split; the fields are those of the file, `columns` those of the kind.

    Attributes:
        kind: What is to be found in an image.
        by: What measured them.
        task: The task's name.
        class_names: Its classes.
        data: The spec of the data.
        split: The split.
        errors: What was measured on it.
        after: The task that was learned last.
        images: The key of each image.
        sizes: Its bytes where it is stored; None if it is stored nowhere.
        columns: What is noted of each image, by name.
    """

    kind: str
    by: str
    task: str
    class_names: list[str]
    data: str
    split: str
    errors: dict[str, Any]
    after: str
    images: list[str]
    sizes: list[int | None]
    columns: Columns


@dataclasses.dataclass(frozen=True)
class AnswerKind:
    """How answers of a kind are noted.

    Attributes:
        note: Returns what is noted of each image of a batch.
        check: Raises a `ValueError`, `KeyError` or `TypeError` if columns of a file are not what `note` returns.
        shorten: Returns what is kept of the columns of all images, where that is not all.
    """

    note: Callable[[AnswerBatch], Columns]
    check: Callable[[Answers], None]
    shorten: Callable[[Columns], Columns] = dict


# By `TaskData.target`. Of a kind that is not here nothing is noted.
ANSWERS: Registry[AnswerKind] = Registry("kind of answers")


class AnswerLog:
    """Notes answers while they are counted.

    Args:
        kind: What is to be found, as `TaskData.target` has it.
        probabilities: Whether the network answers with probabilities; with logits otherwise.
    """

    def __init__(self, kind: str, probabilities: bool):
        self._kind, self._probabilities = kind, probabilities
        self._columns: Columns = {}

    def note(
        self,
        targets: np.ndarray,
        scores: np.ndarray,
        counts: np.ndarray | None = None,
        originals: Sequence[Original] = (),
        operations: Sequence[Operation] = (),
    ) -> None:
        """Notes the answers to a batch.

        Args:
            targets: What is to be found, as the data have it.
            scores: What the network answers.
            counts: What the problem counted of each image.
            originals: The targets as they are in the source, where the problem judges those.
            operations: How they were prepared.
        """
        if self._kind not in ANSWERS:
            return
        found = ANSWERS[self._kind].note(
            AnswerBatch(targets, scores, self._probabilities, counts, originals, operations)
        )
        for name, values in found.items():
            self._columns.setdefault(name, []).extend(values)

    def write(
        self,
        path: Path,
        data: TaskData,
        split: str,
        *,
        task: str,
        errors: Mapping[str, Any] | None,
        after: str = "",
        class_names: Sequence[str] = (),
        by: str = "train",
    ) -> bool:
        """Writes what was noted, whole or not at all; nothing where nothing was noted, or too much.

        Args:
            path: The file.
            data: The images.
            split: The name of the split that was gone through, all of it and in its order.
            task: The task's name.
            errors: What was measured.
            after: The task that was learned last.
            class_names: The classes in the order of the network's answers; by default those of the data.
            by: What measured.

        Returns:
            Whether it was written.
        """
        if not self._columns or not errors:
            return False
        source: Source = data.splits[split]
        if len(source) > MOST_IMAGES:
            logging.info("Of %s images no answers are kept, only of up to %s.", f"{len(source):,}", f"{MOST_IMAGES:,}")
            return False
        found = {
            "format": ANSWERS_FORMAT,
            "kind": self._kind,
            "by": by,
            "task": task,
            "class_names": list(class_names or data.class_names),
            "data": data.spec,
            "split": split,
            "errors": dict(errors),
            "after": after or task,
            "images": [source.key(index) for index in range(len(source))],
            "bytes": [stored_size(source, index) for index in range(len(source))],
            **ANSWERS[self._kind].shorten(self._columns),
        }
        text = json.dumps(found, separators=(",", ":")).encode()
        # Without a date, so that equal answers are equal files.
        write_atomically(path, gzip.compress(text, mtime=0))
        return True


def read_answers(path: Path) -> Answers:
    """Returns the answers that a file holds.

    Raises:
        AnswersError: If it is damaged, or of a later version.
        OSError: If it cannot be read.
    """
    try:
        with gzip.open(path) as stream:
            text = stream.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise AnswersError(f"{str(path)!r} holds more than {_LARGEST:,} bytes")
        found = json.loads(text)
        if found["format"] != ANSWERS_FORMAT:
            raise AnswersError(
                f"{str(path)!r} has format {shown(found['format'])}, and this version of piggyback_tf reads "
                f"{ANSWERS_FORMAT}: use the version that wrote it"
            )
        return _checked(found)
    except AnswersError:
        raise
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnswersError(f"{str(path)!r} is damaged or holds no answers: {reason(error)}") from None


def stored_size(source: Source, index: int) -> int | None:
    """Returns how many bytes an image takes where it is stored; None if it is stored nowhere, or no longer."""
    try:
        return source.stored_bytes(index)
    except DataError:
        return None


def _checked(found: Mapping[str, Any]) -> Answers:
    fields = {"format", "kind", "by", "task", "class_names", "data", "split", "errors", "after", "images", "bytes"}
    columns = {name: values for name, values in found.items() if name not in fields}
    answers = Answers(
        kind=found["kind"],
        by=found["by"],
        task=found["task"],
        class_names=found["class_names"],
        data=found["data"],
        split=found["split"],
        errors=found["errors"],
        after=found["after"],
        images=found["images"],
        sizes=found["bytes"],
        columns=columns,
    )
    texts = (answers.kind, answers.by, answers.task, answers.data, answers.split, answers.after)
    for value in (*texts, *answers.images, *answers.class_names):
        demand(isinstance(value, str), "a name is no text")
    demand(isinstance(answers.errors, dict), "its errors are no object")
    count = len(answers.images)
    demand(all(isinstance(c, list) and len(c) == count for c in (answers.sizes, *columns.values())), "a list is short")
    if answers.kind in ANSWERS:
        ANSWERS[answers.kind].check(answers)
    return answers


def demand(right: bool, sentence: str) -> None:
    """Raises a `ValueError` if a file does not hold what it should."""
    if not right:
        raise ValueError(sentence)
