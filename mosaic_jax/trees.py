"""Arithmetic on pytrees stacked over clients."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mosaic_jax.types import PyTree


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stack C equal trees along a new leading axis: each leaf [...] becomes [C, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def broadcast(tree: PyTree, num: int) -> PyTree:
    """Repeat a tree along a new leading axis: each leaf [...] becomes [num, ...]."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *leaf.shape)), tree)


def weighted_mean(stacked: PyTree, weights: jax.Array) -> PyTree:
    """Average over clients: sum_i w_i leaf_i / sum_i w_i.

    stacked: leaves f32[C, ...]; weights: f32[C], nonnegative, not all zero. Returns leaves f32[...].
    """
    shares = weights / jnp.sum(weights)
    return jax.tree.map(lambda leaf: jnp.tensordot(shares.astype(leaf.dtype), leaf, axes=1), stacked)


def moving_average(average: PyTree, new: PyTree, decay: float) -> PyTree:
    """decay * average + (1 - decay) * new, leaf by leaf; a decay of 0 follows `new`."""
    return jax.tree.map(lambda old, leaf: decay * old + (1.0 - decay) * leaf, average, new)


def where(condition: jax.Array, chosen: PyTree, other: PyTree) -> PyTree:
    """The one tree or the other by a scalar bool[]."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def num_bytes(tree: PyTree) -> int:
    """Bytes of all leaves, as they would be sent."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
