"""Labelled images from the benchmarks' official files, TFDS, folders, .npz or scikit-learn, as one `Dataset` of bytes."""

import shlex
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from mosaic_jax.config import Config, ConfigError, DataConfig
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import folder, npz, placed, prepared
from mosaic_jax.io.datasets.cache import Put, cached
from mosaic_jax.io.datasets.digits import digits
from mosaic_jax.io.datasets.found import Found, Images, Missing, one_line
from mosaic_jax.io.datasets.pixels import VIEWER, Rendering, Traits, decode, notes
from mosaic_jax.registry import SOURCES
from mosaic_jax.sources import BENCHMARKS, absolute, benchmark_of, path_of, unknown_source
from mosaic_jax.types import Dataset

SHOWN_FROM = 5_000  # images; fewer are decoded before a progress bar is worth a look


def dataset_of(config: Config, console: Console) -> Dataset:
    """The data set that a configuration names; raises ConfigError where a registered source gives none."""
    data, kind = config.data, config.data.source.partition(":")[0]
    if SOURCES.entry(kind).built_in:
        return SOURCES[kind](data, console=console)
    dataset = SOURCES[kind](data, settings=config.section_of(kind))
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"data.source={data.source}: gives {type(dataset).__name__}; it must return a mosaic_jax.Dataset")
    check_dataset(dataset, data.image_size)
    return dataset


