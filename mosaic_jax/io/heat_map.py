"""A heat map of label counts as a picture: clients by classes, and the size of each client beside them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mosaic_jax.plain_text import plain

BACKGROUND, INK, SOFT, EMPTY = (255, 255, 255), (40, 40, 40), (102, 112, 133), (243, 245, 248)
LIGHT, DARK = np.array([219, 232, 255]), np.array([23, 64, 150])  # of one image and of the most
HEIGHT, WIDTH, BAR = 800, 640, 160  # largest height and width of the cells, and width of the largest client's bar
MARGIN, FONT_SIZE = 12, 13


def heat_map(label_counts: np.ndarray, class_names: Sequence[str], title: str) -> np.ndarray:
    """A row for each client; darker is more images of a class, grey is none; a bar is the client's size.

    Of more clients than there are rows of pixels, neighbours share a row, which then shows their mean.
    label_counts: integers [C, K]. Returns u8[height, width, 3].
    """
    counts, class_names, title = np.asarray(label_counts), list(map(plain, class_names)), plain(title)
    num_clients, num_classes = counts.shape
    together = _round_number(num_clients / HEIGHT)  # clients of a row
    starts = np.arange(0, num_clients, together)
    rows = np.add.reduceat(counts, starts, axis=0) / np.diff(starts, append=num_clients)[:, None]
    cell_height = min(22, HEIGHT // len(rows))
    cell_width = min(44, max(4, WIDTH // num_classes))
    font = ImageFont.load_default(size=FONT_SIZE)
    left = 2 * MARGIN + int(font.getlength(str(num_clients - 1)))
    tilted = max(font.getlength(name) for name in class_names) > cell_width - 4
    names = int(max(font.getlength(name) for name in class_names)) + 6 if tilted else FONT_SIZE + 6
    top = MARGIN + 2 * (FONT_SIZE + 8) + names
    right = left + num_classes * cell_width + MARGIN
    sizes = rows.sum(axis=1)
    row = f"the mean of {together} clients" if together > 1 else "a client"
    note = f"a row is {row}; darkest: {rows.max():,.0f} images of a class; longest bar: {sizes.max():,.0f} images"
    width = max(right + BAR + int(font.getlength(f"{sizes.max():,.0f}")), int(max(map(font.getlength, (title, note))))) + 2 * MARGIN
    picture = Image.new("RGB", (width, top + len(rows) * cell_height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, INK, font)
    draw.text((MARGIN, MARGIN + FONT_SIZE + 6), note, SOFT, font)

    every = _round_number((FONT_SIZE + 2) / cell_width)
    for column in range(0, num_classes, every):
        middle = left + column * cell_width + cell_width // 2
        if tilted:
            _upright(picture, class_names[column], (middle, top - 4), font)
        else:
            draw.text((middle, top - 4), class_names[column], SOFT, font, anchor="mb")
    every = _round_number((FONT_SIZE + 2) / cell_height)
    gap = 1 if cell_height > 4 else 0
    for row, values in enumerate(rows):
        y = top + row * cell_height
        if row % every == 0:
            draw.text((left - 6, y + cell_height // 2), str(starts[row]), SOFT, font, anchor="rm")
        for column, value in enumerate(values):
            x, share = left + column * cell_width, value / (rows.max() or 1)
            colour = tuple(np.rint(LIGHT + (DARK - LIGHT) * share).astype(int).tolist()) if value else EMPTY
            draw.rectangle((x, y, x + cell_width - 1 - min(gap, cell_width // 5), y + cell_height - 1 - gap), colour)
            if value and cell_height >= FONT_SIZE + 3 and font.getlength(f"{value:.0f}") <= cell_width - 4:
                ink = BACKGROUND if share > 0.45 else INK
                draw.text((x + cell_width // 2, y + cell_height // 2), f"{value:.0f}", ink, font, anchor="mm")
        end = right + round(BAR * sizes[row] / (sizes.max() or 1))
        draw.rectangle((right, y, max(end, right), y + cell_height - 1 - gap), SOFT)
        if cell_height >= FONT_SIZE + 3:
            draw.text((end + 6, y + cell_height // 2), f"{sizes[row]:,.0f}", SOFT, font, anchor="lm")
    return np.asarray(picture)


def _round_number(least: float) -> int:
    """The first of 1, 2, 5, 10, 20, 50, ... that is not below `least`."""
    return next(digit * 10**power for power in range(9) for digit in (1, 2, 5) if digit * 10**power >= least)


def _upright(picture: Image.Image, text: str, foot: tuple[int, int], font: ImageFont.FreeTypeFont) -> None:
    """Writes a text from bottom to top, its foot at a place."""
    written = Image.new("RGB", (int(font.getlength(text)) + 2, FONT_SIZE + 4), BACKGROUND)
    ImageDraw.Draw(written).text((0, written.height // 2), text, SOFT, font, anchor="lm")
    turned = written.transpose(Image.Transpose.ROTATE_90)
    picture.paste(turned, (foot[0] - turned.width // 2, foot[1] - turned.height))
