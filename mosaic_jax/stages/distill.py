"""Distilling the teacher into the global model on generated images, watched and guarded by federated validation.

How far the teacher should heed the label counts of an image's client, no one knows beforehand: counts know better where generators
draw clean images, the teacher where they do not. So one student is distilled for each strength of `distill.label_prior`, all from
the same images, and validation chooses.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.losses import DistillationTerms
from mosaic_jax.mapping import Plan, for_each_client
from mosaic_jax.rng import key_at
from mosaic_jax.stages.evaluation import federated_validation
from mosaic_jax.stages.experts import predict_clients, predict_experts
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Judged, Outputs, Records, Stage
from mosaic_jax.steps.distill_step import (
    BestStudent,
    DistillInfo,
    StudentLoss,
    StudentState,
    distill_step,
    init_student,
    keep_best,
    no_best,
    sample_weights,
    synthetic_images,
    with_label_prior,
)
from mosaic_jax.steps.experts import expert_sum
from mosaic_jax.steps.meta_step import mixture_logits
from mosaic_jax.trees import broadcast, num_bytes
from mosaic_jax.types import PyTree, Series, Variables


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


Teacher = Callable[[jax.Array], jax.Array]  # experts' logits f32[B, E, K] -> f32[B, K]


class DistillState(NamedTuple):
    """students: leaves [S, ...], one for each strength of the label prior; best: of them all and of all looks."""

    students: StudentState
    best: BestStudent


def teacher_logits(problem: Problem, inputs: DistillInputs, images: jax.Array, teacher: Teacher | None = None) -> jax.Array:
    """The teacher, or the one that `distill.teacher` names: f32[B, S, S, 3] -> f32[B, K], without gradient."""
    if teacher is not None:
        return jax.lax.stop_gradient(teacher(predict_experts(problem, inputs.experts, images)))
    if problem.config.distill.teacher == "uniform":
        return jnp.mean(predict_clients(problem, inputs.clients, images)[:, problem.participants], axis=1)
    logits = predict_experts(problem, inputs.experts, images)
    if problem.config.distill.teacher == "expert_sum":
        return expert_sum(logits)
    return jax.lax.stop_gradient(mixture_logits(problem.meta_model, inputs.meta, logits))


def distill_stage(problem: Problem, *, teacher: Teacher | None = None, loss: StudentLoss | None = None) -> Stage:
    """num_steps steps of every student on fresh synthetic images; the output is the best by validation (or the best of the last).

    `distill.label_prior` says how many students there are; without validation images there can be one. teacher: of the experts'
    logits, None is what `distill.teacher` names; loss: None is the configured one.
    """
    config, distill = problem.config, problem.config.distill
    guarded = any(len(v) for v in problem.splits.validation)
    validate = federated_validation(problem, problem.classifier) if guarded else None
    generating = problem.participants
    sizes = jnp.asarray(problem.num_samples[generating], jnp.float32)
    label_counts = jnp.asarray(problem.label_counts[generating], jnp.float32)
    strengths, eps = distill.label_prior, distill.label_prior_eps
    several = len(strengths) > 1
    suffixes = [f"/prior={strength:g}" if several else "" for strength in strengths]
    segment = distill.evaluate_every
    batch_norm = config.generator.sampling_batch_norm
    # With batch statistics a client's images must come from one batch of the same size whatever they are drawn for.
    num_images = distill.samples_per_client

    def inputs_of(outputs: Outputs) -> DistillInputs:
        # A network that no client has begins afresh.
        start = problem.classifier.init(key_at(problem.root, "student")) if problem.student is None else None
        start = outputs["warmup"].servers[problem.student] if start is None else start
        if teacher is not None:
            return DistillInputs(start, outputs["generators"], outputs["experts"], ())
        if distill.teacher == "uniform":
            return DistillInputs(start, outputs["generators"], (), (), outputs["warmup"].clients)
        return DistillInputs(start, outputs["generators"], outputs["experts"], outputs["meta"])

    def draw(inputs: DistillInputs, stage: str, step: jax.Array, root: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = key_at(root, stage, step)
        images = synthetic_images(problem.generator, inputs.generators, key, num_images, batch_norm)
        return images, teacher_logits(problem, inputs, images, teacher)

    def init(inputs: DistillInputs) -> DistillState:
        student = init_student(inputs.start, distill)
        return DistillState(broadcast(student, len(strengths)), no_best(inputs.start))

    def run(
        state: DistillState, inputs: DistillInputs, data: PyTree, host: PyTree, start: jax.Array, stop: jax.Array
    ) -> tuple[DistillState, Series]:
        def one(student: StudentState, teacher: jax.Array, images: jax.Array) -> tuple[StudentState, DistillInfo]:
            weights = sample_weights(teacher, sizes, distill)
            return distill_step(problem.classifier, student, images, teacher, weights, distill, loss)

        def step(t: jax.Array, carry: tuple) -> tuple:
            students, series = carry
            images, logits = draw(inputs, "distill", t, problem.root)
            teachers = jnp.stack([with_label_prior(logits, label_counts, strength, eps) for strength in strengths])
            students, info = for_each_client(one, (students, teachers), (images,), Plan(problem.expert_plan.chunk))
            values = {**info._asdict(), **info.terms}
            return students, {name: of_each.at[t - start].set(values[name]) for name, of_each in series.items()}

        names = ("loss", *(DistillationTerms._fields if loss is None else ()), "teacher_confidence", "agreement")
        zeros = {name: jnp.zeros((segment, len(strengths))) for name in names}
        students, series = jax.lax.fori_loop(start, stop, step, (state.students, zeros))
        losses = {f"{name}{suffix}": series[name][:, place] for name in names for place, suffix in enumerate(suffixes)}
        return state._replace(students=students), Series(losses)

    @jax.jit
    def histogram(inputs: DistillInputs, root: jax.Array) -> jax.Array:
        """Shares of each class, a row for each generator, that the teacher sees in its images; root: as of `key_at`."""

        def step(counts: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            seen = jnp.argmax(draw(inputs, "histogram", t, root)[1], axis=-1).reshape(len(generating), num_images)
            return counts + jnp.sum(jax.nn.one_hot(seen, problem.num_classes), axis=1), None

        counts = jax.lax.scan(step, jnp.zeros((len(generating), problem.num_classes)), jnp.arange(4))[0]
        return counts / (4 * num_images)

    def watch(state: DistillState, inputs: DistillInputs, step: int) -> tuple[DistillState, Records]:
        records: Records = {}
        if step == 0 and distill.num_steps:
            shares = np.asarray(histogram(inputs, problem.root))
            for client, row in zip(generating, shares, strict=True):
                records |= {f"teacher_histogram/client{client}/class{k}": float(share) for k, share in enumerate(row)}
        if validate is not None:
            # Before the first step all students are the same.
            students = [jax.tree.map(lambda leaf, place=place: leaf[place], state.students.ema) for place in range(looked_at(step))]
            found = [validate(student) for student in students]
            records |= {f"validation{suffix}": float(each) for suffix, each in zip(suffixes, found, strict=False)}
            before = state.best if distill.keep == "best" else state.best._replace(validation=jnp.float32(-1.0))
            state = state._replace(best=keep_best(before, state.students.ema, jnp.stack(found)))
            records["validation"] = float(max(found))
            records["best_validation"] = float(state.best.validation)
            if several:
                records["best_prior"] = strengths[int(state.best.place)]
        return state, records

    def looked_at(step: int) -> int:
        return len(strengths) if step else 1

    def output(state: DistillState, inputs: DistillInputs) -> Variables:
        if several or distill.keep == "best":
            return state.best.variables
        return jax.tree.map(lambda leaf: leaf[0], state.students.ema)

    def traffic(state: DistillState) -> dict[str, int]:
        if validate is None:
            return {"up": 0, "down": 0}
        # Every look sends each student to each client, which answers with one number.
        looks = looked_at(0) + -(-distill.num_steps // distill.evaluate_every) * looked_at(1)
        return {"up": 4 * looks * problem.num_clients, "down": num_bytes(state.best.variables) * looks * problem.num_clients}

    def predict(outputs: Outputs, images: jax.Array) -> dict[str, jax.Array]:
        found = {"student": problem.classifier.apply(outputs["distill"], images, False)[0]}
        if teacher is None:
            return found
        logits = predict_experts(problem, outputs["experts"], images)
        return {"expert_sum": expert_sum(logits), "teacher": teacher(logits)} | found

    return Stage(
        name="distill", unit="step", num_steps=distill.num_steps, segment=segment, save_every=config.checkpoint.every_steps,
        sharding=None, inputs=inputs_of, init=init,
        host=lambda inputs, start: (), data=(), run=run, watch=watch, watch_every=distill.evaluate_every,
        output=output, traffic=traffic, hands_over="student",
        judged=Judged(("student",) if teacher is None else ("expert_sum", "teacher", "student"), predict),
    )  # fmt: skip
