"""Compares a written LiteRT model of any design with the bank, on one task at a time; `export/verify.py` prints it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import parse_augment
from piggyback_tf.packs import TaskBank, TaskPack

from ..edge.piggyback_edge import Base, Model, Task, chosen_boxes
from ..shared.errors import ExportError
from ..shared.prepare_image import prepare_image
from .folder import TASK_SUFFIX, is_patched
from .inputs.run import load_model
from .inputs.task_inputs import SUFFIX, TaskInputs
from .judged import MIN_AGREEMENT, Judge, JudgedAnswer, judge_of
from .model_description import read_model_description
from .patch.checks import answer, check_constants
from .patch.patchable import Patchable
from .patch.write import read_base
from .plain import DESIGN, MODEL_SUFFIX, check_is_plain
from .runtime import ImageModel

# Their constants are compared besides.
_INTEGERS = ("dynamic", "int8")


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

    def answer(self, image: np.ndarray) -> JudgedAnswer:
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
            check_constants(self._base, self._model.data, pack, self._task.compositions)

    def answer(self, image: np.ndarray) -> JudgedAnswer:
        outputs = self._run.outputs(image)
        found = answer(self._task, outputs, self._content)[0]
        if self._task.answer == "boxes":
            return JudgedAnswer(found)
        (output,) = outputs.values()
        return JudgedAnswer(found, output[0, ..., : len(self._task.labels)])


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

    def answer(self, image: np.ndarray) -> JudgedAnswer:
        return JudgedAnswer(self._model.predict(image[None])[0])


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

    def answer(self, image: np.ndarray) -> JudgedAnswer:
        outputs = self._run.outputs(image)
        if set(outputs) == {"scores", "sides"}:
            return JudgedAnswer(chosen_boxes(outputs["scores"], outputs["sides"], image.shape[:2])[0])
        (output,) = outputs.values()
        return JudgedAnswer(output[0])


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
        agreement: The share of them with the same most probable class; of label maps the share of all pixels.
        min_agreement: The least share that is good.
        difference: The largest difference of a probability; of label maps by how much the logit of a class that the
            bank does not find exceeds the next one.
        error: The error of the model in percent; None where folders do not tell what is right.
        bank_error: That of the bank.
        change_ms: Milliseconds to make the task the current one in memory.
        predict_ms: Median milliseconds of a prediction on one thread.
        task_bytes: Size of the task's file.
        fault: What else was found to be wrong; None if nothing.
        agrees: What agrees, for people.
        error_name: Which error it is, for people.
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
    agrees: str = "top-1"
    error_name: str = "top-1 error"

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
        files: Image files, at least one. If each is in a folder of a class's name, errors are measured, too; of label
            maps if each `images/NAME.jpg` has its `labels/NAME.png`, and of boxes if each `JPEGImages/NAME.jpg` has its
            `Annotations/NAME.xml`.
        min_agreement: The least share of images, or of pixels, of which the most probable class must be the bank's;
            what the export's quantisation promises if None.
        batch_size: How many images are in memory at a time.

    Raises:
        ExportError: If there is no file for the task, or one with other classes.
        EdgeError, PackError: If the file is damaged, or for another export.
        DataError: If an image file is none, or cannot be prepared for the task.
    """
    operations = parse_augment(bank.info(pack.task)["eval_augment"])
    enter_task(export, pack)
    # Entering was the first time, which fills caches.
    change_ms = _milliseconds(export.change)
    judge, times = judge_of(pack, operations), []
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        images = np.stack([prepare_image(file.read_bytes(), str(file), operations) for file in part])
        expected = bank.predict(images, task=pack.task)
        for file, image, row in zip(part, images.astype(np.float32), expected, strict=True):
            found: list[JudgedAnswer] = []

            def run(image: np.ndarray = image, found: list[JudgedAnswer] = found) -> None:
                found.append(export.answer(image))

            times.append(_milliseconds(run))
            judge.add(file, found[0], row)
    error, bank_error = judge.errors() or (None, None)
    return LiteComparison(
        task=pack.task,
        quantize=export.quantize,
        images=len(files),
        agreement=judge.agreement,
        min_agreement=judge.least(export.quantize) if min_agreement is None else min_agreement,
        difference=judge.difference,
        error=error,
        bank_error=bank_error,
        change_ms=change_ms,
        predict_ms=float(np.median(times)),
        task_bytes=export.file_of(pack.task).stat().st_size,
        fault=_fault(export, pack, judge),
        agrees=judge.agrees,
        error_name=judge.error_name,
    )


def _fault(export: LiteExport, pack: TaskPack, judge: Judge) -> str | None:
    """Returns what is wrong with the current task besides its most probable classes."""
    if fault := judge.fault(export.quantize):
        return fault
    try:
        export.check(pack)
    except ExportError as error:
        return str(error)
    return None


def describe(found: LiteComparison) -> str:
    """Returns a comparison as a line."""
    errors = "" if found.error is None else f"; {found.error_name} {found.error:.2f} % (bank {found.bank_error:.2f} %)"
    fault = "" if found.fault is None else f"; WRONG: {found.fault}"
    below = "" if found.agreement >= found.min_agreement else f" (TOO FEW: below {_share(found.min_agreement)})"
    return (
        f"  {found.task}: {found.agrees} agrees on {found.agreement:.2%}{below}, "
        f"largest difference {found.difference:.1e}{errors}; {found.predict_ms:.1f} ms a prediction, "
        f"{found.change_ms:.1f} ms to change to it, {found.task_bytes:,} bytes{fault}"
    )


def promise(export: LiteExport, found: Sequence[LiteComparison] = ()) -> str:
    """Returns what is checked of an export, in which these tasks were compared."""
    least = {each.agrees: each.min_agreement for each in found} or {"top-1": MIN_AGREEMENT[export.quantize]}
    shares = ", ".join(f"{agrees} agrees on at least {_share(share)}" for agrees, share in least.items())
    compared = export.quantize in _INTEGERS and export.design == PatchedExport.design
    constants = ", and every constant is the task's weight to half a step of its scale" if compared else ""
    return f"{shares}{constants}"


def _share(share: float) -> str:
    return f"{share:.1%}" if round(share, 3) == share else f"{share:.2%}"


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)
