"""Checks every stage against golden values of the public PyTorch code.

Command: python scripts/check_golden.py --golden DIR --seed N

No weights are stored: every tensor is filled from its PyTorch name and the seed (`fill`), brought in by
`mosaic_jax.io.torch_weights`, and run through the functions that training uses, at matmul precision "highest".
Prints `file/quantity max_relative_error limit ok|FAIL` per quantity; exit status 1 on any FAIL, on a golden file that is
missing and on one that is not known. The error of a quantity is max |ours - golden| / max |golden| over all its elements.
"""

import argparse
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mosaic_jax.config import DistillConfig, GeneratorConfig, MetaConfig, ModelConfig
from mosaic_jax.data.partition import dirichlet_unbalanced
from mosaic_jax.io.torch_weights import from_torch, to_torch
from mosaic_jax.losses import batch_diversity, batch_statistics_loss, binary_cross_entropy, distillation_loss, prediction_entropy
from mosaic_jax.models import build_classifier, build_discriminator, build_generator, build_meta_model
from mosaic_jax.steps.client_update import client_optimizer, sgd_step
from mosaic_jax.steps.experts import class_experts, expert_head_logits
from mosaic_jax.steps.generator_step import generator_step, init_gan
from mosaic_jax.steps.meta_step import init_meta, meta_step, mixture_logits
from mosaic_jax.trees import stack, weighted_mean
from mosaic_jax.types import Batch, MetaModel, PyTree, Variables

LOSS, LOGITS, GRADIENT, STEPPED, EXACT = 1e-5, 1e-4, 1e-3, 1e-3, 0.0

Golden = Mapping[str, np.ndarray]
Quantities = Iterator[tuple[str, Any, float]]  # name, our value, limit


class Check(NamedTuple):
    """One line of the report."""

    name: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit


def normal(tag: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """f32 of `shape` from the standard normal distribution, drawn for this tag and seed."""
    return _random(tag, seed).standard_normal(shape).astype(np.float32)


def labels_of(tag: str, size: int, num_classes: int, seed: int) -> jax.Array:
    """i32[size] in 0..num_classes-1, drawn for this tag and seed."""
    return jnp.asarray(_random(tag, seed).randint(0, num_classes, size), jnp.int32)


def images_of(tag: str, batch: int, seed: int) -> jax.Array:
    """f32[batch, 32, 32, 3]; drawn as PyTorch's NCHW."""
    return jnp.asarray(normal(tag, (batch, 3, 32, 32), seed).transpose(0, 2, 3, 1))


def nchw(images: jax.Array) -> np.ndarray:
    return np.asarray(images).transpose(0, 3, 1, 2)


def _random(tag: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(tag.encode()) + seed) % 2**32)


