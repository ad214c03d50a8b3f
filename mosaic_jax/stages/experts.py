"""Class experts from the last client models: stored, or made of those models whenever they run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mosaic_jax.mapping import Plan
from mosaic_jax.stages.problem import Outputs, Problem, Stage
from mosaic_jax.steps.experts import class_experts, expert_head_logits, expert_logits, mix_client_logits
from mosaic_jax.types import PyTree, Variables


class ExpertsState(NamedTuple):
    """label_counts: f32[C, K], all that experts are beside the clients' models, which the warm-up's checkpoints hold."""

    label_counts: jax.Array


class Experts(NamedTuple):
    """models: class experts, leaves [E, ...], where they are stored; else the clients' models, leaves [C, ...].

    label_counts: f32[C, K] where models are the clients', of which experts are made or whose logits are mixed; otherwise empty.
    """

    models: Variables
    label_counts: PyTree


def predict_experts(problem: Problem, experts: Experts, images: jax.Array) -> jax.Array:
    """Logits of every class expert on images: f32[B, 32, 32, 3] -> f32[B, E, K], in either mode of `experts`."""
    if problem.config.experts == "logits":
        return mix_client_logits(predict_clients(problem, experts.models, images), experts.label_counts)
    plan, group = Plan(problem.expert_plan.chunk), problem.expert_plan.images
    return expert_logits(problem.classifier, experts.models, images, experts.label_counts, plan, group)


def predict_clients(problem: Problem, clients: Variables, images: jax.Array) -> jax.Array:
    """Logits of every client's own model, run as experts are: leaves [C, ...], f32[B, 32, 32, 3] -> f32[B, C, K]."""
    return expert_logits(
        problem.classifier, clients, images, plan=Plan(problem.expert_plan.chunk), group=problem.expert_plan.images
    )


def predict_heads(problem: Problem, experts: Experts, features: jax.Array) -> jax.Array:
    """Logits of every class expert's linear head: f32[N, D] -> f32[N, E, K]; the same in both modes, heads being linear."""
    return expert_head_logits(problem.classifier, experts.models, features, experts.label_counts, Plan(problem.expert_plan.chunk))


def experts_stage(problem: Problem) -> Stage:
    """K class experts out of C client models and the label counts; the server sees models and counts only."""
    counts = jnp.asarray(problem.label_counts, jnp.float32)
    stored = problem.config.experts == "parameters" and problem.expert_plan.stored

    def inputs_of(outputs: Outputs) -> Variables:
        return outputs["warmup"].clients

    def output(state: ExpertsState, clients: Variables) -> Experts:
        return Experts(class_experts(clients, state.label_counts), ()) if stored else Experts(clients, state.label_counts)

    return Stage(
        name="experts", unit="step", num_steps=0, segment=1, save_every=1, sharding=None, inputs=inputs_of,
        init=lambda clients: ExpertsState(counts), host=lambda inputs, start: (), data=(), run=lambda state, *_: (state, {}),
        watch=None, watch_every=0, output=output, traffic=lambda state: {"up": 4 * problem.label_counts.size, "down": 0},
    )  # fmt: skip
