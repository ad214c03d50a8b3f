"""Steps of every stage against hand-computed and NumPy oracles, and gradients that must be zero."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaic_jax.config import DistillConfig, GeneratorConfig, MetaConfig, ModelConfig
from mosaic_jax.losses import cross_entropy, distillation_loss
from mosaic_jax.models import build_classifier, build_discriminator, build_generator, build_meta_model
from mosaic_jax.steps import distill_step as distill
from mosaic_jax.steps import generator_step as gan
from mosaic_jax.steps.client_update import client_optimizer, client_update, sgd_step
from mosaic_jax.steps.evaluate import accuracy, confusion_matrix
from mosaic_jax.steps.experts import (
    class_experts,
    expert_head_logits,
    expert_labels,
    expert_logits,
    expert_sum,
    mix_client_logits,
)
from mosaic_jax.steps.meta_step import init_meta, meta_step, mixture_logits
from mosaic_jax.trees import stack
from mosaic_jax.types import Batch, PyTree, Variables

CLASSIFIER = build_classifier(ModelConfig("cnn", 2), 3)
GAN = GeneratorConfig(width=1, latent_size=4, augment="none")
GENERATOR = build_generator(GAN)
META_CONFIG = MetaConfig(expansion=2, feed_forward_size=8)
META = build_meta_model(META_CONFIG, 3, 3)
OPTIMIZER = client_optimizer(0.1, 0.01)
SGD_STEP = jax.jit(lambda variables, opt_state, batch: sgd_step(CLASSIFIER, variables, opt_state, batch, OPTIMIZER))
COUNTS = np.array([[6, 0, 3], [2, 0, 9]])


def random_variables(init: Callable[[jax.Array], PyTree], seed: int) -> PyTree:
    """Values drawn by NumPy in the shapes of `init`, which would cost a compilation; all positive where they serve as variances."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.standard_normal(leaf.shape), jnp.float32), shapes)
    return Variables(drawn.params, jax.tree.map(jnp.exp, drawn.batch_stats)) if isinstance(drawn, Variables) else drawn


def network(seed: int) -> Variables:
    return random_variables(CLASSIFIER.init, seed)


def images(batch: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(9), (batch, 32, 32, 3), minval=-1.0)


def assert_close(ours: PyTree, expected: PyTree, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, expected)


def any_nonzero(tree: PyTree) -> bool:
    return any(bool(np.any(leaf)) for leaf in jax.tree.leaves(jax.device_get(tree)))


def difference(new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(np.subtract, *jax.device_get((new, old)))


def test_an_expert_is_the_average_weighted_by_its_class_and_an_absent_class_gets_the_global_average() -> None:
    clients = Variables({"w": jnp.asarray([[1.0, 0.0], [5.0, 4.0]])}, {"var": jnp.asarray([[1.0], [3.0]])})
    experts = class_experts(clients, jnp.asarray(COUNTS))
    by_class = np.array([[6 / 8, 2 / 8], [9 / 20, 11 / 20], [3 / 12, 9 / 12]])
    assert_close(experts.params["w"], by_class @ np.array([[1.0, 0.0], [5.0, 4.0]]))
    assert_close(experts.batch_stats["var"], by_class @ np.array([[1.0], [3.0]]))


def test_experts_out_of_logits_equal_averaged_heads_on_features() -> None:
    clients = stack([network(seed) for seed in range(2)])
    features = jax.random.normal(jax.random.key(0), (5, CLASSIFIER.feature_size))
    of_experts = expert_head_logits(CLASSIFIER, class_experts(clients, jnp.asarray(COUNTS)), (), features)
    of_clients = mix_client_logits(expert_head_logits(CLASSIFIER, clients, (), features), jnp.asarray(COUNTS))
    assert_close(of_experts, of_clients)


def test_a_generated_image_is_of_the_class_whose_expert_is_surest_among_those_of_its_client_by_their_counts() -> None:
    own = np.array([[0.9, 0.4, 0.6], [0.3, 0.2, 0.1]])  # softmax(logits_c)_c of two images
    logits = np.zeros((2, 3, 3))
    for image, expert in np.ndindex(2, 3):
        logits[image, expert, expert] = np.log(2 * own[image, expert] / (1 - own[image, expert]))  # beside two logits of 0
    counts = jnp.array([[0.0, 1.0, 1.0]])  # of one client: the surest, class 0, it does not have
    np.testing.assert_array_equal(expert_labels(jnp.asarray(logits, jnp.float32), counts), [2, 1])
    two = jnp.array([[0.0, 4.0, 1.0], [1.0, 1.0, 4.0]])  # an image of each of two clients: 4 * 0.4 > 0.6, 4 * 0.1 > 0.3
    np.testing.assert_array_equal(expert_labels(jnp.asarray(logits, jnp.float32), two), [1, 2])


def test_expert_logits_run_each_whole_expert_and_their_sum_is_the_control() -> None:
    experts = [network(seed) for seed in range(3)]
    logits = expert_logits(CLASSIFIER, stack(experts), (), images(4))
    apply = jax.jit(CLASSIFIER.apply, static_argnums=2)
    expected = [apply(expert, images(4), False)[0] for expert in experts]
    assert_close(logits, np.stack(expected, axis=1))
    assert_close(expert_sum(logits), sum(map(np.asarray, expected)))


def test_meta_step_is_adam_on_cross_entropy_and_moves_the_average_after_it() -> None:
    logits, labels = jax.random.normal(jax.random.key(1), (6, 3, 3)), jnp.arange(6) % 3
    state = jax.jit(init_meta, static_argnums=1)(random_variables(META.init, 0), META_CONFIG)
    first, info = jax.jit(lambda state: meta_step(META, state, logits, labels, None, META_CONFIG))(state)
    old, new = jax.device_get((state.params, first.params))
    assert_close(first.ema, jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, old, new))

    def loss_fn(params: PyTree) -> jax.Array:
        return cross_entropy(mixture_logits(META, params, logits), labels)

    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(state.params)
    assert info.loss == pytest.approx(float(loss), rel=1e-5)
    # The first step of Adam is the learning rate against the gradient's sign, wherever the gradient is not tiny.
    for old, new, gradient in zip(*map(jax.tree.leaves, jax.device_get((state.params, first.params, gradients))), strict=True):
        clear = np.abs(gradient) > 1e-4
        np.testing.assert_allclose((new - old)[clear], -1e-3 * np.sign(gradient)[clear], rtol=2e-3)


