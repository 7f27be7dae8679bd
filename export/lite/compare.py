"""Compares a written LiteRT model of any design with the bank, on one task at a time; `export/verify.py` prints it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import parse_augment
from piggyback_tf.packs import TaskBank, TaskPack

from ..edge.piggyback_edge import Base, Model, Task
from ..shared.errors import ExportError
from ..shared.prepare_image import prepare_image
from .folder import TASK_SUFFIX, is_patched
from .inputs.run import load_model
from .inputs.task_inputs import SUFFIX, TaskInputs
from .model_description import read_model_description
from .patch.checks import answer, check_constants
from .patch.patchable import Patchable
from .patch.write import read_base
from .plain import DESIGN, MODEL_SUFFIX, check_is_plain
from .runtime import ImageModel

# The least share of images on which the most probable class must be the bank's, unless another is asked for. What
# integers cost depends on the task, from nothing to some percent of the images; on a base whose ranges do not hold a
# task's activations it is far more.
MIN_AGREEMENT = {"none": 1.0, "float16": 0.995, "dynamic": 0.9, "int8": 0.9}
# Their constants are compared besides.
_INTEGERS = ("dynamic", "int8")


class Answer(NamedTuple):
    """What a task finds in an image, as `TaskBank.predict` says it, and the logits if they are made of it here."""

    found: np.ndarray
    logits: np.ndarray | None = None


class LiteExport(Protocol):
    """A loaded export, on which one task at a time is.

    Attributes:
        path: The model's file.
        design: Its design.
        quantize: Its quantisation.
    """

    path: Path
    design: str
    quantize: str

    def file_of(self, task: str) -> Path:
        """Returns the path of a task's file."""

    def enter(self, path: Path) -> Sequence[str]:
        """Reads a task's file, makes the task the current one, and returns its classes."""

    def change(self) -> None:
        """Makes the current task the current one again, which is timed."""

    def check(self, pack: TaskPack) -> None:
        """Checks what is promised of the current task besides its answers.

        Raises:
            ExportError: If it does not hold.
        """

    def answer(self, image: np.ndarray) -> Answer:
        """Returns what the current task finds in an image, float32 `[H, W, 3]`."""


class PatchedExport:
    """A `base.tflite` in memory, verified, on which tasks are installed; see `LiteExport`.

    Args:
        path: `base.tflite`, with its manifests beside it.
        backbone: The base that it was made of.

    Raises:
        EdgeError: If it is damaged.
        OSError: If a file cannot be read.
    """

    design = "patch"

    def __init__(self, path: Path, backbone: Backbone):
        self.path, self._backbone = path, backbone
        self._model = Model(Base.load(path))
        self.quantize = self._model.base.manifest.quantize
        self._task: Task | None = None

    @functools.cached_property
    def _base(self) -> Patchable:
        return read_base(self._backbone, self.path)

    def file_of(self, task: str) -> Path:
        return self.path.parent / f"{task}{TASK_SUFFIX}"

    def enter(self, path: Path) -> Sequence[str]:
        self._task = Task.load(path, self._model.base.manifest)
        self.change()
        self._content = bytes(self._model.data)
        self._run = ImageModel(self._content, self._task.signature.name if self._task.graph else None)
        return self._task.labels

    def change(self) -> None:
        self._model.install(self._task)

    def check(self, pack: TaskPack) -> None:
        if self.quantize in _INTEGERS:
            check_constants(self._base, self._model.data, pack)

    def answer(self, image: np.ndarray) -> Answer:
        output = self._run(image)
        return Answer(answer(self._task, output, self._content)[0], output[0, ..., : len(self._task.labels)])


