"""Reads labelled images from disk, from TFDS or from scikit-learn into one `Dataset` of bytes."""

import difflib
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mosaic_jax.config import ConfigError
from mosaic_jax.types import Dataset

_SUFFIXES = (".jpg", ".jpeg", ".png")
_IMAGES_PER_TASK = 256


def load(source: str, image_size: int) -> Dataset:
    """Reads a whole data set into memory: u8[N, image_size, image_size, 3] images and i32[N] labels.

    source: `digits`, scikit-learn's 1,797 handwritten digits with a fixed stratified fifth of them for testing;
    `folder:PATH`, PATH/train/CLASS/*.jpg|jpeg|png and PATH/test/CLASS/..., classes and files in sorted order;
    `npz:PATH`, arrays x_train, y_train, x_test, y_test (images u8 [N, H, W] or [N, H, W, 1 or 3], labels integers from 0);
    `tfds:NAME[/CONFIG][:VERSION]`, a data set prepared for random access, splits train and test, features image and label.

    Other sizes are stretched to the square with antialiased bilinear weights, grey is repeated to three channels,
    transparency is dropped and 16-bit images keep their high byte. Needs no TensorFlow and never touches the network.
    Raises ConfigError, one line naming what is wrong and the remedy, for anything that cannot be read as described.
    """
    kind, _, place = source.partition(":")
    if source == "digits":
        return _digits(image_size)
    readers = {"folder": _folder, "npz": _npz, "tfds": _tfds}
    if kind not in readers or not place:
        nearest = difflib.get_close_matches(kind, ["digits", *readers], n=1, cutoff=0.0)[0]
        form = {"digits": "digits", "tfds": "tfds:NAME"}.get(nearest, f"{nearest}:PATH")
        raise ConfigError(f"data.source={source!r} is unknown: did you mean {form}? (digits, folder:PATH, npz:PATH, tfds:NAME)")
    try:
        dataset = readers[kind](place, image_size)
    except OSError as error:
        raise ConfigError(f"data.source={source!r} cannot be read ({_one_line(error)}): check path and permissions") from error
    untrained = np.setdiff1d(dataset.test_labels, dataset.train_labels)
    if len(untrained):
        raise ConfigError(
            f"data.source={source!r} has test images of class {dataset.class_names[untrained[0]]!r} and no training images of it: "
            "remove them or add some"
        )
    return dataset


def _digits(size: int) -> Dataset:
    from sklearn.datasets import load_digits  # Imported here: it takes longer than all else in this module.

    digits = load_digits()
    resized = [np.asarray(Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
               for image in digits.images]
    grey = np.rint(np.stack(resized) * (255 / 16)).astype(np.uint8)
    images, labels = np.repeat(grey[..., None], 3, axis=-1), digits.target.astype(np.int32)
    random = np.random.RandomState(0)  # The split belongs to the data set: it is the same for every run.
    testing = np.zeros(len(labels), bool)
    for label in range(10):
        members = random.permutation(np.flatnonzero(labels == label))
        testing[members[: round(len(members) / 5)]] = True
    names = tuple(str(label) for label in range(10))
    return Dataset(images[~testing], labels[~testing], images[testing], labels[testing], names)


def _folder(place: str, size: int) -> Dataset:
    root = Path(place).expanduser()
    train, test = _class_files(root / "train"), _class_files(root / "test")
    for name in test:
        if name not in train:
            raise ConfigError(
                f"data.source: {root / 'test' / name} is a class that {root / 'train'} lacks: remove it or add training images"
            )
    names = tuple(train)
    parts = []
    for split in (train, test):
        files = [file for members in split.values() for file in members]
        labels = np.repeat([names.index(name) for name in split], [len(members) for members in split.values()])
        parts += [_in_parallel(_read, files, size), labels.astype(np.int32)]
    return Dataset(*parts, names)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """The image files of every class folder, both in sorted order; hidden names are skipped."""
    if not folder.is_dir():
        raise ConfigError(f"data.source: folder {folder} does not exist: expected {folder / 'CLASS'}/*.jpg, *.jpeg or *.png")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ConfigError(f"data.source: folder {folder} is empty: expected a folder for each class in it")
    found = {}
    for name in classes:
        files = sorted(file for file in os.listdir(folder / name) if file.lower().endswith(_SUFFIXES) and not file.startswith("."))
        if not files:
            raise ConfigError(f"data.source: class folder {folder / name} has no .jpg, .jpeg or .png file: add images or remove it")
        found[name] = [folder / name / file for file in files]
    return found


def _read(file: Path, size: int) -> np.ndarray:
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            return _pixels(image, size)
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged files.
        reason = "it is empty" if file.is_file() and file.stat().st_size == 0 else _one_line(error)
        raise ConfigError(f"data.source: image {file} cannot be read ({reason}): replace or remove it") from error


def _pixels(image: Image.Image, size: int) -> np.ndarray:
    """Any Pillow image as u8[size, size, 3]."""
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip them to 255.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR))


