"""PyTorch weights of the public code into this project's variables and back.

Bring a checkpoint, with or without torch installed:

    variables = from_torch("resnet18", {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    variables = from_torch("generator", "generator.pth")      # the file is a pickled state_dict, read by torch

and hand one back:

    model.load_state_dict({name: torch.tensor(array) for name, array in to_torch("resnet18", variables).items()})

`kind` is one of KINDS. Sizes (width, classes, noise, feed-forward) are read from the tensors themselves.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.config import ConfigError, GeneratorConfig, MetaConfig, ModelConfig
from mosaic_jax.models import build_classifier, build_discriminator, build_generator, build_meta_model
from mosaic_jax.models.resnet import BLOCKS
from mosaic_jax.rng import key_of
from mosaic_jax.types import Variables

KINDS = (*BLOCKS, "cnn", "generator", "discriminator", "meta")
# Held by PyTorch modules and used by no forward pass: BatchNorm's counter, and two leftovers of the public meta models.
UNUSED = ("num_batches_tracked", "attention_weights", "diag_weights")
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class _Slot(NamedTuple):
    """Where one of our arrays stands in a state_dict: its torch name, its torch shape, and torch axes -> our axes."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def from_torch(kind: str, state_dict: Mapping[str, Any] | str | Path) -> Variables:
    """Variables of the network `kind` filled from a PyTorch state_dict.

    state_dict: torch name -> array (anything np.asarray takes), or the path of a .pth file where torch is installed.
    A leading `module.` (DataParallel) and the tensors of UNUSED are accepted. Layouts: conv [O, I, k, k] and transposed
    conv [I, O, k, k] -> [k, k, I, O], linear [O, I] -> [I, O], packed in_proj [3M, M] -> [M, 3M]; all become f32.
    The meta model's weights are the `params`; its `batch_stats` are empty, as it has no BatchNorm.
    Raises ConfigError naming the tensor that is missing, unknown or wrongly shaped.
    """
    tensors = _tensors(state_dict)
    template = _template(kind, tensors)
    leaves, tree = jax.tree_util.tree_flatten_with_path(template)
    slots = [_slot(kind, path, leaf.shape) for path, leaf in leaves]
    for name in sorted(set(tensors) - {slot.name for slot in slots}):
        raise ConfigError(f"tensor {name} is unknown in a state_dict of {kind}: remove it, or choose another of {', '.join(KINDS)}")
    arrays = []
    for slot in slots:
        tensor = _find(kind, tensors, slot.name)
        if tensor.shape != slot.shape:
            raise ConfigError(f"tensor {slot.name} has shape {tensor.shape}: must be {slot.shape} in this {kind}")
        arrays.append(jnp.asarray(tensor.transpose(slot.axes), jnp.float32))
    return jax.tree.unflatten(tree, arrays)


def to_torch(kind: str, variables: Variables) -> dict[str, np.ndarray]:
    """The state_dict of `variables` as numpy arrays: from_torch reversed, exactly.

    variables: as from_torch returns them; for the meta model Variables(params, {}). The tensors of UNUSED are left out:
    torch's load_state_dict does without the counters; a public meta model needs `strict=False` for the other two.
    Raises ConfigError for an unknown kind.
    """
    _check_kind(kind)
    state_dict = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        slot = _slot(kind, path, leaf.shape)
        state_dict[slot.name] = np.ascontiguousarray(np.asarray(leaf).transpose(np.argsort(slot.axes)))
    return state_dict


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")


def _tensors(state_dict: Mapping[str, Any] | str | Path) -> dict[str, np.ndarray]:
    if isinstance(state_dict, str | Path):
        state_dict = _load(Path(state_dict))
    tensors = {}
    for name, value in state_dict.items():
        name = str(name).removeprefix("module.")
        if name.rpartition(".")[2] in UNUSED:
            continue
        array = np.asarray(value)
        if not np.issubdtype(array.dtype, np.floating):
            raise ConfigError(f"tensor {name} holds {array.dtype}: must be floating-point numbers; pass the state_dict itself")
        tensors[name] = array
    return tensors


