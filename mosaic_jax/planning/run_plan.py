"""The plan of a run: every stage's shapes, mapping, memory, traffic and programs, with no array of a network made."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax import ops
from mosaic_jax.config import Config
from mosaic_jax.io.datasets import load
from mosaic_jax.mapping import Plan, create_cpu_devices, make_plan
from mosaic_jax.methods import METHODS
from mosaic_jax.planning.memory import Memory, capacity, discriminator_of, stage_memory
from mosaic_jax.stages.federated import FederatedState
from mosaic_jax.stages.meta import MetaInputs
from mosaic_jax.stages.problem import Outputs, Problem, Stage, build_problem
from mosaic_jax.trees import num_bytes
from mosaic_jax.types import PyTree, Variables

# Programs beside a stage's start, its segment and the validation of its model.
MORE_PROGRAMS = {"meta": ("expert heads",), "distill": ("histogram",)}


class Network(NamedTuple):
    """parameters, statistics: numbers in one copy (all copies of the expert bank); copies: who holds it."""

    name: str
    parameters: int
    statistics: int
    copies: str


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


class RunPlan(NamedTuple):
    """A run before it starts; clients: how they are mapped, and why; capacity: bytes of a device (CPU: of the machine), or 0."""

    title: str
    networks: tuple[Network, ...]
    stages: tuple[StagePlan, ...]
    clients: Plan
    capacity: int


def plan_run(config: Config) -> RunPlan:
    """The plan of a run on this machine; raises ConfigError where training would."""
    create_cpu_devices(config.mapping, config.partition.num_clients)
    ops.set_lowering(config.mapping.convolution)
    problem = build_problem(config, load(config.data.source, config.data.image_size))
    clients = make_plan(config.mapping, problem.num_clients)
    stages = METHODS[config.method](problem)
    held = sum(num_bytes(stage.data) for stage in stages)  # each stage of clients puts the data on the device for itself
    outputs: Outputs = {}
    plans = []
    for stage in stages:
        inputs, copied = _inputs(problem, stage, outputs)
        state = jax.eval_shape(stage.init, inputs)
        memory = stage_memory(problem, stage, clients, state, inputs, copied, held)
        traffic = stage.traffic(_with_expected_prototypes(problem, state))
        plans.append(
            StagePlan(
                name=stage.name, unit=stage.unit, num_steps=stage.num_steps, segment=stage.segment,
                mapped=stage.sharding is not None, state=_parts(state), memory=memory,
                up=traffic["up"], down=traffic["down"], programs=_programs(stage),
            )
        )  # fmt: skip
        outputs[stage.name] = jax.eval_shape(stage.output, state, inputs)
        held += num_bytes(outputs[stage.name])
    title = (
        f"{config.method}, seed {config.seed}: {config.data.source}, {len(problem.dataset.train_labels)} training images, "
        f"{problem.num_classes} classes, {problem.num_clients} clients"
    )
    return RunPlan(title, _networks(problem, outputs), tuple(plans), clients, capacity())


def _inputs(problem: Problem, stage: Stage, outputs: Outputs) -> tuple[PyTree, int]:
    """Shapes of what a stage reads, and the bytes of those arrays that are not simply arrays of earlier outputs."""
    if stage.name == "meta":  # only the warm-up tells how many prototypes there are
        valid, num_classes = outputs["warmup"].prototypes.valid, problem.num_classes
        num = int(_expected_valid(problem, valid.shape).sum())
        shapes = (num, num_classes, num_classes), (num,)
        inputs = MetaInputs(*map(jax.ShapeDtypeStruct, shapes, (jnp.float32, jnp.int32)))
        return inputs, num_bytes(inputs)
    jaxpr, found = jax.make_jaxpr(stage.inputs, return_shape=True)(outputs)
    passed_on = {id(variable) for variable in jaxpr.jaxpr.invars}
    copied = [variable.aval for variable in jaxpr.jaxpr.outvars if id(variable) not in passed_on]
    return found, num_bytes(copied)


def _expected_valid(problem: Problem, shape: tuple[int, ...]) -> np.ndarray:
    """bool[R, C, K, P], True for every prototype that clients send at most."""
    kept = np.arange(shape[-1]) < (problem.config.prototypes.keep_per_class or shape[-1])
    return np.broadcast_to((problem.label_counts > 0)[None, :, :, None] & kept, shape)


def _with_expected_prototypes(problem: Problem, state: PyTree) -> PyTree:
    if not isinstance(state, FederatedState):
        return state
    valid = _expected_valid(problem, state.prototypes.valid.shape)
    return state._replace(prototypes=state.prototypes._replace(valid=valid))


def _programs(stage: Stage) -> tuple[str, ...]:
    segment = ("segment", *MORE_PROGRAMS.get(stage.name, ())) if stage.num_steps else ()
    return ("start", *segment, *(("validation",) if stage.watch is not None else ()))


def _networks(problem: Problem, outputs: Outputs) -> tuple[Network, ...]:
    key, each = jax.random.key(0), f"{problem.num_clients}, one for each client"

    def network(name: str, variables: Variables, copies: str) -> Network:
        return Network(name, _count(variables.params), _count(variables.batch_stats), copies)

    found = [network("classifier", jax.eval_shape(problem.classifier.init, key), f"the global one and {each}")]
    if "auxiliary" in outputs:
        found.append(found[0]._replace(name="auxiliary classifier", copies=each))
    if "generators" in outputs:
        found.append(network("generator", jax.eval_shape(problem.generator.init, key), each))
        found.append(network("discriminator", jax.eval_shape(discriminator_of(problem).init, key), each))
    if "experts" in outputs:
        models = outputs["experts"].models
        kind = "class experts" if problem.config.experts == "parameters" else "client models, mixed for each class"
        found.append(network("expert bank", models, f"{jax.tree.leaves(models)[0].shape[0]} {kind}, counted together"))
    if "meta" in outputs:
        found.append(network("meta model", Variables(jax.eval_shape(problem.meta_model.init, key), ()), "1"))
    return tuple(found)


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _parts(state: PyTree) -> tuple[Part, ...]:
    """The fields of a state that hold arrays."""
    fields = zip(state._fields, state, strict=True) if hasattr(state, "_fields") else (("state", state),)
    return tuple(Part(name.strip("_"), _arrays(value), num_bytes(value)) for name, value in fields if num_bytes(value))


def _arrays(tree: PyTree) -> str:
    """`f32[10,3]`, or how many arrays and the largest of them."""
    leaves = jax.tree.leaves(tree)
    largest = max(leaves, key=lambda leaf: leaf.size)
    kind = "bool" if largest.dtype == bool else f"{largest.dtype.kind}{8 * largest.dtype.itemsize}"
    shape = f"{kind}[{','.join(map(str, largest.shape))}]"
    return shape if len(leaves) == 1 else f"{len(leaves)} arrays, the largest {shape}"
