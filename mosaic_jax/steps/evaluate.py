"""Counting right predictions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mosaic_jax.types import PyTree

Predict = Callable[[jax.Array], PyTree]


def confusion_matrix(predict: Predict, batches: tuple[jax.Array, jax.Array, jax.Array], num_classes: int) -> PyTree:
    """counts[a, b] = images of class a predicted as class b, over batches, one scan.

    predict: images u8[B, S, S, 3] -> logits f32[B, K], or a pytree of several models' logits; batches: images u8[N, B, ...],
    labels i32[N, B], valid bool[N, B] (False pads the last batch and is not counted) -> i32[K, K] for each model.
    """

    def step(counts: PyTree, batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[PyTree, None]:
        images, labels, valid = batch

        def add(counts: jax.Array, logits: jax.Array) -> jax.Array:
            return counts.at[labels, jnp.argmax(logits, axis=-1)].add(valid.astype(jnp.int32))

        return jax.tree.map(add, counts, predict(images)), None

    models = jax.tree.map(lambda _: jnp.zeros((num_classes, num_classes), jnp.int32), jax.eval_shape(predict, batches[0][0]))
    return jax.lax.scan(step, models, batches)[0]


def accuracy(confusion: jax.Array) -> jax.Array:
    """Share of right predictions: i32[..., K, K] -> f32[...]; 0 where there are no images."""
    total = jnp.sum(confusion, axis=(-2, -1))
    return jnp.trace(confusion, axis1=-2, axis2=-1) / jnp.maximum(total, 1)
