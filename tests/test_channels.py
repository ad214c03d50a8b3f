"""Clients of unequal widths: narrow networks, their channel spaces, and what the server makes of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaic_jax import trees
from mosaic_jax.config import ModelConfig
from mosaic_jax.models import build_classifier
from mosaic_jax.models.channels import channel_axes, channel_sizes, feature_space, sizes_of
from mosaic_jax.steps.submodels import (
    Channels,
    Sent,
    aggregate,
    aggregate_classes,
    extract,
    first_channels,
    pad_features,
    random_channels,
    rolling_channels,
)
from mosaic_jax.types import Variables

CNN = ModelConfig("cnn", 4)
RATES = (1.0, 0.5, 0.0625)
WEIGHTS = {1.0: [2.0], 0.5: [3.0, 5.0], 0.0625: [7.0]}


def random_like(shapes: Any, seed: int = 0, lead: tuple[int, ...] = ()) -> Any:
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.05, 0.2, lead + leaf.shape), jnp.float32), shapes)


def shapes_of(config: ModelConfig, rate: float = 1.0) -> Variables:
    return jax.eval_shape(build_classifier(config, 3, rate=rate).init, jax.random.key(0))


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (8, 8, 8, 3)), jnp.float32)


def drawn(config: ModelConfig, rate: float, seed: int) -> Channels:
    return random_channels(channel_sizes(config), channel_sizes(config, rate), jax.random.key(seed))


def groups_of(config: ModelConfig, weights: dict[float, Any]) -> list[Sent]:
    """Clients of several rates with random values, each holding channels of its own."""
    groups = []
    for rate, own in weights.items():
        channels = trees.stack([drawn(config, rate, seed=index + 7) for index in range(len(own))])
        values = random_like(shapes_of(config, rate), seed=int(100 * rate), lead=(len(own),))
        groups.append(Sent(values, channels, jnp.asarray(own, jnp.float32)))
    return groups


def places(shape: tuple[int, ...], names: tuple[str | None, ...], held: Channels) -> tuple[np.ndarray, ...]:
    """Where a client's part lies in a full leaf, for NumPy's indexing."""
    return np.ix_(*(np.arange(n) if name is None else np.asarray(held[name]) for name, n in zip(names, shape, strict=True)))


def mean_by_position(old: Variables, groups: list[Sent], axes: Variables, weights: list[np.ndarray]) -> list[np.ndarray]:
    """The definition, in NumPy: client by client, leaf by leaf."""
    results = []
    for place, leaf in enumerate(jax.tree.leaves(old)):
        names = jax.tree.leaves(axes, is_leaf=lambda x: type(x) is tuple)[place]
        total, weight = np.zeros(leaf.shape), np.zeros(leaf.shape)
        for group, own in zip(groups, weights, strict=True):
            for index in range(len(own)):
                mine = places(leaf.shape, names, {space: held[index] for space, held in group.channels.items()})
                total[mine] += own[index] * np.asarray(jax.tree.leaves(group.variables)[place][index], np.float64)
                weight[mine] += own[index]
        results.append(np.where(weight > 0, total / np.where(weight > 0, weight, 1), leaf))
    return results


def assert_close(found: Any, expected: Any, rtol: float = 1e-5) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "resnet34", "resnet50"])  # deeper ones are made of the same blocks
def test_networks_of_all_rates_have_one_tree_and_the_shapes_that_the_channel_spaces_say(name: str) -> None:
    config = ModelConfig(name, 3)
    full, axes = shapes_of(config), channel_axes(config)
    for rate in (0.4,) if name == "resnet34" else (0.4, 0.0625):  # the deep take seconds to trace
        shapes = shapes_of(config, rate)
        assert jax.tree.structure(shapes) == jax.tree.structure(full)
        sizes = channel_sizes(config, rate)
        expected = jax.tree.map(
            lambda leaf, names, sizes=sizes: tuple(
                size if name is None else sizes[name] for size, name in zip(leaf.shape, names, strict=True)
            ),
            full,
            axes,
        )
        assert jax.tree.map(lambda leaf: leaf.shape, shapes) == expected
        assert build_classifier(config, 3, rate=rate).feature_size == sizes[feature_space(axes)]
    assert channel_sizes(config) == sizes_of(full, axes)


def test_a_layer_has_the_ceiling_of_its_share_and_at_least_one_channel() -> None:
    assert channel_sizes(CNN, 1 / 16) == {"conv1": 1, "conv2": 1, "conv3": 1, "conv4": 2}
    assert channel_sizes(ModelConfig("cnn", 5), 0.5) == {"conv1": 3, "conv2": 5, "conv3": 10, "conv4": 20}
    assert channel_sizes(ModelConfig("cnn", 100), 0.07)["conv1"] == 7  # 0.07 * 100 is a little more than 7


def test_layers_that_are_added_together_share_a_space() -> None:
    axes = channel_axes(ModelConfig("resnet18", 2)).params
    assert axes["conv1"]["kernel"] == (None, None, None, "conv1")
    assert axes["layer1_1"]["conv1"]["kernel"] == (None, None, "conv1", "layer1_1.conv1")
    assert axes["layer1_1"]["conv2"]["kernel"] == (None, None, "layer1_1.conv1", "conv1")
    assert axes["layer2_0"]["shortcut_conv"]["kernel"] == (None, None, "conv1", "layer2_0")
    assert axes["layer2_1"]["bn2"]["scale"] == ("layer2_0",)
    assert axes["linear"] == {"kernel": ("layer4_0", None), "bias": (None,)}
    stem = channel_axes(ModelConfig("resnet50", 2)).params["layer1_0"]
    assert stem["shortcut_conv"]["kernel"] == (None, None, "conv1", "layer1_0")  # 2 channels go in, 8 come out


@pytest.mark.parametrize(("name", "train"), [("cnn", False), ("cnn", True), ("resnet50", False)])
def test_a_narrow_network_is_the_full_one_whose_other_channels_are_zero(name: str, train: bool) -> None:
    config = ModelConfig(name, 2 if name == "resnet50" else 4)
    axes = channel_axes(config)
    network, narrow = build_classifier(config, 3), build_classifier(config, 3, rate=0.5)
    full = random_like(shapes_of(config))
    held = drawn(config, 0.5, seed=3)
    part = jax.jit(lambda full, held: extract(full, axes, held))(full, held)
    assert jax.tree.map(jnp.shape, part) == jax.tree.map(lambda leaf: leaf.shape, shapes_of(config, 0.5))

    def others_zero(leaf: jax.Array, names: tuple[str | None, ...]) -> np.ndarray:
        zero, mine = np.zeros(leaf.shape, np.float32), places(leaf.shape, names, held)
        zero[mine] = np.asarray(leaf)[mine]
        return zero

    apply_full = jax.jit(network.apply, static_argnums=2)
    logits, moved = jax.jit(narrow.apply, static_argnums=2)(part, images(), train)
    expected, moved_full = apply_full(jax.tree.map(others_zero, full, axes), images(), train)
    assert np.abs(logits - apply_full(full, images(), train)[0]).max() > 1e-3
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    mine = jax.tree.map(lambda leaf, names: np.asarray(leaf)[places(leaf.shape, names, held)], moved_full, axes.batch_stats)
    assert_close(moved, mine, rtol=1e-4)


def test_features_padded_to_the_full_width_give_the_full_head_the_narrow_head_s_logits() -> None:
    full, axes = random_like(shapes_of(CNN)), channel_axes(CNN)
    held = drawn(CNN, 0.5, seed=3)
    narrow = build_classifier(CNN, 3, rate=0.5)
    features = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 5, narrow.feature_size)), jnp.float32)
    padded = pad_features(features, held[feature_space(axes)], 32)
    assert padded.shape == (2, 5, 32)
    np.testing.assert_array_equal(padded[..., held["conv4"]], features)
    assert np.count_nonzero(padded) == features.size
    np.testing.assert_allclose(
        build_classifier(CNN, 3).head(full, padded), narrow.head(extract(full, axes, held), features), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_the_scaler_divides_what_goes_into_each_batch_norm_in_both_modes(name: str) -> None:
    config = ModelConfig(name, 4)
    plain, scaled = (build_classifier(config, 3, rate=0.5, scaler=scaler) for scaler in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(0))
    for train in (True, False):
        _, _, without = jax.jit(plain.input_statistics, static_argnums=2)(variables, images(), train)
        _, _, with_it = jax.jit(scaled.input_statistics, static_argnums=2)(variables, images(), train)
        assert len(without) == {"cnn": 4, "resnet18": 20}[name]
        np.testing.assert_allclose(with_it[0][1].mean() / without[0][1].mean(), 4.0, rtol=0.02)
        if train:  # later layers see what BatchNorm made of it
            for before, after in zip(without, with_it, strict=True):
                np.testing.assert_allclose(after[1].mean() / before[1].mean(), 4.0, rtol=0.02)
    features = jnp.ones((2, plain.feature_size))
    np.testing.assert_array_equal(plain.head(variables, features), scaled.head(variables, features))


def test_at_rate_one_the_scaler_is_not_in_the_program() -> None:
    plain, scaled = (build_classifier(CNN, 3, scaler=scaler) for scaler in (False, True))
    variables = shapes_of(CNN)
    program = [str(jax.make_jaxpr(network.apply, static_argnums=2)(variables, images(), True)) for network in (plain, scaled)]
    assert program[0] == program[1]


def test_first_channels_are_the_first_of_each_space() -> None:
    held = first_channels({"a": 4, "b": 3}, {"a": 2, "b": 3})
    np.testing.assert_array_equal(held["a"], [0, 1])
    np.testing.assert_array_equal(held["b"], [0, 1, 2])
    assert held["a"].dtype == jnp.int32


def test_a_rolling_window_moves_by_one_channel_a_round_and_wraps() -> None:
    window = jax.jit(lambda round_index: rolling_channels({"a": 4, "b": 3}, {"a": 2, "b": 3}, round_index))
    seen = [window(index) for index in range(6)]
    assert [held["a"].tolist() for held in seen] == [[0, 1], [0, 3], [2, 3], [1, 2], [0, 1], [0, 3]]
    for index, held in enumerate(seen):
        assert set(held["a"].tolist()) == set(np.roll(np.arange(4), index % 4)[:2].tolist())
        assert held["b"].tolist() == [0, 1, 2]
        assert held["a"].dtype == jnp.int32
    np.testing.assert_array_equal(rolling_channels({"a": 4}, {"a": 2}, 5)["a"], [0, 3])


def test_random_channels_are_drawn_anew_for_each_space_and_key() -> None:
    sizes, narrow = {"a": 64, "b": 64, "c": 5}, {"a": 32, "b": 32, "c": 5}
    draw = jax.jit(lambda seed: random_channels(sizes, narrow, jax.random.key(seed)))
    one, again, other = draw(0), draw(0), draw(1)
    for space, size in sizes.items():
        for held in (one, other):
            assert len(np.unique(held[space])) == narrow[space]
            assert (np.diff(held[space]) > 0).all()
            assert held[space].min() >= 0
            assert held[space].max() < size
            assert held[space].dtype == jnp.int32
        np.testing.assert_array_equal(one[space], again[space])
    assert not np.array_equal(one["a"], one["b"])
    assert not np.array_equal(one["a"], other["a"])


def test_what_is_cut_out_and_put_back_is_in_its_place_and_the_rest_stays() -> None:
    full, old, axes = random_like(shapes_of(CNN)), random_like(shapes_of(CNN), seed=1), channel_axes(CNN)
    held = drawn(CNN, 0.5, seed=3)
    part = extract(full, axes, held)
    merged = jax.jit(lambda group: aggregate(old, [group], axes))(
        Sent(trees.broadcast(part, 1), trees.broadcast(held, 1), jnp.full(1, 3.0))
    )
    assert_close(extract(merged, axes, held), part, rtol=1e-6)
    for name, found, given, before in zip(
        ("conv2", "conv4"), *([v.params[n]["kernel"] for n in ("conv2", "conv4")] for v in (merged, full, old)), strict=True
    ):
        mine = np.zeros(found.shape, bool)
        mine[places(found.shape, axes.params[name]["kernel"], held)] = True
        np.testing.assert_allclose(found[mine], given[mine], rtol=1e-6)
        np.testing.assert_array_equal(found[~mine], before[~mine])


def test_two_layers_are_averaged_by_hand() -> None:
    """Three hidden channels; A holds all and weighs 1, B holds channels 0 and 2 and weighs 3, C only channel 0 and weighs 0."""
    axes = Variables({"first": ("hidden",), "second": ("hidden", None)}, {})
    old = Variables({"first": jnp.full(3, -1.0), "second": jnp.full((3, 2), -1.0)}, {})

    def group(first: list, second: list, channels: list, weight: float) -> Sent:
        values = Variables({"first": jnp.asarray([first]), "second": jnp.asarray([second])}, {})
        return Sent(values, {"hidden": jnp.asarray([channels], jnp.int32)}, jnp.asarray([weight]))

    narrow = group([5.0, 7.0], [[50.0, 60.0], [70.0, 80.0]], [0, 2], 3.0)
    nobody = group([9.0], [[90.0, 90.0]], [0], 0.0)
    everyone = group([1.0, 2.0, 3.0], [[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]], [0, 1, 2], 1.0)
    new = aggregate(old, [everyone, narrow, nobody], axes).params
    np.testing.assert_allclose(new["first"], [4.0, 2.0, 6.0])  # (1 + 3 * 5) / 4, 2, (3 + 3 * 7) / 4
    np.testing.assert_allclose(new["second"], [[40.0, 50.0], [30.0, 40.0], [65.0, 75.0]])
    new = aggregate(old, [narrow, nobody], axes).params
    np.testing.assert_allclose(new["first"], [5.0, -1.0, 7.0])
    np.testing.assert_allclose(new["second"], [[50.0, 60.0], [-1.0, -1.0], [70.0, 80.0]])
    np.testing.assert_array_equal(aggregate(old, [nobody], axes).params["first"], [-1.0, -1.0, -1.0])


def test_clients_of_several_widths_are_averaged_position_by_position() -> None:
    old, axes, groups = random_like(shapes_of(CNN), seed=9), channel_axes(CNN), groups_of(CNN, WEIGHTS)
    found = jax.jit(lambda old, groups: aggregate(old, groups, axes))(old, groups)
    assert_close(found, mean_by_position(old, groups, axes, [np.asarray(group.weights) for group in groups]))
    assert sizes_of(found, axes) == channel_sizes(CNN)


def test_where_everyone_holds_all_the_mean_is_the_weighted_mean() -> None:
    old, axes = random_like(shapes_of(CNN), seed=9), channel_axes(CNN)
    (group,) = groups_of(CNN, {1.0: [2.0, 0.0, 5.0]})
    assert_close(aggregate(old, [group], axes), trees.weighted_mean(group.variables, group.weights))


def test_class_experts_fall_back_to_the_global_model_where_no_holder_has_the_class() -> None:
    counts = {1.0: [[0, 2, 0]], 0.5: [[4, 1, 0], [3, 0, 0]], 0.0625: [[1, 5, 0]]}  # nobody has class 2
    fallback, axes, groups = random_like(shapes_of(CNN), seed=9), channel_axes(CNN), groups_of(CNN, counts)
    experts = jax.jit(lambda fallback, groups: aggregate_classes(fallback, groups, axes))(fallback, groups)
    for index in range(2):
        own = [np.asarray(group.weights)[:, index] for group in groups]
        assert_close(jax.tree.map(lambda leaf, index=index: leaf[index], experts), mean_by_position(fallback, groups, axes, own))
    assert_close(jax.tree.map(lambda leaf: leaf[2], experts), fallback, rtol=0)
    assert (experts.params["conv4"]["kernel"][0] == fallback.params["conv4"]["kernel"]).any()  # class 0: the narrow alone have it
