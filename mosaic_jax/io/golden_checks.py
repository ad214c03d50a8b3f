"""What the functions of training make of the golden tensors, quantity by quantity, and how far each may be from the golden value.

`scripts/check_golden.py` compares these with files of values that the public PyTorch code computed from the same tensors.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mosaic_jax.config import GeneratorConfig, MetaConfig, ModelConfig
from mosaic_jax.data.partition import dirichlet_unbalanced
from mosaic_jax.io.golden import fill, filled, images_of, labels_of, nchw, normal
from mosaic_jax.io.torch_weights import to_torch
from mosaic_jax.losses import (
    batch_diversity,
    batch_statistics_loss,
    binary_cross_entropy,
    distillation_loss,
    midpoint_divergence,
    prediction_entropy,
)
from mosaic_jax.models import build_classifier, build_discriminator, build_generator, build_meta_model
from mosaic_jax.rng import key_of
from mosaic_jax.steps.client_update import client_optimizer, sgd_step
from mosaic_jax.steps.experts import class_experts, expert_head_logits
from mosaic_jax.steps.generator_step import GanInfo, GanState, generator_step, init_gan
from mosaic_jax.steps.meta_step import init_meta, meta_step, mixture_logits
from mosaic_jax.trees import stack, weighted_mean
from mosaic_jax.types import Batch, MetaModel, PyTree, Variables


class Limit(NamedTuple):
    """The largest error that passes: |ours - golden| / |golden|, in the norm of `order` (inf: maximum) of the whole quantity."""

    error: float
    order: float = np.inf


EXACT, LOSS, LOGITS, GRADIENT, STEPPED = Limit(0.0), Limit(1e-5), Limit(1e-4), Limit(1e-3), Limit(1e-3)
# Behind the gradient of a ReLU network float32 gives no more: an activation within rounding of zero falls on either side and
# turns a patch of the gradient on or off. Inputs changed by 1e-7 move the generator's gradient norms by 5e-3, an image gradient
# by 1e-2 (2e-3 in the 2-norm) and, as Adam's first step is the gradient's sign, the images after it by 3e-1 (8e-3 in the 2-norm,
# where the step itself is 4e-1). PyTorch in float64 is itself 6e-3 and 1e-1 away from its golden float32 for these last two.
KINKED, KINKED_GAN = Limit(1e-2, 2), Limit(3e-2, 2)

Golden = Mapping[str, np.ndarray]
Quantities = Iterator[tuple[str, Any, Limit]]  # name, our value, limit


def norms(kind: str, gradients: PyTree) -> dict[str, float]:
    """The L2 norm of each gradient, by PyTorch name."""
    return {name: float(np.linalg.norm(array)) for name, array in to_torch(kind, Variables(gradients, {})).items()}


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer`, with the gradients that it was given as the second half of its state."""

    def update(gradients: PyTree, state: tuple[PyTree, PyTree], params: PyTree) -> tuple[PyTree, tuple[PyTree, PyTree]]:
        updates, inner = optimizer.update(gradients, state[0], params)
        return updates, (inner, gradients)

    return optax.GradientTransformation(lambda params: (optimizer.init(params), params), update)


def check_resnet18(golden: Golden, seed: int) -> Quantities:
    classifier = build_classifier(ModelConfig("resnet18"), 10)
    variables = filled("resnet18", classifier.init, "resnet18.", seed)
    batch = Batch(images_of("resnet18.x", 4, seed), labels_of("resnet18.y", 4, 10, seed))

    @jax.jit
    def evaluate(variables: Variables) -> tuple[jax.Array, jax.Array]:
        features, _ = classifier.features(variables, batch.images, False)
        return features, classifier.head(variables, features)

    features, logits = evaluate(variables)
    yield "features_eval", features, LOGITS
    yield "logits_eval", logits, LOGITS
    yield "logits_train", jax.jit(lambda v: classifier.apply(v, batch.images, True)[0])(variables), LOGITS
    optimizer = recording(client_optimizer(0.01, 1e-4))
    step = jax.jit(lambda v, opt_state: sgd_step(classifier, v, opt_state, batch, optimizer))
    variables, opt_state, loss = step(variables, optimizer.init(variables.params))
    yield "loss_train", loss, LOSS
    for name, norm in norms("resnet18", opt_state[1]).items():
        yield f"gradnorm/{name}", norm, KINKED
    yield "bn1_running_mean_after", variables.batch_stats["bn1"]["mean"], LOSS
    yield "bn1_running_var_after", variables.batch_stats["bn1"]["var"], LOSS
    losses = []
    for _ in range(3):
        variables, opt_state, loss = step(variables, opt_state)
        losses.append(float(loss))
    yield "loss_next_three_sgd_steps", losses, STEPPED
    yield "logits_eval_after_four_steps", evaluate(variables)[1], KINKED