def test_distilling_has_a_gradient_for_the_student_and_none_for_meta_model_experts_and_generators() -> None:
    student, experts = network(0), stack([network(seed) for seed in (1, 2, 3)])
    meta = random_variables(META.init, 4)
    generators = stack([random_variables(GENERATOR.init, seed) for seed in (5, 6)])

    def loss_fn(student: Variables, meta: PyTree, experts: Variables, generators: Variables) -> jax.Array:
        fake = distill.synthetic_images(GENERATOR, generators, jax.random.key(7), 4, "batch")
        teacher = mixture_logits(META, meta, expert_logits(CLASSIFIER, experts, (), fake))
        return distillation_loss(CLASSIFIER.apply(student, fake, True)[0], teacher)[0]

    of_student, *of_others = jax.jit(jax.grad(loss_fn, argnums=(0, 1, 2, 3)))(student, meta, experts, generators)
    assert all(any_nonzero(leaf) for leaf in (of_student.params["conv1"], of_student.params["linear"]))
    assert not any_nonzero(of_others)


def test_synthetic_images_come_in_client_order_from_each_clients_own_generator() -> None:
    first, second = (random_variables(GENERATOR.init, seed) for seed in (5, 6))
    mixed = distill.synthetic_images(GENERATOR, stack([first, second]), jax.random.key(7), 4, "eval")
    same = distill.synthetic_images(GENERATOR, stack([first, first]), jax.random.key(7), 4, "eval")
    assert mixed.shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(mixed[:4], same[:4])
    assert (mixed[4:] != same[4:]).any()


def test_sample_weights_are_none_the_teachers_confidence_or_the_clients_sizes() -> None:
    teacher, sizes = jnp.asarray([[0.0, 0.0], [0.0, jnp.log(3.0)]]), jnp.asarray([10.0, 30.0])
    assert distill.sample_weights(teacher, sizes, DistillConfig(sample_weights="uniform")) is None
    assert_close(distill.sample_weights(teacher, sizes, DistillConfig(sample_weights="confidence")), np.array([0.5, 0.75]))
    sized = distill.sample_weights(jnp.zeros((4, 2)), sizes, DistillConfig(sample_weights="client_size"))
    assert_close(sized, np.array([10.0, 10.0, 30.0, 30.0]))


@pytest.mark.parametrize("mode", ["batch", "eval"])
def test_a_distill_step_moves_the_student_and_its_statistics_only_in_batch_mode(mode: str) -> None:
    config = DistillConfig(student_batch_norm=mode)
    state = jax.jit(distill.init_student, static_argnums=1)(network(0), config)
    teacher = jax.random.normal(jax.random.key(1), (4, 3))
    moved, info = jax.jit(lambda state: distill.distill_step(CLASSIFIER, state, images(4), teacher, None, config))(state)
    logits, _ = jax.jit(CLASSIFIER.apply, static_argnums=2)(state.variables, images(4), mode == "batch")
    assert info.loss == pytest.approx(float(distillation_loss(logits, teacher)[0]), rel=1e-4)
    assert any_nonzero(difference(moved.variables.params, state.variables.params))
    assert any_nonzero(difference(moved.variables.batch_stats, state.variables.batch_stats)) == (mode == "batch")


def test_keep_best_remembers_the_first_of_the_highest_validations() -> None:
    best = distill.no_best(network(0))
    for seed, validations in ((1, (0.5, 0.4)), (3, (0.6, 0.7)), (5, (0.7, 0.7)), (7, (0.6, 0.2))):
        students = stack([network(seed), network(seed + 1)])
        best = distill.keep_best(best, students, jnp.asarray(validations, jnp.float32))
    assert_close(best.variables, network(4), rtol=0, atol=0)
    assert (best.validation, best.place) == (pytest.approx(0.7), 1)


