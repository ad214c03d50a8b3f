"""What the reader of a source hands over: where the images lie, and the images, not yet decoded."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console

# Formats that are read, most frequent first, and how the names of their files end.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "BMP": (".bmp",), "GIF": (".gif",), "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "JPEG2000": (".jp2", ".j2k"), "AVIF": (".avif",),
}  # fmt: skip

MOVED = "if the data have moved, --data-dir says where"


class Missing(ConfigError):
    """Data that is in none of the places where it is looked for."""


class Encoded(NamedTuple):
    """An image file in memory, and where it came from, for messages."""

    name: str
    content: bytes


class Images(NamedTuple):
    """Images as they are stored.

    items: (position, label, stored image), each position in 0..num_train+num_test-1 once and in any order, test images after the
    training images; stored: the Path of an image file, Encoded, or pixels u8[H, W] or u8[H, W, 3].
    notes: lines for the user about how the files were read.
    """

    num_train: int
    num_test: int
    class_names: tuple[str, ...]
    items: Iterable[tuple[int, int, Path | Encoded | np.ndarray]]
    notes: tuple[str, ...] = ()


class Found(NamedTuple):
    """Data that is there to be read.

    name: what and where, the same for the same place. files: all that the images depend on; a change of name, size or time of one
    is a change of the data. open: checks the files, with progress on the console where that takes long, and gives the images.
    settings: of the configuration, on which the images depend as on the files.
    """

    name: str
    files: Sequence[Path]
    open: Callable[[Console], Images]
    settings: tuple[str | int, ...] = ()


def one_line(error: Exception) -> str:
    """An exception's kind and the first line of its text, at most 200 characters."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"[:200]


def in_order(train: Sequence, train_labels: Sequence[int], test: Sequence, test_labels: Sequence[int]) -> Iterable:
    """`items` of two splits that can be indexed."""
    for start, images, labels in ((0, train, train_labels), (len(train), test, test_labels)):
        for position, (image, label) in enumerate(zip(images, labels, strict=True), start):
            yield position, int(label), image
