"""The official archives of encoded images: Tiny-ImageNet's zip and FOOD101's tar.gz, packed or unpacked."""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from mosaic_jax.config import ConfigError
from mosaic_jax.io.datasets.found import Encoded, Images, one_line


def tiny_imagenet(paths: Sequence[Path]) -> Images:
    """Classes in the order of their WordNet numbers and called by the first English word; the validation split is the test set.

    Images of a class, and of the test set, come in the order of their file names. paths: the zip, or every unpacked file.
    """
    top = "tiny-imagenet-200"
    if paths[0].suffix == ".zip":
        try:
            archive = zipfile.ZipFile(paths[0])
        except zipfile.BadZipFile as error:
            raise _damaged(paths[0], error) from error
        stored: Mapping[str, str | Path] = {_below(top, name): name for name in archive.namelist()}
    else:
        archive, stored = None, {_below(top, path.as_posix()): path for path in paths}

    def text(name: str) -> list[list[str]]:
        content = archive.read(stored[name]) if archive else stored[name].read_bytes()
        return [line.split("\t") for line in content.decode().splitlines()]

    train = sorted(name for name in stored if name.startswith("train/") and name.endswith(".JPEG"))
    test = sorted(name for name in stored if name.startswith("val/images/") and name.endswith(".JPEG"))
    classes = sorted({name.split("/")[1] for name in train})
    class_of = {fields[0]: fields[1] for fields in text("val/val_annotations.txt")}
    words = {fields[0]: fields[1].split(",")[0] for fields in text("words.txt")}
    label_of = {number: label for label, number in enumerate(classes)}

    labels = [label_of[name.split("/")[1]] for name in train] + [label_of[class_of[PurePosixPath(name).name]] for name in test]

    def items() -> Iterator[tuple[int, int, Path | Encoded]]:
        for position, (name, label) in enumerate(zip([*train, *test], labels, strict=True)):
            place = stored[name]
            yield position, label, Encoded(f"{place} of {paths[0]}", archive.read(place)) if archive else place

    return Images(len(train), len(test), tuple(_distinct(classes, words)), items())


def _distinct(numbers: Sequence[str], words: Mapping[str, str]) -> Iterator[str]:
    """The word of every class, or its number where two classes have the same word."""
    called = [words.get(number, number) for number in numbers]
    return (number if called.count(word) > 1 else word for number, word in zip(numbers, called, strict=True))


def food101(paths: Sequence[Path]) -> Images:
    """Classes in sorted order, images as meta/train.txt and meta/test.txt list them. paths: the tar.gz, or every unpacked file."""
    top, packed = "food-101", paths[0].name.endswith(".tar.gz")
    lists = ("meta/classes.txt", "meta/train.txt", "meta/test.txt")
    if packed:
        texts: dict[str, bytes] = {}
        for name, read in _members(paths[0]):  # They need not come before the images, which are too many to be kept until then.
            if _below(top, name) in lists:
                texts[_below(top, name)] = read()
                if len(texts) == len(lists):
                    break
    else:
        texts = {name: path.read_bytes() for path in paths if (name := _below(top, path.as_posix())) in lists}
    missing = [name for name in lists if name not in texts]
    if missing:
        raise ConfigError(f"data.source: {paths[0]} has no {missing[0]}: get it again")
    classes, train, test = (texts[name].decode().split() for name in lists)
    classes.sort()
    label_of = {name: label for label, name in enumerate(classes)}
    place_of = {f"images/{name}.jpg": (position, label_of[name.split("/")[0]]) for position, name in enumerate([*train, *test])}

    def items() -> Iterator[tuple[int, int, Path | Encoded]]:
        for name, stored in _members(paths[0]) if packed else ((path.as_posix(), path) for path in paths):
            if _below(top, name) in place_of:
                position, label = place_of[_below(top, name)]
                yield position, label, Encoded(f"{name} of {paths[0]}", stored()) if packed else stored

    return Images(len(train), len(test), tuple(classes), items())


def _members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names of the files in a tar.gz, in its order, and what reads the one that was named last."""
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, lambda member=member: archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _below(top: str, name: str) -> str:
    """The part of a path below the folder `top`; the path itself where it is not below one."""
    return name.rpartition(f"{top}/")[2]


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"data.source: {path} cannot be read ({one_line(error)}): get it again")