def check_gan_step(golden: Golden, seed: int) -> Quantities:
    config = GeneratorConfig(
        classifier_batch_norm="train", entropy_weight=0.0, diversity_weight=5.0, inversion_weight=0.0, real_target=1.0, ema=0.0
    )
    generator, discriminator = build_generator(config), build_discriminator(config)
    classifier = build_classifier(ModelConfig("resnet18"), 10)
    auxiliary = filled("resnet18", classifier.init, "classifier.", seed)
    networks = (("generator", generator), ("discriminator", discriminator))
    start = init_gan(*(filled(kind, network.init, f"{kind}.", seed) for kind, network in networks), config)
    noise = jnp.asarray(normal("gan.z", (8, 100, 1, 1), seed)[:, :, 0, 0])
    real = jnp.tanh(images_of("gan.x", 8, seed))

    @jax.jit
    def before(g: Variables, d: Variables, auxiliary: Variables) -> tuple[jax.Array, ...]:
        fake, _ = generator.apply(g, noise, True)
        scores = (discriminator.apply(d, images, train)[0] for images, train in ((real, False), (real, True), (fake, True)))
        return generator.apply(g, noise, False)[0], fake, *scores, classifier.apply(auxiliary, fake, True)[0]

    fake_eval, fake, on_real_eval, on_real, on_fake, logits = before(start.generator, start.discriminator, auxiliary)
    yield "fake_eval", nchw(fake_eval), LOGITS
    yield "d_real_eval", jax.nn.sigmoid(on_real_eval), LOGITS
    yield "fake_train", nchw(fake), LOGITS
    yield "loss_d_real", binary_cross_entropy(on_real, 1.0), LOSS
    yield "loss_d_fake", binary_cross_entropy(on_fake, 0.0), LOSS
    yield "entropy", prediction_entropy(logits), LOSS
    yield "diversity_sum_plogp", batch_diversity(logits), LOSS

    @jax.jit
    def step(state: GanState, auxiliary: Variables) -> tuple[GanState, GanInfo, jax.Array, jax.Array]:
        state, info = generator_step(
            generator, discriminator, classifier, state, auxiliary, real, noise, jax.random.split(key_of(0), 3),
            lambda key, images: images, jnp.float32(0.0), config,
        )  # fmt: skip
        scores, _ = discriminator.apply(state.discriminator, fake, True)
        return state, info, scores, generator.apply(state.generator, noise, True)[0]

    state, info, scores, fake_after = step(start, auxiliary)
    # Adam's first moment after its first step is (1 - beta1) times the gradient.
    for letter, kind, moments, limit in (
        ("D", "discriminator", state.discriminator_opt, GRADIENT),
        ("G", "generator", state.generator_opt, KINKED_GAN),
    ):
        for name, norm in norms(kind, optax.tree_utils.tree_get(moments, "mu")).items():
            yield f"{letter}_gradnorm/{name}", norm / (1.0 - config.beta1), limit
    yield "loss_g_adversarial", binary_cross_entropy(scores, 1.0), STEPPED
    yield "loss_g_total", info.generator_loss, STEPPED
    yield "fake_train_after_step", nchw(fake_after), KINKED_GAN
    # The golden scores are the updated discriminator's on the images of before G's step: their mean -log is loss_g_adversarial.
    yield "d_fake_train_after_step", jax.nn.sigmoid(scores), STEPPED


