"""Pictures of samples: a row for each client, real images beside generated ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mosaic_jax.config import ConfigError
from mosaic_jax.io.whole_files import replacing
from mosaic_jax.json_file import read_regular

PNG_BEGINS, PNG_ENDS = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)
GAP, TITLE_HEIGHT, FONT_SIZE = 2, 24, 15
HALF_GAP = 24  # between real and generated images


def to_pixels(images: np.ndarray) -> np.ndarray:
    """u8 pixels of images: f32 in [-1, 1] is stretched to 0..255 (beyond it is cut), u8 is left as it is."""
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def client_labels(num_clients: int) -> list[str]:
    """`client 0`, `client 1`, ..."""
    return [f"client {client}" for client in range(num_clients)]


def image_grid(rows: np.ndarray, labels: Sequence[str] | None = None) -> np.ndarray:
    """A grid with a row for each client, its label at the left.

    rows: f32 in [-1, 1] or u8 [R, N, H, W, 3]; labels: R texts, `client i` if not given. Returns u8[height, width, 3].
    """
    return draw_blocks([("", rows)], labels)


def real_and_generated(real: np.ndarray, generated: np.ndarray, labels: Sequence[str] | None = None) -> np.ndarray:
    """Each client's real images in the left half, what its generator draws in the right half.

    real: u8 or f32 in [-1, 1] [C, n, H, W, 3]; generated: the same for m images [C, m, H, W, 3]. Returns u8[height, width, 3].
    """
    return draw_blocks([("real", real), ("generated", generated)], labels)


def draw_blocks(blocks: Sequence[tuple[str, np.ndarray]], labels: Sequence[str] | None) -> np.ndarray:
    """Titled blocks of image rows side by side; small grids at twice the size, so that they can be looked at."""
    pixels = [to_pixels(np.asarray(rows)) for _, rows in blocks]
    num_rows = len(pixels[0])
    labels = client_labels(num_rows) if labels is None else labels
    height, width = pixels[0].shape[2:4]
    scale = 2 if sum(rows.shape[1] for rows in pixels) <= 32 else 1
    font = ImageFont.load_default(size=FONT_SIZE)
    left = 2 * GAP + 8 + max((int(font.getlength(label)) for label in labels), default=0)
    top = TITLE_HEIGHT if any(title for title, _ in blocks) else GAP
    row_height = max(height * scale + GAP, FONT_SIZE + 4)
    widths = [rows.shape[1] * (width * scale + GAP) for rows in pixels]
    size = (left + sum(widths) + HALF_GAP * (len(blocks) - 1), top + num_rows * row_height)

    picture = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(labels):
        draw.text((2 * GAP, top + row * row_height + (row_height - GAP) // 2), label, INK, font, anchor="lm")
    start = left
    for (title, _), rows, block_width in zip(blocks, pixels, widths, strict=True):
        draw.text((start, TITLE_HEIGHT // 2), title, INK, font, anchor="lm")
        for row in range(num_rows):
            for column, image in enumerate(rows[row]):
                tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
                picture.paste(tile, (start + column * (width * scale + GAP), top + row * row_height))
        start += block_width + HALF_GAP
    return np.asarray(picture)


def save_grid(path: Path, image: np.ndarray) -> None:
    """Writes a u8[height, width, 3] picture as PNG, at once, making its directory."""
    with replacing(path) as half:
        Image.fromarray(image).save(half, format="PNG", optimize=True)


def read_png(path: Path) -> bytes:
    """The bytes of a PNG file for a page; raises ConfigError, without a remedy, for a link, which may lead to a file that nobody
    meant to hand on, and for what is no PNG."""
    try:
        content = b"" if path.is_symlink() else read_regular(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not content.startswith(PNG_BEGINS) or not content.endswith(PNG_ENDS):
        raise ConfigError(f"{path.name} is {'a link' if path.is_symlink() else 'no whole PNG file'}")
    return content


@contextmanager
def answering_for(out: Path) -> Iterator[None]:
    """Around what is written to a file that `--out` names, and beside it: where that fails it is a ConfigError of one line."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename or out
        raise ConfigError(f"--out {out}: {place} cannot be written ({error.strerror}); name another file") from error


def save_real_and_generated(path: Path, real: np.ndarray, generated: np.ndarray) -> None:
    """Writes `real_and_generated` as PNG."""
    save_grid(path, real_and_generated(real, generated))
