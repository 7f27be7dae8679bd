"""How well tasks are told apart where no image says of which task it is, from numbers alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from piggyback_tf.evaluation.text import markdown_table


def normalised_entropy(logits: np.ndarray) -> np.ndarray:
    """Returns the entropy of each image's probabilities divided by log(C), that of knowing nothing: 0 to 1.

    Heads of different numbers of classes are comparable then: undivided, one of two classes that knows nothing (0.69)
    would pass for surer than one of a hundred that is 85 % sure (1.1).

    Args:
        logits: `[N, C]`, C at least 2.

    Returns:
        float64 `[N]`.
    """
    logs, probabilities = _log_softmax(logits)
    return -(probabilities * logs).sum(axis=1) / np.log(logits.shape[1])


def entropy_change(logits: np.ndarray, tangents: np.ndarray) -> np.ndarray:
    """Returns the derivative of `normalised_entropy` where the logits move along tangents.

    With `H = -sum p log p` and `p = softmax(z)`: `dH = -sum over c of p_c (log p_c + H) dz_c`.

    Args:
        logits: `z`, `[N, C]`, C at least 2.
        tangents: `dz`, `[N, C]`.

    Returns:
        float64 `[N]`.
    """
    logs, probabilities = _log_softmax(logits)
    entropy = -(probabilities * logs).sum(axis=1, keepdims=True)
    return -(probabilities * (logs + entropy) * tangents).sum(axis=1) / np.log(logits.shape[1])


def task_agnostic_measures(images: Mapping[str, int], costs: np.ndarray, hits: np.ndarray) -> dict[str, Any]:
    """Returns how often the task is right, and how often the task or the class is wrong.

    An image is right over the union of all tasks' classes if its task is inferred and that task's network then gives
    its class. Classes of one name in two tasks are two classes. Both numbers are means over the tasks, as the average
    error with given tasks is, so that a large test set counts no more than a small one.

    Args:
        images: The number of test images by task; the images of one task follow those of the task before.
        costs: `[N, T]`: the task with the lowest cost is inferred, of equal ones the first.
        hits: Boolean `[N]`: whether the network of an image's own task gives its class.

    Returns:
        `"task_id_accuracy"` and `"class_incremental_error"` in percent, and both under `"by_task"` for the images of
        each task.

    Raises:
        ValueError: If the shapes do not fit, or a cost is NaN.
    """
    total = sum(images.values())
    if costs.shape != (total, len(images)) or hits.shape != (total,):
        raise ValueError(
            f"{total} images of {len(images)} tasks need costs [{total}, {len(images)}] and hits [{total}]. Received: "
            f"{list(costs.shape)}, {list(hits.shape)}."
        )
    if np.isnan(costs).any():
        raise ValueError(
            "A task cannot be inferred where the network answers NaN. --notask_agnostic leaves this measurement out."
        )
    known = costs.argmin(axis=1) == np.repeat(np.arange(len(images)), list(images.values()))
    by_task, first = {}, 0
    for task, count in images.items():
        own = slice(first, first + count)
        by_task[task] = {
            "task_id_accuracy": 100.0 * float(known[own].mean()),
            "class_incremental_error": 100.0 * float((~(known[own] & hits[own])).mean()),
        }
        first += count
    means = {name: float(np.mean([found[name] for found in by_task.values()])) for name in next(iter(by_task.values()))}
    return {**means, "by_task": by_task}


def task_agnostic_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a Markdown table with a row for each way of inferring the task; none if not measured.

    Args:
        metrics: What `run_sequence` returns.
    """
    if not (found := metrics.get("task_agnostic")):
        return []
    return [
        "Without being told the task:",
        "",
        *markdown_table(
            ["task inferred by", "task-id accuracy %", "class-incremental error %"],
            [
                [way, *(f"{measured[name]:.2f}" for name in ("task_id_accuracy", "class_incremental_error"))]
                for way, measured in found.items()
            ],
        ),
        "",
    ]


def _log_softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logarithms of probabilities, and the probabilities."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs, np.exp(logs)
