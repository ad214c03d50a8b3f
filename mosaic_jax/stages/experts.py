"""Class experts from the last client models: computed at once, no steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mosaic_jax.stages.problem import Outputs, Problem, Stage
from mosaic_jax.steps.experts import class_experts, expert_logits, mix_client_logits
from mosaic_jax.types import Classifier, PyTree, Variables


class Experts(NamedTuple):
    """models: what runs on images, leaves [E, ...] (class experts) or [C, ...] (clients, `experts=logits`).

    heads: class experts whose linear heads run on prototypes (the same in both modes, heads being linear).
    label_counts: f32[C, K] where clients' logits are mixed, otherwise empty.
    """

    models: Variables
    heads: Variables
    label_counts: PyTree


def predict_experts(classifier: Classifier, experts: Experts, images: jax.Array) -> jax.Array:
    """Logits of every class expert on images: f32[B, 32, 32, 3] -> f32[B, E, K], in either mode of `experts`."""
    logits = expert_logits(classifier, experts.models, images)
    return logits if isinstance(experts.label_counts, tuple) else mix_client_logits(logits, experts.label_counts)


def experts_stage(problem: Problem) -> Stage:
    """K class experts out of C client models and the label counts; the server sees models and counts only."""
    counts = jnp.asarray(problem.label_counts, jnp.float32)

    def init(clients: Variables) -> Experts:
        experts = class_experts(clients, counts)
        return Experts(experts, experts, ()) if problem.config.experts == "parameters" else Experts(clients, experts, counts)

    def inputs_of(outputs: Outputs) -> Variables:
        return outputs["warmup"].clients

    return Stage(
        name="experts", unit="step", num_steps=0, segment=1, save_every=1, sharding=None, inputs=inputs_of, init=init,
        host=lambda inputs, start: (), data=(), run=lambda state, *_: (state, {}), watch=None, watch_every=0,
        output=lambda state, inputs: state, traffic=lambda state: {"up": 4 * problem.label_counts.size, "down": 0},
    )  # fmt: skip
