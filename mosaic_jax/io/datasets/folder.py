"""`folder:PATH`: the image files PATH/train/CLASS/** and PATH/test/CLASS/**, classes and files in sorted order."""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets.found import FORMATS, MOVED, Found, Images, in_order
from mosaic_jax.sources import absolute

_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def find(place: str, console: Console) -> Found:
    """The images of a folder; the console is warned of files of other kinds, which are left out.

    Raises ConfigError for a folder, class or split that is missing or empty, and for what would be read without end.
    """
    root = absolute(place)
    others: Counter[str] = Counter()
    train, test = _class_files(root / "train", others), _class_files(root / "test", others)
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in others.most_common(5))
        console.warning(f"data.source: {others.total()} files of {root} are left out, for they are no images known here: {kinds}")
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


def _class_files(folder: Path, others: Counter[str]) -> dict[str, list[Path]]:
    """The image files of every class folder by its name, classes in sorted order; hidden names are skipped, other files counted by
    suffix."""
    if not folder.is_dir():
        raise ConfigError(f"data.source: folder {folder} does not exist: expected {folder / 'CLASS'}/*.jpg, *.png, ...; {MOVED}")
    entries = (entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    classes = {_name(entry): folder / entry.name for entry in sorted(entries, key=_name)}
    if not classes:
        raise ConfigError(f"data.source: folder {folder} is empty: expected a folder for each class in it")
    found = {}
    for name, place in classes.items():
        found[name] = _image_files(place, others)
        if not found[name]:
            known = " ".join(_SUFFIXES)
            raise ConfigError(f"data.source: class folder {place} has no {known} file: add images or remove it")
    return found


def _name(entry: os.DirEntry) -> str:
    """The name of a file as UTF-8, whatever the locale: orders and names of classes are the same everywhere."""
    return os.fsencode(entry.name).decode("utf-8", "surrogateescape")


def _image_files(folder: Path, others: Counter[str]) -> list[Path]:
    """A folder's own images in sorted order, then those of the folders inside it, in sorted order too."""
    files, waiting, seen = [], [folder], set()
    while waiting:  # no recursion: folders may be nested deeper than Python's calls
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            raise ConfigError(f"data.source: {here} is a link to a folder that is read already: remove it")
        seen.add((status.st_dev, status.st_ino))
        inner = []
        for entry in sorted(os.scandir(here), key=_name):
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if suffix in _SUFFIXES:
                file = here / entry.name
                if not entry.is_file():
                    raise ConfigError(f"data.source: image {file} cannot be read (it is no file): replace or remove it")
                files.append(file)
            elif entry.is_dir():
                inner.append(here / entry.name)
            else:
                others[suffix] += 1
        waiting += reversed(inner)
    return files
