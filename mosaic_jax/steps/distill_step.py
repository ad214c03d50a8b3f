"""Distillation into the student: sampling, the loss, one step. No argument here can hold a real image."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mosaic_jax.config import DistillConfig
from mosaic_jax.losses import SYMMETRIC_TERMS, distillation_loss
from mosaic_jax.steps.generator_step import sample_images
from mosaic_jax.trees import moving_average, where
from mosaic_jax.types import Classifier, Generator, PyTree, Variables


class StudentState(NamedTuple):
    """What distillation carries of one student; every leaf gains a leading S when several are stacked.

    variables: the student being trained; opt_state: Adam's; ema: the moving average of variables (BatchNorm statistics
    too), which is judged and handed on, and follows them where `distill.ema` is 0.
    """

    variables: Variables
    opt_state: PyTree
    ema: Variables


class BestStudent(NamedTuple):
    """The student with the highest federated validation so far.

    variables: its moving average; validation: f32[]; place: i32[], which of the students it is.
    """

    variables: Variables
    validation: jax.Array
    place: jax.Array


# (student logits f32[B, K], teacher logits f32[B, K], weights f32[B] or None) -> loss f32[], and f32[] of its terms by name.
StudentLoss = Callable[[jax.Array, jax.Array, jax.Array | None], tuple[jax.Array, Mapping[str, jax.Array]]]


class DistillInfo(NamedTuple):
    """loss: f32[]; terms: f32[] by name; teacher_confidence, agreement: f32[], means over the batch of images."""

    loss: jax.Array
    terms: Mapping[str, jax.Array]
    teacher_confidence: jax.Array
    agreement: jax.Array


def distill_optimizer(config: DistillConfig) -> optax.GradientTransformation:
    """Adam at a constant or cosine-decayed rate."""
    if config.schedule == "cosine":
        return optax.adam(optax.cosine_decay_schedule(config.learning_rate, max(config.num_steps, 1)))
    return optax.adam(config.learning_rate)


def init_student(variables: Variables, config: DistillConfig) -> StudentState:
    """The student before its first step: the current global model."""
    return StudentState(variables, distill_optimizer(config).init(variables.params), variables)


def no_best(variables: Variables) -> BestStudent:
    """Before any validation: any student is better."""
    return BestStudent(variables, jnp.float32(-1.0), jnp.int32(0))


def synthetic_images(
    generator: Generator, generators: Variables, key: jax.Array, samples_per_client: int, batch_norm: str
) -> jax.Array:
    """samples_per_client images of every client's generator, in client order.

    generators: leaves f32[C, ...] -> f32[C * samples_per_client, S, S, 3] in [-1, 1].
    """
    num_clients = jax.tree.leaves(generators)[0].shape[0]
    noise = jax.random.normal(key, (num_clients, samples_per_client, generator.latent_size))
    images = jax.lax.map(lambda client: sample_images(generator, *client, batch_norm), (generators, noise))
    return images.reshape(-1, *images.shape[2:])


def sample_weights(teacher_logits: jax.Array, client_sizes: jax.Array, config: DistillConfig) -> jax.Array | None:
    """Weight of each image by `distill.sample_weights`: None (uniform), the teacher's top probability, or its client's size.

    teacher_logits: f32[C * n, K] in client order; client_sizes: f32[C].
    """
    if config.sample_weights == "uniform":
        return None
    if config.sample_weights == "confidence":
        return jnp.max(jax.nn.softmax(teacher_logits), axis=-1)
    return jnp.repeat(client_sizes, teacher_logits.shape[0] // client_sizes.shape[0])


def configured_loss(config: DistillConfig) -> StudentLoss:
    """`distillation_loss` with the weights, the temperature and the symmetric term that a configuration names."""
    numbers = {name: getattr(config, name) for name in ("temperature", "kl_weight", "ce_weight", "js_weight")}

    def loss(student: jax.Array, teacher: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        value, terms = distillation_loss(student, teacher, **numbers, symmetric=SYMMETRIC_TERMS[config.js], weights=weights)
        return value, terms._asdict()

    return loss


def with_label_prior(teacher_logits: jax.Array, label_counts: jax.Array, strength: float, eps: float) -> jax.Array:
    """The teacher corrected by what the server knows of the client whose generator drew an image:

    log softmax(teacher)_c + strength log(n[i,c] / n[i] + eps), Bayes' rule for p(c | image, client i) but for a constant; a
    strength of 0 hands the teacher back as it is. teacher_logits: f32[C * n, K], equally many images of each client, in client
    order; label_counts: f32[C, K]; -> f32[C * n, K]. The rule is ours.

    >>> jax.nn.softmax(with_label_prior(jnp.zeros((1, 2)), jnp.array([[3.0, 1.0]]), 1.0, 0.0)).round(2).tolist()
    [[0.75, 0.25]]
    """
    if strength == 0:
        return teacher_logits
    shares = label_counts / jnp.sum(label_counts, axis=1, keepdims=True)
    prior = jnp.repeat(jnp.log(shares + eps), teacher_logits.shape[0] // label_counts.shape[0], axis=0)
    return jax.nn.log_softmax(teacher_logits) + strength * prior


def distill_step(
    classifier: Classifier,
    state: StudentState,
    images: jax.Array,
    teacher_logits: jax.Array,
    weights: jax.Array | None,
    config: DistillConfig,
    student_loss: StudentLoss | None = None,
) -> tuple[StudentState, DistillInfo]:
    """One Adam step of the student on its loss; its BatchNorm sees the synthetic batch or stays in eval mode.

    images: f32[B, S, S, 3]; teacher_logits: f32[B, K]; weights: f32[B] or None; student_loss: None is `distillation_loss` with the
    configuration's weights. Source: the paper's distillation stage.
    """
    student_loss = student_loss or configured_loss(config)
    train = config.student_batch_norm == "batch"
    variables = state.variables

    def loss_fn(params: PyTree) -> tuple[jax.Array, tuple]:
        logits, batch_stats = classifier.apply(Variables(params, variables.batch_stats), images, train)
        loss, terms = student_loss(logits, teacher_logits, weights)
        return loss, (terms, logits, batch_stats)

    (loss, (terms, logits, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(variables.params)
    updates, opt_state = distill_optimizer(config).update(gradients, state.opt_state)
    moved = Variables(optax.apply_updates(variables.params, updates), batch_stats)
    info = DistillInfo(
        loss=loss,
        terms=terms,
        teacher_confidence=jnp.mean(jnp.max(jax.nn.softmax(teacher_logits), axis=-1)),
        agreement=jnp.mean(jnp.argmax(logits, -1) == jnp.argmax(teacher_logits, -1)),
    )
    return state._replace(variables=moved, opt_state=opt_state, ema=moving_average(state.ema, moved, config.ema)), info


def keep_best(best: BestStudent, students: Variables, validations: jax.Array) -> BestStudent:
    """The best of the students if its federated validation accuracy is higher than any before; of equal ones the first.

    students: leaves f32[S, ...]; validations: f32[S].
    """
    place = jnp.argmax(validations).astype(jnp.int32)
    better = validations[place] > best.validation
    found = BestStudent(jax.tree.map(lambda leaf: leaf[place], students), validations[place], place)
    return where(better, found, best)
