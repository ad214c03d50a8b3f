"""Clients of unequal widths: which channels each holds of the full network, its part cut out, and the parts put together.

A client holds channels of every space (`models.channels`), listed in ascending order; where it holds all of a space nothing is
cut. Written for one client, save the means over clients, which take them one after another.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mosaic_jax.models.channels import sizes_of
from mosaic_jax.types import PyTree, Variables

# {space: channels in it}, as Python ints.
Sizes = dict[str, int]
# {space: i32[n], which channels of it a client holds, ascending}.
Channels = dict[str, jax.Array]


class Sent(NamedTuple):
    """Clients of one width, stacked.

    variables: leaves f32[M, ...] of that width.
    channels: {space: i32[M, n]}, which channels of the full network these are; see `Channels`.
    weights: f32[M], or [M, K] where there is one for each class; nonnegative.
    """

    variables: Variables
    channels: Channels
    weights: jax.Array


def first_channels(full: Sizes, held: Sizes) -> Channels:
    """The first n of each space: {space: i32[n]}. Source: HeteroFL, arXiv 2010.01264."""
    return {space: jnp.arange(held[space], dtype=jnp.int32) for space in full}


def rolling_channels(full: Sizes, held: Sizes, round_index: jax.Array | int) -> Channels:
    """A window of n that moves by one channel a round and wraps: the set of roll(arange(size), round mod size)[:n].

    round_index: Python int or i32[], may be traced. Returns {space: i32[n]}. The window starts at -round mod size, as in
    FedRolex' public code; its paper (arXiv 2212.01548, equation 4) lets it start at round mod size.
    """
    return {
        space: jnp.sort((jnp.arange(held[space], dtype=jnp.int32) - round_index) % size).astype(jnp.int32)
        for space, size in full.items()
    }


def random_channels(full: Sizes, held: Sizes, key: jax.Array) -> Channels:
    """A random n of each space under fold_in(key, crc32(space)): {space: i32[n]}.

    key: of one client and round. Source: Federated Dropout, arXiv 1812.07210.
    """

    def draw(space: str, size: int) -> jax.Array:
        order = jax.random.permutation(jax.random.fold_in(key, zlib.crc32(space.encode())), size)
        return jnp.sort(order[: held[space]]).astype(jnp.int32)

    return {space: draw(space, size) for space, size in full.items()}


def extract(full: Variables, axes: Variables, channels: Channels) -> Variables:
    """The client's part of the full network: leaf[channels of each axis' space], a copy of the narrow network's shapes.

    axes: `models.channels.channel_axes`.
    """

    def cut(leaf: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        for axis, name in enumerate(names):
            if name is not None and channels[name].shape[0] < leaf.shape[axis]:
                leaf = jnp.take(leaf, channels[name], axis=axis, mode="clip")
        return leaf

    return jax.tree.map(cut, full, axes)


def aggregate(old: Variables, groups: Sequence[Sent], axes: Variables) -> Variables:
    """Each position's mean over the clients that hold it: new[p] = sum_i w_i theta_i[p] / sum_i w_i, or else old[p].

    old: the full network, what a position keeps whose holders weigh nothing; weights of groups: f32[M]. Returns leaves as old's.
    Equals `trees.weighted_mean` where everyone holds all. Source: HeteroFL's aggregation, there with equal weights.
    """
    sizes = sizes_of(old, axes)

    def add(sums: tuple[Variables, dict], client: Sent) -> tuple[tuple[Variables, dict], None]:
        held = {space: _spread(jnp.ones(client.channels[space].shape), client.channels[space], sizes[space], 0) for space in sizes}

        def total(so_far: jax.Array, leaf: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
            return so_far + client.weights.astype(leaf.dtype) * _insert(leaf, names, client.channels, sizes)

        def weight(so_far: jax.Array, spaces: tuple[str, ...]) -> jax.Array:
            own = client.weights.astype(so_far.dtype)
            for space in spaces:
                own = own[..., None] * held[space]
            return so_far + own

        return (jax.tree.map(total, sums[0], client.variables, axes), {key: weight(sums[1][key], key) for key in sums[1]}), None

    # The sum of weights is the same for all leaves of the same spaces, whatever their axes that are never cut.
    keys = {_spaces(names) for names in jax.tree.leaves(axes, is_leaf=lambda x: type(x) is tuple)}
    sums = jax.tree.map(jnp.zeros_like, old), {key: jnp.zeros([sizes[space] for space in key]) for key in sorted(keys)}
    for group in groups:
        sums, _ = jax.lax.scan(add, sums, Sent(*group))

    def mean(leaf: jax.Array, total: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        weight = sums[1][_spaces(names)].reshape([1 if name is None else sizes[name] for name in names]).astype(leaf.dtype)
        return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), leaf)

    return jax.tree.map(mean, old, sums[0], axes)


def aggregate_heads(old: Variables, groups: Sequence[Sent], axes: Variables) -> PyTree:
    """The classifier layer, each class' column and bias over the clients that hold the class alone; weights of groups: [M, K].

    Returns params["linear"] as old's. Source: HeteroFL's and FedRolex' public code, whose clients do not train columns of classes
    that they do not hold.
    """

    def head(variables: Variables) -> Variables:
        return Variables({"linear": variables.params["linear"]}, {})

    columns = aggregate_classes(head(old), [Sent(head(group[0]), *group[1:]) for group in groups], head(axes))
    # Of class c the c-th expert's column.
    return jax.tree.map(lambda leaf: jnp.diagonal(leaf, axis1=0, axis2=-1), columns.params["linear"])


def aggregate_classes(fallback: Variables, groups: Sequence[Sent], axes: Variables) -> Variables:
    """Class experts: expert_c[p] = sum_i n[i,c] theta_i[p] / sum_i n[i,c] over the clients that hold p, or else fallback[p].

    fallback: the global model, which the expert of a class that nobody has is; weights of groups: label counts [M, K].
    Returns leaves [K, ...].
    """

    def expert(weights: tuple[jax.Array, ...]) -> Variables:
        return aggregate(fallback, [Sent(*group[:2], own) for group, own in zip(groups, weights, strict=True)], axes)

    return jax.lax.map(expert, tuple(group[2].T for group in groups))


def pad_features(features: jax.Array, channels: jax.Array, size: int) -> jax.Array:
    """A narrow network's features in the full one's space, zero elsewhere: f32[..., d], i32[d] -> f32[..., size].

    channels: those of `models.channels.feature_space`. The full head's rows at these positions are the narrow network's head.
    """
    return _spread(features, channels, size, features.ndim - 1)


def _spaces(names: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name is not None)


def _insert(leaf: jax.Array, names: tuple[str | None, ...], channels: Channels, sizes: Sizes) -> jax.Array:
    """The narrow leaf at its place in a full one of zeros."""
    for axis, name in enumerate(names):
        if name is not None:
            leaf = _spread(leaf, channels[name], sizes[name], axis)
    return leaf


def _spread(leaf: jax.Array, channels: jax.Array, size: int, axis: int) -> jax.Array:
    """One axis of length n to `size`: what is at j goes to channels[j]; zero elsewhere.

    A gather: XLA's CPU backend adds a scatter's elements one by one.
    """
    held = channels.shape[0]
    if held == size:
        return leaf
    places = jnp.full(size, held, jnp.int32).at[channels].set(jnp.arange(held, dtype=jnp.int32))
    return jnp.take(leaf, places, axis=axis, mode="fill", fill_value=0)
