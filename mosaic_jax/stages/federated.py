"""Federated rounds: warm-up, fine-tuning and plain FedAvg are this stage with other numbers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mosaic_jax.data.sampling import batch_indices, draw_cohort
from mosaic_jax.mapping import AXIS, REPLICATED, SHARDED, for_each_client
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.stages.evaluation import federated_validation
from mosaic_jax.stages.problem import Outputs, Problem, Records, Stage
from mosaic_jax.steps.client_update import client_optimizer, client_update
from mosaic_jax.steps.prototypes import Prototypes, class_prototypes
from mosaic_jax.trees import broadcast, num_bytes, weighted_mean
from mosaic_jax.types import Batch, PyTree, Variables


class FederatedState(NamedTuple):
    """global_: the server's model; clients: leaves [C, ...], the models sent in the last round of all clients, the received
    model before there is one; () where the last round is one of a cohort only.

    prototypes: features f32[R, C, K, P, D], valid bool[R, C, K, P] of the last R rounds, P of each class kept; R = 0 where none
    are asked for.
    """

    global_: Variables
    clients: Variables
    prototypes: Prototypes


class Cohort(NamedTuple):
    """The clients of one round, ascending i32[M], and the images of their local steps i32[M, T, B]."""

    clients: np.ndarray
    indices: np.ndarray


def federated_stage(
    problem: Problem,
    name: str,
    num_rounds: int,
    learning_rate: float,
    num_prototype_rounds: int,
    start_from: Callable[[Outputs], Variables] | None,
) -> Stage:
    """num_rounds rounds of T local SGD steps at a cohort of M clients and their mean weighted by n[i], BatchNorm included.

    The cohort of a round is `warmup.clients_per_round` clients, and only their work is done and only their models are held.
    num_prototype_rounds: the last so many rounds, in which ALL clients take part and also send class prototypes, computed on
    the round's batches with the model they received, in eval mode; so every client's last model and prototypes are there for
    later stages. start_from: picks the first global model out of earlier outputs; None is a fresh one.
    """
    config, classifier = problem.config, problem.classifier
    optimizer = client_optimizer(learning_rate, config.warmup.weight_decay)
    plan, num_clients = problem.client_plan, problem.num_clients
    cohort_size = config.warmup.clients_per_round or num_clients
    # Of nobody a model is kept beyond the round unless the last round has one of everybody.
    keep_clients = cohort_size == num_clients or num_prototype_rounds > 0
    sizes = jnp.asarray(problem.num_samples, jnp.float32)
    kept = min(config.prototypes.keep_per_class or config.prototypes.per_class, config.prototypes.per_class)
    shape = (num_prototype_rounds, num_clients, problem.num_classes, kept)

    def init(inputs: PyTree) -> FederatedState:
        received = classifier.init(key_at(config.seed, "model")) if start_from is None else inputs
        features = jnp.zeros((*shape, classifier.feature_size))
        clients = broadcast(received, num_clients) if keep_clients else ()
        return FederatedState(received, clients, Prototypes(features, jnp.zeros(shape, bool)))

    def members(round_: int) -> int:
        return cohort_size if round_ < num_rounds - num_prototype_rounds else num_clients

    def host(inputs: PyTree, start: int) -> Cohort:
        clients = draw_cohort(num_clients, members(start), seed=config.seed, stage=name, round_=start)
        indices = batch_indices(
            [problem.splits.train[client] for client in clients], client_ids=clients, seed=config.seed, stage=name,
            start=start * config.warmup.num_local_steps, num_steps=config.warmup.num_local_steps,
            batch_size=config.warmup.batch_size, order=config.warmup.order,
        )  # fmt: skip
        return Cohort(clients, indices)

    def prototypes_of(indices: jax.Array, key: jax.Array, received: Variables, images: jax.Array, labels: jax.Array) -> Prototypes:
        features = jax.lax.map(lambda i: classifier.features(received, problem.decode(images[i]), False)[0], indices)
        found = class_prototypes(
            key, features.reshape(-1, features.shape[-1]), labels[indices].reshape(-1),
            problem.num_classes, config.prototypes.per_class, config.prototypes.kmeans_steps,
        )  # fmt: skip
        return Prototypes(found.features[:, :kept], found.valid[:, :kept])

    def run(
        state: FederatedState, inputs: PyTree, data: tuple, cohort: Cohort, start: jax.Array, stop: jax.Array
    ) -> tuple[FederatedState, dict[str, jax.Array]]:
        images, labels = data
        ids, indices = cohort
        everyone = len(ids) == num_clients
        key = key_at(config.seed, name, start)

        def one(indices: jax.Array, client: jax.Array, received: Variables, images: jax.Array, labels: jax.Array) -> tuple:
            batches = Batch(images[indices], labels[indices])
            return client_update(classifier, received, batches, client_key(key, client), optimizer, problem.preprocess)

        sent, info = for_each_client(one, (indices, ids), (state.global_, images, labels), plan)
        prototypes = state.prototypes
        if num_prototype_rounds and everyone:
            prototype_key = key_at(config.seed, "prototypes", start)

            def clusters(indices: jax.Array, client: jax.Array, *shared: PyTree) -> Prototypes:
                return prototypes_of(indices, client_key(prototype_key, client), *shared)

            def collect(bank: Prototypes) -> Prototypes:
                found = for_each_client(clusters, (indices, ids), (state.global_, images, labels), plan)
                slot = start - (num_rounds - num_prototype_rounds)
                return jax.tree.map(lambda all_rounds, new: all_rounds.at[slot].set(new), bank, found)

            wanted = start >= num_rounds - num_prototype_rounds
            prototypes = jax.lax.cond(wanted, collect, lambda bank: bank, prototypes)
        # At each client's own place, 0 for those outside the cohort: a loss that is not finite is named by its client.
        loss = jnp.zeros((num_clients, 1)).at[ids].set(jnp.mean(info.loss, axis=1, keepdims=True))
        clients = sent if keep_clients and everyone else state.clients
        return FederatedState(weighted_mean(sent, sizes[ids]), clients, prototypes), {"loss": loss}

    validate = federated_validation(problem) if any(len(v) for v in problem.splits.validation) else None

    def watch(state: FederatedState, inputs: PyTree, step: int) -> tuple[FederatedState, Records]:
        return state, {"validation": float(validate(state.global_))} if validate else {}

    def traffic(state: FederatedState) -> dict[str, int]:
        models = num_bytes(state.global_) * sum(map(members, range(num_rounds)))
        sent = int(np.sum(state.prototypes.valid)) * (classifier.feature_size + 1) * 4
        return {"up": models + sent, "down": models}

    def inputs_of(outputs: Outputs) -> PyTree:
        return () if start_from is None else start_from(outputs)

    return Stage(
        name=name, unit="round", num_steps=num_rounds, segment=1, save_every=config.checkpoint.every_rounds,
        sharding=FederatedState(REPLICATED, SHARDED, PartitionSpec(None, AXIS)),
        inputs=inputs_of, init=init, host=host, data=problem.train_arrays(), run=run, watch=watch,
        watch_every=config.evaluation.every_rounds, output=lambda state, inputs: state, traffic=traffic,
    )  # fmt: skip
