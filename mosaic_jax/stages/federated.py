"""Federated rounds: warm-up, fine-tuning and every federated method are this stage with other numbers and hooks."""

import dataclasses
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
from mosaic_jax.stages.federation import Federation, Uploads, bytes_of_a_round, personal_leaves
from mosaic_jax.stages.groups import Group
from mosaic_jax.stages.local_rounds import Cohort, held_channels, local_round, received, rows, with_rows
from mosaic_jax.stages.participation import Participation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.prototype_rounds import with_prototypes
from mosaic_jax.stages.server_rounds import server_round
from mosaic_jax.stages.stage import Judged, Outputs, Records, Stage
from mosaic_jax.stages.static_batch_norm import static_batch_norm
from mosaic_jax.steps.prototypes import Prototypes
from mosaic_jax.steps.submodels import Channels
from mosaic_jax.trees import broadcast, stack
from mosaic_jax.types import PyTree, Series, Variables


class FederatedState(NamedTuple):
    """servers: the server's model of each architecture of the stage.

    clients: of each group, leaves [C_g, ...], the last model that each client sent, the received one before there is one; held:
    the channels i32[C_g, n] that these models have, {} where all clients hold all; both () where no round is one of all clients,
    and in a stage that goes on from others, whose clients' models nobody asks for.
    personal: of each group, leaves [C_g, ...] that stay on the clients, [] where there are none.
    prototypes: features f32[R, C, K, P, D], valid bool[R, C, K, P] of the last R rounds, P of each class kept; R = 0 where none
    are asked for.
    server_states: of each architecture, what the method keeps at the server; client_states: of each group, leaves [C_g, ...],
    what it keeps at the clients; () where it keeps nothing.
    """

    servers: tuple[Variables, ...]
    clients: tuple[Variables, ...]
    held: tuple[Channels, ...]
    personal: tuple[list[jax.Array], ...]
    prototypes: Prototypes
    server_states: tuple[PyTree, ...]
    client_states: tuple[PyTree, ...]


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
    groups = problem.groups if groups is None else groups
    config, kinds = problem.config, sorted({group.architecture for group in groups})
    participation = Participation(config, groups, name, num_rounds, num_full_rounds)
    num_banks = num_full_rounds if prototypes else 0
    rounds = _Rounds(problem, name, num_rounds, learning_rate, federation, num_banks, start_from, groups, kinds, participation)
    data = problem.train_arrays()
    owner = "global" if start_from is None else "finetuned"
    models = tuple(owner if kind == 0 else f"{owner} {problem.architectures[kind].name}" for kind in kinds)

    def predict(outputs: Outputs, images: jax.Array) -> dict[str, jax.Array]:
        of_kinds = zip(models, kinds, outputs[name].servers, strict=True)
        return {of: problem.architectures[kind].classifier.apply(server, images, False)[0] for of, kind, server in of_kinds}

    return Stage(
        name=name, unit="round", num_steps=num_rounds, segment=1, save_every=config.checkpoint.every_rounds,
        sharding=FederatedState(REPLICATED, SHARDED, SHARDED, SHARDED, PartitionSpec(None, AXIS), REPLICATED, SHARDED),
        inputs=rounds.inputs, init=rounds.init, host=rounds.host, data=data, run=rounds.run, watch=_watch(rounds, data),
        watch_every=config.evaluation.every_rounds, output=lambda state, inputs: state, traffic=rounds.traffic,
        notices=participation.notices, judged=Judged(models, predict), hands_over=models[0],
        judge_clients=(lambda outputs: evaluate_clients(problem, outputs[name].clients)) if rounds.keeps_clients else None,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class _Rounds:
    """The functions of the stage. num_banks: rounds with prototypes; kinds: positions of the architectures of its groups."""

    problem: Problem
    name: str
    num_rounds: int
    learning_rate: float
    federation: Federation
    num_banks: int
    start_from: Callable[[Outputs], tuple[Variables, ...]] | None
    groups: tuple[Group, ...]
    kinds: list[int]
    participation: Participation

    @property
    def keeps_clients(self) -> bool:
        return self.start_from is None and self.participation.keeps_clients

    def inputs(self, outputs: Outputs) -> PyTree:
        if self.start_from is None:
            return ()
        before = zip(self.problem.groups, outputs["warmup"].personal, strict=True)
        kept = tuple(personal for group, personal in before if any(group is each for each in self.groups))
        return FederatedInputs(self.start_from(outputs), kept)

    def init(self, inputs: PyTree) -> FederatedState:
        problem, federation = self.problem, self.federation
        servers = tuple(map(self._fresh, self.kinds)) if self.start_from is None else inputs.servers
        clients, held = zip(*(self._first(group, servers[self._place(group)]) for group in self.groups), strict=True)
        shape = (self.num_banks, problem.num_clients, problem.num_classes, problem.kept_prototypes)
        bank = Prototypes(jnp.zeros((*shape, problem.feature_size)), jnp.zeros(shape, bool))
        fresh = self.start_from is None
        personal = tuple(personal_leaves(federation, models) for models in clients) if fresh else inputs.personal
        ones = [jax.tree.map(lambda leaf: leaf[0], models) for models in clients]
        carried = [broadcast(federation.init_client(one), len(group.clients)) for group, one in zip(self.groups, ones, strict=True)]
        kept = (clients, held) if self.keeps_clients else ((), ())
        return FederatedState(servers, *kept, personal, bank, tuple(map(federation.init_server, servers)), tuple(carried))

    def host(self, inputs: PyTree, start: int) -> tuple[Cohort, ...]:
        problem, warmup = self.problem, self.problem.config.warmup

        def of_group(clients: np.ndarray, arrives: np.ndarray) -> Cohort:
            indices = batch_indices(
                [problem.splits.train[client] for client in clients], client_ids=clients, seed=problem.config.seed,
                stage=self.name, start=start * warmup.num_local_steps, num_steps=warmup.num_local_steps,
                batch_size=warmup.batch_size, order=warmup.order,
            )  # fmt: skip
            return Cohort(clients.astype(np.int32), indices, arrives.astype(np.float32))

        drawn = self.participation.round(start)
        return tuple(of_group(*each) for each in zip(drawn.clients, drawn.arrives, strict=True))

    def run(
        self, state: FederatedState, inputs: PyTree, data: tuple, cohorts: tuple[Cohort, ...], start: jax.Array, stop: jax.Array
    ) -> tuple[FederatedState, Series]:
        problem, federation, missing = self.problem, self.federation, self.participation.some_are_missing
        messages = [federation.server_message(each) for each in state.server_states]
        personal = [rows(*each) for each in zip(self.groups, cohorts, state.personal, strict=True)]
        carried = [rows(*each) for each in zip(self.groups, cohorts, state.client_states, strict=True)]
        ends = [
            local_round(
                problem, federation, group, self.name, self.learning_rate, cohort, *kept, state.servers[self._place(group)],
                messages[self._place(group)], data, start,
            )
            for group, cohort, *kept in zip(self.groups, cohorts, personal, carried, strict=True)
        ]  # fmt: skip
        # At each client's own place: a loss that is not finite is named by its client.
        loss, done = jnp.zeros((problem.num_clients, 1)), jnp.zeros((problem.num_clients, 1), bool)
        for cohort, end in zip(cohorts, ends, strict=True):
            loss, done = loss.at[cohort.clients, 0].set(end.losses), done.at[cohort.clients, 0].set(True)

        def latest(old: tuple, new: list) -> tuple:
            return tuple(with_rows(*each, missing) for each in zip(self.groups, cohorts, old, new, strict=True))

        models, held = [end.models for end in ends], [end.channels for end in ends]
        bank, of_groups = state.prototypes, [state.servers[self._place(group)] for group in self.groups]
        if self.num_banks and sum(len(cohort.clients) for cohort in cohorts) == problem.num_clients:
            first = self.num_rounds - self.num_banks
            bank = with_prototypes(problem, federation, self.groups, cohorts, personal, held, of_groups, data, start, bank, first)
        sizes = jnp.asarray(problem.num_samples, jnp.float32)
        states, servers = server_round(
            problem, federation, self.kinds, self.groups, state.server_states, state.servers,
            [Uploads(cohort.clients, end.models, end.channels, end.messages, self._total(group))
             for group, cohort, end in zip(self.groups, cohorts, ends, strict=True)],
            [sizes[cohort.clients] * cohort.arrives for cohort in cohorts], missing,
            key_at(problem.root, f"{self.name}/server", start),
        )  # fmt: skip
        kept = (latest(state.clients, models), latest(state.held, held)) if self.keeps_clients else ((), ())
        personal = latest(state.personal, [personal_leaves(federation, sent) for sent in models])
        carried = latest(state.client_states, [end.client_states for end in ends])
        return FederatedState(servers, *kept, personal, bank, states, carried), Series({"loss": loss}, done)

    def traffic(self, state: FederatedState) -> dict[str, int]:
        of_init = [jax.eval_shape(kind.classifier.init, key_of(0)) for kind in self.problem.architectures]
        shapes = [(of_init[group.architecture], jax.eval_shape(group.classifier.init, key_of(0))) for group in self.groups]
        up, down = zip(*(bytes_of_a_round(self.federation, *each) for each in shapes), strict=True)
        begun, arrived = self.participation.counts()
        prototypes = int(np.sum(state.prototypes.valid)) * (self.problem.feature_size + 1) * 4
        return {"up": int(np.dot(arrived, up)) + prototypes, "down": int(np.dot(begun, down))}

    def _place(self, group: Group) -> int:
        return self.kinds.index(group.architecture)

    def _fresh(self, kind: int) -> Variables:
        key = key_at(self.problem.root, "model" if kind == 0 else f"model/{kind}")
        return self.problem.architectures[kind].classifier.init(key)

    def _first(self, group: Group, server: Variables) -> tuple[Variables, Channels]:
        """What the clients of a group receive in round 0."""
        problem, federation = self.problem, self.federation
        held = stack([held_channels(problem, federation, group, self.name, 0, client) for client in group.clients])
        if not held:
            return broadcast(server, len(group.clients)), held
        return for_each_client(lambda own, whole: received(problem, federation, group, whole, own, []), (held,), (server,)), held

    def _total(self, group: Group) -> jax.Array:
        """The images of all clients of a group's architecture."""
        same = [each.clients for each in self.groups if each.architecture == group.architecture]
        return jnp.sum(jnp.asarray(self.problem.num_samples, jnp.float32)[np.concatenate(same)])


def _watch(rounds: _Rounds, data: tuple) -> Callable[[FederatedState, PyTree, int], tuple[FederatedState, Records]]:
    """Looks at the servers' models: static BatchNorm taken anew where the method has it, and federated validation."""
    problem, kinds = rounds.problem, rounds.kinds
    judged = kinds if any(len(v) for v in problem.splits.validation) else []
    validate = [federated_validation(problem, problem.architectures[kind].classifier) for kind in judged]
    # The first is the student's network, if clients have it.
    names = ["validation", *(f"validation/{problem.architectures[kind].name}" for kind in kinds[1:])]
    static = rounds.federation.static_batch_norm
    estimate = static_batch_norm(problem, rounds.name, kinds, rounds.groups, rounds.host, data) if static else None

    def watch(state: FederatedState, inputs: PyTree, step: int) -> tuple[FederatedState, Records]:
        if estimate is not None:
            state = state._replace(servers=estimate(state.servers, max(min(step, rounds.num_rounds - 1), 0)))
        return state, {name: float(of_kind(server)) for name, of_kind, server in zip(names, validate, state.servers, strict=False)}

    return watch
