"""Charts as SVG text for a page that loads nothing: lines and heat maps, in the page's own colours."""

import math
from collections.abc import Mapping, Sequence

from mosaic_jax.io.page import escape
from mosaic_jax.plain_text import plain

WIDTH, HEIGHT = 520, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
NUM_COLOURS = 6
MARKED_POINTS = 40  # with more points than these a line carries no dots
DRAWN_POINTS = 600

Series = Sequence[tuple[float, float | None]]


def line_chart(title: str, series: Mapping[str, Series], x_label: str, *, percent: bool = False) -> str:
    """Lines over a common axis, a legend and a tooltip for each point; None interrupts a line.

    series: name to points (x, y) in order of x; percent: y are fractions, shown in percent from 0 to 100.
    """
    scaled = {name: [(x, y if y is None or not percent else 100 * y) for x, y in thin(points)] for name, points in series.items()}
    known = [(x, y) for points in scaled.values() for x, y in points if y is not None]
    if not known:
        return ""
    x_ticks = ticks(min(x for x, _ in known), max(x for x, _ in known), whole=True)
    low, high = min(y for _, y in known), max(y for _, y in known)
    y_ticks = [0, 20, 40, 60, 80, 100] if percent else ticks(min(low, 0.0) if low < 0.3 * high else low, high)
    x_of = Axis(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y_of = Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:g}{"%" if percent else ""}</text>')
    for tick in x_ticks:
        x = f"{x_of(tick):.1f}"
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    for index, (name, points) in enumerate(scaled.items()):
        parts.append(line(name, points, x_of, y_of, f"c{index % NUM_COLOURS}", "%" if percent else ""))
    parts.append("</svg>")
    return figure(title, "".join(parts), list(scaled))


def line(name: str, points: Series, x_of: "Axis", y_of: "Axis", colour: str, unit: str) -> str:
    """One line, with dots and tooltips where points are few."""
    path, pen = "", "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        path += f"{pen}{x_of(x):.1f} {y_of(y):.1f}"
        pen = "L"
    dots = ""
    if len(points) <= MARKED_POINTS:
        dots = "".join(
            f'<circle class="{colour}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6">'
            f"<title>{escape(name)}, {x:g}: {y:.4g}{unit}</title></circle>"
            for x, y in points
            if y is not None
        )
    return f'<path class="line {colour}" d="{path}"/>{dots}'


def heat_map(
    title: str,
    values: Sequence[Sequence[float]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    axes: tuple[str, str],
    *,
    shade_rows: bool = False,
    decimals: int = 0,
) -> str:
    """A shaded table; values: [R][C], not negative. Darkest is the largest value, of its row if `shade_rows`, else of all.

    axes: what rows and columns are. Numbers stand in the cells of up to 20 columns; tooltips everywhere.
    """
    row_names, column_names = list(map(plain, row_names)), list(map(plain, column_names))
    num_rows, num_columns = len(values), len(column_names)
    numbers = num_columns <= 20
    cell_width = max(6.0, min(44.0, 640 / num_columns))
    cell_height = 24.0 if numbers else max(6.0, min(20.0, 640 / num_rows))
    label_every = 1 if cell_height >= 12 else math.ceil(12 / cell_height)
    longest = max((len(name) for name in column_names), default=1)
    tilted = longest * 6.6 > cell_width
    left = 14 + 6.6 * max(len(name) for name in row_names)
    top = 12 + (6.0 * longest if tilted else 14)
    width, height = left + num_columns * cell_width + 8, top + num_rows * cell_height + 8
    overall = max((max(row, default=0) for row in values), default=0) or 1
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{1.15 * width:.0f}px"'
    parts = [f'<svg {size} role="img" aria-label="{escape(title)}">']
    for column, name in enumerate(column_names):
        x = left + (column + 0.5) * cell_width
        if column % max(1, math.ceil(12 / cell_width)) == 0:
            turn = f' transform="rotate(-90 {x + 4:.1f} {top - 5:.1f})" text-anchor="start"' if tilted else ' text-anchor="middle"'
            parts.append(f'<text x="{x + (4 if tilted else 0):.1f}" y="{top - 5:.1f}"{turn}>{escape(name)}</text>')
    for row, name in enumerate(row_names):
        y = top + row * cell_height
        if row % label_every == 0:
            parts.append(f'<text x="{left - 6:.1f}" y="{y + cell_height / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        largest = (max(values[row], default=0) or 1) if shade_rows else overall
        for column, value in enumerate(values[row]):
            x, shade, shown = left + column * cell_width, value / largest, f"{value:.{decimals}f}"
            tip = f"{axes[0]} {name}, {axes[1]} {column_names[column]}: {shown}"
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{cell_width - 1:.1f}" height="{cell_height - 1:.1f}" '
                f'fill-opacity="{0.04 + 0.96 * shade:.3f}"><title>{escape(tip)}</title></rect>'
            )
            if numbers and value > 0:
                ink = "on" if shade > 0.55 else "off"
                middle = f'x="{x + cell_width / 2:.1f}" y="{y + cell_height / 2 + 4:.1f}" text-anchor="middle"'
                parts.append(f'<text class="{ink}" {middle}>{shown}</text>')
    parts.append("</svg>")
    return figure(f"{title} ({axes[0]} by {axes[1]})", "".join(parts), [])


def figure(title: str, body: str, legend: Sequence[str]) -> str:
    """A captioned figure; the legend only where there is more than one line."""
    marks = "".join(f'<span><i class="c{index % NUM_COLOURS}"></i>{escape(name)}</span>' for index, name in enumerate(legend))
    keys = f'<div class="legend">{marks}</div>' if len(legend) > 1 else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{keys}{body}</figure>"


class Axis:
    """A linear scale from values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._slope = (end - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._slope


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers, about five apart evenly, from at or below `low` to at or above `high`."""
    span = (high - low) or max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= 5)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Series) -> Series:
    """At most DRAWN_POINTS of the points, evenly, the last one kept."""
    if len(points) <= DRAWN_POINTS:
        return points
    stride = math.ceil(len(points) / DRAWN_POINTS)
    return [*points[:-1:stride], points[-1]]
