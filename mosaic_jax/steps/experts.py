"""Class experts out of client models, and their predictions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mosaic_jax.mapping import ONE_AT_A_TIME, Plan, for_each_client, in_groups
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


Weights = Callable[[jax.Array], jax.Array]  # label counts [C, K] -> f32[K, C], rows that sum to 1


def class_experts(clients: Variables, label_counts: jax.Array, weights_of: Weights = class_weights) -> Variables:
    """expert_c = sum_i n[i,c] theta_i / sum_i n[i,c], parameters and BatchNorm statistics alike.

    clients: leaves f32[C, ...]; label_counts: [C, K] -> leaves f32[K, ...]. Source: paper's expert construction.
    """
    return _mean(clients, weights_of(label_counts))


def _mean(clients: Variables, weights: jax.Array) -> Variables:
    """leaves f32[C, ...], weights f32[..., C] that sum to 1 -> leaves f32[..., ...]."""
    return jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1), clients)


def for_each_expert(
    fn: Callable[[Variables], jax.Array], models: Variables, label_counts: PyTree = (), plan: Plan = ONE_AT_A_TIME,
    weights_of: Weights = class_weights,
) -> jax.Array:  # fmt: skip
    """`fn` of every expert, stacked: [E, ...].

    models: the experts, leaves f32[E, ...]; or, with label_counts [C, K], the clients' models f32[C, ...] that each expert is
    made of just before it runs, by `class_experts`' formula, so that the experts of one chunk are all that live at a time.
    """
    if isinstance(label_counts, tuple):
        return for_each_client(fn, (models,), plan=plan)
    return for_each_client(lambda weights, clients: fn(_mean(clients, weights)), (weights_of(label_counts),), (models,), plan)


def expert_logits(
    classifier: Classifier,
    models: Variables,
    label_counts: PyTree,
    images: jax.Array,
    plan: Plan = ONE_AT_A_TIME,
    group: int = 0,
    weights_of: Weights = class_weights,
) -> jax.Array:
    """Every expert, run whole in eval mode on the same images: f32[B, 32, 32, 3] -> f32[B, E, K]; see `for_each_expert`.

    group: images that an expert is given at once, 0 is all.
    """

    def logits_of(expert: Variables) -> jax.Array:
        return in_groups(lambda some: classifier.apply(expert, some, False)[0], images, group)

    logits = for_each_expert(logits_of, models, label_counts, plan, weights_of)
    return jax.lax.stop_gradient(jnp.swapaxes(logits, 0, 1))


def expert_head_logits(
    classifier: Classifier, models: Variables, label_counts: PyTree, features: jax.Array, plan: Plan = ONE_AT_A_TIME,
    weights_of: Weights = class_weights,
) -> jax.Array:  # fmt: skip
    """Only the experts' linear heads, for prototypes: f32[B, D] -> f32[B, E, K]; of recomputed experts only heads are made."""
    logits = for_each_expert(lambda expert: classifier.head(expert, features), models, label_counts, plan, weights_of)
    return jnp.swapaxes(logits, 0, 1)


def mix_client_logits(client_logits: jax.Array, label_counts: jax.Array, weights_of: Weights = class_weights) -> jax.Array:
    """Experts in logit space: expert c = sum_i weights[c, i] f_i(x); f32[B, C, K] -> f32[B, E, K].

    For a linear head this equals averaging the heads, so prototypes need no second form.
    """
    return jnp.einsum("ei,bik->bek", weights_of(label_counts), client_logits)


def expert_sum(logits: jax.Array) -> jax.Array:
    """The control without a meta model: the plain sum over experts, f32[B, E, K] -> f32[B, K]."""
    return jnp.sum(logits, axis=1)


def expert_labels(logits: jax.Array, label_counts: jax.Array) -> jax.Array:
    """The class whose own expert is surest of it, among the classes of the client whose generator drew the image:

    argmax_c softmax(logits_c)_c n[i,c]; logits: f32[B, E, K], E = K, of equally many images of every client, in client order;
    label_counts: f32[C, K] -> i32[B]. Without n[i,c] the expert of a class that one client holds alone claims all images, being
    sure of nothing else. The choice is ours.
    """
    sure = jnp.diagonal(jax.nn.log_softmax(logits), axis1=1, axis2=2)
    held = jnp.repeat(jnp.log(label_counts), logits.shape[0] // label_counts.shape[0], axis=0)
    return jnp.argmax(sure + held, axis=-1).astype(jnp.int32)


def absent_classes(label_counts: PyTree) -> list[int]:
    """Classes that no client holds: their expert is the global average, which a run says once."""
    return [int(c) for c in (label_counts.sum(axis=0) == 0).nonzero()[0]]
