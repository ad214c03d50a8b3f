"""Networks: sizes of the public code, shapes in both modes, BatchNorm's statistics, and PyTorch weights in and out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaic_jax.config import ConfigError, GeneratorConfig, MetaConfig, ModelConfig
from mosaic_jax.io.torch_weights import from_torch, to_torch
from mosaic_jax.models import build_classifier, build_discriminator, build_generator, build_meta_model, classifier_as_discriminator
from mosaic_jax.models.layers import BatchNorm
from mosaic_jax.models.resnet import BLOCKS
from mosaic_jax.types import PyTree, Variables

CLASSIFIERS = ("cnn", *BLOCKS)
SMALL_GAN = GeneratorConfig(width=2, latent_size=6)


def num_params(shapes: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def shapes_of(network: Any) -> Any:
    return jax.eval_shape(network.init, jax.random.key(0))


def random_variables(network: Any, seed: int = 0) -> Any:
    """Values of a plausible size, all different; positive, so that they serve as variances too."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.05, 0.2, leaf.shape), jnp.float32), shapes_of(network))


def images(batch: int, size: int = 32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (batch, size, size, 3)), jnp.float32)


def changed(before: PyTree, after: PyTree) -> list[bool]:
    assert jax.tree.structure(before) == jax.tree.structure(after)
    before, after = jax.device_get((before, after))
    return [bool(np.any(a != b)) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]


def test_networks_have_as_many_parameters_as_the_public_code() -> None:
    assert num_params(shapes_of(build_classifier(ModelConfig("resnet18"), 10)).params) == 11_173_962
    assert num_params(shapes_of(build_generator(GeneratorConfig())).params) == 3_573_824
    assert num_params(shapes_of(build_discriminator(GeneratorConfig())).params) == 2_759_424
    assert num_params(shapes_of(build_meta_model(MetaConfig(), 10, 10))) == 948_206


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_runs_in_train_and_eval_mode_and_only_train_moves_statistics(name: str) -> None:
    classifier = build_classifier(ModelConfig(name, 2), 5)
    variables = random_variables(classifier)
    features, kept = classifier.features(variables, images(2, 8), False)
    logits, moved = classifier.apply(variables, images(2, 8), True)
    assert features.shape == (2, classifier.feature_size)
    assert classifier.head(variables, features).shape == logits.shape == (2, 5)
    assert features.dtype == logits.dtype == jnp.float32
    assert np.isfinite(features).all() and np.isfinite(logits).all()
    assert not any(changed(variables.batch_stats, kept))
    assert all(changed(variables.batch_stats, moved))


def test_logits_are_the_head_of_the_features() -> None:
    classifier = build_classifier(ModelConfig("resnet18", 2), 5)
    variables = random_variables(classifier)
    features, _ = classifier.features(variables, images(2, 8), False)
    np.testing.assert_allclose(classifier.apply(variables, images(2, 8), False)[0], classifier.head(variables, features), rtol=1e-6)


def test_a_fresh_classifier_starts_with_neutral_batch_norm_and_small_kernels() -> None:
    classifier = build_classifier(ModelConfig("cnn", 2), 5)
    variables = jax.jit(classifier.init)(jax.random.key(0))
    np.testing.assert_array_equal(variables.params["bn1"]["scale"], 1.0)
    np.testing.assert_array_equal(variables.batch_stats["bn1"]["mean"], 0.0)
    np.testing.assert_array_equal(variables.batch_stats["bn1"]["var"], 1.0)
    assert np.abs(variables.params["conv1"]["kernel"]).max() <= 27**-0.5


def test_input_statistics_are_recorded_per_batch_norm_layer_with_biased_variance() -> None:
    classifier = build_classifier(ModelConfig("cnn", 2), 5)
    variables = random_variables(classifier)
    first = variables._replace(params={**variables.params, "conv1": {"kernel": jnp.zeros((3, 3, 3, 2)).at[1, 1, 0, 0].set(1.0)}})
    for train in (False, True):
        logits, _, statistics = classifier.input_statistics(first, images(3), train)
        assert len(statistics) == 4
        mean, var, running_mean, running_var = statistics[0]
        np.testing.assert_allclose(mean, [images(3)[..., 0].mean(), 0.0], atol=1e-6)
        np.testing.assert_allclose(var, [images(3)[..., 0].var(), 0.0], atol=1e-6)
        np.testing.assert_array_equal(running_mean, variables.batch_stats["bn1"]["mean"])
        np.testing.assert_array_equal(running_var, variables.batch_stats["bn1"]["var"])
        np.testing.assert_allclose(logits, classifier.apply(first, images(3), train)[0], rtol=1e-6)


