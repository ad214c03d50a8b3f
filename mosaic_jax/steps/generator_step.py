"""One GAN step of one client: the discriminator, then the generator."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mosaic_jax.config import GeneratorConfig
from mosaic_jax.losses import batch_diversity, batch_statistics_loss, discriminator_loss, generator_loss, prediction_entropy
from mosaic_jax.trees import moving_average
from mosaic_jax.types import Classifier, Discriminator, Generator, PyTree, Variables

# (key, images f32[B, S, S, 3]) -> images, differentiable: what the discriminator sees of real and generated images alike.
Augment = Callable[[jax.Array, jax.Array], jax.Array]


class GanState(NamedTuple):
    """What a client's GAN training carries; every leaf gains a leading C when stacked.

    generator, discriminator: Variables; *_opt: Adam states; generator_ema: params pytree, the moving average that is
    uploaded when `generator.ema` > 0 (otherwise it follows the generator).
    """

    generator: Variables
    discriminator: Variables
    generator_opt: PyTree
    discriminator_opt: PyTree
    generator_ema: PyTree


class GanInfo(NamedTuple):
    """discriminator_loss, generator_loss: f32[]; generator_loss is the whole L_G."""

    discriminator_loss: jax.Array
    generator_loss: jax.Array


def gan_optimizer(config: GeneratorConfig) -> optax.GradientTransformation:
    """Adam(learning_rate, betas) for either network."""
    return optax.adam(config.learning_rate, b1=config.beta1, b2=config.beta2)


def init_gan(generator: Variables, discriminator: Variables, config: GeneratorConfig) -> GanState:
    """A GAN before its first step."""
    optimizer = gan_optimizer(config)
    return GanState(
        generator, discriminator, optimizer.init(generator.params), optimizer.init(discriminator.params), generator.params
    )


class GanLosses(NamedTuple):
    """generator(score logits f32[B]) -> f32[]; discriminator(those of real images, those of generated ones: f32[B]) -> f32[]."""

    generator: Callable[[jax.Array], jax.Array]
    discriminator: Callable[[jax.Array, jax.Array], jax.Array]


def gan_losses(config: GeneratorConfig) -> GanLosses:
    """The cross-entropies of DCGAN, the target of real images as `generator.real_target` has it."""
    return GanLosses(generator_loss, functools.partial(discriminator_loss, real_target=config.real_target))


def discriminator_gradients(
    discriminator: Discriminator, variables: Variables, real: jax.Array, fake: jax.Array,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, PyTree, PyTree]:  # fmt: skip
    """loss(D(x), D(G(z))) -> (loss, moved BatchNorm statistics, gradients)."""

    def loss_fn(params: PyTree) -> tuple[jax.Array, PyTree]:
        on_real, batch_stats = discriminator.apply(Variables(params, variables.batch_stats), real, True)
        on_fake, batch_stats = discriminator.apply(Variables(params, batch_stats), fake, True)
        return loss(on_real, on_fake), batch_stats

    (value, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(variables.params)
    return value, batch_stats, gradients


def image_loss(
    discriminator: Discriminator,
    discriminator_variables: Variables,
    classifier: Classifier,
    classifier_variables: Variables,
    images: jax.Array,
    augment: Callable[[jax.Array], jax.Array],
    inversion_weight: jax.Array,
    config: GeneratorConfig,
    losses: GanLosses,
) -> tuple[jax.Array, PyTree]:
    """L_G as a function of generated images, and the discriminator's moved BatchNorm statistics.

    L_G = losses.generator(D(G(z))) + entropy_weight H + diversity_weight sum_k w_k log w_k + inversion_weight L_inv.
    inversion_weight: f32[], 0 for a client with tau samples or more. Source: paper's generator objective.
    """
    scores, batch_stats = discriminator.apply(discriminator_variables, augment(images), True)
    loss = losses.generator(scores)
    if config.entropy_weight == config.diversity_weight == config.inversion_weight == 0.0:
        return loss, batch_stats
    train = config.classifier_batch_norm == "train"
    logits, _, statistics = classifier.input_statistics(classifier_variables, images, train)
    if config.entropy_weight > 0.0:
        loss += config.entropy_weight * prediction_entropy(logits)
    if config.diversity_weight > 0.0:
        loss += config.diversity_weight * batch_diversity(logits)
    if config.inversion_weight > 0.0:
        loss += inversion_weight * batch_statistics_loss(statistics)[0]
    return loss, batch_stats


def generator_step(
    generator: Generator,
    discriminator: Discriminator,
    classifier: Classifier,
    state: GanState,
    classifier_variables: Variables,
    real: jax.Array,
    noise: jax.Array,
    keys: jax.Array,
    augment: Augment,
    inversion_weight: jax.Array,
    config: GeneratorConfig,
    losses: GanLosses | None = None,
) -> tuple[GanState, GanInfo]:
    """One step of one client: D on real and generated images, then G through the D just updated.

    real: f32[B, S, S, 3]; noise: f32[B, Z]; keys: key[3], the augmentations of real, of generated (D) and generated (G).
    losses: None is `gan_losses(config)`.
    """
    losses = losses or gan_losses(config)
    optimizer = gan_optimizer(config)

    def generate(params: PyTree) -> tuple[jax.Array, PyTree]:
        return generator.apply(Variables(params, state.generator.batch_stats), noise, True)

    fake, pull_back, generator_stats = jax.vjp(generate, state.generator.params, has_aux=True)
    of_discriminator, stats, gradients = discriminator_gradients(
        discriminator, state.discriminator, augment(keys[0], real), augment(keys[1], fake), losses.discriminator
    )
    updates, discriminator_opt = optimizer.update(gradients, state.discriminator_opt)
    updated = Variables(optax.apply_updates(state.discriminator.params, updates), stats)

    def loss_fn(images: jax.Array) -> tuple[jax.Array, PyTree]:
        return image_loss(
            discriminator, updated, classifier, classifier_variables, images,
            lambda x: augment(keys[2], x), inversion_weight, config, losses,
        )  # fmt: skip

    (loss, stats), image_gradients = jax.value_and_grad(loss_fn, has_aux=True)(fake)
    (gradients,) = pull_back(image_gradients)
    updates, generator_opt = optimizer.update(gradients, state.generator_opt)
    params = optax.apply_updates(state.generator.params, updates)
    ema = moving_average(state.generator_ema, params, config.ema)
    moved = GanState(Variables(params, generator_stats), Variables(updated.params, stats), generator_opt, discriminator_opt, ema)
    return moved, GanInfo(of_discriminator, loss)


def sample_images(generator: Generator, variables: Variables, noise: jax.Array, batch_norm: str) -> jax.Array:
    """Images of one generator: noise f32[B, Z] -> f32[B, S, S, 3], BatchNorm on running ("eval") or batch statistics."""
    images, _ = generator.apply(variables, noise, batch_norm == "batch")
    return jax.lax.stop_gradient(images)


def uploaded(state: GanState) -> Variables:
    """What a client sends to the server: the (averaged) generator."""
    return Variables(state.generator_ema, state.generator.batch_stats)


def inversion_weights(num_samples: jax.Array, config: GeneratorConfig) -> jax.Array:
    """inversion_weight for clients with fewer than tau samples, else 0: i32[C] -> f32[C]; tau = 0 means for all."""
    small = (num_samples < config.inversion_threshold) | (config.inversion_threshold == 0)
    return jnp.where(small, config.inversion_weight, 0.0)
