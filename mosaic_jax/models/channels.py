"""The channel spaces of a classifier: which axes of its variables list the same channels and are cut together.

A space is named after the layer that makes it. The layers whose outputs are added in a residual stream share one: the
stem or the projecting block that opens the stream, and each block after it up to the next that projects.
"""

import functools

import jax

from mosaic_jax.config import ModelConfig
from mosaic_jax.models import build_classifier
from mosaic_jax.models.layers import narrowed
from mosaic_jax.models.resnet import BLOCKS
from mosaic_jax.rng import key_of
from mosaic_jax.types import Classifier, PyTree, Variables

# Layer -> the spaces of its input and its output; None is never cut.
Spaces = dict[str, tuple[str | None, str | None]]


def channel_axes(config: ModelConfig) -> Variables:
    """For each leaf of the classifier's variables, the channel space of each axis: a tuple of names as long as its shape.

    None stands for an axis that is never cut: heights and widths of kernels, RGB and classes. The same for networks of all rates.
    """
    spaces = _cnn_spaces() if config.name == "cnn" else _resnet_spaces(config.name, _shapes(config).params)

    def axes(path: tuple, leaf: jax.ShapeDtypeStruct) -> tuple[str | None, ...]:
        source, own = spaces[".".join(key.key for key in path[:-1])]
        return {4: (None, None, source, own), 2: (source, own), 1: (own,)}[len(leaf.shape)]

    return Variables(*(jax.tree_util.tree_map_with_path(axes, part) for part in _shapes(config)))


def uncut_axes(classifier: Classifier) -> Variables:
    """As `channel_axes`, for a network that has no narrower forms: None everywhere."""
    return jax.tree.map(lambda leaf: (None,) * leaf.ndim, jax.eval_shape(classifier.init, key_of(0)))


def channel_sizes(config: ModelConfig, rate: float = 1.0) -> dict[str, int]:
    """{space: channels that a network of this rate has in it}, ceil(rate * full size)."""
    return {space: narrowed(size, rate) for space, size in sizes_of(_shapes(config), channel_axes(config)).items()}


def sizes_of(variables: Variables, axes: Variables) -> dict[str, int]:
    """{space: channels in it} as the variables' shapes have them."""
    sizes: dict[str, int] = {}

    def add(leaf: jax.Array, names: tuple[str | None, ...]) -> None:
        sizes.update((name, size) for name, size in zip(names, leaf.shape, strict=True) if name is not None)

    jax.tree.map(add, variables, axes)
    return sizes


def feature_space(axes: Variables) -> str:
    """The space of the features, which the classifier's head reads."""
    return axes.params["linear"]["kernel"][0]


@functools.cache  # a deep network takes seconds to trace
def _shapes(config: ModelConfig) -> Variables:
    return jax.eval_shape(build_classifier(config, 2).init, key_of(0))


def _cnn_spaces() -> Spaces:
    spaces, source = {}, None
    for index in range(1, 5):
        spaces[f"conv{index}"] = spaces[f"bn{index}"] = (source, f"conv{index}")
        source = f"conv{index}"
    return spaces | {"linear": (source, None)}


def _resnet_spaces(name: str, params: PyTree) -> Spaces:
    kind, counts = BLOCKS[name]
    last = {"basic": 2, "bottleneck": 3}[kind]
    spaces: Spaces = {"conv1": (None, "conv1"), "bn1": (None, "conv1")}
    stream = "conv1"
    for block in (f"layer{stage}_{index}" for stage, count in enumerate(counts, start=1) for index in range(count)):
        joined = block if "shortcut_conv" in params[block] else stream
        source = stream
        for index in range(1, last + 1):
            own = joined if index == last else f"{block}.conv{index}"
            spaces[f"{block}.conv{index}"] = spaces[f"{block}.bn{index}"] = (source, own)
            source = own
        spaces[f"{block}.shortcut_conv"] = spaces[f"{block}.shortcut_bn"] = (stream, joined)
        stream = joined
    return spaces | {"linear": (stream, None)}
