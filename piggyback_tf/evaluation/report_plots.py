"""The plots of a report: zeros by layer, learning curves, the matrix of errors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from piggyback_tf.evaluation.plot_style import GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_zeros(sparse: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> "Figure":
    """Draws the fraction of dropped weights of each layer.

    Args:
        sparse: The fraction by weight path, by method.
        colours: The colour of each method.
    """
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


def plot_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], colours: Mapping[str, str]) -> "Figure":
    """Draws loss and error by epoch.

    Args:
        curves: The history of a training, by method.
        colours: The colour of each method.
    """
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
