"""Client-side generators: every client trains its own GAN on its own images."""

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.data.augment import translate
from mosaic_jax.data.sampling import batch_indices
from mosaic_jax.mapping import SHARDED, for_each_client
from mosaic_jax.models import judge_of
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.stages.problem import Outputs, Problem, Stage
from mosaic_jax.steps.client_update import client_optimizer, sgd_step
from mosaic_jax.steps.generator_step import GanState, generator_step, init_gan, inversion_weights, uploaded
from mosaic_jax.trees import broadcast, num_bytes
from mosaic_jax.types import Batch, PyTree, Variables


def needs_classifier(problem: Problem) -> bool:
    """Whether any term of L_G looks at the auxiliary classifier."""
    config = problem.config.generator
    return max(config.entropy_weight, config.diversity_weight, config.inversion_weight) > 0.0


def real_indices(problem: Problem) -> tuple[np.ndarray, ...]:
    """Each client's real images: all, or the public code's all-but-class-0 (a client with nothing else keeps them)."""
    if problem.config.generator.real_classes == "all":
        return problem.splits.train
    others = tuple(indices[problem.dataset.train_labels[indices] != 0] for indices in problem.splits.train)
    return tuple(kept if len(kept) else every for kept, every in zip(others, problem.splits.train, strict=True))


