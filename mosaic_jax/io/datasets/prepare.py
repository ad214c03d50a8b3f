"""`mosaic-jax prepare`: brings a data set into the data directory through TFDS, or says which official files to put there."""

import importlib.util
import shlex
import urllib.error
import urllib.request
from pathlib import Path

from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.io.datasets.found import Missing, one_line
from mosaic_jax.io.datasets.official import OFFICIAL, SITES
from mosaic_jax.io.datasets.placed import data_directory, places
from mosaic_jax.sources import BENCHMARKS

NEEDED = ("tensorflow", "importlib_resources")
INSTALL = "pip install 'mosaic-jax[prepare]'"
ANSWER_SECONDS = 10.0
IMAGE_SIZE = 32  # that of the decoded copy; runs at 64 make their own


def prepare(name: str, directory: str, console: Console) -> None:
    """Makes a benchmark or `tfds:NAME` ready to train on: what is there is checked and decoded, otherwise TFDS downloads it.

    directory: data.dir, where it is empty TFDS's own. Raises ConfigError where that needs TensorFlow, a host that does not answer
    or a file put there by hand.
    """
    if name not in BENCHMARKS and not name.startswith("tfds:"):
        raise ConfigError(f"prepare {name}: must be one of {', '.join(BENCHMARKS)}, tfds:NAME")
    if name in BENCHMARKS:
        show_official_files(name, directory, console)
    try:
        dataset = load(name, IMAGE_SIZE, directory=directory, console=console)
    except Missing:
        in_tfds = name.removeprefix("tfds:") if name not in BENCHMARKS else BENCHMARKS[name].tfds
        if not in_tfds:
            raise ConfigError(f"prepare {name}: TFDS does not have it; put one of the sets of files above there") from None
        _download(name, in_tfds, data_directory(directory), console)
        dataset = load(name, IMAGE_SIZE, directory=directory, console=console)
    option = f" --data-dir {shlex.quote(directory)}" if directory else ""
    console.message(
        f"{name} is ready: {len(dataset.train_labels)} training and {len(dataset.test_labels)} test images, "
        f"{len(dataset.class_names)} classes; train with{option} --set data.source={name}"
    )


def show_official_files(name: str, directory: str, console: Console) -> None:
    """The files that are read as their publisher has them, one set of them being enough: names, bytes and where they are."""
    folders = places(name, directory)
    rows = []
    for number, layout in enumerate(OFFICIAL[name], 1):
        for file in layout.files:
            there = next((str(folder) for folder in folders if (folder / file.name).is_file()), "-")
            rows.append((str(number), file.name, f"{file.size:,}" if file.size else "", there))
        if layout.folder:
            rows.append((str(number), f"and all else in {layout.folder}", "", ""))
    looked = ", ".join(map(str, folders))
    console.message(f"official files of {BENCHMARKS[name].title}, from {SITES[name]}; one set is read from one of {looked}:")
    console.table("", ("set", "file", "bytes ", "is in"), rows)


def _download(name: str, in_tfds: str, directory: Path, console: Console) -> None:
    by_hand = ", or put one of the sets of files above there" if name in BENCHMARKS else ""
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"prepare {name}: TFDS downloads only with {' and '.join(missing)}, not installed: {INSTALL}{by_hand}")
    import tensorflow_datasets as tfds  # Imported here: nothing else in this module needs it.

    try:
        builder = tfds.builder(in_tfds, data_dir=directory, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise ConfigError(f"prepare {name}: TFDS knows no data set of that name; tfds.list_builders() lists them") from error
    except Exception as error:  # TFDS reports malformed names by many kinds.
        raise ConfigError(f"prepare {name}: TFDS cannot open it ({one_line(error)}): name one of tfds.list_builders()") from error
    for address in list(builder.url_infos or ())[:1]:  # TFDS would try a host that does not answer for minutes
        _check_answer(name, address, by_hand)
    console.message(f"{name}: TFDS prepares {builder.info.full_name} in {builder.data_dir}")
    try:
        builder.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except Exception as error:  # TFDS reports networks, checksums and disks by many kinds.
        raise ConfigError(f"prepare {name}: TFDS failed ({one_line(error)}): run this again to go on{by_hand}") from error


def _check_answer(name: str, address: str, by_hand: str) -> None:
    """Raises ConfigError where the host of an address does not answer in time; what it answers does not matter."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"prepare {name}: {address} does not answer ({reason}): run it with a network{by_hand}") from error
