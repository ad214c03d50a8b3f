"""The losses of every stage. All take logits and reduce by the (weighted) mean over the batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def _mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    if weights is None:
        return jnp.mean(values)
    return jnp.sum(values * weights) / jnp.sum(weights)


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Mean of -log softmax(logits)[label]; logits: f32[B, K], labels: i32[B], weights: f32[B] or None -> f32[]."""
    log_probabilities = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    return -_mean(picked, weights)


def binary_cross_entropy(score_logits: jax.Array, target: float) -> jax.Array:
    """Mean of -t log sigmoid(s) - (1 - t) log(1 - sigmoid(s)); score_logits: f32[B], target t in [0, 1] -> f32[]."""
    return jnp.mean(jax.nn.softplus(score_logits) - target * score_logits)


def generator_loss(score_logits: jax.Array) -> jax.Array:
    """BCE(D(G(z)), 1), the non-saturating loss of Goodfellow et al. 2014; score_logits: f32[B] -> f32[]."""
    return binary_cross_entropy(score_logits, 1.0)


def discriminator_loss(real_score_logits: jax.Array, fake_score_logits: jax.Array, *, real_target: float = 1.0) -> jax.Array:
    """BCE(D(x), real_target) + BCE(D(G(z)), 0); f32[B], f32[B] -> f32[]."""
    return binary_cross_entropy(real_score_logits, real_target) + binary_cross_entropy(fake_score_logits, 0.0)


def _kl(teacher_logits: jax.Array, student_logits: jax.Array) -> jax.Array:
    """KL(softmax teacher || softmax student) per sample: f32[B, K], f32[B, K] -> f32[B]."""
    log_teacher, log_student = jax.nn.log_softmax(teacher_logits), jax.nn.log_softmax(student_logits)
    return jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)


def jensen_shannon(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence per sample, at most ln 2: 0.5 [KL(p || m) + KL(q || m)], m = (p + q) / 2; -> f32[B]."""
    log_p, log_q = jax.nn.log_softmax(student_logits), jax.nn.log_softmax(teacher_logits)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0).astype(log_p.dtype)
    return 0.5 * jnp.sum(jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m), axis=-1)


def midpoint_divergence(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """The public code's term per sample: 0.5 [KL(m || s) + KL(m || t)] with m the softmax of the MEAN LOGITS.

    Not a Jensen-Shannon divergence: it is unbounded. f32[B, K], f32[B, K] -> f32[B].
    """
    middle = (student_logits + teacher_logits) / 2
    return 0.5 * (_kl(middle, student_logits) + _kl(middle, teacher_logits))


Divergence = Callable[[jax.Array, jax.Array], jax.Array]
SYMMETRIC_TERMS: dict[str, Divergence] = {"jensen_shannon": jensen_shannon, "midpoint": midpoint_divergence}


class DistillationTerms(NamedTuple):
    """Each term before its weight, f32[]."""

    kl: jax.Array
    ce: jax.Array
    js: jax.Array


def distillation_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float = 1.0,
    kl_weight: float = 0.8,
    ce_weight: float = 0.2,
    js_weight: float = 1.0,
    symmetric: Divergence = jensen_shannon,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, DistillationTerms]:
    """kl_weight T^2 KL(teacher || student at T) + ce_weight CE(student, argmax teacher) + js_weight J at T -> f32[], its terms.

    student_logits, teacher_logits: f32[B, K]; weights: f32[B] or None. No gradient reaches the teacher.
    J takes logits / T as the KL does, but without its T^2, as in the public code.
    Source: the paper's distillation objective; the public code's J is `midpoint_divergence`.

    >>> loss, terms = distillation_loss(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 0.0]]))
    >>> [round(float(term), 3) for term in (loss, *terms)]
    [0.139, 0.0, 0.693, 0.0]
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    t = temperature
    terms = DistillationTerms(
        kl=t**2 * _mean(_kl(teacher_logits / t, student_logits / t), weights),
        ce=cross_entropy(student_logits, jnp.argmax(teacher_logits, axis=-1), weights),
        js=_mean(symmetric(student_logits / t, teacher_logits / t), weights),
    )
    return kl_weight * terms.kl + ce_weight * terms.ce + js_weight * terms.js, terms


def prediction_entropy(logits: jax.Array) -> jax.Array:
    """H: mean over the batch of -sum_k y_k log(y_k + 1e-5), y = softmax(logits); f32[B, K] -> f32[]."""
    y = jax.nn.softmax(logits)
    return jnp.mean(-jnp.sum(y * jnp.log(y + 1e-5), axis=-1))


def batch_diversity(logits: jax.Array) -> jax.Array:
    """sum_k w_k log w_k with w the batch mean of softmax(logits), smallest when classes are even; f32[B, K] -> f32[]."""
    log_w = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(float(logits.shape[0])).astype(logits.dtype)
    return jnp.sum(jnp.exp(log_w) * log_w)


def batch_statistics_loss(statistics: tuple) -> tuple[jax.Array, jax.Array]:
    """L_inv: sum over BatchNorm layers of ||mean - running_mean||_2 + ||var - running_var||_2, and the terms f32[L].

    statistics: (mean, biased var, running mean, running var) per layer, from `Classifier.input_statistics`.
    """

    def norm(difference: jax.Array) -> jax.Array:
        # A zero difference has no gradient direction; sqrt alone would give NaN there.
        square = jnp.sum(jnp.square(difference))
        safe = jnp.where(square > 0, square, 1.0)
        return jnp.where(square > 0, jnp.sqrt(safe), 0.0)

    layers = jnp.stack([norm(mean - to_mean) + norm(var - to_var) for mean, var, to_mean, to_var in statistics])
    return jnp.sum(layers), layers
