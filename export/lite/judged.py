"""How the answers of a device's model are judged beside the bank's, image by image."""

import abc
from pathlib import Path
from typing import NamedTuple

import numpy as np

from piggyback_tf.data import Operation
from piggyback_tf.data.label_maps import LabelReader
from piggyback_tf.data.sources import Original
from piggyback_tf.data.voc import voc_original
from piggyback_tf.packs import TaskPack
from piggyback_tf.problems import PROBLEMS

from ..shared.same_boxes import box_overlaps, boxes_in, strange_boxes

# The least share of answers that must be the bank's, unless another is asked for. What integers cost depends on the
# task, from nothing to some percent of the images; on a base whose ranges do not hold a task's activations it is far
# more.
MIN_AGREEMENT = {"none": 1.0, "float16": 0.995, "dynamic": 0.9, "int8": 0.9}
# The same of places in label maps: an image has so many that some are between two classes.
_MIN_PLACES = MIN_AGREEMENT | {"none": 0.9999}
# Of boxes: those with such a score count, and each needs one of its class beside it that shares so much.
_SURE, _BESIDE = 0.3, 0.5
# Where another class is found: by how much its logit may exceed that of the next one.
_MAX_MARGIN = {"none": 1e-3}


class JudgedAnswer(NamedTuple):
    """What a task finds in an image, as `TaskBank.predict` says it, and the logits if they are made of it here."""

    found: np.ndarray
    logits: np.ndarray | None = None


class Judge(abc.ABC):
    """Counts how answers agree with the bank's; those of images are added one by one.

    Attributes:
        agrees: What agrees, for people.
        error_name: The error that is measured, for people.
        difference: How far the worst answer is from the bank's.
    """

    agrees: str
    error_name: str

    def __init__(self, pack: TaskPack):
        self.pack, self.difference = pack, 0.0
        self._same, self._all = 0, 0

    @property
    def agreement(self) -> float:
        """The share of answers that are the bank's."""
        return self._same / self._all

    @abc.abstractmethod
    def add(self, file: Path, answer: JudgedAnswer, expected: np.ndarray) -> None:
        """Adds the answer for an image file, beside that of the bank."""

    @abc.abstractmethod
    def errors(self) -> tuple[float, float] | None:
        """Returns the errors of the model and of the bank in percent; None where it is not known what is right."""

    def fault(self, quantize: str) -> str | None:
        """Returns what no answer may be; None if none is."""
        del quantize
        return None if np.isfinite(self.difference) else "probabilities are no numbers"

    @staticmethod
    def least(quantize: str) -> float:
        """Returns the least share of answers that is good."""
        return MIN_AGREEMENT[quantize]


class ClassJudge(Judge):
    """Judges probabilities by their most probable class, which is known where a folder has a class's name."""

    agrees, error_name = "top-1", "top-1 error"

    def __init__(self, pack: TaskPack):
        super().__init__(pack)
        self._wrong: list[tuple[bool, bool]] = []
        self._labelled = True

    def add(self, file: Path, answer: JudgedAnswer, expected: np.ndarray) -> None:
        # `maximum` keeps what is no number.
        self.difference = float(np.maximum(self.difference, np.abs(answer.found - expected).max()))
        best, bank_best = answer.found.argmax(), expected.argmax()
        self._same, self._all = self._same + int(best == bank_best), self._all + 1
        labels = self.pack.class_names
        if file.parent.name in labels:
            known = labels.index(file.parent.name)
            self._wrong.append((best != known, bank_best != known))
        else:
            self._labelled = False

    def errors(self) -> tuple[float, float] | None:
        if not self._labelled:
            return None
        model, bank = 100 * np.mean(self._wrong, axis=0)
        return float(model), float(bank)


