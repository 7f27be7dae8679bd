"""The report of a training: a table and two plots in Markdown, from nothing but its metrics."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.evaluation.figures import COLOURS, GREY, PLOTS_MISSING, new_figure, write_plot
from piggyback_tf.evaluation.left_out import left_out_lines
from piggyback_tf.extras import is_installed
from piggyback_tf.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.md"
ZEROS_PLOT = "zeros.png"
CURVES_PLOT = "learning_curves.png"
# Masks with fewer zeros change nothing that could be measured.
_IDLE = 1e-4


def write_report(output_dir: str | os.PathLike, metrics: dict[str, Any]) -> Path:
    """Writes `report.md`, with a plot of zeros per layer and one of the learning curves beside it.

    A plot for which the metrics hold no values is left out, and an old file of it removed. Without matplotlib there are
    no plots, and the report says so.

    Args:
        output_dir: An existing folder.
        metrics: What `metrics.json` holds: `"task"`, and under `"methods"` by name a dict with any of
            `"test"` and `"validation"`: errors as from `evaluate`;
            `"zeros"`: weight path to the fraction of dropped weights, in layer order;
            `"zeros_total"`: that over all weights;
            `"bytes"`: `"task"` and `"base"`, sizes of the task's file and of the base's weights;
            `"history"`: lists with one value an epoch, `"cross_entropy"`, `"error"`, and both with `"val_"`;
            `"seconds"`: the time it took.
            And `"left_out"`, if there is such an entry: the files that were left out, by split; see `left_out_lines`.

    Returns:
        The path of the report.

    Raises:
        ValueError: If there is no method in the metrics.
        OSError: If a file cannot be written.
    """
    folder, methods = Path(output_dir), metrics["methods"]
    if not methods:
        raise ValueError("A report needs the metrics of at least one method.")
    # A plot of nothing but zeros would show nothing; a sentence says that there are none.
    sparse = {name: m["zeros"] for name, m in methods.items() if any((m.get("zeros") or {}).values())}
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(methods)}
    curves = {name: m["history"] for name, m in methods.items() if any((m.get("history") or {}).values())}
    lines = [f"# Task {metrics['task']}", "", *results_table(methods), ""]
    lines += [line for sentence in idle_masks(methods) for line in (sentence, "")]
    lines += [_legend(methods), ""]
    if sparse and write_plot(folder / ZEROS_PLOT, lambda: _plot_zeros(sparse, colours)):
        lines += ["## Zeros per layer", "", f"![Zeros per layer, from input to output]({ZEROS_PLOT})", ""]
    else:
        (folder / ZEROS_PLOT).unlink(missing_ok=True)
    if curves and write_plot(folder / CURVES_PLOT, lambda: _plot_curves(curves, colours)):
        lines += ["## Learning curves", "", f"![Loss and error by epoch]({CURVES_PLOT})", ""]
    else:
        (folder / CURVES_PLOT).unlink(missing_ok=True)
    lines += [] if is_installed("matplotlib") else [PLOTS_MISSING, ""]
    lines += left_out_lines(metrics.get("left_out", {}))
    # Last, so that a report never points to plots that are not there.
    write_atomically(folder / REPORT, "\n".join(lines).rstrip("\n") + "\n")
    return folder / REPORT


def format_error(errors: dict[str, Any] | None, name: str = "top1_error") -> str:
    """Returns `"2.50 [1.71, 3.64]"` for an error and its interval, `"-"` if it was not measured."""
    if not errors or name not in errors:
        return "-"
    text = f"{errors[name]:.2f}"
    if f"{name}_low" in errors and f"{name}_high" in errors:
        text += f" [{errors[f'{name}_low']:.2f}, {errors[f'{name}_high']:.2f}]"
    return text


def format_bytes(count: int | None) -> str:
    """Returns a size for a person: `"812 bytes"`, `"31.4 kB"`, `"17.2 MB"`; powers of 1000."""
    if count is None:
        return "-"
    if count < 1000:
        return f"{count} bytes"
    size, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        # Rounded first, so that 999,999 bytes are 1.0 MB and not 1000.0 kB.
        if round(size, 1) < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}"


def results_table(methods: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table with a row per method; columns without a value are left out.

    Args:
        methods: As under `"methods"` in `write_report`.
    """
    columns: dict[str, Callable[[dict], str]] = {
        "test error %": lambda m: format_error(m.get("test")),
        "test top-5 error %": lambda m: format_error(m.get("test"), "top5_error"),
        "validation error %": lambda m: format_error(m.get("validation")),
        "zeros %": lambda m: "-" if m.get("zeros_total") is None else f"{100 * m['zeros_total']:.2f}",
        "task": lambda m: format_bytes((m.get("bytes") or {}).get("task")),
        "base": lambda m: format_bytes((m.get("bytes") or {}).get("base")),
        "task / base": _share,
        "time": lambda m: "-" if m.get("seconds") is None else f"{m['seconds']:.0f} s",
    }
    rows = {title: [cell(m) for m in methods.values()] for title, cell in columns.items()}
    # A column without a single value says nothing.
    rows = {title: cells for title, cells in rows.items() if any(cell != "-" for cell in cells)}
    return markdown_table(
        ["method", *rows], [[name, *(cells[i] for cells in rows.values())] for i, name in enumerate(methods)]
    )


