"""`folder:PATH`: PATH/train/CLASS/**/*.jpg|jpeg|png and PATH/test/CLASS/..., classes and files in sorted order."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets.found import Found, Images, in_order

_SUFFIXES = (".jpg", ".jpeg", ".png")


def find(place: str) -> Found:
    """The images of a folder; raises ConfigError for a folder, class or split that is missing or empty."""
    root = Path(place).expanduser().absolute()
    train, test = _class_files(root / "train"), _class_files(root / "test")
    for name in test:
        if name not in train:
            raise ConfigError(
                f"data.source: {root / 'test' / name} is a class that {root / 'train'} lacks: remove it or add training images"
            )
    names = tuple(train)
    files = [[file for members in split.values() for file in members] for split in (train, test)]
    labels = [
        np.repeat([names.index(name) for name in split], [len(members) for members in split.values()]) for split in (train, test)
    ]

    def open_(console: Console) -> Images:
        return Images(len(files[0]), len(files[1]), names, in_order(files[0], labels[0], files[1], labels[1]))

    return Found(f"folder:{root}", [*files[0], *files[1]], open_)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """The image files of every class folder, classes in sorted order; hidden names are skipped."""
    if not folder.is_dir():
        raise ConfigError(f"data.source: folder {folder} does not exist: expected {folder / 'CLASS'}/*.jpg, *.jpeg or *.png")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ConfigError(f"data.source: folder {folder} is empty: expected a folder for each class in it")
    found = {}
    for name in classes:
        found[name] = list(_image_files(folder / name))
        if not found[name]:
            raise ConfigError(f"data.source: class folder {folder / name} has no .jpg, .jpeg or .png file: add images or remove it")
    return found


def _image_files(folder: Path) -> Iterator[Path]:
    """A folder's own images in sorted order, then those of the folders inside it, in sorted order too."""
    inner = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.name.lower().endswith(_SUFFIXES):
            yield folder / entry.name
        elif entry.is_dir():
            inner.append(folder / entry.name)
    for deeper in inner:
        yield from _image_files(deeper)
