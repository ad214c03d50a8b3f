"""`mosaic-jax prepare` and what a data set's name brings with it."""

import importlib.util
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from copies import png, real_digits, write_tfds

from mosaic_jax import cli
from mosaic_jax.config import Config, ConfigError, DataConfig, GeneratorConfig, ModelConfig
from mosaic_jax.config_io import save_json
from mosaic_jax.data.named import with_own_settings
from mosaic_jax.io import run_directory
from mosaic_jax.io.datasets import load, prepare
from mosaic_jax.io.datasets.official import OFFICIAL
from mosaic_jax.models import build_classifier, build_discriminator, build_generator
from mosaic_jax.planning.run_plan import plan_run
from mosaic_jax.sources import BENCHMARKS

tfds = pytest.importorskip("tensorflow_datasets")
TRAIN, TRAIN_LABELS, TEST, TEST_LABELS = real_digits()


@pytest.fixture
def pretending_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what TFDS downloads with were installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The error line of a command that exits 2, and what it printed before."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err, out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prepare_lists_the_official_files_their_sizes_and_where_they_go(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error, out = failure(["prepare", name, "--data-dir", str(tmp_path)], capsys)
    for layout in OFFICIAL[name]:
        for file in layout.files:
            assert file.name in out
            assert not file.size or f"{file.size:,}" in out
    assert str(tmp_path / name) in out
    assert "put one of the sets of files above there" in error
    assert ("pip install 'mosaic-jax[prepare]'" in error) == bool(BENCHMARKS[name].tfds)


def test_prepare_says_what_it_can_prepare(capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be one of mnist, fmnist, svhn" in failure(["prepare", "cifar"], capsys)[0]
    assert "the following arguments are required: NAME" in failure(["prepare"], capsys)[0]


class Builder:
    """Stands in for a TFDS builder, which cannot prepare without TensorFlow: writes the copy in TFDS's own format."""

    def __init__(self, root: Path, address: str | None) -> None:
        self.root, self.url_infos, self.data_dir = root, {address: None} if address else None, str(root)
        self.info = SimpleNamespace(full_name="cifar10/3.0.2")

    def download_and_prepare(self, *, file_format: str, download_config: Any) -> None:
        assert file_format == "array_record"
        features = {"image": tfds.features.Image(shape=(32, 32, 3)), "label": tfds.features.ClassLabel(num_classes=10)}
        pairs = {"train": zip(TRAIN, TRAIN_LABELS, strict=True), "test": zip(TEST, TEST_LABELS, strict=True)}
        splits = {split: [{"image": png(image), "label": label} for image, label in found] for split, found in pairs.items()}
        write_tfds(self.root, "cifar10", features, splits)


@pytest.mark.usefixtures("pretending_tensorflow")
def test_prepare_downloads_what_is_not_there_and_the_second_time_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda request, timeout: asked.append(request) or socket.socket())
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir, try_gcs: Builder(data_dir, "https://host/file.tar.gz"))
    for _ in range(2):
        assert cli.main(["prepare", "cifar10", "--data-dir", str(tmp_path)]) == 0
        ready = capsys.readouterr().out.splitlines()[-1]
        assert ready.startswith("cifar10 is ready: 40 training and 20 test images, 10 classes; train with ")
        assert ready.endswith(f"--data-dir {tmp_path} --set data.source=cifar10")
    assert [request.full_url for request in asked] == ["https://host/file.tar.gz"]
    np.testing.assert_array_equal(load("cifar10", 32, directory=str(tmp_path)).train_images, TRAIN)


@pytest.mark.usefixtures("pretending_tensorflow")
def test_a_set_whose_addresses_tfds_does_not_know_is_prepared_without_asking_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda *_, **__: pytest.fail("a host was asked"))
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir, try_gcs: Builder(data_dir, None))
    assert cli.main(["prepare", "tfds:cifar10", "--data-dir", str(tmp_path)]) == 0


