"""The report of a run: tables and plots in Markdown, from nothing but its metrics."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from piggyback_tf.evaluation.continual import read_errors
from piggyback_tf.evaluation.left_out import left_out_lines
from piggyback_tf.evaluation.plot_style import COLOURS, PLOTS_MISSING, write_plot
from piggyback_tf.evaluation.report_plots import plot_curves, plot_matrix, plot_zeros
from piggyback_tf.evaluation.results import learned_steps, tasks_of
from piggyback_tf.evaluation.task_agnostic import task_agnostic_lines
from piggyback_tf.evaluation.text import (
    ERROR_TITLES,
    MEASURE_TITLES,
    format_bytes,
    format_error,
    interval_kind,
    main_error,
    markdown_table,
)
from piggyback_tf.extras import is_installed
from piggyback_tf.file_names import CURVES_PLOT, MATRIX_PLOT, REPORT_FILE, ZEROS_PLOT
from piggyback_tf.files import write_atomically

# Masks with fewer zeros change nothing that could be measured.
_IDLE = 1e-4

Lines = list[str]


def write_report(output_dir: str | os.PathLike, metrics: Mapping[str, Any]) -> Path:
    """Writes `report.md`, with plots beside it.

    Of one task it compares the methods, with a plot of zeros per layer and one of the learning curves. Of several it
    shows what became of each, with a plot of the matrix of errors. A plot for which the metrics hold no values is left
    out, and an old file of it removed. Without matplotlib there are no plots, and the report says so.

    Args:
        output_dir: An existing folder.
        metrics: What `metrics.json` holds; see `results`. Of a step, what is missing is left out.

    Returns:
        The path of the report.

    Raises:
        ValueError: If there is no method in the metrics.
        OSError: If a file cannot be written.
    """
    folder = Path(output_dir)
    if not metrics["methods"]:
        raise ValueError("A report needs the metrics of at least one method.")
    tasks = tasks_of(metrics)
    if len(tasks) == 1:
        lines = [f"# Task {tasks[0]}", "", *_one_task(folder, metrics)]
    else:
        lines = [line for sequence in metrics["methods"].values() for line in _several_tasks(folder, sequence)]
    lines += [] if is_installed("matplotlib") else [PLOTS_MISSING, ""]
    found = {
        split if len(tasks) == 1 else f"{task}, {split}": files
        for task, own in metrics.get("left_out", {}).items()
        for split, files in own.items()
    }
    lines += left_out_lines(found)
    # Last, so that a report never points to plots that are not there.
    write_atomically(folder / REPORT_FILE, "\n".join(lines).rstrip("\n") + "\n")
    return folder / REPORT_FILE


def summary(metrics: Mapping[str, Any]) -> Lines:
    """Returns the main numbers of a run as lines of Markdown, which fit a terminal."""
    if len(tasks_of(metrics)) == 1:
        return [*results_table(metrics), *idle_masks(metrics)]
    lines = [
        line
        for sequence in metrics["methods"].values()
        for line in (*matrix_table(sequence), "", *task_agnostic_lines(sequence))
    ]
    return "\n".join(lines).rstrip().split("\n")


def results_table(metrics: Mapping[str, Any]) -> Lines:
    """Returns the lines of a Markdown table of one task, a row per method; columns without a value are left out."""
    (task,), steps = tasks_of(metrics), _only_steps(metrics)
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "test error %": lambda step: format_error(step["errors"].get(task)),
        "test top-5 error %": lambda step: format_error(step["errors"].get(task), "top5_error"),
        "validation error %": lambda step: format_error(step.get("validation", {}).get(task)),
        "zeros %": lambda step: "-" if step.get("zeros_total") is None else f"{100 * step['zeros_total']:.2f}",
        "task": lambda step: format_bytes(_bytes(step, "compressed")),
        "base": lambda step: format_bytes(_bytes(step, "base")),
        "task / base": _share,
        "time": lambda step: "-" if step.get("seconds") is None else f"{step['seconds']:.0f} s",
    }
    rows = {title: [cell(step) for step in steps.values()] for title, cell in columns.items()}
    # A column without a single value says nothing.
    rows = {title: cells for title, cells in rows.items() if any(cell != "-" for cell in cells)}
    return markdown_table(
        ["method", *rows], [[name, *(cells[i] for cells in rows.values())] for i, name in enumerate(steps)]
    )


def matrix_table(sequence: Mapping[str, Any]) -> Lines:
    """Returns the lines of a Markdown table: test errors in percent of every task after each step.

    Args:
        sequence: What `run_sequence` returns.
    """
    tasks, rows = sequence["tasks"], []
    for task, step in learned_steps(sequence):
        errors = step["errors"]
        cells = [f"{errors[one][main_error(errors[one])]:.2f}" if one in errors else "" for one in tasks]
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


def idle_masks(metrics: Mapping[str, Any]) -> Lines:
    """Returns a sentence for each method whose masks use next to all weights, on what that means and what to do."""
    return [
        f"The masks of {name} drop {_dropped(step['zeros_total'])}: what was learned is the head. More --epochs, a "
        "smaller --batch_size or a higher --mask_lr let masks learn more."
        for name, step in _only_steps(metrics).items()
        if step.get("zeros_total") is not None and step["zeros_total"] < _IDLE
    ]


def _one_task(folder: Path, metrics: Mapping[str, Any]) -> Lines:
    """Returns what stands in the report of one task, and writes its plots."""
    steps = _only_steps(metrics)
    # A plot of nothing but zeros would show nothing; a sentence says that there are none.
    sparse = {name: step["zeros"] for name, step in steps.items() if any((step.get("zeros") or {}).values())}
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(steps)}
    curves = {name: step["history"] for name, step in steps.items() if any((step.get("history") or {}).values())}
    lines = [*results_table(metrics), ""]
    lines += [line for sentence in idle_masks(metrics) for line in (sentence, "")]
    lines += [_legend(steps), ""]
    lines += _by_class(steps)
    if sparse and write_plot(folder / ZEROS_PLOT, lambda: plot_zeros(sparse, colours)):
        lines += ["## Zeros per layer", "", f"![Zeros per layer, from input to output]({ZEROS_PLOT})", ""]
    else:
        (folder / ZEROS_PLOT).unlink(missing_ok=True)
    if curves and write_plot(folder / CURVES_PLOT, lambda: plot_curves(curves, colours)):
        lines += ["## Learning curves", "", f"![Loss and error by epoch]({CURVES_PLOT})", ""]
    else:
        (folder / CURVES_PLOT).unlink(missing_ok=True)
    return lines


def _by_class(steps: Mapping[str, Mapping[str, Any]]) -> Lines:
    """Returns a table for each measure that classes have each of their own, with a column a method; of the test images,
    or those of validation where there are none.
    """
    lines: Lines = []
    found = {name: {**step.get("validation", {}), **step["errors"]} for name, step in steps.items()}
    for measure, title in MEASURE_TITLES.items():
        own = {
            name: errors[measure]
            for name, by_task in found.items()
            for errors in by_task.values()
            if isinstance(errors.get(measure), Mapping)
        }
        if own:
            classes = dict.fromkeys(one for values in own.values() for one in values)
            rows = [
                [one, *("-" if values.get(one) is None else f"{values[one]:.2f}" for values in own.values())]
                for one in classes
            ]
            lines += [f"## {title} by class", "", *markdown_table(["class", *own], rows), ""]
    return lines


def _several_tasks(folder: Path, sequence: Mapping[str, Any]) -> Lines:
    """Returns what stands in the report of several tasks, and writes its plot."""
    measured = sequence["measures"]
    plotted = write_plot(folder / MATRIX_PLOT, lambda: plot_matrix(sequence["tasks"], [read_errors(sequence)]))
    return [
        f"# {sequence['method']}: {', '.join(sequence['tasks'])}",
        "",
        *matrix_table(sequence),
        "",
        f"{_described(learned_steps(sequence))}, by task, after each task was learned. *System* is the base, unless a "
        "network of the method replaces it, and all that is kept of the learned tasks.",
        "",
        f"- average error: {measured['average_error']:.2f} %",
        *(
            f"- {name.replace('_', ' ')}: {measured[name]:+.2f} points"
            for name in ("forgetting", "backward_transfer", "forward_transfer")
            if measured.get(name) is not None
        ),
        "- later tasks changed answers of earlier ones: " + ("no" if measured["old_answers_identical"] else "yes"),
        "",
        *task_agnostic_lines(sequence),
        *([f"![Errors by task and step]({MATRIX_PLOT})", ""] if plotted else []),
    ]


def _only_steps(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the step of each method of a run with one task."""
    return {name: sequence["steps"][0] for name, sequence in metrics["methods"].items()}


