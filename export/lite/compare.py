"""Compares a base.tflite and the files of its tasks with the task bank, on one task at a time."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from export.edge.piggyback_edge import Base, Model, Task
from export.lite.folder import TASK_SUFFIX
from export.servable.compare import prepare
from export.servable.folder import ExportError
from piggyback_tf.packs import TaskBank

# The share of images on which the most probable class must be the bank's, by quantisation.
AGREEMENT = {"none": 1.0, "float16": 0.995, "dynamic": 0.95, "int8": 0.9}


@dataclasses.dataclass(frozen=True)
class LiteComparison:
    """A task on a device's model, and on the bank.

    Attributes:
        task: The task's name.
        quantize: The base's quantisation.
        images: How many images were compared.
        agreement: The share of them with the same most probable class.
        difference: The largest difference of a probability.
        error: The top-1 error of the model in percent; None where folders do not tell the classes.
        bank_error: That of the bank.
        install_ms: Milliseconds to put the task on the base in memory.
        predict_ms: Median milliseconds of a prediction on one thread.
        task_bytes: Size of the task's file.
    """

    task: str
    quantize: str
    images: int
    agreement: float
    difference: float
    error: float | None
    bank_error: float | None
    install_ms: float
    predict_ms: float
    task_bytes: int

    @property
    def good(self) -> bool:
        """Whether the model answers as often like the bank as its quantisation allows."""
        return self.agreement >= AGREEMENT[self.quantize]


def compare_patched(model: Model, folder: Path, bank: TaskBank, task: str, files: Sequence[Path]) -> LiteComparison:
    """Compares a task of design `patch` with the bank.

    Args:
        model: A copy of the base; the task is installed on it.
        folder: Where the task's file is.
        bank: A bank with the task.
        task: The task's name.
        files: Image files, at least one. If each is in a folder of a class's name, errors are measured, too.

    Raises:
        ExportError: If the folder has no file for the task, or one with other classes.
        EdgeError: If the file is damaged or for another base.
        DataError: If a file is no image, or cannot be prepared for the task.
    """
    path = folder / f"{task}{TASK_SUFFIX}"
    if not path.is_file():
        raise ExportError(f"There is no file {str(path)!r} for task {task!r}.")
    edge, info = Task.load(path, model.base.manifest), bank.info(task)
    if list(edge.labels) != list(info["class_names"]):
        raise ExportError(f"{str(path)!r} has other classes than the pack of task {task!r}.")
    # The first call fills caches of the patcher.
    model.install(edge)
    install_ms = _milliseconds(lambda: model.install(edge))
    interpreter = Interpreter(model_content=bytes(model.data), num_threads=1)
    interpreter.allocate_tensors()
    images = np.stack([prepare(file.read_bytes(), file, info["eval_augment"]) for file in files])
    expected, times, found = bank.predict(images, task=task), [], []
    for image in images.astype(np.float32):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        times.append(_milliseconds(interpreter.invoke))
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].copy())
    answers = edge.probabilities(np.stack(found))
    labels = [edge.labels.index(file.parent.name) if file.parent.name in edge.labels else -1 for file in files]
    known = None if min(labels) < 0 else np.array(labels)
    best, bank_best = answers.argmax(axis=1), expected.argmax(axis=1)
    return LiteComparison(
        task=task,
        quantize=model.base.manifest.quantize,
        images=len(files),
        agreement=float((best == bank_best).mean()),
        difference=float(np.abs(answers - expected).max()),
        error=None if known is None else 100 * float((best != known).mean()),
        bank_error=None if known is None else 100 * float((bank_best != known).mean()),
        install_ms=install_ms,
        predict_ms=float(np.median(times)),
        task_bytes=edge.nbytes,
    )


def load_patched(path: Path) -> Model:
    """Returns a copy of a base in memory, after its SHA-256 was compared.

    Raises:
        EdgeError: If it is damaged.
        OSError: If the file or its manifest cannot be read.
    """
    return Model(Base.load(path))


def describe(found: LiteComparison) -> str:
    """Returns a comparison as a line."""
    errors = "" if found.error is None else f"; top-1 error {found.error:.2f} % (bank {found.bank_error:.2f} %)"
    return (
        f"  {found.task}: top-1 agrees on {found.agreement:.2%}, largest difference {found.difference:.1e}{errors}; "
        f"{found.predict_ms:.1f} ms a prediction, {found.install_ms:.1f} ms to install, {found.task_bytes:,} bytes"
    )


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)
