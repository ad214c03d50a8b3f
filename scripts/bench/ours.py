"""Our side of a row: a stage of the library, compiled and called as the runner does, and the same work as arrays for the twin."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from bench.rows import NUM_CLASSES, Row, Task, Weights
from mosaic_jax.devices import create_cpu_devices
from mosaic_jax.driving import Drive, jit_once
from mosaic_jax.io import native_library, stacked_choice
from mosaic_jax.io.torch_weights import to_torch
from mosaic_jax.rng import client_key, key_at
from mosaic_jax.stages.distill import DistillInputs, distill_stage
from mosaic_jax.stages.experts import Experts
from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.generators import generators_stage
from mosaic_jax.stages.meta import MetaInputs, meta_stage
from mosaic_jax.stages.problem import Problem, build_problem
from mosaic_jax.stages.stage import Stage
from mosaic_jax.types import Dataset, PyTree, Variables


class Ours:
    """The stage of a row, ready to be called: every call is one pass and hands back its losses."""

    def __init__(self, row: Row) -> None:
        config = row.config
        create_cpu_devices(config.mapping, config.partition.num_clients)
        native_library.set_lowering(config.mapping.convolution, lambda text: print(text, file=sys.stderr))
        stacked_choice.settle(config, None, lambda text: print(text, file=sys.stderr))
        self.row = row
        self.problem = build_problem(config, random_dataset(row))
        self._drive = Drive(self.problem, *_stage(self.problem, row))
        self._last = 1 if row.stage == "warmup" else row.steps
        started = time.perf_counter()
        self._drive.prepare(0, self._last)
        self.compile_seconds = time.perf_counter() - started

    def __call__(self) -> dict[str, np.ndarray]:
        """One pass -> losses f32[T], or f32[C, T] for work of the clients.

        The same steps at every pass, so that the twin can follow; drawing the batches is part of the work.
        """
        series = self._drive.advance(0, self._last, following=0)
        jax.block_until_ready(self._drive.state)
        return series.losses

    def task(self) -> Task:
        """The pass about to come, for the twin."""
        dataset, config, steps = self.problem.dataset, self.row.config, self.row.steps
        clients = self.problem.num_clients
        noise = {
            "generators": lambda: jnp.stack([_gan_noise(config.seed, t, clients, config.generator) for t in range(steps)]),
            "distill": lambda: jnp.stack([
                jax.random.normal(
                    key_at(config.seed, "distill", t), (clients, config.distill.samples_per_client, config.generator.latent_size)
                )
                for t in range(steps)
            ]),
        }  # fmt: skip
        host = self._drive.host(0)
        meta = self._drive.inputs if self.row.stage == "meta" else MetaInputs(np.zeros(0, np.float32), np.zeros(0, np.int32))
        return Task(
            row=self.row, weights=_weights(self.row, self._drive.state, self._drive.inputs),
            images=dataset.train_images, labels=dataset.train_labels, sizes=self.problem.num_samples,
            indices=np.asarray(_indices(self.row, host), np.int32),
            noise=np.asarray(noise.get(self.row.stage, lambda: jnp.zeros(0))()),
            logits=np.asarray(meta.expert_logits), prototype_labels=np.asarray(meta.labels),
        )  # fmt: skip


def random_dataset(row: Row) -> Dataset:
    """Random bytes and labels: speed does not depend on what the images show."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (row.num_images, 32, 32, 3), np.uint8)
    labels = np.arange(row.num_images, dtype=np.int32) % NUM_CLASSES
    names = tuple(str(label) for label in range(NUM_CLASSES))
    return Dataset(images, labels, images[:NUM_CLASSES], labels[:NUM_CLASSES], names)


def _indices(row: Row, host: PyTree) -> PyTree:
    """The images of each step: all clients are one group."""
    return {"warmup": lambda: host[0].indices, "generators": lambda: host[0]}.get(row.stage, lambda: host)()


def _stage(problem: Problem, row: Row) -> tuple[Stage, PyTree]:
    """The stage and its inputs, made of fresh networks."""
    config = problem.config
    if row.stage == "warmup":
        return federated_stage(problem, "warmup", 1, config.warmup.client_learning_rate, Federation()), ()
    if row.stage == "generators":
        return generators_stage(problem), {"clients": ((),), "classifier": ((),)}
    if row.stage == "meta":
        logits = jax.random.normal(jax.random.key(1), (row.num_prototypes, NUM_CLASSES, NUM_CLASSES))
        return meta_stage(problem), MetaInputs(logits, jnp.arange(row.num_prototypes, dtype=jnp.int32) % NUM_CLASSES)
    keys = jax.random.split(jax.random.key(2), problem.num_clients + NUM_CLASSES + 2)
    several = lambda init, keys: jit_once(lambda keys: jax.lax.map(init, keys))(keys)  # noqa: E731
    experts = several(problem.classifier.init, keys[2 : 2 + NUM_CLASSES])
    return distill_stage(problem), DistillInputs(
        start=jit_once(problem.classifier.init)(keys[0]),
        generators=several(problem.generator.init, keys[2 + NUM_CLASSES :]),
        experts=Experts(experts, ()),
        meta=jit_once(problem.meta_model.init)(keys[1]),
    )


def _weights(row: Row, state: PyTree, inputs: PyTree) -> dict[str, Weights]:
    """The weights of every network of a stage as PyTorch's state_dicts."""
    classifier = row.config.model.name
    if row.stage == "warmup":
        return {"classifier": [to_torch(classifier, state.servers[0])]}
    if row.stage == "generators":
        networks = {"generator": state[0].generator, "discriminator": state[0].discriminator}
        return {kind: _unstacked(kind, variables) for kind, variables in networks.items()}
    if row.stage == "meta":
        return {"meta": [to_torch("meta", Variables(state.params, {}))]}
    return {
        "classifier": [to_torch(classifier, inputs.start)],
        "experts": _unstacked(classifier, inputs.experts.models),
        "generator": _unstacked("generator", inputs.generators),
        "meta": [to_torch("meta", Variables(inputs.meta, {}))],
    }


def _unstacked(kind: str, stacked: Variables) -> Weights:
    """One state_dict for each entry of the leading axis."""
    leaves, tree = jax.tree.flatten(jax.device_get(stacked))
    return [to_torch(kind, tree.unflatten(own)) for own in zip(*leaves, strict=True)]


def _gan_noise(seed: int, step: int, num_clients: int, generator: PyTree) -> jax.Array:
    """What the generators stage draws at a step: f32[C, B, Z]."""
    keys = [jax.random.split(client_key(key_at(seed, "generators", step), client), 4)[0] for client in range(num_clients)]
    return jnp.stack([jax.random.normal(key, (generator.batch_size, generator.latent_size)) for key in keys])
