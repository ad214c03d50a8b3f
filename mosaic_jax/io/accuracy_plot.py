"""Accuracies of several rows as a picture: a dot for each model with its deviation, a ring around what is handed over, costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mosaic_jax.io.charts import Axis, ticks
from mosaic_jax.plain_text import plain

SCALE = 2  # pixels of the picture for each one that a page shows
BACKGROUND, INK, SOFT, RULE = (255, 255, 255), (40, 40, 40), (102, 112, 133), (227, 231, 238)
COLOURS = ((47, 111, 222), (217, 98, 43), (31, 157, 104), (160, 75, 201), (184, 134, 11), (201, 59, 91))
WIDTH, LINE, GAP, MARGIN, FONT_SIZE = (SCALE * size for size in (620, 15, 12, 14, 13))
RINGED = "final"  # what the legend calls a ring
RADIUS, RING, CAP = 4 * SCALE, 7 * SCALE, 3 * SCALE
BAR, BAR_HEIGHT = 80 * SCALE, 9 * SCALE  # of the row that costs most


def accuracy_plot(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    final: Mapping[str, str | None],
    title: str,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> np.ndarray:
    """Rows from top to bottom, in each a line for each of its models: mean and one deviation to both sides, in percent.

    rows: name to {model: {"mean": share in 0..1 or None, "std": share or None}}; final: the model of each row that is ringed;
    costs: heading to {row: amount}, drawn as bars beside the rows. Returns u8[height, width, 3].
    """
    costs, title = costs or {}, plain(title)
    shown = {name: {model: each for model, each in models.items() if each["mean"] is not None} for name, models in rows.items()}
    names = list(dict.fromkeys(model for models in sorted(shown.values(), key=len, reverse=True) for model in models))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    known = [(100 * each["mean"], 100 * (each["std"] or 0.0)) for models in shown.values() for each in models.values()]
    low, high = min((m - s for m, s in known), default=0.0), max((m + s for m, s in known), default=100.0)
    marks = ticks(max(low, 0.0), min(high, 100.0), whole=True)
    font = ImageFont.load_default(size=FONT_SIZE)
    left = 2 * MARGIN + int(max((font.getlength(plain(name)) for name in shown), default=0))
    top = MARGIN + 2 * (FONT_SIZE + GAP) + GAP
    heights = [max(len(models), 1) * LINE + GAP for models in shown.values()]
    marked = [*names, RINGED] if final else names
    legend = sum(_legend_width(font, name) for name in marked)
    columns = {heading: _column_width(font, heading, amounts) for heading, amounts in costs.items()}
    width = max(left + WIDTH + sum(columns.values()), MARGIN + int(max(legend, font.getlength(title)))) + 2 * MARGIN
    bottom = top + sum(heights)
    picture = Image.new("RGB", (width, bottom + FONT_SIZE + 2 * MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, INK, font)
    _legend(draw, font, marked, colours, MARGIN + FONT_SIZE + GAP + FONT_SIZE // 2 + SCALE)
    x_of = Axis(marks[0], marks[-1], left, left + WIDTH)
    for mark in marks:
        draw.line((x_of(mark), top, x_of(mark), bottom), RULE, SCALE)
        draw.text((x_of(mark), bottom + SCALE * 5), f"{mark:g}%", SOFT, font, anchor="mt")
    y = top
    for (name, models), height in zip(shown.items(), heights, strict=True):
        draw.line((MARGIN, y, left + WIDTH + sum(columns.values()), y), RULE, SCALE)
        draw.text((left - MARGIN // 2, y + height // 2), plain(name), INK if models else SOFT, font, anchor="rm")
        for line, (model, each) in enumerate(models.items()):
            middle = y + GAP // 2 + LINE * line + LINE // 2
            mean, std = 100 * each["mean"], 100 * (each["std"] or 0.0)
            _mark(draw, x_of, mean, std, middle, colours[model], ringed=model == final.get(name))
        _bars(draw, font, name, costs, columns, left + WIDTH, y + height // 2)
        y += height
    draw.line((MARGIN, bottom, left + WIDTH + sum(columns.values()), bottom), RULE, SCALE)
    start = left + WIDTH + 2 * MARGIN
    for heading, column in columns.items():
        draw.text((start, bottom + SCALE * 5), plain(heading), SOFT, font, anchor="lt")
        start += column
    return np.asarray(picture)


def _mark(
    draw: ImageDraw.ImageDraw, x_of: Axis, mean: float, std: float, y: int, colour: tuple[int, int, int], *, ringed: bool
) -> None:
    x, low, high = x_of(mean), x_of(max(mean - std, 0.0)), x_of(min(mean + std, 100.0))
    if std:
        draw.line((low, y, high, y), colour, SCALE)
        for end in (low, high):
            draw.line((end, y - CAP, end, y + CAP), colour, SCALE)
    _dot(draw, x, y, colour)
    if ringed:
        _ring(draw, x, y)


def _amount(cost: float) -> str:
    return f"{cost:,.1f}" if cost < 10 else f"{cost:,.0f}"


def _column_width(font: ImageFont.FreeTypeFont, heading: str, amounts: Mapping[str, float]) -> int:
    longest = max((BAR + SCALE * 6 + font.getlength(_amount(amount)) for amount in amounts.values()), default=0)
    return 2 * MARGIN + int(max(longest, font.getlength(plain(heading))))


def _bars(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    row: str,
    costs: Mapping[str, Mapping[str, float]],
    columns: Mapping[str, int],
    x: int,
    y: int,
) -> None:
    """A bar for each cost of a row, as long as its share of the largest one's, and the amount behind it."""
    for heading, amounts in costs.items():
        length = round(BAR * amounts[row] / (max(amounts.values()) or 1.0))
        start = x + 2 * MARGIN
        draw.rectangle((start, y - BAR_HEIGHT // 2, start + length, y + BAR_HEIGHT // 2), SOFT)
        draw.text((start + length + SCALE * 6, y), _amount(amounts[row]), INK, font, anchor="lm")
        x += columns[heading]


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, int, int]) -> None:
    draw.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), colour)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    draw.ellipse((x - RING, y - RING, x + RING, y + RING), outline=INK, width=SCALE)


def _legend_width(font: ImageFont.FreeTypeFont, name: str) -> int:
    return 2 * RING + SCALE * 6 + int(font.getlength(plain(name))) + 2 * GAP


def _legend(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    names: Sequence[str],
    colours: Mapping[str, tuple[int, int, int]],
    y: int,
) -> None:
    x = MARGIN
    for name in names:
        if name in colours:
            _dot(draw, x + RING, y, colours[name])
        else:
            _ring(draw, x + RING, y)
        draw.text((x + 2 * RING + SCALE * 6, y), plain(name), SOFT, font, anchor="lm")
        x += _legend_width(font, name)
