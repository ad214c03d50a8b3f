"""Every stage before it runs: its shapes, memory, traffic and programs, found by tracing; no array of a network is made."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mosaic_jax.methods import FEDERATIONS, stages_of
from mosaic_jax.planning.memory import Memory, stage_memory
from mosaic_jax.stages.best_rounds import BestRounds
from mosaic_jax.stages.federated import FederatedState
from mosaic_jax.stages.meta import keeps_logits
from mosaic_jax.stages.problem import Problem, warmup_participation
from mosaic_jax.stages.stage import Outputs, Stage
from mosaic_jax.trees import num_bytes
from mosaic_jax.types import PyTree


class Part(NamedTuple):
    """One field of a stage's state: its arrays in words, and their bytes."""

    name: str
    arrays: str
    bytes: int


class StagePlan(NamedTuple):
    """One stage before it runs; mapped: over clients; up, down: bytes of the whole stage; programs: what is compiled, by name."""

    name: str
    unit: str
    num_steps: int
    segment: int
    mapped: bool
    state: tuple[Part, ...]
    memory: Memory
    up: int
    down: int
    programs: tuple[str, ...]


def plan_stages(problem: Problem) -> tuple[StagePlan, ...]:
    """The plan of each stage of a run."""
    stages = stages_of(problem)
    held = sum(num_bytes(stage.data) for stage in stages)  # each stage of clients puts the data on the device for itself
    outputs: Outputs = {}
    plans = []
    for stage in stages:
        inputs, copied = _traced(stage.inputs, outputs)
        state = jax.eval_shape(stage.init, inputs)
        memory = stage_memory(problem, stage, state, inputs, copied, held)
        traffic = stage.traffic(_with_expected_prototypes(problem, state))
        plans.append(
            StagePlan(
                name=stage.name, unit=stage.unit, num_steps=stage.num_steps, segment=stage.segment,
                mapped=stage.sharding is not None, state=_parts(state), memory=memory,
                up=traffic["up"], down=traffic["down"], programs=_programs(problem, stage, state),
            )
        )  # fmt: skip
        outputs[stage.name], made = _traced(stage.output, state, inputs)
        held += made
    return tuple(plans)


def _traced(function: Callable[..., PyTree], *arguments: PyTree) -> tuple[PyTree, int]:
    """The shapes that a function returns, and the bytes of those arrays that are not simply arrays of its last argument."""
    jaxpr, found = jax.make_jaxpr(function, return_shape=True)(*arguments)
    num_passed = len(jax.tree.leaves(arguments[-1]))
    passed_on = {id(variable) for variable in jaxpr.jaxpr.invars[len(jaxpr.jaxpr.invars) - num_passed :]}
    made = [variable.aval for variable in jaxpr.jaxpr.outvars if id(variable) not in passed_on]
    return found, num_bytes(made)


def _expected_valid(problem: Problem, shape: tuple[int, ...]) -> np.ndarray:
    """bool[R, C, K, P], True for every prototype that clients send at most."""
    return np.broadcast_to((problem.label_counts > 0)[None, :, :, None], shape)


def _with_expected_prototypes(problem: Problem, state: PyTree) -> PyTree:
    if isinstance(state, BestRounds):
        return state._replace(rounds=_with_expected_prototypes(problem, state.rounds))
    if not isinstance(state, FederatedState):
        return state
    valid = _expected_valid(problem, state.prototypes.valid.shape)
    return state._replace(prototypes=state.prototypes._replace(valid=valid))


def _programs(problem: Problem, stage: Stage, state: PyTree) -> tuple[str, ...]:
    """What a stage compiles, by name; programs that differ only in the network or the number of clients have its place behind."""
    config = problem.config
    state = state.rounds if isinstance(state, BestRounds) else state
    federated = isinstance(state, FederatedState)
    static = FEDERATIONS[config.federated](problem).static_batch_norm
    # Mosaic's rounds of a cohort and its rounds of all clients differ in shape.
    parts = warmup_participation(config, problem.groups)
    rounds = 2 if (stage.name, config.method) == ("warmup", "mosaic") and parts.cohort_size < parts.num_clients else 1
    judged = (len(state.servers) if federated else 1) if any(map(len, problem.splits.validation)) else 0
    meta = "generated images" if config.meta_source == "generated" else "expert heads" if keeps_logits(problem) else None
    return (
        "start",
        *(_several("segment", rounds) if stage.num_steps else ()),
        *((meta,) if stage.name == "meta" and meta and stage.num_steps else ()),
        *(("histogram",) if stage.name == "distill" and stage.num_steps else ()),
        *(_several("statistics", len(state.servers)) if federated and static else ()),
        *(_several("validation", judged) if stage.watch is not None else ()),
    )


def _several(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name} {place + 1}" for place in range(count))


def _parts(state: PyTree) -> tuple[Part, ...]:
    """The fields of a state that hold arrays."""
    return tuple(Part(name, _arrays(value), num_bytes(value)) for name, value in fields(state).items() if num_bytes(value))


def fields(state: PyTree) -> dict[str, PyTree]:
    """The fields of a state by name; of the states of several groups each field of all of them."""
    if hasattr(state, "_fields"):
        return state._asdict()
    if isinstance(state, tuple) and state and hasattr(state[0], "_fields"):
        return {name: tuple(getattr(of_group, name) for of_group in state) for name in state[0]._fields}
    return {"state": state}


def _arrays(tree: PyTree) -> str:
    """`f32[10,3]`, or how many arrays and the largest of them."""
    leaves = jax.tree.leaves(tree)
    largest = max(leaves, key=lambda leaf: leaf.size)
    kind = "bool" if largest.dtype == bool else f"{largest.dtype.kind}{8 * largest.dtype.itemsize}"
    shape = f"{kind}[{','.join(map(str, largest.shape))}]"
    return shape if len(leaves) == 1 else f"{len(leaves)} arrays, the largest {shape}"
