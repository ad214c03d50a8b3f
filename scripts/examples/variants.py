#!/usr/bin/env python
"""Variants of Mosaic as arguments: another generator loss, teacher, meta model and network, without touching the package.

Command: python scripts/examples/variants.py [NAME=VALUE ...]      settings over a small configuration of the bundled digits

Each variant is Mosaic but for one function; the table shows what its student and its fine-tuned model reach on the test set.
"""

import sys

import jax
import jax.numpy as jnp

import mosaic_jax as mj

SMALL = [
    "partition.num_clients=4", "partition.alpha=0.5", "model.width=4", "generator.width=4",
    "warmup.num_rounds=10", "warmup.num_local_steps=5", "generator.num_steps=60", "generator.inversion_weight=0",
    "prototypes.num_rounds=2", "prototypes.per_class=4", "meta.num_steps=60", "distill.num_steps=40", "distill.evaluate_every=20",
    "finetune.num_rounds=2",
]  # fmt: skip


def hinge_generator(score_logits: jax.Array) -> jax.Array:
    """The generator's hinge loss: -mean D(G(z))."""
    return -jnp.mean(score_logits)


def hinge_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's: mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z)))."""
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def surest_expert(expert_logits: jax.Array) -> jax.Array:
    """A teacher without training: of each image the logits of the expert that is surest; f32[B, E, K] -> f32[B, K]."""
    surest = jnp.argmax(jnp.max(jax.nn.softmax(expert_logits), axis=-1), axis=1)
    return jnp.take_along_axis(expert_logits, surest[:, None, None], axis=1)[:, 0]


def gate(num_experts: int) -> mj.MetaModel:
    """A meta model of E numbers: a weight for each expert, the same for every image."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"weights": jnp.zeros(num_experts)}

    def apply(params: dict[str, jax.Array], expert_logits: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        return jnp.einsum("e,bek->bk", jax.nn.softmax(params["weights"]), expert_logits) * num_experts

    return mj.MetaModel(init, apply)


def perceptron(num_classes: int, hidden: int = 64) -> mj.Classifier:
    """A network of one hidden layer over shrunken images, in plain JAX: no Flax, no BatchNorm."""

    def init(key: jax.Array) -> mj.Variables:
        first, second = jax.random.split(key)
        params = {
            "hidden": jax.random.normal(first, (3 * 64, hidden)) * (3 * 64) ** -0.5,
            "linear": jax.random.normal(second, (hidden, num_classes)) * hidden**-0.5,
        }
        return mj.Variables(params, {})

    def features(variables: mj.Variables, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        small = images.reshape(images.shape[0], 8, images.shape[1] // 8, 8, images.shape[2] // 8, 3).mean(axis=(2, 4))
        return jax.nn.relu(small.reshape(images.shape[0], -1) @ variables.params["hidden"]), {}

    def head(variables: mj.Variables, features: jax.Array) -> jax.Array:
        return features @ variables.params["linear"]

    def apply(variables: mj.Variables, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        return head(variables, features(variables, images, train)[0]), {}

    def input_statistics(variables: mj.Variables, images: jax.Array, train: bool) -> tuple[jax.Array, dict, tuple]:
        return apply(variables, images, train)[0], {}, ()

    return mj.Classifier(init, apply, features, head, input_statistics, num_classes, hidden)


def main(assignments: list[str]) -> None:
    problem = mj.build_problem(mj.load_config("configs/digits.py", [*SMALL, *assignments]))
    variants = {
        "as configured": {},
        "hinge losses": {"generator_loss": hinge_generator, "discriminator_loss": hinge_discriminator},
        "surest expert as the teacher": {"teacher": surest_expert},
        "a gate as the meta model": {"meta_model": gate(problem.num_classes)},
        "perceptrons at the clients": {"classifier": perceptron(problem.num_classes)},
    }
    print(f"{'variant':30} {'student':>8} {'finetuned':>10}   test accuracy, %")
    for name, functions in variants.items():
        outputs = mj.run(problem, mj.mosaic(problem, **functions))
        table = mj.evaluate(problem, outputs)
        print(f"{name:30} {100 * table['student']['test']:8.1f} {100 * table['finetuned']['test']:10.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
