"""Compares an export with the task bank, task by task.

    python -m export.verify DIR --packs=a.task.safetensors,b.task.safetensors --images=FOLDER

Every image goes through the bank and through the signatures `by_name` (pixels) and `encoded` (the file itself; JPEG
and PNG only). Exit status: 0 if no probability differs by more than 1e-5 and every label is the same, else 1.
"""

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import app, flags

from export.packs import find_packs, load_base_of
from export.servable.folder import ExportError, find_version, read_description
from piggyback_tf.commands.common import UsageError
from piggyback_tf.data import DataError, decode_image, parse_augment
from piggyback_tf.data.images import has_image_extension
from piggyback_tf.flags import define_base_flags
from piggyback_tf.packs import PackError, TaskBank, TaskPack

FLAGS = flags.FLAGS
LIMIT = 1e-5
_ENCODED = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An export and the bank on one task.

    Attributes:
        task: The task's name.
        pixels: The largest difference of a probability, with images as pixels.
        files: The largest difference of a score, with images as files; None if no file was a JPEG or PNG.
        labels: Whether all labels were those of the bank.
        export_ms: Milliseconds an image of the export, pixels in batches.
        bank_ms: The same of the bank.
    """

    task: str
    pixels: float
    files: float | None
    labels: bool
    export_ms: float
    bank_ms: float

    @property
    def good(self) -> bool:
        """Whether the export answers as the bank does."""
        return max(self.pixels, self.files or 0.0) <= LIMIT and self.labels


def compare(model: Any, bank: TaskBank, task: str, files: Sequence[Path], batch_size: int = 32) -> Comparison:
    """Compares the answers of an export to images with those of the bank.

    Args:
        model: The loaded export.
        bank: A bank with the task.
        task: The task's name.
        files: Image files, at least one.
        batch_size: Images of a call.

    Raises:
        DataError: If a file is no image, or cannot be prepared for the task.
    """
    by_name, encoded = model.signatures["by_name"], model.signatures["encoded"]
    dtype = by_name.structured_input_signature[1]["images"].dtype
    k = encoded.structured_outputs["scores"].shape[1]
    pixels, scores, labels = 0.0, None, True
    seconds = {"export": [], "bank": []}
    for start in range(0, len(files), batch_size):
        part = list(files[start : start + batch_size])
        data = [path.read_bytes() for path in part]
        images = np.stack([_prepare(*each, bank.info(task)["eval_augment"]) for each in zip(data, part, strict=True)])
        expected = _timed(seconds["bank"], lambda images=images: bank.predict(images, task=task, batch_size=batch_size))
        inputs = tf.constant(images, dtype), tf.constant([task] * len(images))
        found = _timed(seconds["export"], lambda pair=inputs: by_name(images=pair[0], task=pair[1])["probabilities"])
        width = expected.shape[1]
        # Columns behind the task's classes are 0.
        found = found.numpy()
        pixels = max(pixels, float(np.abs(found[:, :width] - expected).max()), float(found[:, width:].max(initial=0)))
        chosen = [index for index, path in enumerate(part) if path.suffix.lower() in _ENCODED]
        if chosen:
            answer = encoded(image_bytes=tf.constant([data[i] for i in chosen]), task=tf.constant([task] * len(chosen)))
            best = bank.top_k(images[chosen], task=task, k=k, batch_size=batch_size)
            difference, same = _compare_best(answer, best)
            scores, labels = max(scores or 0.0, difference), labels and same
    times = {name: 1e3 * float(np.sum(values)) / len(files) for name, values in seconds.items()}
    return Comparison(task, pixels, scores, labels, times["export"], times["bank"])


def _timed(seconds: list[float], call: Callable[[], Any]) -> Any:
    """Calls twice and notes the time of the second call: the first of a kind plans the graph."""
    call()
    started = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - started)
    return result


def _prepare(data: bytes, path: Path, augment: str) -> np.ndarray:
    image = decode_image(data, str(path))
    for operation in parse_augment(augment):
        image = operation.apply(image)
    return image


def _compare_best(answer: dict[str, tf.Tensor], best: list[list[tuple[str, float]]]) -> tuple[float, bool]:
    """Returns the largest difference of scores, and whether labels agree but for the order of equal scores."""
    difference, same = 0.0, True
    for labels, scores, row in zip(answer["labels"].numpy(), answer["scores"].numpy(), best, strict=True):
        expected = np.array([score for _, score in row])
        difference = max(difference, float(np.abs(scores[: len(row)] - expected).max()))
        by_label = dict(row)
        for label, score in zip(labels[: len(row)], scores, strict=False):
            # Two classes within the limit of one another may come in either order, or the last may be left out.
            near = np.abs(expected - score).min() <= LIMIT
            same &= abs(by_label.get(label.decode(), expected[-1]) - score) <= LIMIT and bool(near)
        same &= not any(labels[len(row) :])
    return difference, same


def _memory() -> float:
    """Returns the largest memory that the process has taken so far, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def run(folder: Path) -> bool:
    """Prints the comparison of every task; returns whether all are good."""
    folder = find_version(folder)
    known = {entry["task"] for entry in read_description(folder)["tasks"]}
    images = sorted(path for path in Path(FLAGS.images).rglob("*") if path.is_file() and has_image_extension(path))
    if not images:
        raise UsageError(f"--images={FLAGS.images}: there is no image file in this folder.")
    packs = find_packs(FLAGS.packs)
    bank = TaskBank(load_base_of(TaskPack.load(packs[0]), FLAGS.backbone, FLAGS.weights))
    for pack in packs:
        bank.add(pack)
    if missing := sorted(set(bank.names) - known):
        raise UsageError(f"The export {str(folder)!r} has no task {missing[0]!r}; it has {', '.join(sorted(known))}.")
    before, started = _memory(), time.perf_counter()
    model = tf.saved_model.load(str(folder))
    loading, good = time.perf_counter() - started, True
    print(f"{folder}: {len(known)} tasks, {len(images)} images; loaded in {loading:.1f} s")
    for task in bank.names:
        found = compare(model, bank, task, images)
        files = "no JPEG or PNG" if found.files is None else f"{found.files:.1e}"
        print(
            f"  {task}: largest difference {found.pixels:.1e} with pixels, {files} with files; labels "
            f"{'equal' if found.labels else 'NOT equal'}; {found.export_ms:.1f} ms an image (bank {found.bank_ms:.1f})"
        )
        good &= found.good
    print(f"memory: {_memory() - before:.0f} MB more at the most; on disk {_disk(folder) / 2**20:.1f} MB")
    print("equal to 1e-5" if good else "NOT equal to 1e-5")
    return good


def _disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("One folder of an export is needed: python -m export.verify DIR --packs=... --images=...")
    try:
        good = run(Path(argv[1]))
    except (UsageError, PackError, ExportError, DataError, ValueError, OSError) as error:
        print(f"export.verify: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    define_base_flags()
    flags.DEFINE_list("packs", None, "Packs: files, URLs, folders or glob patterns.", required=True)
    flags.DEFINE_string("images", None, "Folder with image files, also in subfolders.", required=True)
    app.run(main)