def _load(path: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise ConfigError(f"{path}: reading it needs torch; install torch, or pass the state_dict as numpy arrays") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own, OS and pickle errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: not a readable state_dict ({reason}); save model.state_dict() alone") from error
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}; save model.state_dict() alone")
    return loaded


def _find(kind: str, tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise ConfigError(f"tensor {name} is missing from the state_dict of {kind}: export the whole network")
    return tensors[name]


def _template(kind: str, tensors: Mapping[str, np.ndarray]) -> Variables:
    """The network's variables as shapes, its sizes read from the tensors that show them."""
    _check_kind(kind)

    def size(name: str, axis: int, divisor: int = 1) -> int:
        shape = _find(kind, tensors, name).shape
        if axis >= len(shape) or shape[axis] < divisor:
            raise ConfigError(f"tensor {name} has shape {shape}: not that of a {kind}")
        return shape[axis] // divisor

    key = key_of(0)
    if kind == "generator":
        config = GeneratorConfig(latent_size=size("main.0.weight", 0), width=size("main.0.weight", 1, 8))
        return jax.eval_shape(build_generator(config).init, key)
    if kind == "discriminator":
        return jax.eval_shape(build_discriminator(GeneratorConfig(width=size("main.0.weight", 0))).init, key)
    if kind == "meta":
        num_classes = size("fc.weight", 0)
        feed_forward = size("transformer.encoder.layers.0.linear1.weight", 0)
        config = MetaConfig(expansion=size("fc.weight", 1, num_classes), feed_forward_size=feed_forward)
        return Variables(jax.eval_shape(build_meta_model(config, num_classes, num_classes).init, key), {})
    config = ModelConfig(kind, size("conv1.weight", 0))
    return jax.eval_shape(build_classifier(config, size("linear.weight", 0)).init, key)


def _slot(kind: str, path: tuple[Any, ...], shape: tuple[int, ...]) -> _Slot:
    """The place of our array at `path`: Variables field, modules, leaf."""
    *modules, leaf = (str(entry.key) for entry in path[1:])
    in_proj = re.fullmatch(r"in_proj_(kernel|bias)", leaf)
    name = ".".join([*_modules(kind, modules), f"in_proj_{LEAVES[in_proj[1]]}" if in_proj else LEAVES[leaf]])
    axes = tuple(reversed(range(len(shape))))
    if len(shape) == 4:
        axes = (2, 3, 0, 1) if kind == "generator" else (2, 3, 1, 0)
    return _Slot(name, tuple(shape[axis] for axis in np.argsort(axes)), axes)


def _modules(kind: str, modules: list[str]) -> list[str]:
    """Names of the modules around an array, as PyTorch numbers them."""
    if kind in ("generator", "discriminator"):
        layer, index = modules[0][:-1], int(modules[0][-1])
        # A Sequential of conv, BatchNorm and activation; the discriminator's first convolution has no BatchNorm.
        position = 3 * (index - 1) if kind == "generator" else max(0, 3 * index - 4)
        return ["main", str(position + (layer == "bn"))]
    if kind == "meta":
        half, _, part = modules[0].partition("_")
        if half not in ("encoder", "decoder"):
            return modules
        inside = [] if part == "norm" else ["layers", "0"]
        return ["transformer", half, *inside, *([] if part == "feed_forward" else [part]), *modules[1:]]
    stage = re.fullmatch(r"layer(\d)_(\d+)", modules[0])
    if stage is None:
        return modules
    shortcut = {"shortcut_conv": ["shortcut", "0"], "shortcut_bn": ["shortcut", "1"]}
    return [f"layer{stage[1]}", stage[2], *shortcut.get(modules[1], [modules[1]])]
