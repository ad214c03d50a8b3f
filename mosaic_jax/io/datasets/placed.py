"""Official files that were put into the data directory by hand: found, checked against what is known of them, opened."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets.found import Found, Images, one_line
from mosaic_jax.io.datasets.official import OFFICIAL, TORCHVISION_FOLDERS, File, Layout
from mosaic_jax.sources import BENCHMARKS, absolute

MIB = 2**20
SHOWN_FROM = 256 * MIB  # below that, checking is done in a second or two


def data_directory(directory: str) -> Path:
    """data.dir, or where TFDS has its data if that is empty."""
    return absolute(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def places(name: str, directory: str) -> list[Path]:
    """The folders in which a benchmark's files are looked for, in this order."""
    root = data_directory(directory)
    return [root / inner for inner in (name, "", TORCHVISION_FOLDERS.get(name)) if inner is not None]


def find(name: str, directory: str) -> Found | None:
    """A benchmark's official files, or None where none of its layouts is complete.

    Raises ConfigError where the only complete ones have a file of another size than the official one.
    """
    refused: ConfigError | None = None
    for place in places(name, directory):
        for layout in OFFICIAL[name]:
            paths = [place / file.name for file in layout.files]
            if not all(path.is_file() for path in paths):
                continue
            try:
                _check_sizes(name, paths, layout.files)
            except ConfigError as error:
                refused = refused or error
                continue
            return _found(name, place, layout, paths)
    if refused:
        raise refused
    return None


def _found(name: str, place: Path, layout: Layout, paths: list[Path]) -> Found:
    others = [path for path in _files_below(place / layout.folder) if path not in paths] if layout.folder else []

    def open_(console: Console) -> Images:
        _check_contents(name, paths, layout.files, console)
        benchmark = BENCHMARKS[name]
        try:
            images = layout.read([*paths, *others])
        except (KeyError, IndexError, UnicodeDecodeError) as error:  # lists and images that do not fit together
            raise ConfigError(f"data.source={name}: {place} is not as published ({one_line(error)}): get it again") from error
        for what, count, expected in (
            ("training images", images.num_train, benchmark.num_train),
            ("test images", images.num_test, benchmark.num_test),
            ("classes", len(images.class_names), benchmark.num_classes),
        ):
            if count != expected:
                raise ConfigError(f"data.source={name}: {place} has {count} {what}, not the official {expected}: get it again")
        return images

    return Found(f"{name}:{paths[0].absolute()}", [*paths, *others], open_)


def _files_below(folder: Path) -> list[Path]:
    return sorted(Path(root) / file for root, _, files in os.walk(folder) for file in files)


def _check_sizes(name: str, paths: Sequence[Path], files: Sequence[File]) -> None:
    for path, file in zip(paths, files, strict=True):
        size = path.stat().st_size
        if file.size and size != file.size:
            raise ConfigError(
                f"data.source={name}: {path} has {size:,} bytes, the official file {file.size:,}: it is not whole or is another; "
                "get it again"
            )


def _check_contents(name: str, paths: Sequence[Path], files: Sequence[File], console: Console) -> None:
    known = [(path, file.checksum) for path, file in zip(paths, files, strict=True) if file.checksum]
    total = sum(path.stat().st_size for path, _ in known)
    shown = console.progress("checking", total // MIB, unit="MiB") if total >= SHOWN_FROM else nullcontext()
    done = 0
    with shown as progress:
        for path, checksum in known:
            digest = hashlib.sha256() if len(checksum) == 64 else hashlib.md5(usedforsecurity=False)
            for block in _blocks(path):
                digest.update(block)
                if progress is not None:
                    progress.advance((done + len(block)) // MIB - done // MIB)
                done += len(block)
            if digest.hexdigest() != checksum:
                raise ConfigError(
                    f"data.source={name}: {path} is not the official file (its {digest.name} is {digest.hexdigest()}, "
                    f"not {checksum}): get it again"
                )


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(8 * MIB):
            yield block
