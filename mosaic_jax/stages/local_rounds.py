"""A federated round at the clients of one group: local steps, and prototypes of what they see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mosaic_jax.mapping import for_each_client
from mosaic_jax.models.channels import feature_space
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.stages.federation import Federation, with_personal
from mosaic_jax.stages.groups import Group
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps.client_update import client_update
from mosaic_jax.steps.prototypes import Prototypes, class_prototypes
from mosaic_jax.steps.submodels import Channels, extract, pad_features
from mosaic_jax.types import Batch, Variables


class Cohort(NamedTuple):
    """The clients of one group in one round, ascending i32[M], the images of their local steps i32[M, T, B], and whether what
    they do arrives, f32[M] of 0 and 1."""

    clients: np.ndarray
    indices: np.ndarray
    arrives: np.ndarray


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


def local_round(
    problem: Problem,
    federation: Federation,
    group: Group,
    stage: str,
    optimizer: optax.GradientTransformation,
    cohort: Cohort,
    personal: list[jax.Array],
    server: Variables,
    data: tuple,
    round_: jax.Array,
) -> tuple[Variables, Channels, jax.Array]:
    """T local steps of each client of the cohort -> models [M, ...], the channels i32[M, n] that they have, mean losses f32[M].

    personal: the clients' own leaves, [M, ...]; data: all training images and labels.
    """
    key = key_at(problem.root, stage, round_)
    label_counts = jnp.asarray(problem.label_counts, jnp.float32)[cohort.clients]

    def one(indices: jax.Array, client: jax.Array, counts: jax.Array, own: list, server: Variables, *data: jax.Array) -> tuple:
        images, labels = data
        held = held_channels(problem, federation, group, stage, round_, client)
        start = received(problem, federation, group, server, held, own)
        batches = Batch(images[indices], labels[indices])
        own_key = client_key(key, client)
        sent, info = client_update(
            group.classifier, start, batches, own_key, optimizer, problem.preprocess, counts, federation.loss
        )
        return sent, held, jnp.mean(info.loss)

    return for_each_client(one, (cohort.indices, cohort.clients, label_counts, personal), (server, *data), problem.client_plan)


def group_prototypes(
    problem: Problem, federation: Federation, group: Group, cohort: Cohort, personal: list[jax.Array], held: Channels,
    server: Variables, data: tuple, round_: jax.Array,
) -> Prototypes:  # fmt: skip
    """Class prototypes [M, K, P, D] of the cohort's clients on the round's batches, in the features of the received model.

    A narrower client has features of its own channels only: others are 0, for its head is the whole head's rows at those.
    """
    config = problem.config
    key = key_at(problem.root, "prototypes", round_)

    def clusters(
        indices: jax.Array, client: jax.Array, own: list, held: Channels, server: Variables, images: jax.Array, labels: jax.Array
    ) -> Prototypes:
        start = received(problem, federation, group, server, held, own)
        features = jax.lax.map(lambda i: group.classifier.features(start, problem.decode(images[i]), False)[0], indices)
        found = class_prototypes(
            client_key(key, client), features.reshape(-1, features.shape[-1]), labels[indices].reshape(-1),
            problem.num_classes, config.prototypes.per_class, config.prototypes.kmeans_steps,
        )  # fmt: skip
        kept = Prototypes(found.features[:, : problem.kept_prototypes], found.valid[:, : problem.kept_prototypes])
        if not held:
            return kept
        architecture = problem.architectures[group.architecture]
        space = feature_space(architecture.axes)
        return kept._replace(features=pad_features(kept.features, held[space], architecture.sizes[space]))

    found = for_each_client(clusters, (cohort.indices, cohort.clients, personal, held), (server, *data), problem.client_plan)
    return found._replace(valid=found.valid & (cohort.arrives > 0)[:, None, None])
