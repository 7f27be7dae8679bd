"""The report of a sequence: the matrix of errors, its measures, and what it takes, from nothing but its metrics."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.evaluation.figures import PLOTS_MISSING, new_figure, write_plot
from piggyback_tf.evaluation.left_out import left_out_lines
from piggyback_tf.evaluation.report import REPORT, format_bytes, markdown_table
from piggyback_tf.evaluation.task_agnostic import task_agnostic_lines
from piggyback_tf.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATRIX_PLOT = "errors.png"


def sequence_table(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a Markdown table: top-1 test errors in percent of every task after each step.

    Args:
        metrics: What `run_sequence` returns.
    """
    tasks = metrics["tasks"]
    rows = []
    for task, step in zip(tasks, metrics["steps"], strict=True):
        if not step["errors"]:
            continue
        cells = [f"{step['errors'][other]['top1_error']:.2f}" if other in step["errors"] else "" for other in tasks]
        size = step["bytes"]
        compressed = size["system"] - size["added"] + size["compressed"]
        rows.append(
            [
                task,
                *cells,
                format_bytes(size["system"]),
                format_bytes(compressed),
                f"{step['trained_parameters']:,}",
                f"{step['seconds']:.0f} s",
            ]
        )
    return markdown_table(["after", *tasks, "system", "compressed", "trained parameters", "time"], rows)


def write_sequence_report(output_dir: str | os.PathLike, metrics: Mapping[str, Any]) -> Path:
    """Writes `report.md` of a sequence, with a plot of the matrix of errors beside it.

    Args:
        output_dir: An existing folder.
        metrics: What `run_sequence` returns, and under `"left_out"` by task what was left out of its data.

    Returns:
        The path of the report.

    Raises:
        OSError: If a file cannot be written.
    """
    folder, measured = Path(output_dir), metrics["measures"]
    plotted = write_plot(folder / MATRIX_PLOT, lambda: plot_matrix(metrics["tasks"], [read_errors(metrics)]))
    lines = [f"# {metrics['method']}: {', '.join(metrics['tasks'])}", "", *sequence_table(metrics), ""]
    lines += [
        "Top-1 test errors in percent, by task, after each task was learned. *System* is the base, unless a network of "
        "the method replaces it, and all that is kept of the learned tasks.",
        "",
        f"- average error: {measured['average_error']:.2f} %",
        *(
            f"- {name.replace('_', ' ')}: {measured[name]:+.2f} points"
            for name in ("forgetting", "backward_transfer", "forward_transfer")
            if measured.get(name) is not None
        ),
        "- later tasks changed answers of earlier ones: " + ("no" if measured["old_answers_identical"] else "yes"),
        "",
        *task_agnostic_lines(metrics),
        f"![Errors by task and step]({MATRIX_PLOT})" if plotted else PLOTS_MISSING,
    ]
    found = {
        f"{task}, {split}": files for task, own in metrics.get("left_out", {}).items() for split, files in own.items()
    }
    lines += ["", *left_out_lines(found)]
    # Last, so that a report never points to a plot that is not there.
    write_atomically(folder / REPORT, "\n".join(lines).rstrip("\n") + "\n")
    return folder / REPORT


def read_errors(metrics: Mapping[str, Any]) -> list[dict[str, float]]:
    """Returns the top-1 error of each task that was measured, after each step of a sequence."""
    return [{task: found["top1_error"] for task, found in step["errors"].items()} for step in metrics["steps"]]


def plot_matrix(
    tasks: Sequence[str], seeds: Sequence[Sequence[Mapping[str, float]]], title: str = "Top-1 test error (%)"
) -> "Figure":
    """Draws the matrix of errors: a row for each step, a column for each task.

    Args:
        tasks: In the order of learning.
        seeds: For each seed, what `read_errors` returns; their mean is drawn.
        title: Stands above it.
    """
    import numpy as np

    values = np.full((len(tasks), len(tasks)), np.nan)
    for row in range(len(tasks)):
        for column, task in enumerate(tasks):
            if all(task in steps[row] for steps in seeds):
                values[row, column] = np.mean([steps[row][task] for steps in seeds])
    figure, (axis,) = new_figure(1, 1.6 + 1.1 * len(tasks), 1.2 + 0.7 * len(tasks))
    image = axis.imshow(values, cmap="viridis_r", vmin=0, vmax=max(1.0, float(np.nanmax(values))), aspect="auto")
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        dark = values[row, column] > 0.5 * np.nanmax(values)
        axis.text(
            column, row, f"{values[row, column]:.1f}", ha="center", va="center", color="white" if dark else "black"
        )
    axis.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axis.set_yticks(range(len(tasks)), tasks)
    axis.set_xlabel("task")
    axis.set_ylabel("after learning")
    axis.grid(False)
    axis.set_title(title, loc="left", fontsize=11)
    figure.colorbar(image)
    return figure
