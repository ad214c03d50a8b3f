"""What a run shows for itself: its table of results and pictures of what its generators draw."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mosaic_jax.io import run_directory
from mosaic_jax.io.samples import save_real_and_generated
from mosaic_jax.io.versions import commit, versions
from mosaic_jax.methods import stages_of
from mosaic_jax.rng import key_at
from mosaic_jax.stages.evaluation import evaluate_models
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Outputs
from mosaic_jax.steps.distill_step import synthetic_images
from mosaic_jax.types import PyTree

GRID_IMAGES = 12
AT_ONCE = 256  # images of each client


def generated(problem: Problem, generators: PyTree, num: int) -> np.ndarray:
    """f32[C, num, 32, 32, 3], as distillation would draw them, of the clients that took part."""
    generator = problem.config.generator
    # Batch statistics of a handful of images would not be those of training.
    size = max(min(num, AT_ONCE), problem.config.distill.samples_per_client)

    @jax.jit
    def draw(generators: PyTree, batch: jax.Array) -> jax.Array:
        key = key_at(problem.root, "samples", batch)
        return synthetic_images(problem.generator, generators, key, size, generator.sampling_batch_norm)

    batches = [np.asarray(jax.block_until_ready(draw(generators, batch))) for batch in range(-(-num // size))]
    return np.concatenate([batch.reshape(-1, size, *batch.shape[1:]) for batch in batches], axis=1)[:, :num]


def save_samples(problem: Problem, generators: PyTree, run_dir: Path) -> None:
    """samples/generators.png, once: real images of every client beside what its generator draws."""
    path = run_dir / "samples" / "generators.png"
    if path.exists():
        return
    shown = [np.resize(problem.splits.train[client], GRID_IMAGES) for client in problem.participants]
    real = np.stack([problem.dataset.train_images[indices] for indices in shown])
    save_real_and_generated(path, real, generated(problem, generators, GRID_IMAGES))


def results_of(problem: Problem, outputs: Outputs, run_dir: Path, done: list[str]) -> dict[str, Any]:
    """What results.json holds; accuracies are shares in 0..1, bytes and seconds are of whole stages."""
    stages = stages_of(problem)
    models, confusion, final = evaluate_models(problem, outputs, stages)
    costs = run_directory.costs(run_dir)
    return {
        "method": problem.config.method,
        "seed": problem.config.seed,
        "stages": [stage.name for stage in stages],
        "stages_done": done,
        "models": models,
        "final": final,
        "confusion": confusion,
        "steps": {stage.name: stage.num_steps for stage in stages},
        **costs,
        "class_names": list(problem.dataset.class_names),
        "label_counts": problem.partition_counts.tolist(),
        "num_samples": problem.num_samples.tolist(),
        "hardware": run_directory.hardware(),
        "commit": commit(),
        "versions": versions(),
    }