def test_an_sgd_step_is_the_gradient_plus_weight_decay_times_the_rate() -> None:
    variables, batch = network(0), Batch(images(4), jnp.asarray([0, 1, 2, 0]))

    def loss_fn(params: PyTree) -> jax.Array:
        return cross_entropy(CLASSIFIER.apply(Variables(params, variables.batch_stats), batch.images, True)[0], batch.labels)

    gradients = jax.jit(jax.grad(loss_fn))(variables.params)
    moved, _, _ = SGD_STEP(variables, OPTIMIZER.init(variables.params), batch)
    expected = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.01 * p), *jax.device_get((variables.params, gradients)))
    assert_close(moved.params, expected, atol=1e-5)


def test_a_client_update_is_its_sgd_steps_one_after_another() -> None:
    labels = jnp.asarray([[0, 1, 2, 0], [2, 2, 1, 0]])
    raw = jax.random.randint(jax.random.key(2), (2, 4, 32, 32, 3), 0, 256).astype(jnp.uint8)

    def preprocess(key: jax.Array, images: jax.Array) -> jax.Array:
        return images.astype(jnp.float32) / 127.5 - 1.0

    counts = jnp.ones(10)
    update = jax.jit(lambda v: client_update(CLASSIFIER, v, Batch(raw, labels), jax.random.key(0), OPTIMIZER, preprocess, counts))
    ours, info = update(network(0))
    variables, opt_state, losses = network(0), OPTIMIZER.init(network(0).params), []
    for step in range(2):
        batch = Batch(preprocess(jax.random.key(0), raw[step]), labels[step])
        variables, opt_state, loss = SGD_STEP(variables, opt_state, batch)
        losses.append(float(loss))
    assert_close(ours, variables, rtol=1e-4, atol=1e-5)
    assert_close(info.loss, np.array(losses))


def gan_setup(config: GeneratorConfig) -> tuple:
    discriminator = build_discriminator(config)
    networks = random_variables(GENERATOR.init, 0), random_variables(discriminator.init, 1)
    state = jax.jit(gan.init_gan, static_argnums=2)(*networks, config)
    noise = jax.random.normal(jax.random.key(2), (4, 4))

    def step(state: gan.GanState, inversion_weight: float) -> tuple[gan.GanState, gan.GanInfo]:
        return gan.generator_step(
            GENERATOR, discriminator, CLASSIFIER, state, network(3), images(4), noise, jax.random.split(jax.random.key(4), 3),
            lambda key, x: x, jnp.float32(inversion_weight), config,
        )  # fmt: skip

    return state, jax.jit(step)


def test_a_gan_step_moves_both_networks_and_their_statistics_and_the_upload_follows() -> None:
    state, step = gan_setup(GAN)
    moved, info = step(state, 0.0)
    for old, new in ((state.generator, moved.generator), (state.discriminator, moved.discriminator)):
        assert all(any_nonzero(leaf) for leaf in jax.tree.leaves(difference(new, old)))
    assert_close(gan.uploaded(moved), moved.generator, rtol=0, atol=0)
    assert np.isfinite([info.discriminator_loss, info.generator_loss]).all()


def test_the_inversion_term_counts_only_with_its_weight() -> None:
    state, step = gan_setup(GeneratorConfig(width=1, latent_size=4, augment="none", inversion_weight=0.5, diversity_weight=1.0))
    without, with_it = (step(state, weight)[1].generator_loss for weight in (0.0, 0.5))
    assert with_it > without
    assert step(state, 1.0)[1].generator_loss - without == pytest.approx(2 * float(with_it - without), rel=1e-4)


def test_tau_gives_the_inversion_term_to_small_clients_and_zero_to_all() -> None:
    sizes = jnp.asarray([5, 50])
    assert_close(gan.inversion_weights(sizes, GeneratorConfig(inversion_weight=2.0, inversion_threshold=50)), np.array([2.0, 0.0]))
    assert_close(gan.inversion_weights(sizes, GeneratorConfig(inversion_weight=2.0)), np.array([2.0, 2.0]))


def test_samples_of_a_generator_carry_no_gradient() -> None:
    noise = jax.random.normal(jax.random.key(2), (4, 4))
    variables = random_variables(GENERATOR.init, 0)
    assert not any_nonzero(jax.jit(jax.grad(lambda v: gan.sample_images(GENERATOR, v, noise, "batch").sum()))(variables))


def test_confusion_counts_valid_images_by_class_and_prediction() -> None:
    batches = (jnp.asarray([[0, 1], [2, 2]]), jnp.asarray([[0, 0], [2, 1]]), jnp.asarray([[True, True], [True, False]]))
    confusion = confusion_matrix(lambda x: jax.nn.one_hot(x, 3), batches, 3)
    np.testing.assert_array_equal(confusion, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert accuracy(confusion) == pytest.approx(2 / 3)
    assert accuracy(jnp.zeros((3, 3), jnp.int32)) == 0.0
