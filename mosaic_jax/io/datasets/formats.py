"""The official files of MNIST, Fashion-MNIST, SVHN and CIFAR, as arrays: idx, .mat, and CIFAR's two kinds of batches."""

import gzip
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets.found import Images, in_order

DIGITS = tuple(str(digit) for digit in range(10))
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
Content = Mapping[str, Callable[[], bytes]]


def idx(names: tuple[str, ...], paths: list[Path]) -> Images:
    """Training images, training labels, test images and test labels in that order, each .gz or plain."""
    arrays = [_idx(path) for path in paths]
    return Images(len(arrays[0]), len(arrays[2]), names, in_order(*arrays))


def _idx(path: Path) -> np.ndarray:
    """u8[...]: two zero bytes, 8 for bytes, the number of axes, a big-endian 32-bit size for each, then the bytes."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    axes = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content, ">i4", axes, 4) if axes in (1, 3) and len(content) >= 4 + 4 * axes else np.zeros(1, int)
    if axes not in (1, 3) or len(content) != 4 + 4 * axes + np.prod(shape, dtype=np.int64):
        raise ConfigError(f"data.source: {path} is no whole idx file of bytes: get it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def svhn(paths: list[Path]) -> Images:
    """train_32x32.mat and test_32x32.mat: X u8[32, 32, 3, N], y [N, 1] from 1 to 10, 10 for the digit 0."""
    from scipy.io import loadmat  # Imported here: only this source needs it.

    parts = []
    for path in paths:
        try:
            stored = loadmat(path, variable_names=("X", "y"))
            parts += [stored["X"].transpose(3, 0, 1, 2), stored["y"][:, 0] % 10]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"data.source: {path} is no whole .mat file with X and y: get it again") from error
    return Images(len(parts[0]), len(parts[2]), DIGITS, in_order(*parts))


def cifar_python(label: str, names: str, train: tuple[str, ...], test: str, meta: str, paths: list[Path]) -> Images:
    """CIFAR's pickled batches; unpickling runs what a file says, so only files whose checksums are the official ones come here.

    label, names: keys of the labels in a batch and of the class names in `meta`. paths: the archive, or the extracted files.
    """
    content = _content(paths)

    def read(name: str) -> dict[bytes, list]:
        return pickle.loads(content[name](), encoding="bytes")

    def split(batches: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        read_batches = [read(name) for name in batches]
        pixels = np.concatenate([np.asarray(batch[b"data"], np.uint8) for batch in read_batches])
        labels = np.concatenate([np.asarray(batch[label.encode()]) for batch in read_batches])
        return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    (images, labels), (test_images, test_labels) = split(train), split((test,))
    class_names = tuple(name.decode() for name in read(meta)[names.encode()])
    return Images(len(images), len(test_images), class_names, in_order(images, labels, test_images, test_labels))


def cifar_binary(num_labels: int, names: str, train: tuple[str, ...], test: str, paths: list[Path]) -> Images:
    """CIFAR's binary batches: records of `num_labels` label bytes, of which the last counts, and 3,072 of pixels by planes."""
    content = _content(paths)
    class_names, size = tuple(content[names]().decode().split()), num_labels + 3072

    def split(batches: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for name in batches:
            stored = np.frombuffer(content[name](), np.uint8)
            records = stored[: stored.size // size * size].reshape(-1, size)
            if not records.size or stored.size % size or records[:, num_labels - 1].max() >= len(class_names):
                raise ConfigError(f"data.source: {name} of {paths[0].parent} is no whole CIFAR batch: get it again")
            parts.append(records)
        joined = np.concatenate(parts)
        return joined[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), joined[:, num_labels - 1]

    (images, labels), (test_images, test_labels) = split(train), split((test,))
    return Images(len(images), len(test_images), class_names, in_order(images, labels, test_images, test_labels))


def _content(paths: list[Path]) -> Content:
    """What each file holds, by its last name: the files themselves, or the members of the one .tar.gz."""
    if not paths[0].name.endswith(".tar.gz"):
        return {path.name: path.read_bytes for path in paths}
    with tarfile.open(paths[0], "r:gz") as archive:
        members = {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isfile()}
    return {name: (lambda held=held: held) for name, held in members.items()}
