"""Federated rounds: warm-up, fine-tuning and every federated method are this stage with other numbers and hooks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mosaic_jax.data.sampling import batch_indices
from mosaic_jax.mapping import AXIS, REPLICATED, SHARDED, for_each_client
from mosaic_jax.rng import key_at, key_of
from mosaic_jax.stages.evaluation import evaluate_clients, federated_validation
from mosaic_jax.stages.federation import Federation, personal_leaves
from mosaic_jax.stages.groups import Group, in_client_order
from mosaic_jax.stages.local_rounds import Cohort, group_prototypes, held_channels, local_round, received
from mosaic_jax.stages.participation import Participation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Judged, Outputs, Records, Stage
from mosaic_jax.stages.static_batch_norm import static_batch_norm
from mosaic_jax.steps import submodels
from mosaic_jax.steps.client_update import client_optimizer
from mosaic_jax.steps.prototypes import Prototypes
from mosaic_jax.trees import broadcast, num_bytes, stack, where
from mosaic_jax.types import PyTree, Series, Variables


class FederatedState(NamedTuple):
    """servers: the server's model of each architecture of the stage.

    clients: of each group, leaves [C_g, ...], the last model that each client sent, the received one before there is one; held:
    the channels i32[C_g, n] that these models have, {} where all clients hold all; both () where no round is one of all clients,
    and in a stage that goes on from others, whose clients' models nobody asks for.
    personal: of each group, leaves [C_g, ...] that stay on the clients, [] where there are none.
    prototypes: features f32[R, C, K, P, D], valid bool[R, C, K, P] of the last R rounds, P of each class kept; R = 0 where none
    are asked for.
    """

    servers: tuple[Variables, ...]
    clients: tuple[Variables, ...]
    held: tuple[submodels.Channels, ...]
    personal: tuple[list[jax.Array], ...]
    prototypes: Prototypes


class FederatedInputs(NamedTuple):
    """Of a stage that goes on from others: its first servers' models, and what stays on the clients of each group since the
    warm-up."""

    servers: tuple[Variables, ...]
    personal: tuple[list[jax.Array], ...]


def federated_stage(
    problem: Problem,
    name: str,
    num_rounds: int,
    learning_rate: float,
    federation: Federation,
    *,
    num_full_rounds: int = 0,
    prototypes: bool = False,
    start_from: Callable[[Outputs], tuple[Variables, ...]] | None = None,
    groups: tuple[Group, ...] | None = None,
) -> Stage:
    """num_rounds rounds of T local SGD steps at a cohort of M clients and their mean weighted by n[i], BatchNorm included.

    The mean of an architecture is over the clients that hold it, of narrower ones position by position; where nothing arrives the
    old value stays. The cohort of a round is `warmup.clients_per_round` clients, and only their work is done; that of clients
    whose work does not arrive is done in vain, so that all rounds are one program.
    num_full_rounds: the last so many rounds have ALL clients, so that every client's last model is there for later stages;
    prototypes: whether the clients also send class prototypes in them, computed on the round's batches with the model they
    received, in eval mode. start_from: picks the first models of the server, one for each architecture of `groups`, out of
    earlier outputs; None is fresh ones. groups: those that take part; None is all.
    """
    config = problem.config
    groups = problem.groups if groups is None else groups
    kinds = sorted({group.architecture for group in groups})
    optimizer = client_optimizer(learning_rate, config.warmup.weight_decay)
    parts = Participation(config, groups, name, num_rounds, num_full_rounds)
    keeps_clients = start_from is None and parts.keeps_clients
    sizes = jnp.asarray(problem.num_samples, jnp.float32)
    num_banks = num_full_rounds if prototypes else 0
    shape = (num_banks, problem.num_clients, problem.num_classes, problem.kept_prototypes)
    data = problem.train_arrays()

    def server_of(group: Group, servers: tuple[Variables, ...]) -> Variables:
        return servers[kinds.index(group.architecture)]

    def fresh(kind: int) -> Variables:
        return problem.architectures[kind].classifier.init(key_at(problem.root, "model" if kind == 0 else f"model/{kind}"))

    def first(group: Group, server: Variables) -> tuple[Variables, submodels.Channels]:
        """What the clients of a group receive in round 0."""
        held = stack([held_channels(problem, federation, group, name, 0, client) for client in group.clients])
        if not held:
            return broadcast(server, len(group.clients)), held
        return for_each_client(lambda own, whole: received(problem, federation, group, whole, own, []), (held,), (server,)), held

    def inputs_of(outputs: Outputs) -> PyTree:
        if start_from is None:
            return ()
        before = zip(problem.groups, outputs["warmup"].personal, strict=True)
        return FederatedInputs(start_from(outputs), tuple(kept for group, kept in before if any(group is each for each in groups)))

    def init(inputs: PyTree) -> FederatedState:
        servers = tuple(map(fresh, kinds)) if start_from is None else inputs.servers
        clients, held = zip(*(first(group, server_of(group, servers)) for group in groups), strict=True)
        bank = Prototypes(jnp.zeros((*shape, problem.feature_size)), jnp.zeros(shape, bool))
        personal = tuple(personal_leaves(federation, own) for own in clients) if start_from is None else inputs.personal
        return FederatedState(servers, *((clients, held) if keeps_clients else ((), ())), personal, bank)

    def host(inputs: PyTree, start: int) -> tuple[Cohort, ...]:
        def of_group(clients: np.ndarray, arrives: np.ndarray) -> Cohort:
            indices = batch_indices(
                [problem.splits.train[client] for client in clients], client_ids=clients, seed=config.seed, stage=name,
                start=start * config.warmup.num_local_steps, num_steps=config.warmup.num_local_steps,
                batch_size=config.warmup.batch_size, order=config.warmup.order,
            )  # fmt: skip
            return Cohort(clients.astype(np.int32), indices, arrives.astype(np.float32))

        drawn = parts.round(start)
        return tuple(of_group(*each) for each in zip(drawn.clients, drawn.arrives, strict=True))

    def run(
        state: FederatedState, inputs: PyTree, data: tuple, cohorts: tuple[Cohort, ...], start: jax.Array, stop: jax.Array
    ) -> tuple[FederatedState, Series]:
        own = [_rows(group, cohort, kept) for group, cohort, kept in zip(groups, cohorts, state.personal, strict=True)]
        sent, held, losses = zip(
            *(
                local_round(problem, federation, group, name, optimizer, cohort, kept, server_of(group, state.servers), data, start)
                for group, cohort, kept in zip(groups, cohorts, own, strict=True)
            ),
            strict=True,
        )
        # At each client's own place: a loss that is not finite is named by its client.
        loss, done = jnp.zeros((problem.num_clients, 1)), jnp.zeros((problem.num_clients, 1), bool)
        for cohort, means in zip(cohorts, losses, strict=True):
            loss, done = loss.at[cohort.clients, 0].set(means), done.at[cohort.clients, 0].set(True)

        def latest(old: tuple, new: tuple) -> tuple:
            missing = parts.some_are_missing
            return tuple(_updated(*each, missing) for each in zip(groups, cohorts, old, new, strict=True))

        bank = state.prototypes
        if prototypes and sum(len(cohort.clients) for cohort in cohorts) == problem.num_clients:

            def collect(bank: Prototypes) -> Prototypes:
                found = [
                    group_prototypes(problem, federation, group, cohort, kept, places, server_of(group, state.servers), data, start)
                    for group, cohort, kept, places in zip(groups, cohorts, own, held, strict=True)
                ]
                slot = start - (num_rounds - num_banks)
                return jax.tree.map(lambda rounds, new: rounds.at[slot].set(new), bank, in_client_order(groups, found))

            bank = jax.lax.cond(start >= num_rounds - num_banks, collect, lambda bank: bank, bank)
        weights = [sizes[cohort.clients] * cohort.arrives for cohort in cohorts]
        servers = tuple(
            _mean(
                problem, federation, kind, old, parts.some_are_missing,
                [each for group, *each in zip(groups, cohorts, sent, held, weights, strict=True) if group.architecture == kind],
            )
            for kind, old in zip(kinds, state.servers, strict=True)
        )  # fmt: skip
        kept = (latest(state.clients, sent), latest(state.held, held)) if keeps_clients else ((), ())
        personal = latest(state.personal, tuple(personal_leaves(federation, models) for models in sent))
        return FederatedState(servers, *kept, personal, bank), Series({"loss": loss}, done)

    has_validation = any(len(v) for v in problem.splits.validation)
    judged = kinds if has_validation else []
    validate = [federated_validation(problem, problem.architectures[kind].classifier) for kind in judged]
    # The first is the student's network, if clients have it.
    names = ["validation", *(f"validation/{problem.architectures[kind].name}" for kind in kinds[1:])]
    estimate = static_batch_norm(problem, name, kinds, groups, host, data) if federation.static_batch_norm else None

    def watch(state: FederatedState, inputs: PyTree, step: int) -> tuple[FederatedState, Records]:
        if estimate is not None:
            state = state._replace(servers=estimate(state.servers, max(min(step, num_rounds - 1), 0)))
        return state, {name: float(of_kind(server)) for name, of_kind, server in zip(names, validate, state.servers, strict=False)}

    def traffic(state: FederatedState) -> dict[str, int]:
        shapes = [jax.eval_shape(group.classifier.init, key_of(0)) for group in groups]
        each = [num_bytes(shape) - num_bytes(personal_leaves(federation, shape)) for shape in shapes]
        begun, arrived = parts.counts()
        sent = int(np.sum(state.prototypes.valid)) * (problem.feature_size + 1) * 4
        return {"up": int(np.dot(arrived, each)) + sent, "down": int(np.dot(begun, each))}

    own = "global" if start_from is None else "finetuned"
    models = tuple(own if kind == 0 else f"{own} {problem.architectures[kind].name}" for kind in kinds)

    def predict(outputs: Outputs, images: jax.Array) -> dict[str, jax.Array]:
        of_kinds = zip(models, kinds, outputs[name].servers, strict=True)
        return {of: problem.architectures[kind].classifier.apply(server, images, False)[0] for of, kind, server in of_kinds}

    return Stage(
        name=name, unit="round", num_steps=num_rounds, segment=1, save_every=config.checkpoint.every_rounds,
        sharding=FederatedState(REPLICATED, SHARDED, SHARDED, SHARDED, PartitionSpec(None, AXIS)),
        inputs=inputs_of, init=init, host=host, data=data, run=run, watch=watch, watch_every=config.evaluation.every_rounds,
        output=lambda state, inputs: state, traffic=traffic, notices=parts.notices,
        judged=Judged(models, predict), hands_over=models[0],
        judge_clients=(lambda outputs: evaluate_clients(problem, outputs[name].clients)) if keeps_clients else None,
    )  # fmt: skip


def _rows(group: Group, cohort: Cohort, stacked: PyTree) -> PyTree:
    """Of leaves [C_g, ...] the rows of the cohort's clients, [M, ...]."""
    if len(cohort.clients) == len(group.clients):
        return stacked
    rows = jnp.searchsorted(jnp.asarray(group.clients), cohort.clients)
    return jax.tree.map(lambda leaf: leaf[rows], stacked)


