"""Class experts from the last client models: stored, or made of those models whenever they run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.mapping import Plan
from mosaic_jax.stages.groups import in_client_order
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Judged, Outputs, Stage
from mosaic_jax.steps import submodels
from mosaic_jax.steps.experts import class_experts, expert_head_logits, expert_logits, expert_sum, mix_client_logits
from mosaic_jax.types import PyTree, Series, Variables


class ExpertsState(NamedTuple):
    """label_counts: f32[C, K], all that experts are beside the clients' models, which the warm-up's checkpoints hold; 0 for
    clients that never took part."""

    label_counts: jax.Array


class Experts(NamedTuple):
    """models: class experts, leaves [E, ...], where they are stored; else the clients' models, of each group, leaves [C_g, ...].

    label_counts: f32[C, K] where models are the clients', of which experts are made or whose logits are mixed; otherwise empty.
    """

    models: PyTree
    label_counts: PyTree


class ExpertsInputs(NamedTuple):
    """clients: the models, and held: the channels of the full network that they have, of each group; fallback: the server's
    models. See `FederatedState`."""

    clients: tuple[Variables, ...]
    held: tuple[submodels.Channels, ...]
    fallback: tuple[Variables, ...]


def predict_experts(problem: Problem, experts: Experts, images: jax.Array) -> jax.Array:
    """Logits of every class expert on images: f32[B, 32, 32, 3] -> f32[B, E, K], in either mode of `experts`."""
    if problem.config.expert_space == "logits":
        return mix_client_logits(predict_clients(problem, experts.models, images), experts.label_counts, problem.expert_weights)
    plan, group = Plan(problem.expert_plan.chunk), problem.expert_plan.images
    classifier, weights_of = problem.architectures[0].classifier, problem.expert_weights
    return expert_logits(classifier, *_averaged(experts), images, plan=plan, group=group, weights_of=weights_of)


def predict_clients(problem: Problem, clients: tuple[Variables, ...], images: jax.Array) -> jax.Array:
    """Logits of every client's own model, run as experts are: of each group leaves [C_g, ...], f32[B, ...] -> f32[B, C, K]."""
    plan, some = Plan(problem.expert_plan.chunk), problem.expert_plan.images
    found = [
        jnp.swapaxes(expert_logits(group.classifier, own, (), images, plan=plan, group=some), 0, 1)
        for group, own in zip(problem.groups, clients, strict=True)
    ]
    return jnp.swapaxes(in_client_order(problem.groups, found), 0, 1)


def predict_heads(problem: Problem, experts: Experts, features: jax.Array) -> jax.Array:
    """Logits of every class expert's linear head: f32[N, D] -> f32[N, E, K]; the same in both modes, heads being linear.

    Of clients that all have the whole of one network, or whose experts are averages.
    """
    plan = Plan(problem.expert_plan.chunk)
    return expert_head_logits(problem.architectures[0].classifier, *_averaged(experts), features, plan, problem.expert_weights)


def _averaged(experts: Experts) -> tuple[Variables, PyTree]:
    """Experts, or the models of a single group's clients and the label counts that experts are made with."""
    return (experts.models, ()) if isinstance(experts.label_counts, tuple) else (experts.models[0], experts.label_counts)


def experts_stage(problem: Problem) -> Stage:
    """K class experts out of C client models and the label counts; the server sees models and counts only."""
    took_part = np.isin(np.arange(problem.num_clients), problem.participants)
    counts = jnp.asarray(np.where(took_part[:, None], problem.label_counts, 0), jnp.float32)
    averaged = problem.config.expert_space == "parameters"

    def inputs_of(outputs: Outputs) -> ExpertsInputs:
        warmup = outputs["warmup"]
        return ExpertsInputs(warmup.clients, warmup.held, warmup.servers)

    def output(state: ExpertsState, inputs: ExpertsInputs) -> Experts:
        if averaged and inputs.held[0]:
            groups = [
                submodels.Sent(models, held, state.label_counts[group.clients])
                for group, models, held in zip(problem.groups, inputs.clients, inputs.held, strict=True)
            ]
            return Experts(submodels.aggregate_classes(inputs.fallback[0], groups, problem.architectures[0].axes), ())
        if averaged and problem.expert_plan.stored:
            return Experts(class_experts(inputs.clients[0], state.label_counts, problem.expert_weights), ())
        return Experts(inputs.clients, state.label_counts)

    def predict(outputs: Outputs, images: jax.Array) -> dict[str, jax.Array]:
        return {"expert_sum": expert_sum(predict_experts(problem, outputs["experts"], images))}

    return Stage(
        name="experts", unit="step", num_steps=0, segment=1, save_every=1, sharding=None, inputs=inputs_of,
        init=lambda inputs: ExpertsState(counts), host=lambda inputs, start: (), data=(), run=lambda state, *_: (state, Series({})),
        watch=None, watch_every=0, output=output, traffic=lambda state: {"up": 4 * problem.label_counts.size, "down": 0},
        judged=Judged(("expert_sum",), predict),
    )  # fmt: skip
