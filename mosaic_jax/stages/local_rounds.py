"""A federated round at the clients of one group."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.mapping import for_each_client
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.stages.federation import Federation, LocalWork, with_personal
from mosaic_jax.stages.groups import Group
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps.client_update import client_optimizer, client_update
from mosaic_jax.steps.submodels import Channels, extract
from mosaic_jax.types import Batch, PyTree, Variables


class Cohort(NamedTuple):
    """The clients of one group in one round, ascending i32[M], the images of their local steps i32[M, T, B], and whether what
    they do arrives, f32[M] of 0 and 1."""

    clients: np.ndarray
    indices: np.ndarray
    arrives: np.ndarray


def rows(group: Group, cohort: Cohort, stacked: PyTree) -> PyTree:
    """Of leaves [C_g, ...] the rows of the cohort's clients, [M, ...]."""
    if len(cohort.clients) == len(group.clients):
        return stacked
    places = jnp.searchsorted(jnp.asarray(group.clients), cohort.clients)
    return jax.tree.map(lambda leaf: leaf[places], stacked)


def with_rows(group: Group, cohort: Cohort, old: PyTree, new: PyTree, some_are_missing: bool) -> PyTree:
    """Leaves [C_g, ...] with the new rows [M, ...] of the clients whose work arrives."""
    if some_are_missing:

        def kept(before: jax.Array, after: jax.Array) -> jax.Array:
            return jnp.where(cohort.arrives.reshape(-1, *(1,) * (after.ndim - 1)) > 0, after, before)

        new = jax.tree.map(kept, rows(group, cohort, old), new)
    if len(cohort.clients) == len(group.clients):
        return new
    places = jnp.searchsorted(jnp.asarray(group.clients), cohort.clients)
    return jax.tree.map(lambda leaf, row: leaf.at[places].set(row), old, new)


def held_channels(
    problem: Problem, federation: Federation, group: Group, stage: str, round_: jax.Array | int, client: jax.Array | int
) -> Channels:
    """The channels that a client of a group holds in a round; {} where all clients hold all."""
    if federation.channels is None:
        return {}
    key = client_key(key_at(problem.root, f"{stage}/channels", round_), client)
    return federation.channels(problem.architectures[group.architecture].sizes, group.sizes, round_, key)


def received(
    problem: Problem, federation: Federation, group: Group, server: Variables, held: Channels, personal: list[jax.Array]
) -> Variables:
    """What a client begins a round with: the channels of the server's model that it holds, and the leaves that are its own."""
    own = extract(server, problem.architectures[group.architecture].axes, held) if held else server
    return with_personal(federation, own, personal)


class LocalRounds(NamedTuple):
    """What the clients of a cohort end a round with, stacked: the models that they send, the channels i32[M, n] that these have,
    what they carry on and send beside (see `Federation.update_client`), and their mean losses f32[M]."""

    models: Variables
    channels: Channels
    client_states: PyTree
    messages: PyTree
    losses: jax.Array


def local_round(
    problem: Problem,
    federation: Federation,
    group: Group,
    stage: str,
    learning_rate: float,
    cohort: Cohort,
    personal: list[jax.Array],
    client_states: PyTree,
    server: Variables,
    server_message: PyTree,
    data: tuple,
    round_: jax.Array,
) -> LocalRounds:
    """T local steps of each client of the cohort.

    personal, client_states: what the clients keep, [M, ...]; data: all training images and labels.
    """
    key = key_at(problem.root, stage, round_)
    label_counts = jnp.asarray(problem.label_counts, jnp.float32)[cohort.clients]
    warmup = problem.config.warmup
    optimizer = client_optimizer(learning_rate, warmup.weight_decay)

    def one(
        indices: jax.Array, client: jax.Array, counts: jax.Array, own: list, carried: PyTree, server: Variables, message: PyTree,
        *data: jax.Array,
    ) -> LocalRounds:  # fmt: skip
        images, labels = data
        held = held_channels(problem, federation, group, stage, round_, client)
        start = received(problem, federation, group, server, held, own)
        batches = Batch(images[indices], labels[indices])
        own_key = client_key(key, client)
        sent, info = client_update(
            group.classifier, start, batches, own_key, optimizer, problem.preprocess, counts, federation.loss, carried, message
        )
        work = LocalWork(start, sent, carried, message, warmup.num_local_steps, learning_rate)
        return LocalRounds(sent, held, *federation.update_client(work), jnp.mean(info.loss))

    mapped = (cohort.indices, cohort.clients, label_counts, personal, client_states)
    return for_each_client(one, mapped, (server, server_message, *data), problem.client_plan)