def test_batch_norm_normalises_by_the_biased_and_keeps_the_unbiased_variance() -> None:
    x = np.random.default_rng(2).standard_normal((2, 3, 1, 4))
    module = BatchNorm()
    collections = module.init(jax.random.key(0), jnp.zeros((1, 1, 1, 4)), True)
    outputs, moved = module.apply(collections, jnp.asarray(x, jnp.float32), True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(outputs, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_generator_and_discriminator_map_noise_to_images_to_scores() -> None:
    generator, discriminator = build_generator(SMALL_GAN), build_discriminator(SMALL_GAN)
    g, d = random_variables(generator), random_variables(discriminator)
    noise = jax.random.normal(jax.random.key(2), (3, 6))
    for train in (False, True):
        fake, g_stats = jax.jit(generator.apply, static_argnums=2)(g, noise, train)
        scores, d_stats = jax.jit(discriminator.apply, static_argnums=2)(d, fake, train)
        assert fake.shape == (3, 32, 32, 3) and scores.shape == (3,)
        assert np.abs(fake).max() <= 1.0
        assert all(changed((g.batch_stats, d.batch_stats), (g_stats, d_stats))) == train


@pytest.mark.parametrize("name", ["resnet18", "cnn", "generator", "discriminator"])
def test_in_bf16_only_the_convolutions_are_bf16_and_the_outputs_stay_near_float32(name: str) -> None:
    def build(precision: str) -> Any:
        if name == "generator":
            return build_generator(SMALL_GAN, precision)
        if name == "discriminator":
            return build_discriminator(SMALL_GAN, precision)
        return build_classifier(ModelConfig(name, 2), 5, precision)

    variables = random_variables(build("float32"))
    inputs = jax.random.normal(jax.random.key(2), (4, 6)) if name == "generator" else images(4)

    def loss(params: PyTree, network: Any) -> tuple[jax.Array, Any]:
        outputs, batch_stats = network.apply(Variables(params, variables.batch_stats), inputs, True)
        return jnp.sum(outputs**2), (outputs, batch_stats)

    def gradients(precision: str) -> Any:
        network = build(precision)
        return jax.jit(lambda params: jax.grad(loss, has_aux=True)(params, network))

    in_bf16 = gradients("bf16")
    full, half = gradients("float32")(variables.params), in_bf16(variables.params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), half) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), full)
    np.testing.assert_allclose(half[1][0], full[1][0], rtol=0.1, atol=0.1 * np.abs(full[1][0]).max())
    program = in_bf16.lower(variables.params).as_text()
    convolutions = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("bf16" in line and "f32" not in line for line in convolutions)


def test_a_classifier_as_discriminator_is_surer_of_an_image_with_any_high_logit() -> None:
    classifier = build_classifier(ModelConfig("cnn", 2), 5)
    variables = random_variables(classifier)
    logits, _ = classifier.apply(variables, images(3), False)
    scores, _ = classifier_as_discriminator(classifier).apply(variables, images(3), False)
    z = np.exp(np.asarray(logits, np.float64)).sum(axis=1)
    np.testing.assert_allclose(jax.nn.sigmoid(scores), z / (z + 1), rtol=1e-6)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_meta_model_runs_for_any_number_of_classes_and_draws_dropout_only_with_a_key(pooling: str) -> None:
    meta = build_meta_model(MetaConfig(expansion=2, feed_forward_size=8, pooling=pooling), 3, 4)
    params, apply = random_variables(meta), jax.jit(meta.apply)
    expert_logits = jax.random.normal(jax.random.key(1), (5, 4, 3))
    quiet = apply(params, expert_logits, None)
    assert quiet.shape == (5, 3)
    np.testing.assert_array_equal(quiet, apply(params, expert_logits, None))
    assert np.any(apply(params, expert_logits, jax.random.key(2)) != quiet)


