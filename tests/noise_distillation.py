"""A plugin of tests: federated rounds, then a server stage of its own, whose student learns the clients' mean prediction on noise.

It registers one of each: a method of two stages, a federated method, a network, a generator, a meta model, a source, a partition.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mosaic_jax as mj

NAMES = ("noise_distillation", "fedhalf", "perceptron", "dim_dcgan", "mean_meta", "stripes", "in_turn")


@dataclasses.dataclass(frozen=True)
class NoiseDistillation:
    num_steps: int = mj.setting(4, "Adam steps of the student", low=0)
    batch_size: int = mj.setting(8, "noise images of one step", low=1)
    learning_rate: float = mj.setting(1e-2, "Adam rate", low=0.0)
    noise: str = mj.setting("uniform", "what the images are", choices=("uniform", "gaussian"))


class StudentState(NamedTuple):
    variables: mj.Variables
    optimizer: Any


def noise_distillation(problem: mj.Problem, federation: mj.Federation) -> tuple[mj.Stage, ...]:
    """FedAvg's rounds, or those of `warmup.method`, and then a student from the mean of them on."""
    config, own = problem.config, problem.config.noise_distillation
    optimizer, size = optax.adam(own.learning_rate), config.data.image_size
    draw = jax.random.normal if own.noise == "gaussian" else jax.random.uniform

    def inputs(outputs: Any) -> tuple:
        return outputs["warmup"].servers[0], outputs["warmup"].clients[0]

    def init(inputs: tuple) -> StudentState:
        return StudentState(inputs[0], optimizer.init(inputs[0].params))

    def run(state: StudentState, inputs: tuple, data: Any, host: Any, start: jax.Array, stop: jax.Array) -> tuple:
        def step(t: jax.Array, carry: tuple) -> tuple:
            state, losses = carry
            images = draw(mj.key_at(problem.root, "noise", t), (own.batch_size, size, size, 3))
            of_clients = jax.vmap(lambda client: problem.classifier.apply(client, images, False)[0])(inputs[1])
            teacher = jax.nn.softmax(jnp.mean(of_clients, axis=0))

            def loss(params: Any) -> jax.Array:
                logits = problem.classifier.apply(state.variables._replace(params=params), images, False)[0]
                return -jnp.mean(jnp.sum(teacher * jax.nn.log_softmax(logits), axis=-1))

            value, gradient = jax.value_and_grad(loss)(state.variables.params)
            updates, moved = optimizer.update(gradient, state.optimizer)
            params = optax.apply_updates(state.variables.params, updates)
            return StudentState(state.variables._replace(params=params), moved), losses.at[t - start].set(value)

        state, losses = jax.lax.fori_loop(start, stop, step, (state, jnp.zeros(config.mapping.segment_steps)))
        return state, mj.Series({"loss": losses})

    def predict(outputs: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"noise student": problem.classifier.apply(outputs["noise"], images, False)[0]}

    warmup = mj.federated_stage(problem, "warmup", config.warmup.num_rounds, config.warmup.client_learning_rate, federation)
    noise = mj.Stage(
        name="noise", unit="step", num_steps=own.num_steps, segment=config.mapping.segment_steps,
        save_every=config.checkpoint.every_steps, sharding=None, inputs=inputs, init=init, host=lambda inputs, start: (), data=(),
        run=run, watch=None, watch_every=0, output=lambda state, inputs: state.variables,
        traffic=lambda state: {"up": 0, "down": 0}, judged=mj.Judged(("noise student",), predict), hands_over="noise student",
        eased_by=("noise_distillation.batch_size", "model.width"),
    )  # fmt: skip
    return warmup, noise


mj.register_method(
    "noise_distillation", noise_distillation, NoiseDistillation,
    reads={"warmup": ("warmup.method",), "noise": ("noise_distillation",)},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FedHalf:
    factor: float = mj.setting(0.5, "of the loss", low=0.0)


def fedhalf(problem: mj.Problem) -> mj.Federation:
    return mj.Federation(loss=lambda local: problem.config.fedhalf.factor * mj.plain_loss(local))


mj.register_federation("fedhalf", fedhalf, FedHalf)


class Perceptron(nn.Module):
    num_classes: int
    width: int
    layers: int

    def setup(self) -> None:
        self.hidden = [nn.Dense(self.width) for _ in range(self.layers)]
        self.last = nn.Dense(self.num_classes)

    def features(self, images: jax.Array, train: bool) -> jax.Array:
        values = images.reshape(len(images), -1)
        for layer in self.hidden:
            values = nn.relu(layer(values))
        return values

    def head(self, features: jax.Array) -> jax.Array:
        return self.last(features)

    def __call__(self, images: jax.Array, train: bool, record: list | None = None) -> jax.Array:
        return self.head(self.features(images, train))


@dataclasses.dataclass(frozen=True)
class PerceptronSettings:
    layers: int = mj.setting(1, "hidden layers", low=1)


def perceptron(model: Any, num_classes: int, *, image_size: int, precision: str, settings: PerceptronSettings) -> mj.Classifier:
    module = Perceptron(num_classes, model.width, settings.layers)
    return mj.flax_classifier(module, num_classes, model.width, image_size, precision)


mj.register_network("perceptron", perceptron, PerceptronSettings)


@dataclasses.dataclass(frozen=True)
class DimDcgan:
    factor: float = mj.setting(0.5, "of every pixel", low=0.0, high=1.0)


def dim_dcgan(generator: Any, *, image_size: int, precision: str, settings: DimDcgan) -> mj.Generator:
    plain = mj.build_generator(dataclasses.replace(generator, name="dcgan"), precision, image_size)

    def apply(variables: mj.Variables, noise: jax.Array, train: bool) -> tuple:
        images, batch_stats = plain.apply(variables, noise, train)
        return settings.factor * images, batch_stats

    return plain._replace(apply=apply)


mj.register_generator("dim_dcgan", dim_dcgan, DimDcgan)


def mean_meta(meta: Any, num_classes: int, num_experts: int, *, settings: None) -> mj.MetaModel:
    """One weight for each expert."""
    return mj.MetaModel(
        init=lambda key: {"weights": jnp.ones(num_experts) / num_experts},
        apply=lambda params, expert_logits, key: jnp.einsum("e,bek->bk", params["weights"], expert_logits),
    )


mj.register_meta_model("mean_meta", mean_meta)


@dataclasses.dataclass(frozen=True)
class Stripes:
    num_images: int = mj.setting(60, "training images", low=6)


def stripes(data: Any, *, settings: Stripes) -> mj.Dataset:
    """Three classes of grey images, each lighter than the one before."""
    labels = np.arange(settings.num_images, dtype=np.int32) % 3
    images = np.broadcast_to((80 * labels + 20)[:, None, None, None], (len(labels), data.image_size, data.image_size, 3))
    return mj.Dataset(images.astype(np.uint8), labels, images[:9].astype(np.uint8), labels[:9], ("dark", "grey", "light"))


mj.register_source("stripes", stripes, Stripes)


@dataclasses.dataclass(frozen=True)
class InTurn:
    block: int = mj.setting(1, "images that a client gets at a time", low=1)


def in_turn(labels: np.ndarray, partition: Any, seed: int, *, settings: InTurn) -> list[np.ndarray]:
    owners = np.arange(len(labels)) // settings.block % partition.num_clients
    return [np.flatnonzero(owners == client) for client in range(partition.num_clients)]


mj.register_partition("in_turn", in_turn, InTurn)