def _in_parallel(read: Callable[..., np.ndarray], items: Sequence, size: int) -> np.ndarray:
    """Runs read(item, size) over all items in threads: u8[N, size, size, 3]. The first failure in order is raised."""
    images = np.empty((len(items), size, size, 3), np.uint8)

    def fill(start: int) -> None:
        for position in range(start, min(start + _IMAGES_PER_TASK, len(items))):
            images[position] = read(items[position], size)

    pool = ThreadPoolExecutor()
    try:
        for _ in pool.map(fill, range(0, len(items), _IMAGES_PER_TASK)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _npz(place: str, size: int) -> Dataset:
    path = Path(place).expanduser()
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [key for key in keys if key not in stored]
            arrays = {key: stored[key] for key in keys if key in stored}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"data.source: {path} cannot be read as .npz ({_one_line(error)}): write it with numpy.savez") from error
    if missing:
        raise ConfigError(f"data.source: {path} has no {', '.join(missing)}: it needs {', '.join(keys)}")
    parts = []
    for split in ("train", "test"):
        parts += _npz_split(path, split, arrays[f"x_{split}"], arrays[f"y_{split}"], size)
    return Dataset(*parts, tuple(str(label) for label in range(int(max(parts[1].max(), parts[3].max())) + 1)))


def _npz_split(path: Path, split: str, images: np.ndarray, labels: np.ndarray, size: int) -> list[np.ndarray]:
    if images.dtype != np.uint8:
        raise ConfigError(f"data.source: x_{split} of {path} has type {images.dtype}: it must be uint8")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape:
        raise ConfigError(f"data.source: x_{split} of {path} has shape {images.shape}: it must be (N, H, W) or (N, H, W, 1 or 3)")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != images.shape[:1]:
        raise ConfigError(f"data.source: y_{split} of {path} has shape {labels.shape}: it must be ({len(images)},), one per image")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ConfigError(f"data.source: y_{split} of {path} must hold integers from 0 (type {labels.dtype})")
    flat = images[..., 0] if images.shape[3:] == (1,) else images
    return [_in_parallel(lambda image, size: _pixels(Image.fromarray(image), size), flat, size), labels.astype(np.int32)]


def _tfds(name: str, size: int) -> Dataset:
    import tensorflow_datasets as tfds  # Imported here: only this source needs it.

    source = f"data.source='tfds:{name}'"
    remedy = f"prepare it once with: pip install 'mosaic-jax[prepare]' && tfds build {name} --file_format=array_record"
    # Looks at the data directories only; tfds.builder(name) would ask remote buckets about a data set it does not find.
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name)
    except tfds.core.DatasetNotFoundError as error:
        other = "or name other data with --set data.source=folder:PATH"
        raise ConfigError(f"{source} is not prepared in {tfds.core.constants.DATA_DIR}: {remedy}, {other}") from error
    except Exception as error:  # TFDS reports malformed names and damaged metadata by many kinds.
        raise ConfigError(f"{source} cannot be opened ({_one_line(error)}): {remedy}") from error
    splits, features = builder.info.splits, dict(builder.info.features.items())
    sizes = {split: splits[split].num_examples for split in splits}
    if not sizes.get("train") or not sizes.get("test"):
        raise ConfigError(f"{source} has splits {sizes}: it needs a train and a test split that are not empty")
    if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
        raise ConfigError(f"{source} has features {sorted(features)}: it needs an image and a class label, named image and label")
    parts: list[np.ndarray] = []
    try:
        for split in ("train", "test"):
            examples = builder.as_data_source(split=split)
            images, labels = np.empty((len(examples), size, size, 3), np.uint8), np.empty(len(examples), np.int32)
            for position, example in enumerate(examples):
                image, labels[position] = example["image"], example["label"]
                images[position] = _pixels(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image), size)
            if labels.min() < 0:
                raise ConfigError(f"{source} has images without a label in split {split}: choose a labelled data set")
            parts += [images, labels]
    except NotImplementedError as error:
        raise ConfigError(f"{source} is stored without random access: {remedy}") from error
    return Dataset(*parts, tuple(features["label"].names))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"[:200]
