"""Rounds that hand on the best of the models they went through, by federated validation, the one they began with included."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.mapping import REPLICATED
from mosaic_jax.stages.federated import FederatedState
from mosaic_jax.stages.stage import Records, Stage
from mosaic_jax.types import PyTree, Variables


class BestRounds(NamedTuple):
    """rounds: the state of the stage itself; servers: its models at the best look so far; validation: f32[], theirs."""

    rounds: FederatedState
    servers: tuple[Variables, ...]
    validation: jax.Array


def best_rounds(stage: Stage) -> Stage:
    """A stage of federated rounds whose output has the server's models of the look with the highest validation accuracy.

    A look is what the stage's `watch` records as `validation`, that of the first architecture; of equal ones the first counts.
    Without validation images the last models count. The rule is ours: fine-tuning must not lose what was distilled.
    """
    watch_rounds = stage.watch
    assert watch_rounds is not None, "federated rounds are always watched"

    def init(inputs: PyTree) -> BestRounds:
        rounds = stage.init(inputs)
        return BestRounds(rounds, rounds.servers, jnp.float32(-1.0))

    def run(state: BestRounds, *arguments: PyTree) -> tuple[BestRounds, PyTree]:
        rounds, series = stage.run(state.rounds, *arguments)
        return state._replace(rounds=rounds), series

    def watch(state: BestRounds, inputs: PyTree, step: int) -> tuple[BestRounds, Records]:
        rounds, records = watch_rounds(state.rounds, inputs, step)
        state = state._replace(rounds=rounds)
        if "validation" not in records:  # nobody has validation images: the last counts
            return state._replace(servers=_copies(rounds.servers)), records
        validation = np.float32(records["validation"])
        if validation > np.asarray(state.validation):
            state = BestRounds(rounds, _copies(rounds.servers), jax.device_put(validation, state.validation.sharding))
        return state, records | {"best_validation": float(state.validation)}

    def output(state: BestRounds, inputs: PyTree) -> FederatedState:
        return stage.output(state.rounds, inputs)._replace(servers=state.servers)

    return stage._replace(
        init=init, run=run, watch=watch, output=output, sharding=BestRounds(stage.sharding, REPLICATED, REPLICATED),
        traffic=lambda state: stage.traffic(state.rounds),
    )  # fmt: skip


def _copies(tree: PyTree) -> PyTree:
    """Arrays of their own where they are, since those of the rounds are donated to the next one; nothing is compiled for it."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding, may_alias=False), tree)
