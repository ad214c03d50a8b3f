"""Every method, and every way a stage can be set: each runs, keeps its state's form, resumes, and the server sees no data."""

import inspect
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import StoppingConsole, assert_same_run, fingerprints, tiny, train

from mosaic_jax.config import Config
from mosaic_jax.config_io import apply_preset, with_values
from mosaic_jax.driving import host_arrays
from mosaic_jax.io.datasets import load
from mosaic_jax.mapping import one_device
from mosaic_jax.methods import METHODS, stages_of
from mosaic_jax.stages import distill, experts, meta
from mosaic_jax.stages.problem import Problem, build_problem
from mosaic_jax.stages.stage import Outputs, Stage, placements
from mosaic_jax.types import Batch, Dataset, PyTree


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_after_every_segment_of_every_stage_ends_as_the_unbroken_one(
    method: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # One round of each kind is enough to stop after, where rounds are all there is.
    config = tiny(method=method, **({} if method == "mosaic" else {"warmup": {"num_rounds": 1}, "finetune": {"num_rounds": 1}}))
    unbroken = request.getfixturevalue("finished") if method == "mosaic" else tmp_path / "unbroken"
    assert train(config, unbroken) == 0
    stages = stages_of(build_problem(config, load("digits", 32)))
    segments = sum(-(-stage.num_steps // stage.segment) for stage in stages)
    stops = 0
    while (status := train(config, tmp_path / "stopped", console=StoppingConsole())) == 143:
        stops += 1
    assert (status, stops) == (0, segments)
    assert_same_run(tmp_path / "stopped", unbroken)


def shapes(tree: PyTree) -> list[tuple[str, tuple[int, ...], Any, bool]]:
    """Path, shape, dtype and weak type of every leaf."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for path, leaf in leaves]


def problem_of(config: Config) -> Problem:
    return build_problem(config, load("digits", 32))


def walk(problem: Problem, run_stage: Any) -> Outputs:
    """Every stage in order; run_stage(stage, inputs) gives its state."""
    outputs: Outputs = {}
    for stage in stages_of(problem):
        inputs = stage.inputs(outputs)
        outputs[stage.name] = jax.device_put(stage.output(run_stage(stage, inputs), inputs), one_device())
    return outputs


# Settings of different stages share a case: what fails is named by its stage.
VARIANTS: dict[str, dict[str, Any]] = {
    "fedavg": {"method": "fedavg"},
    "fedavg_finetune": {"method": "fedavg_finetune"},
    "logits as experts, classifier as discriminator, weights by confidence": {
        "experts": "logits", "generator.discriminator": "classifier", "distill.sample_weights": "confidence",
        "distill.schedule": "cosine",
    },
    "client's own classifier, expert sum, weights by size": {
        "generator.classifier": "client", "generator.inversion_weight": 1.0, "generator.entropy_weight": 1.0,
        "distill.teacher": "expert_sum", "distill.sample_weights": "client_size",
    },
    "global classifier, averaged generators, clients in chunks": {
        "generator.classifier": "global", "generator.inversion_weight": 1.0, "generator.inversion_threshold": 500,
        "generator.ema": 0.9, "generator.sampling_batch_norm": "eval", "partition.num_clients": 4, "mapping.client_chunk": 2,
        "data.augment": "crop_flip", "meta.pooling": "mean",
    },
    "Mosaic on FedRolex, clients of two widths": {
        "warmup.method": "fedrolex", "clients.rates": (1.0, 0.5, 0.5), "experts": "parameters", "generator.classifier": "client",
        "generator.inversion_weight": 1.0,
    },
    "clients of two networks and a student of a third": {
        "clients.models": ("cnn:3", "cnn:4"), "generator.discriminator": "classifier", "distill.teacher": "uniform",
    },
    "convolutions in bf16": {"precision": "bf16", "generator.classifier": "client", "generator.inversion_weight": 1.0},
}  # fmt: skip
ONE_STEP = {
    "warmup.num_rounds": 1, "generator.num_steps": 1, "meta.num_steps": 1, "distill.num_steps": 1, "finetune.num_rounds": 1,
    "mapping.segment_steps": 1, "distill.evaluate_every": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_of_every_stage_keeps_the_form_of_its_state_and_has_finite_losses(name: str) -> None:
    problem = problem_of(with_values(tiny(), ONE_STEP | VARIANTS[name]))

    def one_segment(stage: Stage, inputs: PyTree) -> PyTree:
        state = jax.jit(stage.init)(inputs)
        form = shapes(state)
        assert set(stage.traffic(state)) == {"up", "down"}
        if stage.num_steps == 0:
            return state
        home, everywhere = placements(problem, stage, state)
        state, inputs, data = jax.device_put((state, inputs, stage.data), (home, everywhere, everywhere))
        arguments = (inputs, data, host_arrays(stage, inputs, 0), jnp.int32(0), jnp.int32(1))
        state, series = jax.jit(stage.run)(state, *arguments)
        if stage.watch is not None:
            state, _ = stage.watch(state, inputs, 1)
        assert shapes(state) == form, stage.name
        assert series.losses, stage.name
        for loss_name, loss in series.losses.items():
            assert loss.shape == ((problem.num_clients,) if stage.sharding is not None else ()) + (stage.segment,)
            assert loss.dtype == jnp.float32
            assert np.isfinite(loss).all(), f"{stage.name}: {loss_name}"
        for leaf in jax.tree.leaves(state):
            assert leaf.dtype != jnp.float32 or np.isfinite(leaf).all(), stage.name
        return state

    walk(problem, one_segment)


def test_the_reference_preset_runs_from_end_to_end(tmp_path: Path) -> None:
    config = with_values(
        apply_preset(tiny(), "reference"),
        {"generator.num_epochs": 1, "generator.classifier_num_epochs": 1, "warmup.batch_size": 64, "generator.batch_size": 64},
    )
    assert train(config, tmp_path / "run") == 0
    assert set(fingerprints(tmp_path / "run")) == {"warmup", "auxiliary", "generators", "experts", "meta", "distill", "finetune"}


@pytest.mark.parametrize(("model", "names"), [("cnn:4", ["cnn:3"]), ("cnn:2", ["cnn:4"])])
def test_every_network_that_is_fine_tuned_is_judged_as_what_it_is(model: str, names: list[str], tmp_path: Path) -> None:
    name, width = model.split(":")
    config = tiny(
        method="fedavg_finetune", model={"name": name, "width": int(width)}, clients={"models": ("cnn:3", "cnn:4")},
        warmup={"num_rounds": 1}, finetune={"num_rounds": 1},
    )  # fmt: skip
    assert train(config, tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    others = [[f"{stage} {other}" for other in names] for stage in ("global", "finetuned")]
    # The student's network comes first, or that of client 0 where nobody has it.
    assert list(results["models"]) == ["global", *others[0], "clients", "finetuned", *others[1]]
    assert results["final"] == "finetuned"


# --- data-free ---


@pytest.mark.parametrize("make", [experts.experts_stage, meta.meta_stage, distill.distill_stage])
def test_a_server_stage_is_given_no_images_and_no_batches_of_them(make: Any) -> None:
    problem = problem_of(tiny())
    stage = make(problem)
    assert stage.data == ()
    assert stage.sharding is None
    state = walk_to(problem, stage.name)
    for leaf in jax.tree.leaves((state, host_arrays(stage, state, 0))):
        assert leaf.dtype != np.uint8
        assert leaf.shape[-3:] != (32, 32, 3)


def walk_to(problem: Problem, name: str) -> PyTree:
    """What the stage called `name` reads of stages that have only been initialized."""
    outputs: Outputs = {}
    for stage in stages_of(problem):
        inputs = stage.inputs(outputs)
        if stage.name == name:
            return inputs
        state = jax.jit(stage.init)(inputs)
        if stage.name == "warmup":
            state = state._replace(prototypes=state.prototypes._replace(valid=jnp.ones_like(state.prototypes.valid)))
        outputs[stage.name] = jax.device_put(stage.output(state, inputs), one_device())
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["distill_step", "meta_step", "experts"])
def test_no_argument_of_a_server_step_can_hold_real_data(name: str) -> None:
    module = __import__(f"mosaic_jax.steps.{name}", fromlist=["*"])
    functions = [each for _, each in inspect.getmembers(module, inspect.isfunction) if each.__module__ == module.__name__]
    assert functions
    for function in functions:
        types = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
        assert not {Batch, Dataset, Problem} & {kind for kind in types if isinstance(kind, type)}, function.__name__


@pytest.mark.parametrize("method", METHODS)
def test_what_the_last_stage_hands_over_is_a_model_that_is_judged(method: str) -> None:
    stages = stages_of(problem_of(tiny(method=method)))
    assert len({stage.name for stage in stages}) == len(stages)
    names = [name for stage in stages if stage.judged is not None for name in stage.judged.names]
    last = stages[-1]
    assert last.judged is not None and last.hands_over in last.judged.names
    assert {stage.hands_over for stage in stages if stage.hands_over} <= set(names)
