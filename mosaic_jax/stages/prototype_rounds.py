"""Rounds in which the clients also send class prototypes of what they see."""

from collections.abc import Sequence

import jax

from mosaic_jax.mapping import for_each_client
from mosaic_jax.models.channels import feature_space
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.groups import Group, in_client_order
from mosaic_jax.stages.local_rounds import Cohort, received
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps.prototypes import Prototypes, class_prototypes
from mosaic_jax.steps.submodels import Channels, pad_features
from mosaic_jax.types import Variables


def with_prototypes(
    problem: Problem, federation: Federation, groups: Sequence[Group], cohorts: Sequence[Cohort], personal: Sequence[list],
    held: Sequence[Channels], servers: Sequence[Variables], data: tuple, round_: jax.Array, bank: Prototypes, first: int,
) -> Prototypes:  # fmt: skip
    """The bank [R, C, K, P, D] with the prototypes of this round at `round_ - first`, where it is not before round `first`.

    cohorts: all clients; personal, held, servers: of each group.
    """

    def collect(bank: Prototypes) -> Prototypes:
        found = [
            _of_group(problem, federation, *each, data, round_)
            for each in zip(groups, cohorts, personal, held, servers, strict=True)
        ]
        return jax.tree.map(lambda rounds, new: rounds.at[round_ - first].set(new), bank, in_client_order(groups, found))

    return jax.lax.cond(round_ >= first, collect, lambda bank: bank, bank)


def _of_group(
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
