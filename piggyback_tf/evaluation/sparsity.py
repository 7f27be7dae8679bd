"""How much of each layer a mask drops."""

from typing import Any

from piggyback_tf.evaluation.text import format_table
from piggyback_tf.packs import TaskPack


def zeros_table(pack: TaskPack) -> list[dict[str, Any]]:
    """Returns one row per masked weight, in layer order: `"path"`, `"shape"`, `"weights"`, `"zeros"` (a fraction)."""
    return [
        {"path": path, "shape": list(mask.shape), "weights": mask.size, "zeros": mask.zeros}
        for path, mask in pack.masks.items()
    ]


def format_zeros(pack: TaskPack) -> str:
    """Returns `zeros_table` as text, with a last line for all layers together."""
    rows = [
        [row["path"], "x".join(map(str, row["shape"])), f"{row['weights']:,}", f"{100 * row['zeros']:.2f} %"]
        for row in zeros_table(pack)
    ]
    rows.append(["all", "", f"{pack.masked_weights:,}", f"{100 * pack.zeros_total:.2f} %"])
    return format_table(["weight", "shape", "weights", "zeros"], rows, left=2)
