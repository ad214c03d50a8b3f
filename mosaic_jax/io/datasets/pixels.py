"""Stored images as squares of pixels, decoded in threads."""

import io
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets.found import Encoded, Images, one_line

IMAGES_PER_TASK = 64  # bounds what waits in memory: large JPEGs are 50 KB each
TASKS_AHEAD = 16


def pixels(stored: Path | Encoded | np.ndarray, size: int) -> np.ndarray:
    """One stored image as u8[size, size, 3]; raises ConfigError naming an image that cannot be decoded."""
    if isinstance(stored, np.ndarray):
        return square(Image.fromarray(stored), size)
    name = stored.name if isinstance(stored, Encoded) else stored
    try:
        with Image.open(io.BytesIO(stored.content) if isinstance(stored, Encoded) else stored, formats=("JPEG", "PNG")) as image:
            return square(image, size)
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged files.
        reason = "it is empty" if _is_empty(stored) else one_line(error)
        raise ConfigError(f"data.source: image {name} cannot be read ({reason}): replace or remove it") from error


def _is_empty(stored: Path | Encoded) -> bool:
    return not stored.content if isinstance(stored, Encoded) else stored.is_file() and stored.stat().st_size == 0


def square(image: Image.Image, size: int) -> np.ndarray:
    """Any Pillow image as u8[size, size, 3].

    Other sizes are stretched with antialiased bilinear weights, grey is repeated to three channels, transparency is dropped and
    16-bit images keep their high byte.
    """
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip them to 255.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR))


def decode(
    images: Images, size: int, put: Callable[[int, int, np.ndarray], None], advance: Callable[[int], None]
) -> None:
    """Decodes all images in threads, a bounded number ahead, and hands each to put(position, label, u8[size, size, 3]).

    put is called from several threads. advance: is told how many more are done. The first failure in the order of the items is
    raised.
    """

    def task(block: list) -> int:
        for position, label, stored in block:
            put(position, label, pixels(stored, size))
        return len(block)

    items = iter(images.items)
    running: deque[Future[int]] = deque()
    pool = ThreadPoolExecutor()
    try:
        while block := list(itertools.islice(items, IMAGES_PER_TASK)):
            running.append(pool.submit(task, block))
            if len(running) >= TASKS_AHEAD:
                advance(running.popleft().result())
        while running:
            advance(running.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
