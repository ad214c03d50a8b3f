"""Files that are written whole or not at all, and JSON files that say when they are no longer as they were written."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mosaic_jax import json_file
from mosaic_jax.config import ConfigError
from mosaic_jax.json_file import ANYTHING, Form, no_complaint
from mosaic_jax.parser import REMEDIES

OBJECT = {str: ANYTHING}
DIGEST = "sha256"  # the key of a JSON file's own digest


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around what is written to a file: an OSError names it, where that of a full disk names none and others a part of it."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path that a block writes a file to; it becomes `path`, whose directory is made, once it is whole and on the disk."""
    half = path.with_name(f"{path.name}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield half
            sync(half)
            half.replace(path)
        except Exception:
            with suppress(OSError):
                half.unlink()
            raise
        sync(path.parent)


@contextmanager
def saying_what_is_not_written(warn: Callable[[str], None]) -> Iterator[None]:
    """Around files about what a command has shown already: where there is no place for them, that is said through `warn`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        warn(f"{error.filename}: not written ({error.strerror}); {REMEDIES[error.errno]}")


def sync(path: Path) -> None:
    """Returns once the content of a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8."""
    with replacing(path) as half:
        half.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file that holds its own digest."""
    write_text(path, json.dumps({**values, DIGEST: _digest(values)}, indent=1) + "\n")


def read_json(path: Path, remedy: str, form: Form = OBJECT, wrong: Callable[[Any], str] = no_complaint) -> dict[str, Any] | None:
    """What `write_json` wrote, without the digest; None where there is no file. One without a digest, as older versions wrote it,
    is taken as it is. Raises ConfigError, which ends in `remedy`, where the file cannot be read, was changed since or, as
    `json_file.read_json` says of form and wrong, holds odd content."""
    try:
        values = json_file.read_json(path, form, remedy, wrong)
    except ConfigError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    digest = values.pop(DIGEST, None)
    if digest is not None and digest != _digest(values):
        raise ConfigError(f"{path}: does not hold what was written, by its own digest; {remedy}")
    return values


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of values as JSON gives them back."""
    as_read = json.loads(json.dumps(values))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
