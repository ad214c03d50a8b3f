"""What data.source may name, and what the seven benchmarks of the field are: sizes, statistics and augmentation."""

import difflib
import os
from pathlib import Path
from typing import NamedTuple

from mosaic_jax.registry import SOURCES, Entry

Channels = tuple[float, float, float]


class Benchmark(NamedTuple):
    """What a short name stands for.

    tfds: its name in TFDS, empty where it has none. mean, std: of x in [0, 1], for data.image_range=normalized.
    augment: of training batches, a value of data.augment.
    """

    title: str
    tfds: str
    num_classes: int
    num_train: int
    num_test: int
    original: str
    augment: str
    mean: Channels
    std: Channels


GREY_MEAN, GREY_STD = (0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)
HALF = (0.5, 0.5, 0.5)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

# The statistics are the public code's, whichever set they come from: it gives Fashion-MNIST those of MNIST, Tiny-ImageNet those of
# ImageNet and FOOD101, without augmentation, those of CIFAR-100.
BENCHMARKS = {
    "mnist": Benchmark("MNIST", "mnist", 10, 60_000, 10_000, "28x28 grey", "none", GREY_MEAN, GREY_STD),
    "fmnist": Benchmark("Fashion-MNIST", "fashion_mnist", 10, 60_000, 10_000, "28x28 grey", "none", GREY_MEAN, GREY_STD),
    "svhn": Benchmark("SVHN", "svhn_cropped", 10, 73_257, 26_032, "32x32", "crop_flip", HALF, HALF),
    "cifar10": Benchmark(
        "CIFAR-10", "cifar10", 10, 50_000, 10_000, "32x32", "crop_flip", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    ),
    "cifar100": Benchmark(
        "CIFAR-100", "cifar100", 100, 50_000, 10_000, "32x32", "crop_flip", CIFAR100_MEAN, CIFAR100_STD
    ),
    "tiny_imagenet": Benchmark(
        "Tiny-ImageNet", "", 200, 100_000, 10_000, "64x64", "crop_flip", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "food101": Benchmark(
        "FOOD101", "food101", 101, 75_750, 25_250, "up to 512x512", "none", CIFAR100_MEAN, CIFAR100_STD
    ),
}  # fmt: skip


def benchmark_of(source: str) -> Benchmark | None:
    """The benchmark that a data.source names, `cifar10` and `tfds:cifar10[/CONFIG][:VERSION]` alike; None for any other source."""
    if source in BENCHMARKS:
        return BENCHMARKS[source]
    kind, _, name = source.partition(":")
    name = name.partition(":")[0].partition("/")[0]
    return next((found for found in BENCHMARKS.values() if kind == "tfds" and found.tfds == name), None)


# What stands behind the colon, of kinds that need it.
PLACES = {"tfds": "NAME", "folder": "PATH", "npz": "PATH"}
for _name in ("digits", *BENCHMARKS, *PLACES):
    SOURCES.add(_name, Entry("io.datasets:read", built_in=True))


def forms() -> tuple[str, ...]:
    """What a data.source may be, a plugin's sources among them."""
    return tuple(f"{name}:{PLACES[name]}" if name in PLACES else name for name in SOURCES)


def absolute(path: str) -> Path:
    """A path as a user writes it, from here; ~ is a home directory where there is one."""
    return Path(os.path.expanduser(path)).absolute()


def path_of(source: str) -> Path | None:
    """The absolute path that a data.source names; None where it names none."""
    kind, _, place = source.partition(":")
    return absolute(place) if kind in ("folder", "npz") and place else None


def unknown_source(source: str) -> str:
    """What is wrong with a data.source by its form alone, with the nearest one that there is; empty if nothing is."""
    kind, colon, rest = source.partition(":")
    if (kind in PLACES and rest) or (source in SOURCES and source not in PLACES):
        return ""
    starts = {form.partition(":")[0] + ":" * (":" in form): form for form in forms()}
    near = difflib.get_close_matches(kind + colon, starts, 1)
    return f"must be one of {', '.join(forms())}" + (f"; did you mean {starts[near[0]]}?" if near else "")
