"""`npz:PATH`: images and labels of an .npz file: x_train, y_train, x_test, y_test, or train_images, train_labels, ... as MedMNIST.

Images are u8[N, H, W] or u8[N, H, W, 1 or 3], labels integers [N] or [N, 1].
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets.found import MOVED, Found, Images, in_order, one_line
from mosaic_jax.sources import absolute

# How the images and the labels of a split are called; the validation split is the test set where a file has no other.
SCHEMES = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
TESTS = ("test", "val")
SHOWN = 10  # names and labels in a message


def find(place: str, labels: str) -> Found:
    """The images of an .npz file; labels: data.labels.

    Opening it raises ConfigError naming the array that is missing or of another type or shape, or the labels that are none.
    """
    path = absolute(place)
    if not path.is_file():
        reason = "it is no file" if path.exists() else "No such file"
        raise ConfigError(f"data.source: {path} cannot be read as .npz ({reason}): write it with numpy.savez; {MOVED}")
    return Found(f"npz:{path}", [path], lambda console: _open(path, labels))


def _open(path: Path, labels: str) -> Images:
    try:
        with np.load(path, allow_pickle=False) as stored:
            keys, notes = _keys(path, list(stored))
            arrays = [_array(stored[key], key) for key in keys]
    except ConfigError:
        raise
    except MemoryError as error:
        raise MemoryError(f"data.source: {path} does not fit into memory ({one_line(error)})") from error
    except Exception as error:  # NumPy, zipfile and what decompresses raise a dozen kinds for damaged files.
        raise ConfigError(f"data.source: {path} cannot be read as .npz ({one_line(error)}): write it with numpy.savez") from error
    train, train_labels = _split(path, keys[0], keys[1], arrays[0], arrays[1])
    test, test_labels = _split(path, keys[2], keys[3], arrays[2], arrays[3])
    known = np.unique(train_labels)
    if labels == "as_given" and known[-1] != len(known) - 1:
        raise _gap(path, keys[1], train_labels, known)
    untrained = np.flatnonzero(~np.isin(test_labels, known))
    if len(untrained):
        raise ConfigError(
            f"data.source: {path} has test images of class '{test_labels[untrained[0]]}' and no training images of it "
            f"({keys[3]} at position {untrained[0]}; labels are 0 to K-1): remove them or add some"
        )
    names = tuple(map(str, known.tolist()))
    items = in_order(train, np.searchsorted(known, train_labels), test, np.searchsorted(known, test_labels))
    return Images(len(train), len(test), names, items, notes)


def _keys(path: Path, held: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Names of training images, training labels, test images and test labels, and notes on what else there is."""
    choices = [[name.format(split) for split in ("train", test) for name in scheme] for scheme in SCHEMES for test in TESTS]
    for keys in choices:
        if all(key in held for key in keys):
            left = [key for key in held if "val" in key and key not in keys]
            notes = [f"{keys[2]} of {path} are the test images, for it has no others"] * keys[2].count("val")
            notes += [f"{_shown(left)} of {path} are left out: clients hold back images of their own for validation"] * bool(left)
            return keys, tuple(notes)
    missing = min(([key for key in keys if key not in held] for keys in choices), key=len)
    raise ConfigError(
        f"data.source: {path} has no {', '.join(missing)}: it holds {_shown(held) or 'nothing'} and needs "
        f"{', '.join(choices[0])} or {', '.join(choices[len(TESTS)])}"
    )


def _array(stored: object, key: str) -> np.ndarray:
    if not isinstance(stored, np.ndarray):
        raise ValueError(f"{key} is no .npy array")
    return stored


def _split(path: Path, key: str, label_key: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8:
        raise ConfigError(f"data.source: {key} of {path} has type {images.dtype}: it must be uint8")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape:
        raise ConfigError(f"data.source: {key} of {path} has shape {images.shape}: it must be (N, H, W) or (N, H, W, 1 or 3)")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != images.shape[:1]:
        one_hot = "; of one-hot labels save y.argmax(1)" if labels.ndim == 2 else ""
        raise ConfigError(
            f"data.source: {label_key} of {path} has shape {labels.shape}: it must be ({len(images)},), one per image{one_hot}"
        )
    bad = f"data.source: {label_key} of {path} must hold integers from 0 to K-1, a class each"
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"{bad} (type {labels.dtype})")
    if labels.min() < 0:
        raise ConfigError(f"{bad}: it has {labels.min()} at position {labels.argmin()}")
    return images[..., 0] if images.shape[3:] == (1,) else images, labels.astype(np.uint64)  # of one type, for comparisons


def _gap(path: Path, key: str, labels: np.ndarray, known: np.ndarray) -> ConfigError:
    """The error of labels that leave numbers out; known: those that occur, ascending."""
    largest = int(known[-1])
    wrapped = " (what -1 becomes without a sign)" if largest in (2**16 - 1, 2**32 - 1, 2**64 - 1) else ""
    return ConfigError(
        f"data.source: {key} of {path} has {len(known)} labels, {_shown(known.tolist())}, and {largest} at position "
        f"{labels.argmax()}{wrapped}: labels are 0 to K-1, here 0 to {len(known) - 1}; data.labels=compact numbers the classes so "
        "and names them by these labels"
    )


def _shown(values: Sequence[object]) -> str:
    """The first values, and how many there are in all."""
    more = f", ... ({len(values)})" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
