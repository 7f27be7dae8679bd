"""A sentence on what there is to learn from: images by split and class."""

import numpy as np

from piggyback_tf.data.sources import Source, TaskData, class_counts
from piggyback_tf.foreign_text import counted, printable

# Up to so many classes each has its number of images; of more only the fewest and the most are told.
_LISTED = 12


def describe_images(data: TaskData, task: str) -> str:
    """Returns the images of a task by split and class, or their boxes, in a sentence.

    Args:
        data: The task's data.
        task: Its name.
    """
    names, classes = data.class_names, counted(len(data.class_names), "class", "classes")
    if any(source.has_maps for source in data.splits.values()):
        counts = "; ".join(f"{split} {counted(len(source), 'image')}" for split, source in data.splits.items())
        return f"{task}, {classes} of pixels: {counts}."
    if data.train.has_boxes:
        told = [f"{split} {_boxes(source, names)}" for split, source in data.splits.items()]
        return f"{task}, {classes} of boxes, at most {data.train.boxes.most:,} in an image: {'; '.join(told)}."
    told = [
        f"{split} {counted(len(source), 'image')} ({_by_class(class_counts(source.labels, len(names)), names)})"
        for split, source in data.splits.items()
    ]
    return f"{task}, {classes}: {'; '.join(told)}."


def _boxes(source: Source, names: tuple[str, ...]) -> str:
    """Returns the images of a split with boxes, and the boxes by class."""
    rows = source.boxes.rows
    counts = np.bincount(rows[:, 4].astype(np.int64), minlength=len(names))
    ignored, empty = int(rows[:, 5].sum()), int((source.boxes.counts == 0).sum())
    told = f"{counted(len(source), 'image')} with {counted(len(rows), 'box', 'boxes')} ({_by_class(counts, names)})"
    told += f", {ignored:,} of them to be ignored" if ignored else ""
    return told + (f", {counted(empty, 'image')} without any" if empty else "")


def _by_class(counts: np.ndarray, names: tuple[str, ...]) -> str:
    if counts.min() == counts.max():
        return f"{counts[0]:,} of each class"
    if len(names) <= _LISTED:
        return ", ".join(f"{printable(name)}: {count:,}" for name, count in zip(names, counts, strict=True))
    least, most = int(counts.argmin()), int(counts.argmax())
    return f"{counts[least]:,} of {printable(names[least])} to {counts[most]:,} of {printable(names[most])}"
