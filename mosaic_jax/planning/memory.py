"""An estimate of what a stage holds on its devices, from the shapes of its arrays."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax import processes
from mosaic_jax.config import Config, GeneratorConfig, MetaConfig, ModelConfig
from mosaic_jax.driving import host_arrays
from mosaic_jax.models import (
    build_classifier,
    build_generator,
    build_meta_model,
    judge_of,
)
from mosaic_jax.rng import key_of
from mosaic_jax.stages.generators import needs_classifier
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Stage, placements
from mosaic_jax.trees import num_bytes
from mosaic_jax.types import Classifier, PyTree, Variables


class Named(NamedTuple):
    """A section of the configuration that names a network, and the section that was registered with that."""

    config: Any
    settings: Any


class Memory(NamedTuple):
    """Bytes on the first device while a stage runs, without the temporaries that XLA adds.

    state, inputs, data: what the program is given; activations: what the gradients of a step keep, of all clients that run
    together, or what the experts that run together take, if that is more; held: outputs of earlier stages and the data that the
    stages hold. machine: all devices of this process together.
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

    @property
    def needed(self) -> int:
        """Bytes to compare with `capacity`: a CPU's devices share its memory."""
        return self.machine if jax.default_backend() == "cpu" else self.device


def stage_memory(problem: Problem, stage: Stage, state: PyTree, inputs: PyTree, copied: int, held: int) -> Memory:
    """state, inputs: shapes; copied: bytes of the inputs that are not arrays of earlier outputs; held: see Memory."""
    mapped, clients = stage.sharding is not None, problem.client_plan
    devices = max(len(clients.devices), 1) if mapped else 1
    own = -(-problem.num_clients // devices)
    at_once = min(clients.chunk or own, own) if mapped else 1
    # Devices that share clients have copies of what is read; one device alone reads the arrays that are there.
    read = num_bytes(inputs) if devices > 1 else copied
    data = (num_bytes(stage.data) if devices > 1 else 0) + (num_bytes(host_arrays(stage, inputs, 0)) if mapped else 0)
    activations = at_once * step_activations(problem, stage) if stage.num_steps else 0
    own_state = _bytes_on_a_device(state, placements(problem, stage, state)[0])
    here = sum(device.process_index == processes.index() for device in clients.devices) if devices > 1 else 1
    return Memory(own_state, read, data, activations, held, here * (own_state + read + data + activations) + held)


def capacity() -> int:
    """Bytes of the first device, on a CPU of the whole machine or what a container or a job is given of it; 0 where it cannot be
    known."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return min(filter(None, (machine, *control_group_limits())), default=0)
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def _bytes_on_a_device(tree: PyTree, where: PyTree) -> int:
    """Bytes of a device's share of `tree`; where: a prefix of Shardings."""
    leaves, places = jax.tree.leaves(tree), jax.tree.leaves(jax.tree.broadcast(where, tree))
    return sum(
        int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize for place, leaf in zip(places, leaves, strict=True)
    )


def step_activations(problem: Problem, stage: Stage) -> int:
    """Bytes that the gradients of a step keep from the forward to the backward pass; of one client in a stage of clients."""
    config, num_classes = problem.config, problem.num_classes
    of_network = num_classes, config.precision, config.data.image_size
    of_clients = [_named(config, each.model) for each in problem.architectures]  # whole: narrower ones need less
    if stage.activations is not None:
        return stage.activations
    if stage.name == "generators":
        return max(_of_gan(_named(config, config.generator), model, *of_network, needs_classifier(problem)) for model in of_clients)
    if stage.name == "meta":
        return _of_meta(_named(config, config.meta), num_classes)
    if stage.name == "distill":
        students = min(problem.expert_plan.chunk or len(config.distill.label_prior), len(config.distill.label_prior))
        student = _of_classifier(_named(config, config.model), *of_network, distill_images(config))
        return max(students * student, problem.expert_plan.chunk * expert_bytes(problem))
    return max(_of_classifier(model, *of_network, config.warmup.batch_size) for model in of_clients)


def _named(config: Config, section: ModelConfig | GeneratorConfig | MetaConfig) -> Named:
    return Named(section, config.section_of(section.name))


def distill_images(config: Config) -> int:
    """Synthetic images of one step of distillation."""
    return config.partition.num_clients * config.distill.samples_per_client


def expert_bytes(problem: Problem) -> int:
    """Bytes that one more expert takes while it runs on the images of a distillation step: its layers, and itself if it is
    recomputed."""
    config, images = problem.config, distill_images(problem.config)
    forward = max(
        _of_forward(_named(config, each.model), problem.num_classes, config.precision, config.data.image_size, images)
        for each in problem.architectures
    )
    made = problem.config.expert_space == "parameters" and not problem.expert_plan.stored
    return forward + (num_bytes(jax.eval_shape(problem.classifier.init, key_of(0))) if made else 0)


def common_capacity() -> int | None:
    """Memory that every one of several processes has: they must choose one mapping. None for one alone, whose devices may still
    have to be chosen."""
    if not processes.several():
        return None
    return min(filter(None, map(int, processes.gather_texts(str(capacity())))), default=0)


def control_group_limits(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes that Linux' control groups (version 1 or 2) let this process have: its own one, and those around it."""
    found = []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, own = line.split(":", 2)
        if controllers in ("", "memory"):
            root = mounted / controllers
            for path in (root / own.lstrip("/"), *(root / own.lstrip("/")).parents):
                file = path / ("memory.limit_in_bytes" if controllers else "memory.max")
                if path.is_relative_to(root) and file.exists() and (text := file.read_text().strip()).isdecimal():
                    found.append(int(text))
    return found


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _images(count: int, size: int) -> jax.ShapeDtypeStruct:
    return _floats(count, size, size, 3)


def _classifier(model: Named, num_classes: int, precision: str, image_size: int) -> tuple[Classifier, Variables]:
    classifier = build_classifier(model.config, num_classes, precision, image_size=image_size, settings=model.settings)
    return classifier, jax.eval_shape(classifier.init, key_of(0))


# Traced once for the sections of a configuration that they depend on: a run asks several times.
@functools.cache
def _of_classifier(model: Named, num_classes: int, precision: str, image_size: int, batch_size: int) -> int:
    classifier, shapes = _classifier(model, num_classes, precision, image_size)
    return _kept_for_gradients(lambda v, x: classifier.apply(v, x, True)[0], shapes, _images(batch_size, image_size))


@functools.cache
def _of_forward(model: Named, num_classes: int, precision: str, image_size: int, batch_size: int) -> int:
    """What goes into the widest layer and what comes out of it."""
    classifier, shapes = _classifier(model, num_classes, precision, image_size)
    jaxpr = jax.make_jaxpr(lambda v, x: classifier.apply(v, x, False)[0])(shapes, _images(batch_size, image_size))
    return 2 * max(num_bytes(variable.aval) for equation in jaxpr.eqns for variable in equation.outvars)


@functools.cache
def _of_gan(gan: Named, model: Named, num_classes: int, precision: str, image_size: int, with_classifier: bool) -> int:
    classifier, classifier_shapes = _classifier(model, num_classes, precision, image_size)
    judge = judge_of(gan.config, classifier, precision, image_size)
    generator = build_generator(gan.config, precision, image_size, gan.settings)
    judges, generators = (jax.eval_shape(network.init, key_of(0)) for network in (judge, generator))

    def judged(generators: Variables, noise: jax.Array, judges: Variables, classifier_shapes: Variables) -> tuple:
        fake = generator.apply(generators, noise, True)[0]
        seen = (judge.apply(judges, fake, True)[0],)
        return (*seen, classifier.apply(classifier_shapes, fake, True)[0]) if with_classifier else seen

    images = _images(gan.config.batch_size, image_size)
    of_both = 2 * _kept_for_gradients(lambda v, x: judge.apply(v, x, True)[0], judges, images)
    noise = _floats(gan.config.batch_size, generator.latent_size)
    return max(of_both, _kept_for_gradients(judged, generators, noise, judges, classifier_shapes))


@functools.cache
def _of_meta(meta: Named, num_classes: int) -> int:
    model, key = build_meta_model(meta.config, num_classes, num_classes, meta.settings), key_of(0)
    params = Variables(jax.eval_shape(model.init, key), ())
    logits = _floats(meta.config.batch_size, num_classes, num_classes)
    return _kept_for_gradients(lambda v, x: model.apply(v.params, x, key), params, logits)


def _kept_for_gradients(fn: Callable[..., Any], variables: Variables, *arguments: PyTree) -> int:
    """Bytes of what jax.vjp of `fn` with respect to the parameters keeps."""

    def backward(variables: Variables, *arguments: PyTree) -> PyTree:
        return jax.vjp(lambda params: fn(variables._replace(params=params), *arguments), variables.params)[1]

    return num_bytes(jax.eval_shape(backward, variables, *arguments))
