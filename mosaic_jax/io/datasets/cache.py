"""Decoded images kept on disk as a memory-mapped array, so that the next start with the same data is instant.

Every source and image size has a folder in the user's cache directory, and in it one copy, named by a fingerprint of the files it
was made from. A copy is written under another name, synced and renamed when it is whole; a lock makes a second process wait.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL

from mosaic_jax.config import ConfigError
from mosaic_jax.io.cache_directory import cache_directory
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets.found import Found, Images
from mosaic_jax.io.whole_files import sync
from mosaic_jax.json_file import COUNT, TEXT, read_json
from mosaic_jax.types import Dataset

ABOUT = {"source": TEXT, "num_train": COUNT, "num_test": COUNT, "class_names": [TEXT], "notes": [TEXT]}
VERSION = 2  # of these files and of what decoding does; older copies are then made again
Put = Callable[[int, int, np.ndarray], None]
Copy = tuple[Dataset, tuple[str, ...]]  # what was decoded, and notes about it
Decode = Callable[[Images, Put], Sequence[str] | None]


class _CannotKeep(Exception):
    """The cache directory cannot be used."""


def cached(found: Found, size: int, decode: Decode, console: Console) -> Dataset:
    """The images that were found: the copy on disk where there is a whole one of the files as they are, or decoded and then kept.

    decode(images, put) hands every image to put, and returns notes for the user. The console hears of waiting for another process,
    and is warned of a directory that cannot be written; the images are then decoded into memory. It is told the notes whether the
    images are decoded or were. Raises ConfigError where files change while they are read.
    """
    try:
        dataset, notes = _kept(found, size, decode, console)
    except _CannotKeep as reason:
        console.warning(f"decoded images are not kept: {reason}")
        dataset, notes = _in_memory(found, size, decode, console)
    for note in notes:
        console.warning(f"data.source: {note}")
    return dataset


def _kept(found: Found, size: int, decode: Decode, console: Console) -> Copy:
    fingerprint = _fingerprint(found, size)
    with _disk():
        home = _home(found.name, size)
    copy = _read(home / fingerprint, size)  # A copy never changes, so that reading it needs no lock and no right to write.
    if copy is not None:
        return copy
    with _disk():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(home, console):
        copy = _read(home / fingerprint, size)  # by the process that was waited for
        if copy is not None:
            return copy
        half = home / "half-written"
        try:
            with _disk():
                shutil.rmtree(half, ignore_errors=True)
                half.mkdir()
            _write(half, found, size, decode, console)
            if _fingerprint(found, size) != fingerprint:
                raise ConfigError(f"data.source: files of {found.name} changed while they were read: try again when they are whole")
            with _disk():
                for older in home.iterdir():
                    if older.is_dir() and older != half:
                        shutil.rmtree(older)
                half.rename(home / fingerprint)
                sync(home)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        copy = _read(home / fingerprint, size)
        if copy is None:
            raise _CannotKeep(f"what was written to {home} does not read back")
        return copy


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """Tells failures of the cache's own files from those of the data."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        place, reason = getattr(error, "filename", None) or "the cache directory", getattr(error, "strerror", None) or error
        raise _CannotKeep(f"{place} cannot be written ({reason})") from error


def _home(name: str, size: int) -> Path:
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name)[-48:].strip("-")
    return cache_directory("data") / f"{readable}-{size}-{_digest(name, size)[:12]}"


def _fingerprint(found: Found, size: int) -> str:
    files = [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in found.files]
    return _digest(VERSION, PIL.__version__, size, files, found.settings)[:32]


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@contextlib.contextmanager
def _locked(home: Path, console: Console) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        with _disk():
            lock = held.enter_context((home / "lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.message(f"waiting for another process that decodes the same images into {home}")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(copy: Path, size: int) -> Copy | None:
    """A copy, its images mapped and not read; None where there is none or it is not whole."""
    try:
        about = read_json(copy / "about.json", ABOUT, "")
        num_train, num_test, names = about["num_train"], about["num_test"], tuple(about["class_names"])
        notes = tuple(map(str, about["notes"]))
        shape = (num_train + num_test, size, size, 3)
        if (copy / "images.u8").stat().st_size != np.prod(shape):
            return None
        images = np.asarray(np.memmap(copy / "images.u8", np.uint8, "r", shape=shape))
        labels = np.load(copy / "labels.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if labels.shape != shape[:1] or labels.dtype != np.int32:
        return None
    return Dataset(images[:num_train], labels[:num_train], images[num_train:], labels[num_train:], names), notes


def _write(half: Path, found: Found, size: int, decode: Decode, console: Console) -> None:
    images = found.open(console)
    labels = np.full(images.num_train + images.num_test, -1, np.int32)
    with contextlib.ExitStack() as held:
        with _disk():
            file = held.enter_context((half / "images.u8").open("wb", buffering=0))

        # Written and not mapped: a disk that fills up is then an error and no SIGBUS.
        def put(position: int, label: int, image: np.ndarray) -> None:
            labels[position] = label
            left, offset = memoryview(np.ascontiguousarray(image)).cast("B"), position * image.nbytes
            with _disk():
                while left:
                    written = os.pwrite(file.fileno(), left, offset)
                    left, offset = left[written:], offset + written

        notes = [*images.notes, *(decode(images, put) or ())]
        _check_whole(found, labels)
        with _disk():
            os.fsync(file.fileno())
    about = {"source": found.name, "num_train": images.num_train, "num_test": images.num_test}
    about |= {"class_names": images.class_names, "notes": notes}
    with _disk():
        with (half / "labels.npy").open("wb") as file:
            np.save(file, labels)
            os.fsync(file.fileno())
        with (half / "about.json").open("w") as file:
            file.write(json.dumps(about, indent=1) + "\n")
            os.fsync(file.fileno())
        sync(half)


def _in_memory(found: Found, size: int, decode: Decode, console: Console) -> Copy:
    stored = found.open(console)
    count, num_train = stored.num_train + stored.num_test, stored.num_train
    images, labels = np.empty((count, size, size, 3), np.uint8), np.full(count, -1, np.int32)

    def put(position: int, label: int, image: np.ndarray) -> None:
        labels[position], images[position] = label, image

    notes = *stored.notes, *(decode(stored, put) or ())
    _check_whole(found, labels)
    return Dataset(images[:num_train], labels[:num_train], images[num_train:], labels[num_train:], stored.class_names), notes


def _check_whole(found: Found, labels: np.ndarray) -> None:
    missing = int((labels < 0).sum())
    if missing:
        raise ConfigError(f"data.source: {missing} of {len(labels)} images are missing in {found.name}: get the files again")
