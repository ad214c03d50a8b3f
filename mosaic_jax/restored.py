"""Runs that are there: judged again, sampled, from their checkpoints alone."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from mosaic_jax import jax_settings
from mosaic_jax.config import ConfigError
from mosaic_jax.io import metrics, run_directory, stacked_choice
from mosaic_jax.io.console import Console
from mosaic_jax.io.data_digests import check_data
from mosaic_jax.io.moved_data import located
from mosaic_jax.io.results_file import readable_results, write_results
from mosaic_jax.io.samples import answering_for, image_grid, save_grid
from mosaic_jax.io.whole_files import saying_what_is_not_written
from mosaic_jax.methods import stages_of
from mosaic_jax.results import generated, results_of
from mosaic_jax.runner import checkpoints_of, is_shortage, naming_what_needs_memory, prepare
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Outputs


@jax_settings.fixed()
def evaluate(run_dir: Path, console: Console, data_dir: str | None = None) -> dict[str, Any]:
    """Evaluate every model of a run again, from its checkpoints alone, and rewrite results.json.

    data_dir: where its data are now, None for where they were. Results of more stages than the checkpoints have are kept.
    """
    problem, outputs = restore(run_dir, console, data_dir)
    with naming_what_needs_memory(problem, "evaluation"):
        results = results_of(problem, outputs, run_dir, list(outputs))
    for complaint in metrics.complaints(run_dir, outputs):
        console.warning(f"{run_dir / metrics.FILE}: {complaint}")
    before = readable_results(run_dir, console.warning) or {}
    for cost in ("bytes", "seconds", "compile_seconds"):
        results[cost] = before.get(cost, {}) | results[cost]  # what is known of stages whose records are gone
    lost = [stage for stage in before.get("stages_done", ()) if stage not in outputs]
    if lost:
        console.warning(f"{run_directory.missing(run_dir, lost[0])}; results.json keeps what the run reached")
        return results
    with saying_what_is_not_written(console.warning):
        write_results(run_dir, results)
    return results


@jax_settings.fixed()
def sample(run_dir: Path, out: Path, num: int, console: Console, data_dir: str | None = None) -> None:
    """Draw `num` images of every client's generator into a PNG, one row a client; data_dir as in `evaluate`."""
    problem, outputs = restore(run_dir, console, data_dir)
    if "generators" not in [stage.name for stage in stages_of(problem)]:
        raise ConfigError(f"{run_dir}: method {problem.config.method} has no generators; name a run of Mosaic")
    if "generators" not in outputs:
        raise run_directory.missing(run_dir, "generators")
    try:
        images = generated(problem, outputs["generators"], num)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_shortage(error):
            raise
        raise MemoryError(f"--num {num}: no memory for so many images of {len(problem.participants)} clients; lower it") from error
    labels = [f"client {client}" for client in problem.participants]
    with answering_for(out):
        save_grid(out, image_grid(images, labels))
    console.message(f"{out}: {num} images of each of {len(problem.participants)} generators")


def restore(run_dir: Path, console: Console, data_dir: str | None = None) -> tuple[Problem, Outputs]:
    """The problem and the outputs of every finished stage of a run, nothing trained."""
    config = run_directory.read_config(run_dir)
    if data_dir is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=data_dir))
    config = located(config, run_dir, console)
    problem, found = prepare(config, console)
    stacked_choice.settle(config, run_dir, console.message)
    check_data(run_dir, config.data.source, found)
    run_directory.check_partition(run_dir, problem.partition_counts, problem.dataset.class_names)
    outputs: Outputs = {}
    for stage in stages_of(problem):
        if not (run_dir / "checkpoints" / stage.name).is_dir():
            break
        with naming_what_needs_memory(problem, stage.name):
            inputs = stage.inputs(outputs)
            checkpoints = checkpoints_of(problem, run_dir, stage)
            restored = checkpoints.restore(jax.eval_shape(stage.init, inputs), console.warning, read_only=True)
            checkpoints.close()
            if restored is None or restored[0] < stage.num_steps:
                break
            outputs[stage.name] = stage.output(restored[1], inputs)
    if not outputs:
        raise run_directory.missing(run_dir, "warmup")
    return problem, outputs
