"""A sentence on what there is to learn from: images by split and class."""

import numpy as np

from piggyback_tf.data.sources import Source, TaskData, class_counts
from piggyback_tf.foreign_text import printable

# Up to so many classes each has its number of images; of more only the fewest and the most are told.
_LISTED = 12


def describe_images(data: TaskData, task: str) -> str:
    """Returns the images of a task by split and class, or their boxes, in a sentence.

    Args:
        data: The task's data.
        task: Its name.
    """
    names = data.class_names
    if any(source.has_maps for source in data.splits.values()):
        counts = "; ".join(f"{split} {len(source):,} images" for split, source in data.splits.items())
        return f"{task}, {len(data.class_names)} classes of pixels: {counts}."
    if data.train.has_boxes:
        told = [f"{split} {_boxes(source, names)}" for split, source in data.splits.items()]
        classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
        return f"{task}, {classes} of boxes, at most {data.train.boxes.most:,} in an image: {'; '.join(told)}."
    told = [
        f"{split} {len(source):,} images ({_by_class(class_counts(source.labels, len(names)), names)})"
        for split, source in data.splits.items()
    ]
    return f"{task}, {len(names)} classes: {'; '.join(told)}."


def _boxes(source: Source, names: tuple[str, ...]) -> str:
    """Returns the images of a split with boxes, and the boxes by class."""
    rows = source.boxes.rows
    counts = np.bincount(rows[:, 4].astype(np.int64), minlength=len(names))
    ignored, empty = int(rows[:, 5].sum()), int((source.boxes.counts == 0).sum())
    told = f"{len(source):,} images with {len(rows):,} boxes ({_by_class(counts, names)})"
    told += f", {ignored:,} of them to be ignored" if ignored else ""
    return told + (f", {empty:,} images without any" if empty else "")


def _by_class(counts: np.ndarray, names: tuple[str, ...]) -> str:
    if counts.min() == counts.max():
        return f"{counts[0]:,} of each class"
    if len(names) <= _LISTED:
        return ", ".join(f"{printable(name)}: {count:,}" for name, count in zip(names, counts, strict=True))
    least, most = int(counts.argmin()), int(counts.argmax())
    return f"{counts[least]:,} of {printable(names[least])} to {counts[most]:,} of {printable(names[most])}"