def fill(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The golden tensor of this PyTorch name (with its prefix): its kind follows from the name and the shape."""
    r = normal(name, shape, seed)
    if name.endswith("running_mean"):
        return 0.1 * r
    if name.endswith("running_var"):
        return 1.0 + 0.1 * np.abs(r)
    if len(shape) > 1:
        return (r * np.sqrt(1.0 / np.prod(shape[1:]))).astype(np.float32)
    return 1.0 + 0.1 * r if name.endswith("weight") else 0.1 * r


def filled(kind: str, init: Callable[[jax.Array], Variables], prefix: str, seed: int) -> Variables:
    """The golden variables of one network."""
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), jax.eval_shape(init, jax.random.key(0)))
    return from_torch(kind, {name: fill(prefix + name, array.shape, seed) for name, array in to_torch(kind, empty).items()})


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
        yield f"gradnorm/{name}", norm, GRADIENT
    yield "bn1_running_mean_after", variables.batch_stats["bn1"]["mean"], LOGITS
    yield "bn1_running_var_after", variables.batch_stats["bn1"]["var"], LOGITS
    losses = []
    for _ in range(3):
        variables, opt_state, loss = step(variables, opt_state)
        losses.append(float(loss))
    yield "loss_next_three_sgd_steps", losses, STEPPED
    yield "logits_eval_after_four_steps", evaluate(variables)[1], STEPPED


def check_gan_step(golden: Golden, seed: int) -> Quantities:
    config = GeneratorConfig(
        classifier_batch_norm="train", entropy_weight=0.0, diversity_weight=5.0, inversion_weight=0.0, augment="none", real_target=1.0
    )
    generator, discriminator = build_generator(config), build_discriminator(config)
    classifier = build_classifier(ModelConfig("resnet18"), 10)
    auxiliary = filled("resnet18", classifier.init, "classifier.", seed)
    start = init_gan(
        filled("generator", generator.init, "generator.", seed), filled("discriminator", discriminator.init, "discriminator.", seed), config
    )
    noise = jnp.asarray(normal("gan.z", (8, 100, 1, 1), seed)[:, :, 0, 0])
    real = jnp.tanh(images_of("gan.x", 8, seed))

    @jax.jit
    def before() -> tuple[jax.Array, ...]:
        fake_eval, _ = generator.apply(start.generator, noise, False)
        on_real_eval, _ = discriminator.apply(start.discriminator, real, False)
        fake, _ = generator.apply(start.generator, noise, True)
        on_real, _ = discriminator.apply(start.discriminator, real, True)
        on_fake, _ = discriminator.apply(start.discriminator, fake, True)
        return fake_eval, on_real_eval, fake, on_real, on_fake, classifier.apply(auxiliary, fake, True)[0]

    fake_eval, on_real_eval, fake, on_real, on_fake, logits = before()
    yield "fake_eval", nchw(fake_eval), LOGITS
    yield "d_real_eval", jax.nn.sigmoid(on_real_eval), LOGITS
    yield "fake_train", nchw(fake), LOGITS
    yield "loss_d_real", binary_cross_entropy(on_real, 1.0), LOSS
    yield "loss_d_fake", binary_cross_entropy(on_fake, 0.0), LOSS
    yield "entropy", prediction_entropy(logits), LOSS
    yield "diversity_sum_plogp", batch_diversity(logits), LOSS

    state, info = jax.jit(
        lambda state: generator_step(
            generator, discriminator, classifier, state, auxiliary, real, noise, jax.random.split(jax.random.key(0), 3),
            lambda key, images: images, jnp.float32(0.0), config,
        )
    )(start)  # fmt: skip
    # Adam's first moment after its first step is (1 - beta1) times the gradient.
    for letter, kind, moments in (("D", "discriminator", state.discriminator_opt), ("G", "generator", state.generator_opt)):
        for name, norm in norms(kind, optax.tree_utils.tree_get(moments, "mu")).items():
            yield f"{letter}_gradnorm/{name}", norm / (1.0 - config.beta1), GRADIENT

    @jax.jit
    def after(state: Any) -> tuple[jax.Array, ...]:
        on_first, _ = discriminator.apply(state.discriminator, fake, True)
        second, _ = generator.apply(state.generator, noise, True)
        return on_first, second, discriminator.apply(state.discriminator, second, True)[0]

    on_first, second, on_second = after(state)
    yield "loss_g_adversarial", binary_cross_entropy(on_first, 1.0), STEPPED
    yield "loss_g_total", info.generator_loss, STEPPED
    yield "fake_train_after_step", nchw(second), STEPPED
    yield "d_fake_train_after_step", jax.nn.sigmoid(on_second), STEPPED


def check_bn_statistics_loss(golden: Golden, seed: int) -> Quantities:
    classifier = build_classifier(ModelConfig("resnet18"), 10)
    variables = filled("resnet18", classifier.init, "classifier.", seed)

    def loss_fn(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return batch_statistics_loss(classifier.input_statistics(variables, images, False)[2])

    (loss, per_layer), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(images_of("inversion.x", 8, seed))
    yield "loss", loss, LOSS
    yield "per_layer", per_layer, LOSS
    yield "grad_x", nchw(gradient), GRADIENT


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
    heads = [
        Variables({"linear": {"kernel": fill(name + "weight", (num_classes, 512), seed).T, "bias": fill(name + "bias", (num_classes,), seed)}}, {})
        for name in (f"{prefix}expert{i}.linear." for i in range(num_classes))
    ]
    features = jnp.asarray(normal(prefix + "features", (6, 512), seed))
    inputs = expert_head_logits(classifier, stack(heads), features)
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
        config = DistillConfig(temperature=float(suffix[2:]), kl_weight=0.8, ce_weight=0.2, js_weight=1.0, js="midpoint")
        (loss, terms), gradient = jax.value_and_grad(distillation_loss, has_aux=True)(student, teacher, config)
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


def relative_error(ours: Any, golden: np.ndarray) -> float:
    """max |ours - golden| / max |golden|; infinite where shapes differ or a value is not finite."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape or not (np.isfinite(ours).all() and np.isfinite(golden).all()):
        return float("inf")
    difference, scale = np.abs(ours - golden).max(initial=0.0), np.abs(golden).max(initial=0.0)
    return float(difference / scale) if scale > 0 else float("inf") if difference > 0 else 0.0


def check_file(path: Path, seed: int) -> Iterator[Check]:
    """One Check per quantity of a golden .npz file; a quantity that nothing here computes fails."""
    with np.load(path) as file:
        golden = dict(file)
    with jax.default_matmul_precision("highest"):
        ours = {name: (value, limit) for name, value, limit in CHECKS[path.stem](golden, seed)}
    for name, value in golden.items():
        computed, limit = ours.get(name, (np.nan, EXACT))
        yield Check(f"{path.stem}/{name}", relative_error(computed, value), limit)


def check_names(path: Path) -> Check:
    """The names and shapes of a meta model's state_dict, one `name (shape)` a line in metaK_names.txt."""
    expected = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    num_classes = int(re.fullmatch(r"meta(\d+)_names", path.stem)[1])
    params = jax.eval_shape(meta_model_of(num_classes)[0].init, jax.random.key(0))
    tensors = to_torch("meta", Variables(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params), {}))
    same = expected == {name: str(array.shape) for name, array in tensors.items()}
    return Check(f"{path.stem}/names", 0.0 if same else float("inf"), EXACT)


def check_directory(directory: Path, seed: int) -> Iterator[Check]:
    """Every golden file of a directory, in a fixed order."""
    known = {f"{stem}.npz" for stem in CHECKS}
    present = {path.name for path in directory.iterdir() if path.suffix in (".npz", ".txt")}
    for stem in CHECKS:
        if f"{stem}.npz" in present:
            yield from check_file(directory / f"{stem}.npz", seed)
    for name in sorted(present - known):
        if re.fullmatch(r"meta\d+_names\.txt", name):
            yield check_names(directory / name)
        else:
            yield Check(f"{name}:not_a_known_golden_file", float("inf"), EXACT)
    for name in sorted(known - present):
        yield Check(f"{name}:missing", float("inf"), EXACT)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check every stage against golden values of the public PyTorch code.")
    parser.add_argument("--golden", type=Path, required=True, help="directory of golden .npz files")
    parser.add_argument("--seed", type=int, default=0, help="the seed that the files were made with")
    options = parser.parse_args(arguments)
    if not options.golden.is_dir():
        parser.error(f"--golden {options.golden}: not a directory")
    failed = False
    for check in check_directory(options.golden, options.seed):
        print(f"{check.name} {check.error:.1e} {check.limit:.0e} {'ok' if check.ok else 'FAIL'}", flush=True)
        failed |= not check.ok
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
