"""Every stage before it runs: its shapes, memory, traffic and programs, found by tracing; no array of a network is made."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.methods import stages_of
from mosaic_jax.planning.memory import Memory, stage_memory
from mosaic_jax.stages.federated import FederatedState
from mosaic_jax.stages.meta import MetaInputs, keeps_logits
from mosaic_jax.stages.problem import Outputs, Problem, Stage
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
        inputs, copied = _inputs(problem, stage, outputs)
        state = jax.eval_shape(stage.init, inputs)
        memory = stage_memory(problem, stage, state, inputs, copied, held)
        traffic = stage.traffic(_with_expected_prototypes(problem, state))
        plans.append(
            StagePlan(
                name=stage.name, unit=stage.unit, num_steps=stage.num_steps, segment=stage.segment,
                mapped=stage.sharding is not None, state=_parts(state), memory=memory,
                up=traffic["up"], down=traffic["down"], programs=_programs(problem, stage),
            )
        )  # fmt: skip
        outputs[stage.name], made = _traced(stage.output, state, inputs)
        held += made
    return tuple(plans)


def _inputs(problem: Problem, stage: Stage, outputs: Outputs) -> tuple[PyTree, int]:
    """Shapes of what a stage reads, and the bytes of those arrays that are not simply arrays of earlier outputs."""
    if stage.name == "meta":  # only the warm-up tells how many prototypes there are
        valid, num_classes = outputs["warmup"].prototypes.valid, problem.num_classes
        warmup = problem.config.warmup  # every centre has an image of its own among those of the round
        of_clients = _expected_valid(problem, valid.shape).sum(axis=(2, 3))
        num = int(np.minimum(of_clients, warmup.num_local_steps * warmup.batch_size).sum())
        if problem.config.meta_source == "generated":
            num = len(problem.participants) * problem.config.meta.samples_per_client
        labels = jax.ShapeDtypeStruct((num,), jnp.int32)
        if keeps_logits(problem):
            inputs = MetaInputs(jax.ShapeDtypeStruct((num, num_classes, num_classes), jnp.float32), labels)
        else:
            inputs = MetaInputs((), labels, jax.ShapeDtypeStruct((num, problem.feature_size), jnp.float32))
        return inputs, num_bytes(inputs)
    return _traced(stage.inputs, outputs)


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
    if not isinstance(state, FederatedState):
        return state
    valid = _expected_valid(problem, state.prototypes.valid.shape)
    return state._replace(prototypes=state.prototypes._replace(valid=valid))


def _programs(problem: Problem, stage: Stage) -> tuple[str, ...]:
    more = {"meta": ("expert heads",) if keeps_logits(problem) else (), "distill": ("histogram",)}
    segment = ("segment", *more.get(stage.name, ())) if stage.num_steps else ()
    return ("start", *segment, *(("validation",) if stage.watch is not None else ()))


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