@pytest.mark.usefixtures("pretending_tensorflow")
def test_a_host_that_does_not_answer_is_said_in_time_and_tfds_never_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(Builder, "download_and_prepare", lambda *_: pytest.fail("TFDS was asked"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz"
        monkeypatch.setattr(tfds, "builder", lambda name, data_dir, try_gcs: Builder(data_dir, address))
        started = time.perf_counter()
        error, _ = failure(["prepare", "cifar10", "--data-dir", str(tmp_path)], capsys)
        assert time.perf_counter() - started < 5
    assert f"{address} does not answer (timed out)" in error
    assert "put one of the sets of files above there" in error


def test_training_without_the_data_ends_in_one_line_and_leaves_no_run(
    tiny_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.perf_counter()
    arguments = ["train", *tiny_arguments, "data.source=food101", "--data-dir", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    error, _ = failure(arguments, capsys)
    assert time.perf_counter() - started < 5
    assert f"`mosaic-jax prepare food101 --data-dir {tmp_path}`" in error
    assert "data.source=digits, which needs no files" in error
    assert not (tmp_path / "run").exists()


# --- what a name brings with it ---


@pytest.mark.parametrize(
    ("source", "augment", "mean", "std"),
    [
        ("mnist", "none", 0.1307, 0.3081), ("fmnist", "none", 0.1307, 0.3081), ("svhn", "crop_flip", 0.5, 0.5),
        ("cifar10", "crop_flip", 0.4914, 0.2023), ("cifar100", "crop_flip", 0.5071, 0.2673),
        ("tiny_imagenet", "crop_flip", 0.485, 0.229), ("food101", "none", 0.5071, 0.2673),
        ("tfds:svhn_cropped", "crop_flip", 0.5, 0.5), ("tfds:cifar10:3.0.2", "crop_flip", 0.4914, 0.2023),
        ("tfds:kmnist", "none", 0.5, 0.5), ("digits", "none", 0.5, 0.5), ("folder:cifar10", "none", 0.5, 0.5),
    ],
)  # fmt: skip
def test_a_name_brings_its_augmentation_and_statistics(source: str, augment: str, mean: float, std: float) -> None:
    own = with_own_settings(DataConfig(source=source))
    assert (own.augment, own.mean[0], own.std[0]) == (augment, mean, std)
    mine = DataConfig(source=source, augment="none", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert with_own_settings(mine) == mine


def test_a_run_goes_on_whether_its_settings_are_written_down_or_left_to_the_name(tmp_path: Path) -> None:
    written = with_own_settings(DataConfig(source="cifar10"))
    save_json(Config(data=written), tmp_path / "config.json")
    run_directory.check(tmp_path, Config(data=DataConfig(source="cifar10", dir="/moved")))
    with pytest.raises(ConfigError, match=r"\(data.augment=crop_flip, not none\)"):
        run_directory.check(tmp_path, Config(data=DataConfig(source="cifar10", augment="none")))


def test_every_benchmark_has_the_sizes_that_everybody_knows() -> None:
    sizes = {name: (b.num_classes, b.num_train, b.num_test) for name, b in BENCHMARKS.items()}
    assert sizes == {
        "mnist": (10, 60000, 10000), "fmnist": (10, 60000, 10000), "svhn": (10, 73257, 26032), "cifar10": (10, 50000, 10000),
        "cifar100": (100, 50000, 10000), "tiny_imagenet": (200, 100000, 10000), "food101": (101, 75750, 25250),
    }  # fmt: skip


def test_at_64_pixels_the_networks_are_dcgans_own_and_the_classifier_has_the_same_parameters() -> None:
    key, config = jax.random.key(0), GeneratorConfig(width=4, latent_size=8)
    generator, discriminator = build_generator(config, image_size=64), build_discriminator(config, image_size=64)
    images = jax.eval_shape(lambda: generator.apply(generator.init(key), jnp.zeros((2, 8)), True)[0])
    assert images.shape == (2, 64, 64, 3)
    assert jax.eval_shape(lambda: discriminator.apply(discriminator.init(key), jnp.zeros(images.shape), True)[0]).shape == (2,)
    kernels = jax.eval_shape(generator.init, key).params, jax.eval_shape(discriminator.init, key).params
    assert [kernel["conv5"]["kernel"].shape for kernel in kernels] == [(4, 4, 4, 3), (4, 4, 32, 1)]
    for name in ("cnn", "resnet18"):
        classifier = build_classifier(ModelConfig(name=name, width=2), 10)
        logits = jax.eval_shape(lambda c=classifier: c.apply(c.init(key), jnp.zeros((2, 64, 64, 3)), True)[0])
        assert logits.shape == (2, 10)


def test_a_run_at_64_pixels_is_planned_with_four_times_the_activations() -> None:
    small, large = (plan_run(tiny(method="fedavg_finetune", data={"image_size": size})) for size in (32, 64))
    assert [stage.name for stage in small.stages] == ["warmup", "finetune"]
    for one, other in zip(small.stages, large.stages, strict=True):
        assert other.memory.activations == pytest.approx(4 * one.memory.activations, rel=0.05)
