"""An estimate of what a stage holds on its devices, from the shapes of its arrays."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.mapping import Plan
from mosaic_jax.models import build_discriminator, classifier_as_discriminator
from mosaic_jax.runner import placements
from mosaic_jax.stages.generators import needs_classifier
from mosaic_jax.stages.problem import Problem, Stage
from mosaic_jax.trees import num_bytes
from mosaic_jax.types import Discriminator, PyTree, Variables


class Memory(NamedTuple):
    """Bytes on the first device while a stage runs, without the temporaries that XLA adds.

    state, inputs, data: what the program is given; activations: what the gradients of a step keep, of all clients that run
    together; held: outputs of earlier stages and the data that the stages hold. machine: all devices together.
    """

    state: int
    inputs: int
    data: int
    activations: int
    held: int
    machine: int

    @property
    def device(self) -> int:
        return self.state + self.inputs + self.data + self.activations + self.held


def stage_memory(problem: Problem, stage: Stage, clients: Plan, state: PyTree, inputs: PyTree, copied: int, held: int) -> Memory:
    """state, inputs: shapes; copied: bytes of the inputs that are not arrays of earlier outputs; held: see Memory."""
    mapped = stage.sharding is not None
    devices = max(len(clients.devices), 1) if mapped else 1
    own = -(-problem.num_clients // devices)
    at_once = min(clients.chunk or own, own) if mapped else 1
    # Devices that share clients have copies of what is read; one device alone reads the arrays that are there.
    read = num_bytes(inputs) if devices > 1 else copied
    data = (num_bytes(stage.data) if devices > 1 else 0) + (num_bytes(stage.host(inputs, 0)) if mapped else 0)
    activations = at_once * step_activations(problem, stage) if stage.num_steps else 0
    own_state = _bytes_on_a_device(state, placements(problem, stage)[0])
    return Memory(own_state, read, data, activations, held, devices * (own_state + read + data + activations) + held)


def capacity() -> int:
    """Bytes of the first device, of the whole machine on a CPU; 0 where it cannot be known."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def _bytes_on_a_device(tree: PyTree, where: PyTree) -> int:
    """Bytes of a device's share of `tree`; where: a prefix of Shardings."""
    leaves, places = jax.tree.leaves(tree), jax.tree.leaves(jax.tree.broadcast(where, tree))
    return sum(
        int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize for place, leaf in zip(places, leaves, strict=True)
    )


def step_activations(problem: Problem, stage: Stage) -> int:
    """Bytes that the gradients of a step keep from the forward to the backward pass; of one client in a stage of clients."""
    config, key = problem.config, jax.random.key(0)
    classifier = jax.eval_shape(problem.classifier.init, key)

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def of_classifier(batch_size: int) -> int:
        images = floats(batch_size, config.data.image_size, config.data.image_size, 3)
        return _kept_for_gradients(lambda v, x: problem.classifier.apply(v, x, True)[0], classifier, images)

    def of_gan() -> int:
        judge, batch_size = discriminator_of(problem), config.generator.batch_size
        judges, generator = jax.eval_shape(judge.init, key), jax.eval_shape(problem.generator.init, key)

        def judged(generator: Variables, noise: jax.Array, judges: Variables, classifier: Variables) -> tuple:
            fake = problem.generator.apply(generator, noise, True)[0]
            seen = (judge.apply(judges, fake, True)[0],)
            return (*seen, problem.classifier.apply(classifier, fake, True)[0]) if needs_classifier(problem) else seen

        images = floats(batch_size, config.data.image_size, config.data.image_size, 3)
        of_both = 2 * _kept_for_gradients(lambda v, x: judge.apply(v, x, True)[0], judges, images)
        noise = floats(batch_size, config.generator.latent_size)
        return max(of_both, _kept_for_gradients(judged, generator, noise, judges, classifier))

    def of_meta() -> int:
        params, num = jax.eval_shape(problem.meta_model.init, key), problem.num_classes
        logits = floats(config.meta.batch_size, num, num)
        return _kept_for_gradients(lambda v, x: problem.meta_model.apply(v.params, x, key), Variables(params, ()), logits)

    other = {"generators": of_gan, "meta": of_meta}
    if stage.name == "distill":
        return of_classifier(problem.num_clients * config.distill.samples_per_client)
    return other[stage.name]() if stage.name in other else of_classifier(config.warmup.batch_size)


def _kept_for_gradients(fn: Callable[..., Any], variables: Variables, *arguments: PyTree) -> int:
    """Bytes of what jax.vjp of `fn` with respect to the parameters keeps."""

    def backward(variables: Variables, *arguments: PyTree) -> PyTree:
        return jax.vjp(lambda params: fn(variables._replace(params=params), *arguments), variables.params)[1]

    return num_bytes(jax.eval_shape(backward, variables, *arguments))


def discriminator_of(problem: Problem) -> Discriminator:
    """What judges a generator's images: its own network, or the client's classifier."""
    config = problem.config
    if config.generator.discriminator == "separate":
        return build_discriminator(config.generator, config.precision)
    return classifier_as_discriminator(problem.classifier)
