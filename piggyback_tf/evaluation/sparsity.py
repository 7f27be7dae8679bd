"""How much of each layer a mask drops, and plain-text tables."""

from collections.abc import Sequence

from piggyback_tf.packs import TaskPack


def zeros_table(pack: TaskPack) -> list[dict[str, str | int | float | list[int]]]:
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


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Returns a table in plain text.

    Args:
        header: The columns' names.
        rows: The cells.
        left: How many columns, from the first, are aligned to the left; the others hold numbers.
    """
    # A cell may come from a pack, and a pack from anywhere: none shall reach the terminal as a command.
    table = [[cell if cell.isprintable() else repr(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    lines = (
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)
