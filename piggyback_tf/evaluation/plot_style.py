"""What all plots share: colours, axes, files."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.extras import extra_sentence, is_installed
from piggyback_tf.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#555555"
_DPI = 140
# What a report says in the place of its plots.
PLOTS_MISSING = f"There are no plots. {extra_sentence('matplotlib')}"


def write_plot(path: Path, draw: Callable[[], "Figure"]) -> bool:
    """Writes what `draw` returns as a PNG file, whole or not at all.

    Returns:
        Whether it was written. Without matplotlib it is not, and an old file is removed; `PLOTS_MISSING` says so.
    """
    if not is_installed("matplotlib"):
        path.unlink(missing_ok=True)
        return False
    buffer = io.BytesIO()
    # Without the version of matplotlib and the like in the file, equal results give equal plots.
    draw().savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return True


def new_figure(columns: int, width: float, height: float) -> tuple["Figure", list[Any]]:
    """Returns a figure of a size in inches and its axes, beside one another."""
    # The figure is made without pyplot, which would choose a backend and keep state between plots.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(GREY)
        axis.tick_params(colors=GREY, labelsize=9)
        axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, list(axes)
