"""What data a run began with: data.json in its directory, digests of all images and labels and of every client's shares of them."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.io.whole_files import read_json, write_json
from mosaic_jax.json_file import TEXT
from mosaic_jax.types import Dataset, Splits

BLOCK = 2**24  # bytes that one thread digests at a time


def digests(dataset: Dataset, splits: Splits) -> dict[str, str]:
    """`digests_of_images`, and SHA-256 of which of them each client has for what."""
    shares = [part for use in splits for part in (np.array([len(own) for own in use]), np.concatenate(use))]
    return {**digests_of_images(dataset), "shares of clients": _digest(*shares)}


def digests_of_images(dataset: Dataset) -> dict[str, str]:
    """SHA-256 of the training and test images and labels as they were read."""
    return {
        "training images": _digest(dataset.train_images),
        "training labels": _digest(dataset.train_labels),
        "test images": _digest(dataset.test_images),
        "test labels": _digest(dataset.test_labels),
    }


def _digest(*arrays: np.ndarray) -> str:
    """SHA-256 over types, shapes and the digests of blocks, which are made in threads: one needs a second for a gigabyte."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for array in arrays:
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            whole.update(f"{array.dtype.str}{array.shape}".encode())
            blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
            whole.update(b"".join(pool.map(lambda block: hashlib.sha256(block).digest(), blocks)))
    return whole.hexdigest()


def check_data(run_dir: Path, source: str, found: dict[str, str]) -> None:
    """Raises ConfigError where data.json, of the run's start, differs from the digests of what data.source gives now.

    A run of a version that wrote no data.json passes.
    """
    path = run_dir / "data.json"
    began_with = read_data(run_dir)
    if began_with is None:
        return
    other = [name for name in found if began_with.get(name, found[name]) != found[name]]
    if other:
        raise ConfigError(
            f"--run-dir {run_dir}: its run began with other {' and '.join(other)} ({path}) than data.source={source} gives now; "
            "restore them, as with the --data-dir of its start, or name another directory"
        )


def read_data(run_dir: Path) -> dict[str, str] | None:
    """The digests in data.json, None where there is none; raises ConfigError for a damaged file."""
    path = run_dir / "data.json"
    try:
        return read_json(path, "", {str: TEXT})
    except ConfigError as error:
        raise ConfigError(f"--run-dir {run_dir}: {path} is damaged; restore it, or delete it if the data are the same") from error


def write_data(run_dir: Path, found: dict[str, str]) -> None:
    """data.json."""
    write_json(run_dir / "data.json", found)
