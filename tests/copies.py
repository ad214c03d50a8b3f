"""Real digits, and copies of small image sets in the formats that are read."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets import load

COLOURS = np.random.RandomState(0).randint(0, 256, (8, 32, 32, 3)).astype(np.uint8)

# Digits of scikit-learn, 8x8 blown up to 32x32 and tinted, so that a mistaken channel order shows: 40 for training, 20 for testing.


def real_digits(num_train: int = 40, num_test: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images u8[N, 32, 32, 3] and labels, test images and labels, sorted by class as folders have them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.kron(digits.images.astype(np.uint8) * 15, np.ones((4, 4), np.uint8))
    images = np.stack([grey, grey // 2, 255 - grey], -1)
    parts = []
    for start, count in ((0, num_train), (num_train, num_test)):
        order = start + np.argsort(digits.target[start : start + count], kind="stable")
        parts += [images[order], digits.target[order]]
    return tuple(parts)


def png(image: np.ndarray) -> bytes:
    """The image as a PNG file."""
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "PNG")
    return stored.getvalue()


def write_folder(root: Path, names: Sequence[str], splits: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """root/SPLIT/CLASS/NNNN.png, numbered as they come; the data.source."""
    for split, (images, labels) in splits.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = root / split / names[label] / f"{number:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(image))
    return f"folder:{root}"


def write_tfds(
    root: Path, name: str, features: Any, splits: Mapping[str, Sequence[dict]], version: str = "1.0.0", shard: int = 7
) -> Path:
    """Files that TFDS reads, by TFDS's own writer; images must come encoded, since encoding them would need TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info, sequential_writer

    folder = root / name / version
    folder.mkdir(parents=True)
    identity = dataset_info.DatasetIdentity(name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name="")
    if isinstance(features, dict):
        features = tfds.features.FeaturesDict(features)
    info = dataset_info.DatasetInfo(builder=identity, features=features)
    writer = sequential_writer.SequentialWriter(info, max_examples_per_shard=shard, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()
    return folder


def write_classes(
    root: Path, *, train: Sequence[str] = ("cat", "dog"), test: Sequence[str] = ("cat", "dog"), size: int = 32
) -> str:
    """root/SPLIT/CLASS/0.png and 1.png, random images; the data.source."""
    random = np.random.RandomState(1)
    for split, classes in (("train", train), ("test", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                (root / split / name / f"{number}.png").write_bytes(png(random.randint(0, 256, (size, size, 3)).astype(np.uint8)))
    return f"folder:{root}"


def refusal(source: str) -> str:
    """What is said where a source cannot be read, in one line."""
    with pytest.raises(ConfigError) as caught:
        load(source, 32)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("data.source")
    return message
