"""Losses against float64 NumPy oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mosaic_jax import losses

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = (3.0 * RANDOM.standard_normal((16, 7)) for _ in range(2))
LABELS = RANDOM.integers(0, 7, 16)
WEIGHTS = RANDOM.uniform(0.1, 2.0, 16)


def f32(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def jensen_shannon(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    p, q = softmax(student), softmax(teacher)
    return 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2)


def midpoint(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    middle = softmax((student + teacher) / 2)
    return 0.5 * kl(middle, softmax(student)) + 0.5 * kl(middle, softmax(teacher))


def test_cross_entropy_is_the_mean_negative_log_probability_of_the_label() -> None:
    expected = -np.log(softmax(STUDENT)[np.arange(16), LABELS]).mean()
    assert losses.cross_entropy(f32(STUDENT), jnp.asarray(LABELS)) == pytest.approx(expected, rel=1e-6)


def test_weights_turn_the_mean_of_cross_entropy_into_a_weighted_mean() -> None:
    expected = np.average(-np.log(softmax(STUDENT)[np.arange(16), LABELS]), weights=WEIGHTS)
    assert losses.cross_entropy(f32(STUDENT), jnp.asarray(LABELS), f32(WEIGHTS)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.9, 1.0])
def test_binary_cross_entropy_takes_logits_and_any_target(target: float) -> None:
    scores = STUDENT[:, 0]
    probability = 1 / (1 + np.exp(-scores))
    expected = -np.mean(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    assert losses.binary_cross_entropy(f32(scores), target) == pytest.approx(expected, rel=1e-6)


def test_binary_cross_entropy_of_a_certain_wrong_score_is_finite_with_a_gradient() -> None:
    loss, gradient = jax.value_and_grad(losses.binary_cross_entropy)(jnp.array([-200.0, 200.0]), 1.0)
    assert loss == pytest.approx(100.0)
    np.testing.assert_allclose(gradient, [-0.5, 0.0])


def test_jensen_shannon_matches_its_definition_and_is_symmetric() -> None:
    ours = losses.jensen_shannon(f32(STUDENT), f32(TEACHER))
    np.testing.assert_allclose(ours, jensen_shannon(STUDENT, TEACHER), rtol=2e-5)
    np.testing.assert_allclose(ours, losses.jensen_shannon(f32(TEACHER), f32(STUDENT)), rtol=2e-5)


def test_jensen_shannon_stays_below_log_2_where_the_midpoint_term_does_not() -> None:
    one, other = jnp.array([[40.0, 0.0]]), jnp.array([[0.0, 40.0]])
    assert losses.jensen_shannon(one, other)[0] == pytest.approx(np.log(2.0), rel=1e-6)
    assert losses.midpoint_divergence(one, other)[0] > 10.0


@pytest.mark.parametrize("term", sorted(losses.SYMMETRIC_TERMS))
def test_symmetric_terms_are_zero_with_a_finite_gradient_where_student_and_teacher_agree(term: str) -> None:
    value, gradient = jax.value_and_grad(lambda s: losses.SYMMETRIC_TERMS[term](s, f32(TEACHER)).sum())(f32(TEACHER))
    assert value == pytest.approx(0.0, abs=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_midpoint_divergence_takes_the_softmax_of_the_mean_logits() -> None:
    np.testing.assert_allclose(losses.midpoint_divergence(f32(STUDENT), f32(TEACHER)), midpoint(STUDENT, TEACHER), rtol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("js", ["jensen_shannon", "midpoint"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_distillation_loss_is_the_weighted_sum_of_its_terms(temperature: float, js: str, weights: np.ndarray | None) -> None:
    numbers = {"temperature": temperature, "kl_weight": 0.7, "ce_weight": 0.3, "js_weight": 0.5}
    student, teacher = STUDENT / temperature, TEACHER / temperature
    divergence = temperature**2 * np.average(kl(softmax(teacher), softmax(student)), weights=weights)
    entropy = np.average(-np.log(softmax(STUDENT)[np.arange(16), TEACHER.argmax(1)]), weights=weights)
    symmetric = np.average({"jensen_shannon": jensen_shannon, "midpoint": midpoint}[js](student, teacher), weights=weights)
    weights = None if weights is None else f32(weights)
    loss, terms = losses.distillation_loss(
        f32(STUDENT), f32(TEACHER), **numbers, symmetric=losses.SYMMETRIC_TERMS[js], weights=weights
    )
    np.testing.assert_allclose(terms, [divergence, entropy, symmetric], rtol=1e-5)
    assert loss == pytest.approx(0.7 * divergence + 0.3 * entropy + 0.5 * symmetric, rel=1e-5)


def test_distillation_gives_the_student_a_right_gradient_and_the_teacher_none() -> None:
    def loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
        return losses.distillation_loss(student, teacher, temperature=2.0)[0]

    check_grads(lambda s: loss(s, f32(TEACHER)), (f32(STUDENT),), 1, ["rev"], rtol=2e-2, atol=1e-3)
    gradient = jax.grad(lambda t: loss(f32(STUDENT), t))(f32(TEACHER))
    assert not np.any(gradient)


def test_prediction_entropy_guards_its_logarithm_with_1e_minus_5() -> None:
    y = softmax(STUDENT)
    assert losses.prediction_entropy(f32(STUDENT)) == pytest.approx(-(y * np.log(y + 1e-5)).sum(1).mean(), rel=1e-5)


def test_batch_diversity_is_the_negative_entropy_of_the_mean_prediction() -> None:
    w = softmax(STUDENT).mean(axis=0)
    assert losses.batch_diversity(f32(STUDENT)) == pytest.approx(np.sum(w * np.log(w)), rel=1e-5)


def test_batch_diversity_is_lowest_when_the_batch_covers_all_classes_evenly() -> None:
    certain = 30.0 * jnp.eye(5)
    assert losses.batch_diversity(certain) == pytest.approx(-np.log(5.0), rel=1e-5)
    assert losses.batch_diversity(certain[jnp.zeros(5, int)]) == pytest.approx(0.0, abs=1e-5)


def test_batch_statistics_loss_sums_the_norms_of_both_mismatches_over_layers() -> None:
    statistics = [tuple(RANDOM.standard_normal(size) for _ in range(4)) for size in (3, 8)]
    layers = [np.linalg.norm(mean - to_mean) + np.linalg.norm(var - to_var) for mean, var, to_mean, to_var in statistics]
    loss, terms = losses.batch_statistics_loss(tuple(tuple(map(f32, layer)) for layer in statistics))
    np.testing.assert_allclose(terms, layers, rtol=1e-6)
    assert loss == pytest.approx(sum(layers), rel=1e-6)


def test_batch_statistics_loss_has_a_zero_gradient_where_the_statistics_are_met() -> None:
    met = jnp.arange(4.0)
    loss, gradient = jax.value_and_grad(lambda mean: losses.batch_statistics_loss(((mean, met, met, met),))[0])(met)
    assert loss == 0.0
    assert not np.any(gradient)
