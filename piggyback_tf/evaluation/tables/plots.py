"""Plots of finished runs: zeros by layer (the paper's figure 3), the matrix of errors, error against bytes."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from piggyback_tf.evaluation.continual import read_errors
from piggyback_tf.evaluation.plot_style import COLOURS, GREY, new_figure, write_plot
from piggyback_tf.evaluation.report_plots import plot_matrix
from piggyback_tf.evaluation.tables.runs import Record
from piggyback_tf.evaluation.tables.survey import Row, survey_rows
from piggyback_tf.evaluation.tables.variants import (
    all_tasks,
    by_seed,
    drop_repeated_baselines,
    name_bases,
    name_variants,
)
from piggyback_tf.evaluation.text import format_bytes
from piggyback_tf.file_names import ZEROS_PLOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v")


def write_plots(folder: Path, records: Sequence[Record]) -> list[Path]:
    """Writes the plots for which there are values, each for every base.

    Args:
        folder: An existing folder.
        records: The runs, as for `make_table`.

    Returns:
        What was written: `zeros.png`, `error_and_bytes.png` (of the rows of the survey that have all tasks), and for
        each row that is a sequence `errors_ROW.png`; with several bases, the base's name stands in front.

    Raises:
        TableError: If two runs are the same method with the same settings and seed.
        PackError: If a pack that has to be read is damaged.
        OSError: If a file cannot be written.
    """
    records, written = drop_repeated_baselines(records), []
    bases = name_bases(records)
    for key, base in bases.items():
        own = [record for record in records if record.base.key == key]
        prefix = f"{_file_name(base)}_" if len(bases) > 1 else ""
        rows = [row for row in survey_rows(own) if row.seeds]
        tasks = all_tasks(own)
        if lines := _zeros_by_layer(own):
            written.append(folder / f"{prefix}{ZEROS_PLOT}")
            write_plot(written[-1], functools.partial(_plot_zeros, lines, base))
        for row in rows:
            if row.order and len(row.seeds[0].records[0].tasks) > 1:
                written.append(folder / f"{prefix}errors_{_file_name(f'{row.name} {_order_word(row.order)}')}.png")
                write_plot(written[-1], functools.partial(_plot_matrix, row))
        points = [row for row in rows if row.mean_error(tasks) and _added(row, "system")]
        if points:
            written.append(folder / f"{prefix}error_and_bytes.png")
            write_plot(written[-1], functools.partial(_plot_bytes, points, tasks))
    return written


def _zeros_by_layer(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Returns the percentage of zeros by layer, the mean over seeds, of each task's masks."""
    names = name_variants(records)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(names[record], []).append(record)
    masked = {name: group for name, group in groups.items() if any(one.zeros(one.tasks[0]) for one in group)}
    lines = {}
    for name, group in masked.items():
        for task in all_tasks(group):
            found = [zeros[1] for record in by_seed(group, task) if (zeros := record.zeros(task))]
            if found:
                layers = [layer for layer in found[0] if all(layer in zeros for zeros in found)]
                mean = {layer: 100 * sum(zeros[layer] for zeros in found) / len(found) for layer in layers}
                lines[task if len(masked) == 1 else f"{task}, {name}"] = mean
    return lines


def _plot_zeros(lines: Mapping[str, Mapping[str, float]], base: str) -> "Figure":
    # A layer keeps its place among those of the first mask that has it.
    layers = list(dict.fromkeys(layer for zeros in lines.values() for layer in zeros))
    figure, (axis,) = new_figure(1, max(6.5, min(16.0, 2.0 + 0.2 * len(layers))), 4.6)
    for index, (name, zeros) in enumerate(lines.items()):
        places = [place for place, layer in enumerate(layers) if layer in zeros]
        style = _LINES[index // len(COLOURS) % len(_LINES)]
        colour = COLOURS[index % len(COLOURS)]
        axis.plot(places, [zeros[layers[place]] for place in places], style, color=colour, marker="o", ms=3, label=name)
    # As many names as stand upright beside one another and can still be read.
    step = -(-len(layers) // 60)
    names = [layer.removesuffix("/kernel") for layer in layers[::step]]
    axis.set_xticks(range(0, len(layers), step), names, rotation=90, fontsize=8)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("zeros in the mask (%)", color=GREY)
    axis.set_xlabel("layers, from input to output" + (f" (1 in {step} is named)" if step > 1 else ""), color=GREY)
    axis.set_title(f"Weights of {base} that tasks do not use", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=min(len(lines), 4), frameon=False, fontsize=9)
    return figure


def _plot_matrix(row: Row) -> "Figure":
    seeds = [read_errors(outcome.sequence) for outcome in row.seeds]
    tasks = row.seeds[0].sequence["tasks"]
    of_seeds = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
    return plot_matrix(tasks, seeds, f"{row.name}: top-1 test error (%){of_seeds}")


def _plot_bytes(rows: Sequence[Row], tasks: Sequence[str]) -> "Figure":
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (axis,) = new_figure(1, 8.0, 5.0)
    names = list(dict.fromkeys(row.name for row in rows))
    for row in rows:
        colour = COLOURS[names.index(row.name) % len(COLOURS)]
        marker = _MARKERS[names.index(row.name) // len(COLOURS) % len(_MARKERS)]
        error, plain, compressed = row.mean_error(tasks), _added(row, "system"), _added(row, "compressed")
        if compressed:
            axis.plot([compressed, plain], [error.value] * 2, color=colour, linewidth=1, zorder=2)
            axis.plot(compressed, error.value, marker, color=colour, markerfacecolor="white", ms=6, zorder=3)
        axis.errorbar(
            plain, error.value, yerr=error.spread, fmt=marker, color=colour, ms=6, capsize=3, linewidth=1, zorder=4
        )
        label = row.name + (f" {row.order}" if [other.name for other in rows].count(row.name) > 1 else "")
        axis.annotate(label, (plain, error.value), xytext=(6, 4), textcoords="offset points", fontsize=8, color=GREY)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda count, place: format_bytes(round(count)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8, labelrotation=30)
    axis.set_xlabel("size besides the base, for all tasks", color=GREY)
    axis.set_ylabel("mean top-1 test error (%)", color=GREY)
    axis.set_title("Error against bytes", loc="left", fontsize=11)
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="", markerfacecolor=fill, label=label)
        for fill, label in ((GREY, "plain"), ("white", "compressed"))
    ]
    axis.legend(handles=handles, frameon=False, fontsize=9)
    return figure


def _added(row: Row, coding: str) -> float | None:
    """Returns the bytes besides the base, if they are known and have a logarithm."""
    found = row.over_seeds(lambda one: one.added(coding), "bytes")
    return found.value if found and found.value > 0 else None


def _order_word(order: str) -> str:
    return {"↓": "forward", "↑": "reverse"}.get(order, order.replace("→", "then"))


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", text).strip("_")