SMALL = {
    "resnet18": build_classifier(ModelConfig("resnet18", 3), 7),
    "resnet50": build_classifier(ModelConfig("resnet50", 2), 4),
    "cnn": build_classifier(ModelConfig("cnn", 2), 5),
    "generator": build_generator(SMALL_GAN),
    "discriminator": build_discriminator(SMALL_GAN),
}


def small(kind: str) -> Variables:
    if kind == "meta":
        return Variables(random_variables(build_meta_model(MetaConfig(expansion=3, feed_forward_size=5), 4, 4)), {})
    return random_variables(SMALL[kind])


@pytest.mark.parametrize("kind", [*SMALL, "meta"])
def test_weights_go_to_torch_and_back_exactly(kind: str) -> None:
    variables = small(kind)
    state_dict = to_torch(kind, variables)
    noisy = {f"module.{name}": array for name, array in state_dict.items()} | {"module.bn1.num_batches_tracked": np.int64(3)}
    assert not any(changed(variables, from_torch(kind, state_dict)))
    assert not any(changed(variables, from_torch(kind, noisy)))


def test_torch_layouts_are_turned_into_ours() -> None:
    variables, state_dict = small("resnet18"), to_torch("resnet18", small("resnet18"))
    kernel = variables.params["layer2_0"]["shortcut_conv"]["kernel"]
    np.testing.assert_array_equal(state_dict["layer2.0.shortcut.0.weight"], np.transpose(kernel, (3, 2, 0, 1)))
    np.testing.assert_array_equal(state_dict["layer1.0.bn1.running_var"], variables.batch_stats["layer1_0"]["bn1"]["var"])
    np.testing.assert_array_equal(state_dict["linear.weight"], variables.params["linear"]["kernel"].T)
    generator = to_torch("generator", small("generator"))
    kernel = small("generator").params["conv1"]["kernel"]
    np.testing.assert_array_equal(generator["main.0.weight"], np.transpose(kernel, (2, 3, 0, 1)))
    meta = to_torch("meta", small("meta"))
    in_proj = small("meta").params["encoder_self_attn"]["in_proj_kernel"]
    np.testing.assert_array_equal(meta["transformer.encoder.layers.0.self_attn.in_proj_weight"], in_proj.T)


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("resnet18", {"linear.bias": None}, "linear.bias is missing"),
        ("resnet18", {"layer4.1.bn2.running_mean": None}, "layer4.1.bn2.running_mean is missing"),
        ("resnet18", {"layer5.0.conv1.weight": np.zeros(3)}, "layer5.0.conv1.weight is unknown"),
        ("resnet18", {"layer1.0.conv1.weight": np.zeros((3, 3, 5, 5))}, "layer1.0.conv1.weight has shape (3, 3, 5, 5): must"),
        ("resnet18", {"bn1.weight": np.zeros(3, int)}, "bn1.weight holds int64"),
        ("generator", {"main.0.weight": np.zeros(5)}, "main.0.weight has shape (5,)"),
        ("discriminator", {"main.2.weight": None}, "main.2.weight is missing"),
        ("meta", {"fc_expand.weight": np.zeros((12, 5))}, "fc_expand.weight has shape (12, 5): must be (12, 4)"),
        ("resnet9", {}, "kind='resnet9'"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_in_one_line_naming_the_tensor(kind: str, change: dict, named: str) -> None:
    state_dict = to_torch(kind, small(kind)) if kind != "resnet9" else {}
    state_dict = {name: array for name, array in (state_dict | change).items() if array is not None}
    with pytest.raises(ConfigError) as error:
        from_torch(kind, state_dict)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_pth_file_loads_where_torch_is_installed(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    variables = small("generator")
    torch.save({name: torch.tensor(array) for name, array in to_torch("generator", variables).items()}, tmp_path / "generator.pth")
    assert not any(changed(variables, from_torch("generator", tmp_path / "generator.pth")))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds a list"):
        from_torch("generator", tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="not a readable state_dict"):
        from_torch("generator", tmp_path / "absent.pth")
