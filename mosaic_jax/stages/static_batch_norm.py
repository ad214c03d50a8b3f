"""HeteroFL's static BatchNorm: statistics of the global model itself, in the place of the mean of the clients' running ones."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mosaic_jax.mapping import for_each_client
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.stages.groups import Group
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps.statistics import static_statistics
from mosaic_jax.trees import weighted_mean
from mosaic_jax.types import PyTree, Variables


def static_batch_norm(
    problem: Problem, stage: str, kinds: Sequence[int], groups: Sequence[Group], host: Callable[[PyTree, int], tuple], data: tuple
) -> Callable[[tuple[Variables, ...], int], tuple[Variables, ...]]:
    """Returns (servers, round) -> servers whose statistics are those of the round's batches, averaged over its clients by n[i].

    Every client of the round runs the whole global model forward, whatever its own width, as in HeteroFL's public code.
    """
    sizes = jnp.asarray(problem.num_samples, jnp.float32)

    @jax.jit
    def estimate(servers: tuple[Variables, ...], cohorts: tuple, data: tuple, round_: jax.Array) -> tuple[Variables, ...]:
        key = key_at(problem.root, f"{stage}/statistics", round_)

        def of_kind(kind: int, server: Variables) -> Variables:
            own = [cohort for group, cohort in zip(groups, cohorts, strict=True) if group.architecture == kind]
            clients = jnp.concatenate([cohort.clients for cohort in own])
            indices = jnp.concatenate([cohort.indices for cohort in own])

            def one(indices: jax.Array, client: jax.Array, server: Variables, images: jax.Array) -> PyTree:
                classifier = problem.architectures[kind].classifier
                return static_statistics(classifier, server, images[indices], client_key(key, client), problem.preprocess)

            found = for_each_client(one, (indices, clients), (server, data[0]), problem.client_plan)
            return server._replace(batch_stats=weighted_mean(found, sizes[clients]))

        return tuple(of_kind(*each) for each in zip(kinds, servers, strict=True))

    return lambda servers, round_: estimate(servers, host((), round_), data, jnp.int32(round_))
