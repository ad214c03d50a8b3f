#!/usr/bin/env python
"""FedAvg written with three functions of the package: client_update, for_each_client and weighted_mean.

Command: python scripts/examples/fedavg_by_hand.py [ROUNDS]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import mosaic_jax as mj

STEPS, BATCH, RATE = 10, 32, 0.05


def main(num_rounds: int = 10) -> None:
    problem = mj.build_problem(mj.load_config("configs/digits.py", ["partition.kind=iid"]))
    classifier, data = problem.classifier, problem.dataset
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    sizes, clients = jnp.asarray(problem.num_samples, jnp.float32), jnp.arange(problem.num_clients)
    counts = jnp.asarray(problem.label_counts, jnp.float32)
    optimizer = mj.client_optimizer(RATE, weight_decay=1e-4)

    def client(indices: jax.Array, key: jax.Array, counts: jax.Array, model: mj.Variables, *data: jax.Array) -> mj.Variables:
        """One client's local steps, written for one client."""
        images, labels = data
        batches = mj.Batch(images[indices], labels[indices])
        return mj.client_update(classifier, model, batches, key, optimizer, problem.preprocess, counts)[0]

    @jax.jit
    def one_round(model: mj.Variables, indices: jax.Array, key: jax.Array) -> mj.Variables:
        keys = jax.vmap(lambda client: mj.client_key(key, client))(clients)
        models = mj.for_each_client(client, (indices, keys, counts), (model, images, labels), problem.client_plan)
        return mj.weighted_mean(models, sizes)

    @jax.jit
    def accuracy(model: mj.Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits, _ = classifier.apply(model, problem.decode(images), False)
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

    random = np.random.default_rng(0)
    model = classifier.init(mj.key_at(0, "model"))
    for index in range(num_rounds):
        drawn = np.stack([random.choice(own, (STEPS, BATCH)) for own in problem.splits.train])
        model = one_round(model, drawn, mj.key_at(0, "round", index))
        print(f"round {index + 1}: test accuracy {100 * accuracy(model, data.test_images, data.test_labels):.1f} %", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
