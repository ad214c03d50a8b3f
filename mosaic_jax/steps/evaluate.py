"""Counting right predictions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Predict = Callable[[jax.Array], jax.Array]


def confusion_matrix(predict: Predict, batches: tuple[jax.Array, jax.Array, jax.Array], num_classes: int) -> jax.Array:
    """counts[a, b] = images of class a predicted as class b, over batches, one scan.

    predict: images u8[B, 32, 32, 3] -> logits f32[B, K]; batches: images u8[N, B, ...], labels i32[N, B],
    valid bool[N, B] (False pads the last batch and is not counted) -> i32[K, K].
    """

    def step(counts: jax.Array, batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        images, labels, valid = batch
        predicted = jnp.argmax(predict(images), axis=-1)
        return counts.at[labels, predicted].add(valid.astype(jnp.int32)), None

    return jax.lax.scan(step, jnp.zeros((num_classes, num_classes), jnp.int32), batches)[0]


def accuracy(confusion: jax.Array) -> jax.Array:
    """Share of right predictions: i32[..., K, K] -> f32[...]; 0 where there are no images."""
    total = jnp.sum(confusion, axis=(-2, -1))
    return jnp.trace(confusion, axis1=-2, axis2=-1) / jnp.maximum(total, 1)
