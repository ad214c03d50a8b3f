"""Distilling the teacher into the global model on generated images, watched and guarded by federated validation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.rng import key_at
from mosaic_jax.stages.evaluation import federated_validation
from mosaic_jax.stages.experts import predict_clients, predict_experts
from mosaic_jax.stages.problem import Outputs, Problem, Records, Stage
from mosaic_jax.steps.distill_step import (
    StudentState,
    distill_step,
    init_student,
    keep_best,
    sample_weights,
    synthetic_images,
)
from mosaic_jax.steps.experts import expert_sum
from mosaic_jax.steps.meta_step import mixture_logits
from mosaic_jax.trees import num_bytes
from mosaic_jax.types import PyTree, Variables


class DistillInputs(NamedTuple):
    """start: the student before its first step; generators: of the clients that took part, leaves [C, ...]; experts: Experts; meta:
    the teacher's parameters.

    clients: in the place of both, which then are (), where distill.teacher=uniform: the models of each group's clients.
    """

    start: Variables
    generators: Variables
    experts: PyTree
    meta: PyTree
    clients: PyTree = ()


def teacher_logits(problem: Problem, inputs: DistillInputs, images: jax.Array) -> jax.Array:
    """The teacher that `distill.teacher` names: f32[B, 32, 32, 3] -> f32[B, K], without gradient."""
    if problem.config.distill.teacher == "uniform":
        return jnp.mean(predict_clients(problem, inputs.clients, images)[:, problem.participants], axis=1)
    logits = predict_experts(problem, inputs.experts, images)
    if problem.config.distill.teacher == "expert_sum":
        return expert_sum(logits)
    return jax.lax.stop_gradient(mixture_logits(problem.meta_model, inputs.meta, logits))


def distill_stage(problem: Problem) -> Stage:
    """num_steps steps on fresh synthetic images; the output is the best student by validation (or the last)."""
    config, distill = problem.config, problem.config.distill
    guarded = any(len(v) for v in problem.splits.validation)
    validate = federated_validation(problem, problem.classifier) if guarded else None
    generating = problem.participants
    sizes = jnp.asarray(problem.num_samples[generating], jnp.float32)
    segment = distill.evaluate_every
    batch_norm = config.generator.sampling_batch_norm
    # With batch statistics a client's images must come from one batch of the same size whatever they are drawn for.
    num_images = distill.samples_per_client

    def inputs_of(outputs: Outputs) -> DistillInputs:
        # A network that no client has begins afresh.
        start = problem.classifier.init(key_at(problem.root, "student")) if problem.student is None else None
        start = outputs["warmup"].servers[problem.student] if start is None else start
        if distill.teacher == "uniform":
            return DistillInputs(start, outputs["generators"], (), (), outputs["warmup"].clients)
        return DistillInputs(start, outputs["generators"], outputs["experts"], outputs["meta"])

    def draw(inputs: DistillInputs, stage: str, step: jax.Array, root: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = key_at(root, stage, step)
        images = synthetic_images(problem.generator, inputs.generators, key, num_images, batch_norm)
        return images, teacher_logits(problem, inputs, images)

    def run(
        state: StudentState, inputs: DistillInputs, data: PyTree, host: PyTree, start: jax.Array, stop: jax.Array
    ) -> tuple[StudentState, dict[str, jax.Array]]:
        names = ("loss", "kl", "ce", "js", "teacher_confidence", "agreement")

        def step(t: jax.Array, carry: tuple) -> tuple:
            state, series = carry
            images, teacher = draw(inputs, "distill", t, problem.root)
            weights = sample_weights(teacher, sizes, distill)
            state, info = distill_step(problem.classifier, state, images, teacher, weights, distill)
            values = dict(
                zip(names, (info.loss, *info.terms, info.teacher_confidence, info.agreement), strict=True)
            )
            return state, {name: series[name].at[t - start].set(values[name]) for name in names}

        return jax.lax.fori_loop(start, stop, step, (state, {name: jnp.zeros(segment) for name in names}))

    @jax.jit
    def histogram(inputs: DistillInputs, root: jax.Array) -> jax.Array:
        """Shares of each class, a row for each generator, that the teacher sees in its images; root: as of `key_at`."""

        def step(counts: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            seen = jnp.argmax(draw(inputs, "histogram", t, root)[1], axis=-1).reshape(len(generating), num_images)
            return counts + jnp.sum(jax.nn.one_hot(seen, problem.num_classes), axis=1), None

        counts = jax.lax.scan(step, jnp.zeros((len(generating), problem.num_classes)), jnp.arange(4))[0]
        return counts / (4 * num_images)

    def watch(state: StudentState, inputs: DistillInputs, step: int) -> tuple[StudentState, Records]:
        records: Records = {}
        if step == 0 and distill.num_steps:
            shares = np.asarray(histogram(inputs, problem.root))
            for client, row in zip(generating, shares, strict=True):
                records |= {f"teacher_histogram/client{client}/class{k}": float(share) for k, share in enumerate(row)}
        if validate is not None:
            validation = validate(state.ema)
            state = keep_best(state, validation)
            records["validation"] = float(validation)
            records["best_validation"] = float(state.best_validation)
        return state, records

    def output(state: StudentState, inputs: DistillInputs) -> Variables:
        return state.best if distill.keep == "best" else state.ema

    def traffic(state: StudentState) -> dict[str, int]:
        if validate is None:
            return {"up": 0, "down": 0}
        # Every look sends the student to each client, which answers with one number.
        looks = 1 + -(-distill.num_steps // distill.evaluate_every)
        return {"up": 4 * looks * problem.num_clients, "down": num_bytes(state.variables) * looks * problem.num_clients}

    return Stage(
        name="distill", unit="step", num_steps=distill.num_steps, segment=segment, save_every=config.checkpoint.every_steps,
        sharding=None, inputs=inputs_of, init=lambda inputs: init_student(inputs.start, distill),
        host=lambda inputs, start: (), data=(), run=run, watch=watch, watch_every=distill.evaluate_every,
        output=output, traffic=traffic,
    )  # fmt: skip