def _dropped(zeros: float) -> str:
    """Returns how many weights masks drop that drop hardly any."""
    if zeros == 0:
        return "no weight"
    return f"{100 * zeros:.4f} % of the weights" if zeros >= 5e-7 else "less than 0.0001 % of the weights"


def _described(steps: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Returns what the errors of some steps are: `"Test errors (top-1) in percent"`."""
    names = {main_error(errors) for _, step in steps for errors in step["errors"].values()}
    titles = sorted(ERROR_TITLES.get(name, name).removesuffix(" %") for name in names)
    return f"Test errors ({', '.join(titles)}) in percent"


def _legend(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what the columns of the results mean that are there."""
    found = [errors for step in steps.values() for errors in step["errors"].values()]
    names = [name for name in ERROR_TITLES if any(name in errors for errors in found)] or ["top1_error"]
    named = " and ".join(ERROR_TITLES[name].removesuffix(" error %").removesuffix(" %") for name in names)
    interval = interval_kind(dict.fromkeys(names))
    sentences = [f"Errors are {named} in percent; in brackets: {interval}."]
    if any(step.get("zeros_total") is not None for step in steps.values()):
        sentences.append("*Zeros* is the part of the masked weights that the task does not use.")
    if any(_bytes(step, "compressed") for step in steps.values()):
        sentences.append("*Task* is what the task adds to the base.")
    return " ".join(sentences)


def _bytes(step: Mapping[str, Any], part: str) -> int | None:
    return (step.get("bytes") or {}).get(part)


def _share(step: Mapping[str, Any]) -> str:
    task, base = _bytes(step, "compressed"), _bytes(step, "base")
    return f"{100 * task / base:.1f} %" if task and base else "-"
