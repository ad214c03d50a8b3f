"""What a stage is, and what it says of itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mosaic_jax.mapping import REPLICATED, one_device, shardings
from mosaic_jax.stages.problem import Problem
from mosaic_jax.types import PyTree, Series

Outputs = dict[str, PyTree]


class Judged(NamedTuple):
    """Models by which a stage is judged.

    names: as the table of results calls them; predict(outputs of all stages so far, images f32[B, S, S, 3]) -> {name: logits
    f32[B, K]} of all of them at once, for they may have work in common. Of a name that two stages give the later one's counts.
    """

    names: tuple[str, ...]
    predict: Callable[[Outputs, jax.Array], dict[str, jax.Array]]


Records = dict[str, Any]


class Stage(NamedTuple):
    """One stage as pure functions; the runner jits, donates, logs, saves and resumes.

    name, unit ("round" or "step"), num_steps: how far it goes; segment: steps of one compiled call.
    save_every: steps between checkpoints.
    sharding: for a stage of clients, whose losses have a leading client axis, a PartitionSpec prefix of its state's tree; None
    for a stage of the server, which runs on one device.
    inputs(outputs): what it reads of earlier stages' outputs, computed once.
    init(inputs) -> state: pure and derived from the seed, so its shapes restore a checkpoint.
    host(inputs, start): the NumPy arrays of the segment that begins at `start`; `run` is compiled for each shape they have.
    data: device arrays given to every call; a server stage has none.
    run(state, inputs, data, host arrays, start, stop) -> (state, Series of the segment's losses).
    watch(state, inputs, step) -> (state, records), every `watch_every` steps, at step 0 and at the end, or None.
    output(state, inputs): what later stages read. traffic: bytes up and down of the whole stage.
    notices(first, stop): what the user is to be told of the steps first..stop-1.
    judged: the models by which the stage wants to be judged; hands_over: the one of them that the method hands over, if this is
        its last stage, empty where another stage's stays.
    judge_clients(outputs): {validation, test, test_per_class} of the clients' models on their own shares; None where it keeps none.
    activations: bytes that the gradients of a step keep, of one client in a stage of clients; None is what the clients' network
        keeps of `warmup.batch_size` images. eased_by: settings with which it needs less memory where they are lower.
    """

    name: str
    unit: str
    num_steps: int
    segment: int
    save_every: int
    sharding: PyTree
    inputs: Callable[[Outputs], PyTree]
    init: Callable[[PyTree], PyTree]
    host: Callable[[PyTree, int], PyTree]
    data: PyTree
    run: Callable[..., tuple[PyTree, Series]]
    watch: Callable[[PyTree, PyTree, int], tuple[PyTree, Records]] | None
    watch_every: int
    output: Callable[[PyTree, PyTree], PyTree]
    traffic: Callable[[PyTree], dict[str, int]]
    notices: Callable[[int, int], list[str]] = lambda first, stop: []
    judged: Judged | None = None
    hands_over: str = ""
    judge_clients: Callable[[Outputs], dict[str, Any]] | None = None
    activations: int | None = None
    eased_by: tuple[str, ...] = ("model.width",)


def placements(problem: Problem, stage: Stage, state: PyTree) -> tuple[PyTree, PyTree]:
    """Where a stage's state, and what it reads, live while it runs: Shardings for jax.device_put. state: arrays or their shapes."""
    if stage.sharding is None:
        return one_device(), one_device()
    return shardings(problem.client_plan, stage.sharding, state), shardings(problem.client_plan, REPLICATED, ())