def idle_masks(methods: dict[str, dict[str, Any]]) -> list[str]:
    """Returns a sentence for each method whose masks use next to all weights, on what that means and what to do.

    Args:
        methods: As under `"methods"` in `write_report`.
    """
    return [
        f"The masks of {name} drop {_dropped(m['zeros_total'])}: what was learned is the head. More --epochs, a "
        "smaller --batch_size or a higher --mask_lr let masks learn more."
        for name, m in methods.items()
        if m.get("zeros_total") is not None and m["zeros_total"] < _IDLE
    ]


def _dropped(zeros: float) -> str:
    """Returns how many weights masks drop that drop hardly any."""
    if zeros == 0:
        return "no weight"
    return f"{100 * zeros:.4f} % of the weights" if zeros >= 5e-7 else "less than 0.0001 % of the weights"


def _legend(methods: dict[str, dict[str, Any]]) -> str:
    """Returns what the columns of the results mean that are there."""
    top5 = any("top5_error" in (m.get("test") or {}) for m in methods.values())
    sentences = [
        f"Errors are {'top-1 and top-5' if top5 else 'top-1'} in percent with 95 % Wilson score intervals in brackets."
    ]
    if any(m.get("zeros_total") is not None for m in methods.values()):
        sentences.append("*Zeros* is the part of the masked weights that the task does not use.")
    if any((m.get("bytes") or {}).get("task") for m in methods.values()):
        sentences.append("*Task* is what the task adds to the base.")
    return " ".join(sentences)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the lines of a Markdown table.

    Args:
        header: The columns' names.
        rows: The cells.
        left: How many columns, from the first, are aligned to the left; the others hold numbers.
    """
    table = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    # Filled up with blanks, so that the table can be read in a terminal too.
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    lines = [[*map(str.ljust, row[:left], widths), *map(str.rjust, row[left:], widths[left:])] for row in table]
    lines.insert(1, [*("-" * w for w in widths[:left]), *("-" * (w - 1) + ":" for w in widths[left:])])
    return [f"| {' | '.join(line)} |" for line in lines]


def _share(method: dict[str, Any]) -> str:
    sizes = method.get("bytes") or {}
    return f"{100 * sizes['task'] / sizes['base']:.1f} %" if sizes.get("task") and sizes.get("base") else "-"


def _plot_zeros(sparse: dict[str, dict[str, float]], colours: dict[str, str]) -> "Figure":
    # Methods may mask different layers; a layer keeps its place among those of the first method that has it.
    paths = list(dict.fromkeys(path for zeros in sparse.values() for path in zeros))
    figure, (axis,) = new_figure(1, max(6.5, min(16.0, 2.0 + 0.24 * len(paths))), 4.2)
    width = 0.8 / len(sparse)
    for index, (name, zeros) in enumerate(sparse.items()):
        offset = (index - (len(sparse) - 1) / 2) * width
        places = [place + offset for place, path in enumerate(paths) if path in zeros]
        values = [100 * zeros[path] for path in paths if path in zeros]
        axis.bar(places, values, width=width, color=colours[name], label=name)
    # As many names as stand upright beside one another and can still be read.
    step = -(-len(paths) // 60)
    ticks = range(0, len(paths), step)
    labels = [paths[tick].removesuffix("/kernel") for tick in ticks]
    axis.set_xticks(ticks, labels, rotation=90 if len(paths) > 8 else 30, ha="center" if len(paths) > 8 else "right")
    axis.tick_params(axis="x", length=0, labelsize=8 if len(paths) > 8 else 9)
    axis.set_xlim(-0.7, len(paths) - 0.3)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("zeros in the mask (%)", color=GREY)
    axis.set_xlabel("layers, from input to output" + (f" (1 in {step} is named)" if step > 1 else ""), color=GREY)
    axis.set_title("Weights that the task does not use", loc="left", fontsize=11)
    if len(sparse) > 1:
        axis.legend(frameon=False, fontsize=9)
    return figure


def _plot_curves(curves: dict[str, dict[str, list[float]]], colours: dict[str, str]) -> "Figure":
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    titles = {"cross_entropy": "Cross-entropy", "error": "Top-1 error (%)"}
    kinds = [kind for kind in titles if any(h.get(kind) or h.get(f"val_{kind}") for h in curves.values())]
    figure, axes = new_figure(len(kinds), 5.2 * len(kinds), 4.0)
    for axis, kind in zip(axes, kinds, strict=True):
        for name, history in curves.items():
            for key, style in ((f"val_{kind}", "-"), (kind, "--")):
                values = history.get(key) or []
                # A single epoch would be a line without a length.
                marker = "o" if len(values) < 3 else None
                axis.plot(
                    range(1, len(values) + 1), values, style, color=colours[name], linewidth=1.8, marker=marker, ms=4
                )
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("epoch", color=GREY)
        axis.set_title(titles[kind], loc="left", fontsize=11)
        axis.set_ylim(bottom=0)
    handles = [Line2D([], [], color=colours[name], linewidth=1.8, label=name) for name in curves]
    handles += [
        Line2D([], [], color=GREY, linewidth=1.8, linestyle=style, label=label)
        for label, style in (("validation", "-"), ("training", "--"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=9)
    return figure
