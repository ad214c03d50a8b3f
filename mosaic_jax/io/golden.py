"""Golden tensors: every weight and input of the public PyTorch code's golden runs, drawn from its name and a seed.

No weights are stored. `fill` draws a tensor by its PyTorch name, `filled` a whole network, which enters through `torch_weights`.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.io.torch_weights import from_torch, to_torch
from mosaic_jax.rng import key_of
from mosaic_jax.types import PyTree, Variables


def normal(tag: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """f32 of `shape` from the standard normal distribution, drawn for this tag and seed."""
    return _random(tag, seed).standard_normal(shape).astype(np.float32)


def labels_of(tag: str, size: int, num_classes: int, seed: int) -> jax.Array:
    """i32[size] in 0..num_classes-1, drawn for this tag and seed."""
    return jnp.asarray(_random(tag, seed).randint(0, num_classes, size), jnp.int32)


def images_of(tag: str, batch: int, seed: int) -> jax.Array:
    """f32[batch, 32, 32, 3]; drawn as PyTorch's NCHW."""
    return jnp.asarray(normal(tag, (batch, 3, 32, 32), seed).transpose(0, 2, 3, 1))


def nchw(images: jax.Array) -> np.ndarray:
    return np.asarray(images).transpose(0, 3, 1, 2)


def _random(tag: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(tag.encode()) + seed) % 2**32)


def fill(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The golden tensor of this PyTorch name (with its prefix): its kind follows from the name and the shape."""
    r = normal(name, shape, seed)
    if name.endswith("running_mean"):
        return 0.1 * r
    if name.endswith("running_var"):
        return 1.0 + 0.1 * np.abs(r)
    if len(shape) > 1:
        return (r * np.sqrt(1.0 / np.prod(shape[1:]))).astype(np.float32)
    return 1.0 + 0.1 * r if name.endswith("weight") else 0.1 * r


def zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


def filled(kind: str, init: Callable[[jax.Array], Variables], prefix: str, seed: int) -> Variables:
    """The golden variables of one network."""
    tensors = to_torch(kind, zeros(jax.eval_shape(init, key_of(0))))
    return from_torch(kind, {name: fill(prefix + name, tensor.shape, seed) for name, tensor in tensors.items()})