def check_dataset(dataset: Dataset, size: int) -> None:
    """Raises ConfigError for arrays that are no data set of images of this size."""
    num_classes = len(dataset.class_names)
    for use in ("train", "test"):
        images, labels = (np.asarray(getattr(dataset, f"{use}_{what}")) for what in ("images", "labels"))
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ConfigError(
                f"Dataset.{use}_images: {images.dtype}{list(images.shape)}; must be uint8[N, {size}, {size}, 3] for "
                f"data.image_size={size}"
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ConfigError(f"Dataset.{use}_labels: {labels.dtype}{list(labels.shape)}; must be integers [{len(images)}]")
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ConfigError(
                f"Dataset.{use}_labels: from {labels.min()} to {labels.max()}; must be 0 to {num_classes - 1}, as class_names has "
                f"{num_classes}"
            )


def read(data: DataConfig, *, console: Console) -> Dataset:
    """`load` of a built-in source."""
    rendering = Rendering(data.background, data.bit_depth)
    return load(data.source, data.image_size, directory=data.dir, labels=data.labels, rendering=rendering, console=console)


def load(
    source: str, image_size: int, *, directory: str = "", labels: str = "as_given", rendering: Rendering = VIEWER,
    console: Console | None = None,
) -> Dataset:  # fmt: skip
    """All images of a source: u8[N, image_size, image_size, 3], mapped from the decoded copy on disk, and i32[N] labels.

    source: a short name of BENCHMARKS: a copy that TFDS has prepared in `directory`, otherwise the official files there;
    `tfds:NAME[/CONFIG][:VERSION]`, `folder:PATH`, `npz:PATH` or `digits`, as their modules say.
    directory: data.dir, where it is empty TFDS's own. labels: data.labels. console: hears of progress, of what is not kept and
    of choices that were made.

    Needs no TensorFlow and never touches the network. Raises ConfigError, one line naming what is wrong and the remedy, for
    anything that cannot be read as described.
    """
    if complaint := unknown_source(source):
        raise ConfigError(f"data.source={source}: {complaint}")
    if source == "digits":
        return digits(image_size)
    console = console or Console(quiet=True)

    def shown(images: Images, put: Put, rendering: Rendering) -> Traits:
        count = images.num_train + images.num_test
        bar = console.progress("decoding", count, unit="images") if count >= SHOWN_FROM else nullcontext()
        with bar as progress:
            advance = progress.advance if progress is not None else lambda count: None
            return decode(images, image_size, put, advance, rendering)

    def decode_all(images: Images, put: Put) -> list[str]:
        traits, chosen = shown(images, put, rendering), rendering
        if not rendering.bit_depth:
            chosen = rendering._replace(bit_depth=traits.bit_depth)
            if chosen.bit_depth < 16:  # known only now that all were seen
                shown(found.open(console), put, chosen)
        return notes(traits, chosen)

    try:
        found = find(source, directory, labels, console)._replace(settings=(labels, *rendering))
        dataset = cached(found, image_size, decode_all, console)
    except OSError as error:
        raise ConfigError(f"data.source={source} cannot be read ({one_line(error)}): check path and permissions") from error
    benchmark = benchmark_of(source)
    if benchmark and len(dataset.class_names) != benchmark.num_classes:
        raise ConfigError(
            f"data.source={source} has {len(dataset.class_names)} classes, {benchmark.title} has {benchmark.num_classes}: "
            "name the copy that is meant by another --data-dir"
        )
    untrained = np.setdiff1d(dataset.test_labels, dataset.train_labels)
    if len(untrained):
        raise ConfigError(
            f"data.source={source} has test images of class {dataset.class_names[untrained[0]]!r} and no training images of it: "
            "remove them or add some"
        )
    return _with_training_images(dataset, source, labels)


def _with_training_images(dataset: Dataset, source: str, labels: str) -> Dataset:
    """The data set without the classes that have none, where labels=compact; raises ConfigError for them else, but for benchmarks,
    whose classes are known."""
    known = np.unique(dataset.train_labels)
    absent = np.setdiff1d(np.arange(len(dataset.class_names)), known)
    if not len(absent) or (labels == "as_given" and benchmark_of(source)):
        return dataset
    if labels == "as_given":
        more = f" and {len(absent) - 1} other classes" if len(absent) > 1 else ""
        raise ConfigError(
            f"data.source={source} has no training images of class {dataset.class_names[absent[0]]!r}{more}: "
            "data.labels=compact leaves such classes out"
        )
    return dataset._replace(
        train_labels=np.searchsorted(known, dataset.train_labels).astype(np.int32),
        test_labels=np.searchsorted(known, dataset.test_labels).astype(np.int32),
        class_names=tuple(dataset.class_names[label] for label in known),
    )


def places(source: str, directory: str) -> list[str]:
    """The sources that a folder or an .npz file may be now: itself, then in a data.dir or that itself; empty for other sources."""
    path = path_of(source)
    if path is None:
        return []
    kind, root = source.partition(":")[0], absolute(directory)
    return [f"{kind}:{place}" for place in ([path, root / path.name, root] if directory else [path])]


def is_there(source: str) -> bool:
    """Whether a folder or an .npz file is there."""
    kind, _, place = source.partition(":")
    return Path(place, "train").is_dir() if kind == "folder" else Path(place).is_file()


def find(source: str, directory: str, labels: str, console: Console) -> Found:
    """Where the images of a source are; raises ConfigError where they are not."""
    source = next(filter(is_there, places(source, directory)), source)
    kind, _, place = source.partition(":")
    if kind == "folder":
        return folder.find(place, console)
    if kind == "npz":
        return npz.find(place, labels)
    option = f" --data-dir {shlex.quote(directory)}" if directory else ""
    remedy = f"prepare it once with `mosaic-jax prepare {source}{option}`, or take data.source=digits, which needs no files"
    return prepared.find(place, directory, source, remedy) if kind == "tfds" else _benchmark(source, directory, remedy)


def _benchmark(name: str, directory: str, remedy: str) -> Found:
    """What TFDS has prepared, else the official files."""
    root, in_tfds = placed.data_directory(directory), BENCHMARKS[name].tfds
    refusal: ConfigError | None = None
    # A look that costs nothing, where importing TFDS costs a second; official files may lie in a folder of the same name.
    if in_tfds and any((root / in_tfds).glob("*/dataset_info.json")):
        try:
            return prepared.find(in_tfds, str(root), name, remedy)
        except ConfigError as error:
            refusal = error
    found = placed.find(name, directory)
    if found is None:
        there = "in" if root.is_dir() else "in the missing folder"
        raise refusal or Missing(f"data.source={name}: no prepared copy and no official files, complete, {there} {root}: {remedy}")
    return found
