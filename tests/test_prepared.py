"""Data sets that TFDS has prepared, through TFDS's own files and readers and without TensorFlow."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copies import png, real_digits, write_folder, write_tfds

from mosaic_jax.config import ConfigError
from mosaic_jax.config_io import apply_overrides, load_config_file
from mosaic_jax.io.datasets import load
from mosaic_jax.sources import BENCHMARKS
from mosaic_jax.stages.problem import build_problem

tfds = pytest.importorskip("tensorflow_datasets")
ROOT = Path(__file__).parent.parent
TRAIN, TRAIN_LABELS, TEST, TEST_LABELS = real_digits()
NAMES = [f"digit {number}" for number in range(10)]


def examples(images: np.ndarray, labels: np.ndarray, **others: Any) -> list[dict]:
    return [{"image": png(image), "label": int(label), **others} for image, label in zip(images, labels, strict=True)]


def features(channels: int = 3, names: list[str] = NAMES) -> dict[str, Any]:
    return {"image": tfds.features.Image(shape=(None, None, channels)), "label": tfds.features.ClassLabel(names=names)}


def refusal(source: str, directory: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(source, 32, directory=str(directory))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"data.source={source}")
    return message


@pytest.mark.parametrize("channels", [3, 1])
def test_a_prepared_set_gives_its_images_labels_and_class_names_in_its_order(tmp_path: Path, channels: int) -> None:
    train, test = (images if channels == 3 else images[..., 0] for images in (TRAIN, TEST))
    splits = {"train": examples(train, TRAIN_LABELS), "test": examples(test, TEST_LABELS)}
    write_tfds(tmp_path, "some_digits", features(channels), splits)
    data = load("tfds:some_digits", 32, directory=str(tmp_path))
    for images, stored in ((data.train_images, train), (data.test_images, test)):
        np.testing.assert_array_equal(images, stored if channels == 3 else np.repeat(stored[..., None], 3, -1))
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == (TRAIN_LABELS.tolist(), TEST_LABELS.tolist())
    assert data.train_labels.dtype == np.int32
    assert data.class_names == tuple(NAMES)


def test_a_class_without_training_images_is_refused_or_left_out(tmp_path: Path) -> None:
    names = [*NAMES[:3], "digit never written", *NAMES[3:]]
    splits = {"train": examples(TRAIN, TRAIN_LABELS + (TRAIN_LABELS > 2)), "test": examples(TEST, TEST_LABELS + (TEST_LABELS > 2))}
    write_tfds(tmp_path, "some_digits", features(names=names), splits)
    message = refusal("tfds:some_digits", tmp_path)
    assert message.endswith("no training images of class 'digit never written': data.labels=compact leaves such classes out")
    data = load("tfds:some_digits", 32, directory=str(tmp_path), labels="compact")
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == (TRAIN_LABELS.tolist(), TEST_LABELS.tolist())
    assert data.class_names == tuple(NAMES)


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.tfds])
def test_a_copy_with_the_features_of_the_named_builder_is_read_by_short_name_and_by_tfds_name(tmp_path: Path, name: str) -> None:
    benchmark = BENCHMARKS[name]
    with tfds.testing.mock_data():  # the builder's own code without its files; what it draws at random would need TensorFlow
        info = tfds.builder(benchmark.tfds).info
        version = str(info.version)
    assert info.features["label"].num_classes == benchmark.num_classes
    grey = info.features["image"].shape[-1] == 1
    others = {key: {"id": "train_1", "coarse_label": 0}[key] for key in info.features if key not in ("image", "label")}
    splits = {
        split: examples(images[..., 0] if grey else images, labels, **others)
        for split, images, labels in (
            ("train", TRAIN, TRAIN_LABELS), ("validation" if name == "food101" else "test", TEST, TEST_LABELS)
        )
    }  # fmt: skip
    write_tfds(tmp_path, benchmark.tfds, info.features, splits, version)
    data = load(name, 32, directory=str(tmp_path))
    np.testing.assert_array_equal(data.train_images[..., 0], TRAIN[..., 0])
    np.testing.assert_array_equal(data.test_labels, TEST_LABELS)
    assert data.class_names == tuple(info.features["label"].names)
    for again in (f"tfds:{benchmark.tfds}", f"tfds:{benchmark.tfds}:{version}"):
        np.testing.assert_array_equal(load(again, 32, directory=str(tmp_path)).test_images, data.test_images)


def test_cifar10_small_gets_identical_problems_from_tfds_folder_and_npz_copies(tmp_path: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    train, train_labels, test, test_labels = real_digits(400, 100)
    splits = {"train": examples(train, train_labels), "test": examples(test, test_labels)}
    write_tfds(tmp_path / "tfds", "cifar10", features(names=names), splits, shard=150)
    folder = write_folder(tmp_path / "folder", names, {"train": (train, train_labels), "test": (test, test_labels)})
    np.savez(tmp_path / "copy.npz", x_train=train, y_train=train_labels, x_test=test, y_test=test_labels)
    base = load_config_file(ROOT / "configs" / "cifar10_small.py")
    problems = []
    for settings in ([f"data.dir={tmp_path / 'tfds'}"], [f"data.source={folder}"], [f"data.source=npz:{tmp_path / 'copy.npz'}"]):
        config = apply_overrides(base, [*settings, "partition.min_samples=1"])
        problems.append(build_problem(config, load(config.data.source, 32, directory=config.data.dir)))
    first = problems[0]
    np.testing.assert_array_equal(first.dataset.train_images, train)
    for other in problems[1:]:
        for one, two in zip(first.dataset[:4], other.dataset[:4], strict=True):
            np.testing.assert_array_equal(one, two)
        for ours, theirs in zip(first.splits, other.splits, strict=True):
            for one, two in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, two)
        assert dataclasses.replace(other.config.data, source="cifar10", dir=first.config.data.dir) == first.config.data
    assert problems[1].dataset.class_names == tuple(names)


def test_a_set_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    image, label = features(names=["yes", "no"]).values()
    some = examples(TRAIN[:1], np.array([0]))
    write_tfds(tmp_path, "no_test", {"image": image, "label": label}, {"train": some})
    assert "it needs a train and a test split with images" in refusal("tfds:no_test", tmp_path)
    renamed = [{"image": png(TRAIN[0]), "kind": 0}]
    write_tfds(tmp_path, "no_label", {"image": image, "kind": label}, {"train": renamed, "test": renamed})
    assert "features ['image', 'kind']" in refusal("tfds:no_label", tmp_path)
    unlabelled = examples(TRAIN[:1], np.array([-1]))
    write_tfds(tmp_path, "unlabelled", {"image": image, "label": label}, {"train": some, "test": unlabelled})
    assert "without a label in test" in refusal("tfds:unlabelled", tmp_path)
    folder = write_tfds(tmp_path, "sequential", {"image": image, "label": label}, {"train": some, "test": some})
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    message = refusal("tfds:sequential", tmp_path)
    assert "without random access" in message
    assert f"mosaic-jax prepare tfds:sequential --data-dir {tmp_path}" in message


def test_another_set_under_a_benchmarks_name_is_refused(tmp_path: Path) -> None:
    some = examples(TRAIN[:2], np.array([0, 1]))
    write_tfds(tmp_path, "cifar100", features(names=["yes", "no"]), {"train": some, "test": some})
    assert "has 2 classes, CIFAR-100 has 100" in refusal("cifar100", tmp_path)


def test_a_damaged_shard_is_one_line(tmp_path: Path) -> None:
    folder = write_tfds(tmp_path, "damaged", features(), {split: examples(TRAIN, TRAIN_LABELS) for split in ("train", "test")})
    shard = sorted(folder.glob("*test.array_record-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-200])
    assert "test, cannot be read" in refusal("tfds:damaged", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar10:3.0.2", "no_such_set", "not a name", "huggingface:mnist"])
def test_what_is_not_prepared_fails_quickly_with_the_command_that_prepares_it(tmp_path: Path, name: str) -> None:
    started = time.perf_counter()
    message = refusal(f"tfds:{name}", tmp_path)
    assert time.perf_counter() - started < 5
    assert f"`mosaic-jax prepare tfds:{name} --data-dir {tmp_path}`" in message
    assert "data.source=digits, which needs no files" in message


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_that_is_nowhere_fails_quickly_and_says_where_it_looked(tmp_path: Path, name: str) -> None:
    started = time.perf_counter()
    message = refusal(name, tmp_path)
    assert time.perf_counter() - started < 5
    assert f"in {tmp_path}: prepare it once with `mosaic-jax prepare {name} --data-dir {tmp_path}`" in message
    assert "data.source=digits, which needs no files" in message
    assert f"in the missing folder {tmp_path / 'no'}" in refusal(name, tmp_path / "no")


def test_reading_a_prepared_set_imports_no_tensorflow(tmp_path: Path) -> None:
    write_tfds(tmp_path, "some_digits", features(), {split: examples(TRAIN, TRAIN_LABELS) for split in ("train", "test")})
    program = (
        "import sys; from mosaic_jax.io.datasets import load; load('tfds:some_digits', 32, directory=sys.argv[1]);"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False).returncode == 0


def test_without_a_directory_tfdss_own_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tfds(tmp_path, "some_digits", features(), {split: examples(TRAIN, TRAIN_LABELS) for split in ("train", "test")})
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    np.testing.assert_array_equal(load("tfds:some_digits", 32).train_images, TRAIN)
    write_tfds(tmp_path, "cifar10", features(), {split: examples(TRAIN, TRAIN_LABELS) for split in ("train", "test")})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with contextlib.chdir(tmp_path):
        np.testing.assert_array_equal(load("cifar10", 32).train_images, TRAIN)
