"""Training the meta model on prototypes; the server sees no image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.data.sampling import batch_indices
from mosaic_jax.rng import key_at
from mosaic_jax.stages.experts import Experts, predict_experts, predict_heads
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Judged, Outputs, Stage
from mosaic_jax.steps.distill_step import synthetic_images
from mosaic_jax.steps.experts import expert_labels, expert_sum
from mosaic_jax.steps.meta_step import MetaState, init_meta, meta_step, mixture_logits
from mosaic_jax.types import PyTree, Series, Variables


class MetaInputs(NamedTuple):
    """expert_logits: f32[N, E, K], the expert heads on all prototypes, or the experts on generated images; labels: i32[N].

    valid: bool[N], which of them there are: how many is a matter of the seed, and so of no shape; () for all.

    Or, where `keeps_logits` says no, instead of expert_logits the prototypes f32[N, D] and the experts, whose heads run in every
    step on its batch.
    """

    expert_logits: PyTree
    labels: jax.Array
    features: PyTree = ()
    experts: PyTree = ()
    valid: PyTree = ()


def keeps_logits(problem: Problem) -> bool:
    """Whether a prototype's E x K expert logits are no more numbers than its D features: 100 to 512 for 10 classes and ResNet-18,
    but 10,000 to 512 for 100; of generated images there is nothing else."""
    return problem.config.meta_source == "generated" or problem.num_classes**2 <= problem.feature_size


def meta_stage(problem: Problem) -> Stage:
    """num_steps Adam steps of the meta model on the experts' predictions for prototypes; the output is the moving average.

    Clients of different networks have no features in common, so there are no prototypes that all experts could judge: instead
    of them the meta model learns from images of all generators, labelled by the class experts and the label counts of each
    generator's client (`meta.source`).
    """
    config, meta = problem.config, problem.config.meta
    segment = config.mapping.segment_steps
    label_counts = jnp.asarray(problem.label_counts[problem.participants], jnp.float32)

    @jax.jit
    def judged(experts: Experts, generators: Variables, root: jax.Array, label_counts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The experts' logits for generated images f32[N, E, K], and the labels that they give them; root: as of `key_at`."""
        key = key_at(root, "meta_images")
        images = synthetic_images(problem.generator, generators, key, meta.samples_per_client, config.generator.sampling_batch_norm)
        logits = predict_experts(problem, experts, images)
        return logits, expert_labels(logits, label_counts)

    def inputs_of(outputs: Outputs) -> MetaInputs:
        if config.meta_source == "generated":
            return MetaInputs(*judged(outputs["experts"], outputs["generators"], problem.root, label_counts))
        prototypes = outputs["warmup"].prototypes
        valid = prototypes.valid.reshape(-1)
        features = prototypes.features.reshape(len(valid), -1)
        labels = jnp.broadcast_to(jnp.arange(problem.num_classes)[:, None], prototypes.valid.shape).reshape(-1)
        if not keeps_logits(problem):
            return MetaInputs((), labels, features, outputs["experts"], valid)
        logits = jax.jit(lambda experts, x: predict_heads(problem, experts, x))(outputs["experts"], features)
        return MetaInputs(logits, labels, valid=valid)

    def init(inputs: MetaInputs) -> MetaState:
        return init_meta(problem.meta_model.init(key_at(problem.root, "meta_model")), meta)

    def host(inputs: MetaInputs, start: int) -> np.ndarray:
        every = np.flatnonzero(np.broadcast_to(inputs.valid if len(inputs.valid) else True, inputs.labels.shape)).astype(np.int32)
        return batch_indices(
            [every], client_ids=[0], seed=config.seed, stage="meta", start=start, num_steps=segment,
            batch_size=meta.batch_size, batches_per_pass=meta.batches_per_epoch,
        )[0]  # fmt: skip

    def run(
        state: MetaState, inputs: MetaInputs, data: PyTree, indices: jax.Array, start: jax.Array, stop: jax.Array
    ) -> tuple[MetaState, Series]:
        def step(t: jax.Array, carry: tuple) -> tuple:
            state, losses = carry
            chosen = indices[t - start]
            key = key_at(problem.root, "meta", t)
            if isinstance(inputs.expert_logits, tuple):
                logits = predict_heads(problem, inputs.experts, inputs.features[chosen])
            else:
                logits = inputs.expert_logits[chosen]
            state, info = meta_step(problem.meta_model, state, logits, inputs.labels[chosen], key, meta)
            return state, losses.at[t - start].set(info.loss)

        state, losses = jax.lax.fori_loop(start, stop, step, (state, jnp.zeros(segment)))
        return state, Series({"loss": losses})

    def predict(outputs: Outputs, images: jax.Array) -> dict[str, jax.Array]:
        logits = predict_experts(problem, outputs["experts"], images)
        return {"expert_sum": expert_sum(logits), "mixture": mixture_logits(problem.meta_model, outputs["meta"], logits)}

    return Stage(
        name="meta", unit="step", num_steps=meta.num_steps, segment=segment, save_every=config.checkpoint.every_steps,
        sharding=None, inputs=inputs_of, init=init, host=host, data=(), run=run, watch=None, watch_every=0,
        output=lambda state, inputs: state.ema, traffic=lambda state: {"up": 0, "down": 0},
        judged=Judged(("expert_sum", "mixture"), predict),
    )  # fmt: skip
