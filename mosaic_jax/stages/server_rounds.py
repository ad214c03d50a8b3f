"""A federated round at the server: out of what clients send, its next model of each architecture and its state."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mosaic_jax.stages.federation import Federation, Uploads
from mosaic_jax.stages.groups import Group
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps import submodels
from mosaic_jax.trees import where
from mosaic_jax.types import PyTree, Variables

Servers = tuple[Variables, ...]
States = tuple[PyTree, ...]


def server_round(
    problem: Problem, federation: Federation, kinds: Sequence[int], groups: Sequence[Group], states: States, servers: Servers,
    sent: Sequence[Uploads], weights: Sequence[jax.Array], some_are_missing: bool, key: jax.Array,
) -> tuple[States, Servers]:  # fmt: skip
    """The server's states and models of the architectures `kinds` after a round; where nothing arrives they stay as they were.

    sent, weights f32[M]: of each group, 0 for clients whose work does not arrive.
    """
    new_states, new_servers = [], []
    for kind, state, old in zip(kinds, states, servers, strict=True):
        of_kind = [each for group, *each in zip(groups, sent, weights, strict=True) if group.architecture == kind]
        if federation.channels is None:
            ((of_group, own),) = of_kind
            state, new = _aggregate(federation, state, old, of_group, own, some_are_missing)
        else:
            new = _mean_by_position(problem, federation, kind, old, of_kind)
        new_states.append(state)
        new_servers.append(new)
    found = tuple(new_states), tuple(new_servers)
    if federation.server_step is None:
        return found
    stepped = federation.server_step(*found, groups, sent, weights, key)
    return where(sum(jnp.sum(own) for own in weights) > 0, stepped, found) if some_are_missing else stepped


def _aggregate(
    federation: Federation, state: PyTree, old: Variables, sent: Uploads, weights: jax.Array, some_are_missing: bool
) -> tuple[PyTree, Variables]:
    """The server rule, where any work arrives."""
    if not some_are_missing:
        return federation.aggregate(state, old, sent, weights)
    any_arrived = jnp.sum(weights) > 0
    return where(any_arrived, federation.aggregate(state, old, sent, jnp.where(any_arrived, weights, 1.0)), (state, old))


def _mean_by_position(problem: Problem, federation: Federation, kind: int, old: Variables, sent: list) -> Variables:
    """The mean over the clients that hold a position, out of each group's [uploads, weights f32[M]]."""
    axes = problem.architectures[kind].axes
    new = submodels.aggregate(old, [submodels.Sent(each.models, each.channels, weights) for each, weights in sent], axes)
    if not federation.heads_by_class:
        return new
    holds = jnp.asarray(problem.label_counts > 0, jnp.float32)
    by_class = [submodels.Sent(each.models, each.channels, weights[:, None] * holds[each.clients]) for each, weights in sent]
    return new._replace(params=new.params | {"linear": submodels.aggregate_heads(old, by_class, axes)})
