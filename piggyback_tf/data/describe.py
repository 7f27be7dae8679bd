"""A sentence on what there is to learn from: images by split and class."""

import numpy as np

from piggyback_tf.data.sources import TaskData, class_counts
from piggyback_tf.foreign_text import printable

# Up to so many classes each has its number of images; of more only the fewest and the most are told.
_LISTED = 12


def describe_images(data: TaskData, task: str) -> str:
    """Returns the images of a task by split and class, in a sentence.

    Args:
        data: The task's data.
        task: Its name.
    """
    if any(source.has_maps for source in data.splits.values()):
        counts = "; ".join(f"{split} {len(source):,} images" for split, source in data.splits.items())
        return f"{task}, {len(data.class_names)} classes of pixels: {counts}."
    told = [
        f"{split} {len(source):,} images ({_by_class(source.labels, data.class_names)})"
        for split, source in data.splits.items()
    ]
    return f"{task}, {len(data.class_names)} classes: {'; '.join(told)}."


def _by_class(labels: np.ndarray, names: tuple[str, ...]) -> str:
    counts = class_counts(labels, len(names))
    if counts.min() == counts.max():
        return f"{counts[0]:,} of each class"
    if len(names) <= _LISTED:
        return ", ".join(f"{printable(name)}: {count:,}" for name, count in zip(names, counts, strict=True))
    least, most = int(counts.argmin()), int(counts.argmax())
    return f"{counts[least]:,} of {printable(names[least])} to {counts[most]:,} of {printable(names[most])}"
