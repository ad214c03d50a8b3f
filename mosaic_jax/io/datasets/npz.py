"""`npz:PATH`: arrays x_train, y_train, x_test, y_test, images u8[N, H, W] or u8[N, H, W, 1 or 3], labels integers from 0."""

import zipfile
from pathlib import Path

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets.found import Found, Images, in_order, one_line

KEYS = ("x_train", "y_train", "x_test", "y_test")


def find(place: str) -> Found:
    """The images of an .npz file; opening it raises ConfigError naming the array that is missing or of another type or shape."""
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"data.source: {path} cannot be read as .npz (No such file): write it with numpy.savez")
    return Found(f"npz:{path}", [path], lambda console: _open(path))


def _open(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [key for key in KEYS if key not in stored]
            arrays = {key: stored[key] for key in KEYS if key in stored}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"data.source: {path} cannot be read as .npz ({one_line(error)}): write it with numpy.savez") from error
    if missing:
        raise ConfigError(f"data.source: {path} has no {', '.join(missing)}: it needs {', '.join(KEYS)}")
    train, train_labels = _split(path, "train", arrays["x_train"], arrays["y_train"])
    test, test_labels = _split(path, "test", arrays["x_test"], arrays["y_test"])
    names = tuple(str(label) for label in range(int(max(train_labels.max(), test_labels.max())) + 1))
    return Images(len(train), len(test), names, in_order(train, train_labels, test, test_labels))


def _split(path: Path, split: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8:
        raise ConfigError(f"data.source: x_{split} of {path} has type {images.dtype}: it must be uint8")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape:
        raise ConfigError(f"data.source: x_{split} of {path} has shape {images.shape}: it must be (N, H, W) or (N, H, W, 1 or 3)")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != images.shape[:1]:
        raise ConfigError(f"data.source: y_{split} of {path} has shape {labels.shape}: it must be ({len(images)},), one per image")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ConfigError(f"data.source: y_{split} of {path} must hold integers from 0 (type {labels.dtype})")
    return images[..., 0] if images.shape[3:] == (1,) else images, labels