def steps_per_client(num_images: np.ndarray, num_epochs: int, batch_size: int, num_steps: int = 0) -> np.ndarray:
    """i32[C]: num_epochs passes of ceil(n / B) batches, or num_steps for everyone where num_epochs is 0."""
    passes = num_epochs * -(-num_images // batch_size)
    return np.where(num_epochs > 0, passes, num_steps).astype(np.int32)


def auxiliary_stage(problem: Problem) -> Stage:
    """The public code's auxiliary classifiers: one network per client, trained on that client alone from a fresh start."""
    config = problem.config
    batch_size, segment = config.warmup.batch_size, config.mapping.segment_steps
    optimizer = client_optimizer(config.generator.classifier_learning_rate, config.warmup.weight_decay)
    num_steps = steps_per_client(problem.num_samples, config.generator.classifier_num_epochs, batch_size)
    ids = np.arange(problem.num_clients)
    plan = problem.client_plan

    def init(inputs: PyTree) -> Variables:
        return for_each_client(lambda client: problem.classifier.init(client_key(key_at(config.seed, "auxiliary"), client)), (ids,))

    def host(inputs: PyTree, start: int) -> np.ndarray:
        return batch_indices(
            problem.splits.train, client_ids=ids, seed=config.seed, stage="auxiliary", start=start, num_steps=segment,
            batch_size=batch_size,
        )  # fmt: skip

    def run(
        state: Variables, inputs: PyTree, data: tuple, indices: jax.Array, start: jax.Array, stop: jax.Array
    ) -> tuple[Variables, dict[str, jax.Array]]:
        def one(variables: Variables, indices: jax.Array, client: jax.Array, own_steps: jax.Array, *data: jax.Array) -> tuple:
            images, labels = data

            def step(t: jax.Array, carry: tuple) -> tuple:
                variables, opt_state, losses = carry
                chosen = indices[t - start]
                key = client_key(key_at(config.seed, "auxiliary", t), client)
                batch = Batch(problem.preprocess(key, images[chosen]), labels[chosen])
                variables, opt_state, loss = sgd_step(problem.classifier, variables, opt_state, batch, optimizer)
                return variables, opt_state, losses.at[t - start].set(loss)

            carry = (variables, optimizer.init(variables.params), jnp.zeros(segment))
            variables, _, losses = jax.lax.fori_loop(start, jnp.minimum(stop, own_steps), step, carry)
            return variables, {"loss": losses}

        return for_each_client(one, (state, indices, ids, jnp.asarray(num_steps)), data, plan)

    return Stage(
        name="auxiliary", unit="step", num_steps=int(num_steps.max()), segment=segment, save_every=config.checkpoint.every_steps,
        sharding=SHARDED, inputs=lambda outputs: (), init=init, host=host, data=problem.train_arrays(), run=run, watch=None,
        watch_every=0, output=lambda state, inputs: state, traffic=lambda state: {"up": 0, "down": 0},
    )  # fmt: skip


def generators_stage(problem: Problem) -> Stage:
    """Every client's GAN for its own number of steps, the clients mapped; the output is what they upload, Variables [C, ...]."""
    config, gan = problem.config, problem.config.generator
    separate = gan.discriminator == "separate"
    discriminator = judge_of(gan, problem.classifier, config.precision, config.data.image_size)
    real = real_indices(problem)
    num_steps = steps_per_client(np.array([len(r) for r in real]), gan.num_epochs, gan.batch_size, gan.num_steps)
    ids = np.arange(problem.num_clients)
    segment = config.mapping.segment_steps
    plan = problem.client_plan
    weights = inversion_weights(jnp.asarray(problem.num_samples), gan)

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        return translate(key, images) if gan.augment == "translate" else images

    def inputs_of(outputs: Outputs) -> dict[str, PyTree]:
        chosen: dict[str, PyTree] = {"clients": outputs["warmup"].clients if not separate else ()}
        if needs_classifier(problem):
            chosen["classifier"] = {
                "global": lambda: broadcast(outputs["warmup"].global_, problem.num_clients),
                "client": lambda: outputs["warmup"].clients,
                "local": lambda: outputs["auxiliary"],
            }[gan.classifier]()
        return chosen

    def init(inputs: dict[str, PyTree]) -> GanState:
        def one(client: jax.Array, own_model: PyTree) -> GanState:
            keys = jax.random.split(client_key(key_at(config.seed, "gan"), client))
            judge = discriminator.init(keys[1]) if separate else own_model
            return init_gan(problem.generator.init(keys[0]), judge, gan)

        return for_each_client(one, (ids, inputs["clients"]))

    def host(inputs: PyTree, start: int) -> np.ndarray:
        return batch_indices(
            real, client_ids=ids, seed=config.seed, stage="generators", start=start, num_steps=segment, batch_size=gan.batch_size
        )

    def run(
        state: GanState, inputs: dict[str, PyTree], data: tuple, indices: jax.Array, start: jax.Array, stop: jax.Array
    ) -> tuple[GanState, dict[str, jax.Array]]:
        def one(
            state: GanState, classifier: PyTree, indices: jax.Array, client: jax.Array, own_steps: jax.Array,
            inversion_weight: jax.Array, images: jax.Array,
        ) -> tuple[GanState, dict[str, jax.Array]]:  # fmt: skip
            def step(t: jax.Array, carry: tuple) -> tuple:
                state, d_losses, g_losses = carry
                keys = jax.random.split(client_key(key_at(config.seed, "generators", t), client), 4)
                noise = jax.random.normal(keys[0], (gan.batch_size, gan.latent_size))
                state, info = generator_step(
                    problem.generator, discriminator, problem.classifier, state, classifier,
                    problem.decode(images[indices[t - start]]), noise, keys[1:], augment, inversion_weight, gan,
                )  # fmt: skip
                place = t - start
                return state, d_losses.at[place].set(info.discriminator_loss), g_losses.at[place].set(info.generator_loss)

            carry = (state, jnp.zeros(segment), jnp.zeros(segment))
            state, d_losses, g_losses = jax.lax.fori_loop(start, jnp.minimum(stop, own_steps), step, carry)
            return state, {"discriminator_loss": d_losses, "generator_loss": g_losses}

        mapped = (state, inputs.get("classifier", ()), indices, ids, jnp.asarray(num_steps), weights)
        return for_each_client(one, mapped, data[:1], plan)

    return Stage(
        name="generators", unit="step", num_steps=int(num_steps.max()), segment=segment, save_every=config.checkpoint.every_steps,
        sharding=SHARDED, inputs=inputs_of, init=init, host=host, data=problem.train_arrays(), run=run, watch=None, watch_every=0,
        output=lambda state, inputs: uploaded(state), traffic=lambda state: {"up": num_bytes(uploaded(state)), "down": 0},
    )  # fmt: skip
