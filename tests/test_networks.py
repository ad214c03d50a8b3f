"""Networks beside BatchNorm's convolutions: GroupNorm in CNN and ResNets, a vision transformer."""

import doctest
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny, train

from mosaic_jax.config import ConfigError, ModelConfig
from mosaic_jax.io.results_file import read_results
from mosaic_jax.models import build_classifier, layers
from mosaic_jax.models.layers import GroupNorm, num_groups
from mosaic_jax.rng import key_of
from mosaic_jax.types import Classifier, Variables


def made(name: str, norm: str = "batch", width: int = 2, image_size: int = 32) -> tuple[Classifier, Variables, jax.Array]:
    classifier = build_classifier(ModelConfig(name, width, norm), 5, image_size=image_size)
    images = jax.random.normal(key_of(1), (3, image_size, image_size, 3))
    return classifier, jax.jit(classifier.init)(key_of(0)), images


@pytest.mark.parametrize(("name", "norm"), [("cnn", "group"), ("resnet18", "group"), ("vit", "batch")])
def test_a_network_without_batch_norm_has_no_statistics_and_sees_each_image_alone(name: str, norm: str) -> None:
    classifier, variables, images = made(name, norm)
    assert jax.tree.leaves(variables.batch_stats) == []
    apply = jax.jit(classifier.apply, static_argnums=2)
    logits, _ = apply(variables, images, True)
    assert logits.shape == (3, 5) and logits.dtype == jnp.float32
    np.testing.assert_allclose(apply(variables, images, False)[0], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply(variables, images[:1], True)[0], logits[:1], rtol=1e-4, atol=1e-5)
    features, _ = classifier.features(variables, images, False)
    assert features.shape == (3, classifier.feature_size)
    np.testing.assert_allclose(classifier.head(variables, features), logits, rtol=1e-4, atol=1e-5)


def test_group_norm_is_its_formula() -> None:
    images = jax.random.normal(key_of(0), (2, 4, 4, 6)) * 3 + 1
    variables = GroupNorm().init(key_of(1), images, True)
    outputs = GroupNorm().apply(variables, images, True, relu=True, residual=images, divisor=2.0)
    halved = np.asarray(images, np.float64) / 2
    groups = halved.reshape(2, 4, 4, 3, 2)
    normed = (groups - groups.mean((1, 2, 4), keepdims=True)) / np.sqrt(groups.var((1, 2, 4), keepdims=True) + 1e-5)
    np.testing.assert_allclose(outputs, np.maximum(normed.reshape(images.shape) + np.asarray(images), 0), rtol=1e-4, atol=1e-5)


def test_no_group_has_a_single_channel_where_there_are_more() -> None:
    assert doctest.testmod(layers).failed == 0
    assert all(channels % num_groups(channels) == 0 and channels // num_groups(channels) >= 2 for channels in range(2, 200))


def test_a_vit_of_larger_images_has_more_positions() -> None:
    small, large = made("vit")[1], made("vit", image_size=64)[1]
    assert (small.params["position"].shape, large.params["position"].shape) == ((64, 16), (256, 16))


@pytest.mark.parametrize(
    "values",
    [
        {"model.norm": "group"},
        {"model.name": "vit", "model.width": 1},
        {"clients.models": ("vit:1", "cnn:2"), "partition.num_clients": 3},
    ],
    ids=["group", "vit", "both"],
)
def test_mosaic_runs_on_them(values: dict[str, Any], tmp_path: Path) -> None:
    from mosaic_jax.config_io import with_values

    assert train(with_values(tiny(), values), tmp_path / "run") == 0
    results = read_results(tmp_path / "run")
    assert results is not None and {"student", "mixture"} <= set(results["models"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "heterofl", "model": {"name": "vit"}}, "method=heterofl: vit has no narrower forms"),
        ({"method": "fedbn", "model": {"norm": "group"}}, r"method=fedbn: cnn with model\.norm=group has no BatchNorm"),
        ({"generator": {"inversion_weight": 1.0}, "model": {"norm": "group"}}, r"generator\.inversion_weight=1: cnn with"),
        ({"generator": {"inversion_weight": 1.0}, "model": {"name": "vit"}}, r"generator\.inversion_weight=1: vit has no"),
    ],
)
def test_what_reads_batch_norm_or_narrows_a_network_refuses_one_that_cannot(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**values)
