"""`tfds:NAME[/CONFIG][:VERSION]`: a copy that TFDS has prepared, read without TensorFlow and without the network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mosaic_jax.config import ConfigError
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets.found import Encoded, Found, Images, Missing, one_line
from mosaic_jax.sources import absolute

RECORDS_AT_ONCE = 256


def find(name: str, directory: str, source: str, remedy: str) -> Found:
    """The prepared copy of a TFDS data set in `directory`, or where that is empty in TFDS's own.

    It needs splits train and test (or validation where there is no test) and features image and label.
    source, remedy: what it is called and how to prepare it, for the errors. Raises ConfigError where there is no such copy.
    """
    import tensorflow_datasets as tfds  # Imported here: only this source needs it.

    # Looks at the data directories only; tfds.builder(name) would ask remote buckets about a data set it does not find.
    try:
        data_dir = absolute(directory) if directory else None
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        place = directory or tfds.core.constants.DATA_DIR
        raise Missing(f"data.source={source} is not prepared in {place}: {remedy}") from error
    except Exception as error:  # TFDS reports malformed names and damaged metadata by many kinds.
        raise ConfigError(f"data.source={source} cannot be opened ({one_line(error)}): {remedy}") from error
    sizes = {split: found.num_examples for split, found in builder.info.splits.items()}
    test = "test" if sizes.get("test") else "validation"
    if not sizes.get("train") or not sizes.get(test):
        raise ConfigError(f"data.source={source} has splits {sizes}: it needs a train and a test split with images")
    features = dict(builder.info.features.items())
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(feature), kind) for feature, kind in kinds.items()):
        raise ConfigError(
            f"data.source={source} has features {sorted(features)}: it needs an image and a class label, named image and label"
        )
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ConfigError(f"data.source={source} is stored without random access in {builder.data_dir}: move it away and {remedy}")
    files = sorted(file for file in Path(builder.data_dir).iterdir() if file.is_file())
    names = tuple(features["label"].names)

    def open_(console: Console) -> Images:
        return Images(sizes["train"], sizes[test], names, _examples(source, builder, {"train": 0, test: sizes["train"]}))

    return Found(f"tfds:{builder.data_dir}", files, open_)


def _examples(source: str, builder: Any, starts: dict[str, int]) -> Iterator[tuple[int, int, Encoded]]:
    """`items` of the splits, their images still encoded: TFDS would decode them in one thread, by whatever library is there."""
    import tensorflow_datasets as tfds

    for split, start in starts.items():
        try:
            examples = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
            for first in range(0, len(examples), RECORDS_AT_ONCE):
                numbers = range(first, min(first + RECORDS_AT_ONCE, len(examples)))
                for number, example in zip(numbers, examples.__getitems__(list(numbers)), strict=True):
                    if example["label"] < 0:
                        raise ConfigError(f"data.source={source} has images without a label in {split}: choose a labelled data set")
                    yield start + number, int(example["label"]), Encoded(f"{number} of {source}, {split}", example["image"])
        except (GeneratorExit, ConfigError):
            raise
        except Exception as error:  # array_record reports damaged files by several kinds.
            raise ConfigError(f"data.source={source}, {split}, cannot be read ({one_line(error)}): prepare it again") from error