def check_bn_statistics_loss(golden: Golden, seed: int) -> Quantities:
    classifier = build_classifier(ModelConfig("resnet18"), 10)
    variables = filled("resnet18", classifier.init, "classifier.", seed)

    def loss_fn(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return batch_statistics_loss(classifier.input_statistics(variables, images, False)[2])

    (loss, per_layer), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(images_of("inversion.x", 8, seed))
    yield "loss", loss, LOSS
    yield "per_layer", per_layer, LOSS
    yield "grad_x", nchw(gradient), KINKED


def check_experts(golden: Golden, seed: int) -> Quantities:
    counts = golden["label_counts"]
    shapes = {key.partition("/")[2]: value.shape for key, value in golden.items() if key.startswith("global/")}
    clients = stack([{name: normal(f"experts.{i}.{name}", shapes[name], seed) for name in shapes} for i in range(len(counts))])
    experts = class_experts(Variables(clients, {}), jnp.asarray(counts)).params
    average = weighted_mean(clients, jnp.asarray(counts.sum(axis=1), jnp.float32))
    yield "label_counts", counts, EXACT
    for name in shapes:
        yield f"experts/{name}", experts[name], LOSS
        yield f"global/{name}", average[name], LOSS


def meta_model_of(num_classes: int) -> tuple[MetaModel, MetaConfig]:
    config = MetaConfig(expansion=10, pooling="sum" if num_classes == 10 else "mean")
    return build_meta_model(config, num_classes, num_classes), config


def check_meta(golden: Golden, seed: int) -> Quantities:
    num_classes = golden["logits_eval"].shape[1]
    prefix = f"meta{num_classes}."
    classifier = build_classifier(ModelConfig("resnet18"), num_classes)
    model, config = meta_model_of(num_classes)
    params = filled("meta", lambda key: Variables(model.init(key), {}), prefix, seed).params

    def head(index: int) -> Variables:
        name = f"{prefix}expert{index}.linear."
        kernel = fill(name + "weight", (num_classes, classifier.feature_size), seed).T
        return Variables({"linear": {"kernel": kernel, "bias": fill(name + "bias", (num_classes,), seed)}}, {})

    features = jnp.asarray(normal(prefix + "features", (6, 512), seed))
    inputs = expert_head_logits(classifier, stack([head(index) for index in range(num_classes)]), (), features)
    predict = jax.jit(lambda params: mixture_logits(model, params, inputs))
    yield "expert_logits", inputs, LOGITS
    yield "logits_eval", predict(params), LOGITS
    labels = labels_of(prefix + "y", 6, num_classes, seed)
    step = jax.jit(lambda state: meta_step(model, state, inputs, labels, None, config))
    state, losses = init_meta(params, config), []
    for _ in range(3):
        state, info = step(state)
        losses.append(float(info.loss))
    yield "loss_three_adam_steps", losses, STEPPED
    yield "logits_after_three_steps", predict(state.params), STEPPED
    yield "logits_ema_after_three_steps", predict(state.ema), STEPPED


def check_distillation_loss(golden: Golden, seed: int) -> Quantities:
    student, teacher = (jnp.asarray(golden[name]) for name in ("student_logits", "teacher_logits"))
    yield "student_logits", student, EXACT
    yield "teacher_logits", teacher, EXACT
    for suffix in (key.removeprefix("loss") for key in golden if key.startswith("loss_T")):
        function = functools.partial(distillation_loss, temperature=float(suffix[2:]), symmetric=midpoint_divergence)
        (loss, terms), gradient = jax.value_and_grad(function, has_aux=True)(student, teacher)
        yield f"loss{suffix}", loss, LOSS
        yield f"grad{suffix}", gradient, GRADIENT
        yield f"jsd{suffix}", terms.js, LOSS


def check_partition(golden: Golden, seed: int) -> Quantities:
    for key in golden:
        found = re.fullmatch(r"seed(\d+)_alpha([\d.e-]+)_clients(\d+)_classes(\d+)_per(\d+)", key)
        if found:
            labels = np.repeat(np.arange(int(found[4])), int(found[5]))
            yield key, dirichlet_unbalanced(labels, int(found[3]), float(found[2]), int(found[1])).label_counts, EXACT


CHECKS: dict[str, Callable[[Golden, int], Quantities]] = {
    "resnet18": check_resnet18,
    "gan_step": check_gan_step,
    "bn_statistics_loss": check_bn_statistics_loss,
    "experts": check_experts,
    "meta10": check_meta,
    "meta100": check_meta,
    "distillation_loss": check_distillation_loss,
    "partition_dirichlet_unbalanced": check_partition,
}
