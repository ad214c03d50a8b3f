"""The meta model: what it is trained on and one step of it."""

from typing import NamedTuple

import jax
import optax

from mosaic_jax.config import MetaConfig
from mosaic_jax.losses import cross_entropy
from mosaic_jax.trees import moving_average
from mosaic_jax.types import MetaModel, PyTree


class MetaState(NamedTuple):
    """params: the model being trained; opt_state: Adam's; ema: moving average of params, the teacher."""

    params: PyTree
    opt_state: PyTree
    ema: PyTree


class MetaInfo(NamedTuple):
    """loss: f32[], cross-entropy on the batch of prototypes."""

    loss: jax.Array


def init_meta(params: PyTree, config: MetaConfig) -> MetaState:
    """A meta model before its first step; the average starts at the start."""
    return MetaState(params, optax.adam(config.learning_rate).init(params), params)


def mixture_logits(meta_model: MetaModel, params: PyTree, expert_logits: jax.Array) -> jax.Array:
    """The teacher: the meta model over the experts' logits without dropout, f32[B, E, K] -> f32[B, K]."""
    return meta_model.apply(params, expert_logits, None)


def meta_step(
    meta_model: MetaModel,
    state: MetaState,
    expert_logits: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array | None,
    config: MetaConfig,
) -> tuple[MetaState, MetaInfo]:
    """One Adam step of cross-entropy on prototypes, then ema <- ema_decay ema + (1 - ema_decay) params.

    expert_logits: f32[B, E, K], the expert heads on a batch of prototypes; labels: i32[B]; dropout off without a key.
    """

    def loss_fn(params: PyTree) -> jax.Array:
        return cross_entropy(meta_model.apply(params, expert_logits, dropout_key), labels)

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optax.adam(config.learning_rate).update(gradients, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    return MetaState(params, opt_state, moving_average(state.ema, params, config.ema)), MetaInfo(loss)