class OriginalJudge(Judge):
    """Judges answers whose error is measured at the own size of each image.

    Args:
        pack: The task.
        operations: How images are prepared for it.
    """

    def __init__(self, pack: TaskPack, operations: list[Operation]):
        super().__init__(pack)
        self._operations = operations
        self._problem = PROBLEMS[pack.problem](pack.class_names, pack.image_shape)
        # What the problem counts in each image, of the model and of the bank.
        self._counts: list[np.ndarray] = []
        self._labelled = True

    def add(self, file: Path, answer: JudgedAnswer, expected: np.ndarray) -> None:
        self._compare(answer, expected)
        original = self._original(file)
        if original is None:
            self._labelled = False
        else:
            both = np.stack([answer.found, expected])
            self._counts.append(self._problem.count_originals(both, both, [original] * 2, self._operations))

    def errors(self) -> tuple[float, float] | None:
        if not self._labelled:
            return None
        counts = np.stack(self._counts)
        model, bank = (next(iter(self._problem.measured(counts[:, place]).values())) for place in (0, 1))
        return model, bank

    @abc.abstractmethod
    def _compare(self, answer: JudgedAnswer, expected: np.ndarray) -> None:
        """Counts how an answer agrees with the bank's."""

    @abc.abstractmethod
    def _original(self, file: Path) -> Original | None:
        """Returns what is to be found in an image file; None if nothing beside the file says it."""


class PlaceJudge(OriginalJudge):
    """Judges label maps place by place; `labels/NAME.png` says what is right of `images/NAME.*`.

    Where another class than the bank's is found, the difference is by how much its logit exceeds that of the next one.
    """

    agrees, error_name = "the class of pixels", "error (100 % less mean IoU)"

    def _compare(self, answer: JudgedAnswer, expected: np.ndarray) -> None:
        other = answer.found != expected
        self._same, self._all = self._same + int((~other).sum()), self._all + other.size
        if answer.logits is not None and other.any():
            second, first = np.sort(answer.logits[other], axis=-1)[:, -2:].T
            self.difference = float(np.maximum(self.difference, (first - second).max()))

    def _original(self, file: Path) -> Original | None:
        path = file.parent.with_name("labels") / f"{file.stem}.png"
        if file.parent.name != "images" or not path.is_file():
            return None
        truth = LabelReader(tuple(self.pack.class_names)).decode(path.read_bytes(), str(path))
        return Original((truth.shape[0], truth.shape[1]), truth)

    def fault(self, quantize: str) -> str | None:
        most = _MAX_MARGIN.get(quantize, np.inf)
        if self.difference <= most:
            return None
        return f"where another class is found, its logit exceeds the next one by {self.difference:.1e}, not {most:.1e}"

    @staticmethod
    def least(quantize: str) -> float:
        return _MIN_PLACES[quantize]


class BoxJudge(OriginalJudge):
    """Judges boxes: of those that one of both is sure of each needs one of its class that overlaps it, of any score.

    In float32 the answers have to be the same; see `strange_boxes`. `difference` is how many boxes are not.
    `Annotations/NAME.xml` says what is right of `JPEGImages/NAME.*`, as in PASCAL VOC.
    """

    agrees, error_name = "boxes", "error (100 % less AP)"

    def _compare(self, answer: JudgedAnswer, expected: np.ndarray) -> None:
        pair = boxes_in(answer.found), boxes_in(expected)
        strange, _ = strange_boxes(pair[0], pair[1])
        self.difference += strange
        shared = np.where(pair[0][:, None, 4] == pair[1][None, :, 4], box_overlaps(pair[0][:, :4], pair[1][:, :4]), 0)
        for own, far in zip(pair, (shared, shared.T), strict=True):
            sure = own[:, 5] >= _SURE
            self._same += int((far[sure].max(axis=1, initial=0) >= _BESIDE).sum())
            self._all += int(sure.sum())

    @property
    def agreement(self) -> float:
        return self._same / self._all if self._all else 1.0

    def _original(self, file: Path) -> Original | None:
        return voc_original(file, self.pack.class_names)

    def fault(self, quantize: str) -> str | None:
        if quantize != "none" or not self.difference:
            return None
        return f"{self.difference:.0f} boxes are not those of the bank, and rounding cannot be the reason"


def judge_of(pack: TaskPack, operations: list[Operation]) -> Judge:
    """Returns what judges the answers of a task."""
    problem = PROBLEMS[pack.problem]
    if problem.answers_boxes:
        return BoxJudge(pack, operations)
    return PlaceJudge(pack, operations) if problem.answers_labels else ClassJudge(pack)
