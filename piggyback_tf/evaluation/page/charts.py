"""Charts as SVG within the page: lines, bars by layer, intervals; their colours are classes of page.css."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from piggyback_tf.evaluation.page.markup import Markup, element

# So many series have a colour of their own in page.css.
COLOURS = 6


def colour(place: int) -> str:
    """Returns the class of the colour of a series by its place among them."""
    return f"c{place % COLOURS}"


def line_chart(
    title: str, unit: str, series: Sequence[tuple[str, str, Sequence[float], bool]], best: Mapping[str, int]
) -> Markup:
    """Draws values by epoch.

    Args:
        title: What is drawn.
        unit: What stands behind a value.
        series: Name, class of the colour, values, and whether the line is dashed.
        best: The epoch, from 1, that is marked on the line that is not dashed, by class of the colour.
    """
    width, height, left, right, top, bottom = 420, 230, 44, 12, 14, 34
    finite = [value for *_, values, _ in series for value in values if _is_finite(value)]
    epochs = max(len(values) for *_, values, _ in series)
    ticks = _ticks(max(finite, default=1.0))

    def x(epoch: int) -> float:
        return left + (width - left - right) * ((epoch - 1) / (epochs - 1) if epochs > 1 else 0.5)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * value / ticks[-1]

    parts = _grid(ticks, y, left, width - right)
    step = max(1, math.ceil(epochs / 10))
    for epoch in range(1, epochs + 1, step):
        parts.append(_label(epoch, x(epoch), height - bottom + 15, "middle"))
    parts.append(_label("epoch", (left + width - right) / 2, height - 4, "middle"))
    for name, shade, values, dashed in series:
        for piece in _pieces(values):
            points = " ".join(f"{_f(x(epoch))},{_f(y(value))}" for epoch, value in piece)
            parts.append(element("polyline", points=points, class_=f"line {shade}" + (" dashed" if dashed else "")))
            if len(piece) == 1:  # It would be a line without a length.
                parts.append(_dot(x(piece[0][0]), y(piece[0][1]), 3, shade, f"{name}: {piece[0][1]:.4g} {unit}"))
        chosen = best.get(shade)
        if not dashed and chosen and chosen <= len(values) and _is_finite(values[chosen - 1]):
            tip = f"{name}, epoch {chosen}, the best: {values[chosen - 1]:.4g} {unit}".rstrip()
            parts.append(_dot(x(chosen), y(values[chosen - 1]), 4, shade, tip))
    told = "; ".join(f"{name} from {values[0]:.4g} to {values[-1]:.4g}" for name, _, values, _ in series if len(values))
    return _svg(width, height, f"{title} by epoch: {told}.", parts)


def bar_chart(title: str, shade: str, values: Mapping[str, float], most: float, width: int = 420) -> Markup:
    """Draws a bar for each layer, in percent.

    Args:
        title: What is drawn.
        shade: The class of the colour.
        values: By layer, in percent.
        most: The largest value of all charts beside this one, so that they have one scale.
        width: In units of the drawing, such as pixels.
    """
    height, left, right, top, bottom = 190, 44, 8, 12, 24
    ticks = _ticks(most)
    room = (width - left - right) / max(1, len(values))

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * value / ticks[-1]

    parts = _grid(ticks, y, left, width - right)
    for place, (path, value) in enumerate(values.items()):
        bar = element(
            "rect",
            element("title", f"{path}: {value:.2f} %"),
            x=_f(left + room * (place + 0.12)),
            y=_f(y(value)),
            width=_f(room * 0.76),
            height=_f(height - bottom - y(value)),
            class_=f"bar {shade}",
        )
        parts.append(bar)
    parts.append(_label("input", left, height - 7, "start"))
    parts.append(_label("layers", (left + width - right) / 2, height - 7, "middle"))
    parts.append(_label("output", width - right, height - 7, "end"))
    top_layers = sorted(values, key=lambda path: -values[path])[:3]
    told = ", ".join(f"{path} {values[path]:.1f} %" for path in top_layers)
    return _svg(width, height, f"{title}: {len(values)} layers; most in {told}.", parts)


def interval(value: float, low: float | None, high: float | None, most: float) -> Markup:
    """Draws an error with its interval on one line, which goes from 0 to `most`."""
    width, height = 140, 18

    def x(error: float) -> float:
        return 4 + (width - 8) * min(error, most) / most

    parts = [element("line", x1=4, x2=width - 4, y1=9, y2=9, class_="grid")]
    told = f"{value:.2f} %"
    if low is not None and high is not None:
        parts.append(element("line", x1=_f(x(low)), x2=_f(x(high)), y1=9, y2=9, class_="whisker"))
        told += f", interval from {low:.2f} to {high:.2f} %"
    parts.append(element("circle", cx=_f(x(value)), cy=9, r=4, class_="dot"))
    return _svg(width, height, told, parts, "spark")


def swatch(shade: str, dashed: bool = False) -> Markup:
    """Returns a piece of a line, for legends."""
    line = element("line", x1=1, x2=23, y1=6, y2=6, class_=f"line {shade}" + (" dashed" if dashed else ""))
    return element("svg", line, width=24, height=12, viewBox="0 0 24 12", aria_hidden="true", class_="swatch")


def _svg(width: int, height: int, text: str, parts: list[Markup], class_: str = "chart") -> Markup:
    return element("svg", parts, role="img", aria_label=text, viewBox=f"0 0 {width} {height}", class_=class_)


def _grid(ticks: Sequence[float], y: Any, left: float, right: float) -> list[Markup]:
    parts = []
    for tick in ticks:
        parts.append(element("line", x1=_f(left), x2=_f(right), y1=_f(y(tick)), y2=_f(y(tick)), class_="grid"))
        parts.append(_label(f"{tick:.10g}", left - 6, y(tick) + 4, "end"))
    return parts


def _label(text: Any, x: float, y: float, anchor: str) -> Markup:
    return element("text", text, x=_f(x), y=_f(y), text_anchor=anchor)


def _dot(x: float, y: float, radius: float, shade: str, tip: str) -> Markup:
    return element("circle", element("title", tip), cx=_f(x), cy=_f(y), r=radius, class_=f"dot {shade}")


def _pieces(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """Returns the parts of a line between values that are no numbers, as epochs and values."""
    numbered = enumerate(values, start=1)
    parts = itertools.groupby(numbered, key=lambda pair: _is_finite(pair[1]))
    return [list(part) for is_finite, part in parts if is_finite]


def _ticks(most: float) -> list[float]:
    """Returns round numbers from 0 to at least `most`."""
    most = most if most > 0 else 1.0
    size = 10 ** math.floor(math.log10(most / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * 4.999 >= most)
    return [step * place for place in range(math.ceil(most / step - 1e-9) + 1)]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