def _updated(group: Group, cohort: Cohort, old: PyTree, new: PyTree, some_are_missing: bool) -> PyTree:
    """Leaves [C_g, ...] with the new rows [M, ...] of the clients whose work arrives."""
    if some_are_missing:

        def kept(before: jax.Array, after: jax.Array) -> jax.Array:
            return jnp.where(cohort.arrives.reshape(-1, *(1,) * (after.ndim - 1)) > 0, after, before)

        new = jax.tree.map(kept, _rows(group, cohort, old), new)
    if len(cohort.clients) == len(group.clients):
        return new
    rows = jnp.searchsorted(jnp.asarray(group.clients), cohort.clients)
    return jax.tree.map(lambda leaf, own: leaf.at[rows].set(own), old, new)


def _mean(
    problem: Problem, federation: Federation, kind: int, old: Variables, some_are_missing: bool, sent: list[list]
) -> Variables:
    """The server's new model of an architecture out of its groups' (cohort, models, channels, weights)."""
    axes = problem.architectures[kind].axes
    if federation.channels is not None:
        new = submodels.aggregate(old, [submodels.Sent(*each[1:]) for each in sent], axes)
        if not federation.heads_by_class:
            return new
        holds = jnp.asarray(problem.label_counts > 0, jnp.float32)
        by_class = [submodels.Sent(*each, weights[:, None] * holds[cohort.clients]) for cohort, *each, weights in sent]
        return new._replace(params=new.params | {"linear": submodels.aggregate_heads(old, by_class, axes)})
    ((_, models, _, weights),) = sent
    if not some_are_missing:
        return federation.aggregate(models, weights)
    any_arrived = jnp.sum(weights) > 0
    return where(any_arrived, federation.aggregate(models, jnp.where(any_arrived, weights, 1.0)), old)
