"""Class experts out of client models, and their predictions."""

import jax
import jax.numpy as jnp

from mosaic_jax.types import Classifier, PyTree, Variables


def class_weights(label_counts: jax.Array) -> jax.Array:
    """weights[c, i] = n[i, c] / sum_i n[i, c]; a class that nobody holds gets n[i] / sum_i n[i].

    label_counts: [C, K] -> f32[K, C]. The reference divides by zero for such a class.
    """
    counts = label_counts.astype(jnp.float32)
    per_class = jnp.sum(counts, axis=0)
    sizes = jnp.sum(counts, axis=1)
    held = counts / jnp.maximum(per_class, 1.0)
    return jnp.where(per_class > 0, held, (sizes / jnp.sum(sizes))[:, None]).T


def class_experts(clients: Variables, label_counts: jax.Array) -> Variables:
    """expert_c = sum_i n[i,c] theta_i / sum_i n[i,c], parameters and BatchNorm statistics alike.

    clients: leaves f32[C, ...]; label_counts: [C, K] -> leaves f32[K, ...]. Source: paper's expert construction.
    """
    weights = class_weights(label_counts)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1), clients)


def expert_logits(classifier: Classifier, experts: Variables, images: jax.Array) -> jax.Array:
    """Every expert, run whole in eval mode on the same images: f32[B, 32, 32, 3] -> f32[B, E, K]."""
    logits = jax.lax.map(lambda expert: classifier.apply(expert, images, False)[0], experts)
    return jax.lax.stop_gradient(jnp.swapaxes(logits, 0, 1))


def expert_head_logits(classifier: Classifier, experts: Variables, features: jax.Array) -> jax.Array:
    """Only the experts' linear heads, for prototypes: f32[B, D] -> f32[B, E, K]."""
    logits = jax.lax.map(lambda expert: classifier.head(expert, features), experts)
    return jnp.swapaxes(logits, 0, 1)


def mix_client_logits(client_logits: jax.Array, label_counts: jax.Array) -> jax.Array:
    """Experts in logit space: expert c = sum_i weights[c, i] f_i(x); f32[B, C, K] -> f32[B, E, K].

    For a linear head this equals averaging the heads, so prototypes need no second form.
    """
    return jnp.einsum("ei,bik->bek", class_weights(label_counts), client_logits)


def expert_sum(logits: jax.Array) -> jax.Array:
    """The control without a meta model: the plain sum over experts, f32[B, E, K] -> f32[B, K]."""
    return jnp.sum(logits, axis=1)


def absent_classes(label_counts: PyTree) -> list[int]:
    """Classes that no client holds: their expert is the global average, which a run says once."""
    return [int(c) for c in (label_counts.sum(axis=0) == 0).nonzero()[0]]