class InputsExport:
    """A `model.tflite` that takes masks as inputs; see `LiteExport`.

    Args:
        path: The model, of design `switch` or `input`.

    Raises:
        PackError: If it is no such model.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path):
        self._model = load_model(path)
        self.path, self.design, self.quantize = path, self._model.DESIGN, self._model.quantize
        self._task: TaskInputs | None = None

    def file_of(self, task: str) -> Path:
        return self.path.parent / f"{task}{SUFFIX}"

    def enter(self, path: Path) -> Sequence[str]:
        self._task = TaskInputs.load(path)
        self.change()
        return self._task.labels

    def change(self) -> None:
        self._model.set_task(self._task)

    def check(self, pack: TaskPack) -> None:
        pass

    def answer(self, image: np.ndarray) -> Answer:
        return Answer(self._model.predict(image[None])[0])


class PlainExport:
    """Models of one task each, in one folder; see `LiteExport`.

    Args:
        path: One of the models.
        backbone: The base that they were made of.

    Raises:
        PackError: If it is no such model, or of another base.
        OSError: If it cannot be read.
    """

    design = DESIGN

    def __init__(self, path: Path, backbone: Backbone):
        self.path, self._backbone = path, backbone
        self.quantize = read_model_description(path)["quantize"]
        self.enter(path)

    def file_of(self, task: str) -> Path:
        return self.path.parent / f"{task}{MODEL_SUFFIX}"

    def enter(self, path: Path) -> Sequence[str]:
        found = read_model_description(path)
        check_is_plain(found, path, self._backbone)
        self._current = path
        self.change()
        return found["labels"]

    def change(self) -> None:
        self._run = ImageModel(self._current)

    def check(self, pack: TaskPack) -> None:
        pass

    def answer(self, image: np.ndarray) -> Answer:
        return Answer(self._run(image)[0])


def open_export(path: Path, backbone: Backbone) -> LiteExport:
    """Returns the export that a .tflite file is of.

    Raises:
        EdgeError, ExportError, PackError: If it is none, or damaged.
        OSError: If a file cannot be read.
    """
    if is_patched(path):
        return PatchedExport(path, backbone)
    return PlainExport(path, backbone) if read_model_description(path)["design"] == DESIGN else InputsExport(path)


@dataclasses.dataclass(frozen=True)
class LiteComparison:
    """A task on a device's model, and on the bank.

    Attributes:
        task: The task's name.
        quantize: The export's quantisation.
        images: How many images were compared.
        agreement: The share of them with the same most probable class.
        min_agreement: The least share that is good.
        difference: The largest difference of a probability.
        error: The top-1 error of the model in percent; None where folders do not tell the classes.
        bank_error: That of the bank.
        change_ms: Milliseconds to make the task the current one in memory.
        predict_ms: Median milliseconds of a prediction on one thread.
        task_bytes: Size of the task's file.
        fault: What else was found to be wrong; None if nothing.
    """

    task: str
    quantize: str
    images: int
    agreement: float
    min_agreement: float
    difference: float
    error: float | None
    bank_error: float | None
    change_ms: float
    predict_ms: float
    task_bytes: int
    fault: str | None

    @property
    def good(self) -> bool:
        """Whether what is promised for this quantisation holds."""
        return self.fault is None and self.agreement >= self.min_agreement


def enter_task(export: LiteExport, pack: TaskPack) -> list[str]:
    """Makes a task the current one of an export, and returns its classes.

    Raises:
        ExportError: If there is no file for the task, or one with other classes.
        EdgeError, PackError: If the file is damaged, or for another export.
    """
    path = export.file_of(pack.task)
    if not path.is_file():
        raise ExportError(f"There is no file {str(path)!r} for task {pack.task!r}.")
    labels = list(export.enter(path))
    if labels != pack.class_names:
        raise ExportError(f"{str(path)!r} has other classes than the pack of task {pack.task!r}.")
    return labels


def compare_lite(
    export: LiteExport,
    bank: TaskBank,
    pack: TaskPack,
    files: Sequence[Path],
    *,
    min_agreement: float | None = None,
    batch_size: int = 256,
) -> LiteComparison:
    """Compares a task of an export with the bank.

    Args:
        export: The export; the task becomes its current one.
        bank: A bank with the task.
        pack: The task.
        files: Image files, at least one. If each is in a folder of a class's name, errors are measured, too.
        min_agreement: The least share of images on which the most probable class must be the bank's; that of
            `MIN_AGREEMENT` for the export's quantisation if None.
        batch_size: How many images are in memory at a time.

    Raises:
        ExportError: If there is no file for the task, or one with other classes.
        EdgeError, PackError: If the file is damaged, or for another export.
        DataError: If an image file is none, or cannot be prepared for the task.
    """
    operations, labels = parse_augment(bank.info(pack.task)["eval_augment"]), enter_task(export, pack)
    # Entering was the first time, which fills caches.
    change_ms = _milliseconds(export.change)
    best, bank_best, times, difference = [], [], [], 0.0
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        images = np.stack([prepare_image(file.read_bytes(), str(file), operations) for file in part])
        expected = bank.predict(images, task=pack.task)
        for image, row in zip(images.astype(np.float32), expected, strict=True):
            found: list[np.ndarray] = []

            def answer(image: np.ndarray = image, found: list[np.ndarray] = found) -> None:
                found.append(export.answer(image))

            times.append(_milliseconds(answer))
            # `maximum` keeps what is no number.
            difference = float(np.maximum(difference, np.abs(found[0] - row).max()))
            best.append(found[0].argmax())
            bank_best.append(row.argmax())
    known = np.array([labels.index(file.parent.name) if file.parent.name in labels else -1 for file in files])
    labelled = known.min() >= 0
    return LiteComparison(
        task=pack.task,
        quantize=export.quantize,
        images=len(files),
        agreement=float((np.array(best) == bank_best).mean()),
        min_agreement=MIN_AGREEMENT[export.quantize] if min_agreement is None else min_agreement,
        difference=difference,
        error=100 * float((np.array(best) != known).mean()) if labelled else None,
        bank_error=100 * float((np.array(bank_best) != known).mean()) if labelled else None,
        change_ms=change_ms,
        predict_ms=float(np.median(times)),
        task_bytes=export.file_of(pack.task).stat().st_size,
        fault=_fault(export, pack, difference),
    )


def _fault(export: LiteExport, pack: TaskPack, difference: float) -> str | None:
    """Returns what is wrong with the current task besides its most probable classes."""
    if not np.isfinite(difference):
        return "probabilities are no numbers"
    try:
        export.check(pack)
    except ExportError as error:
        return str(error)
    return None


def describe(found: LiteComparison) -> str:
    """Returns a comparison as a line."""
    errors = "" if found.error is None else f"; top-1 error {found.error:.2f} % (bank {found.bank_error:.2f} %)"
    fault = "" if found.fault is None else f"; WRONG: {found.fault}"
    below = "" if found.agreement >= found.min_agreement else f" (TOO FEW: below {found.min_agreement:.1%})"
    return (
        f"  {found.task}: top-1 agrees on {found.agreement:.2%}{below}, largest difference {found.difference:.1e}"
        f"{errors}; {found.predict_ms:.1f} ms a prediction, {found.change_ms:.1f} ms to change to it, "
        f"{found.task_bytes:,} bytes{fault}"
    )


def promise(export: LiteExport, min_agreement: float | None = None) -> str:
    """Returns what is checked of an export; `min_agreement` as of `compare_lite`."""
    least = MIN_AGREEMENT[export.quantize] if min_agreement is None else min_agreement
    compared = export.quantize in _INTEGERS and export.design == PatchedExport.design
    constants = ", and every constant is the task's weight to half a step of its scale" if compared else ""
    return f"top-1 agrees on at least {least:.1%}{constants}"


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)
