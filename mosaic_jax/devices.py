"""Which devices JAX has."""

import contextlib
import os

import jax

from mosaic_jax.config import ConfigError, MappingConfig

# Whether this process was forked from one in which JAX had started: JAX's threads are not in it, and work given to them never ends.
_is_forked = False


def _note_fork() -> None:
    global _is_forked
    number = jax.config.jax_num_cpu_devices
    try:  # JAX takes another number only before it starts
        jax.config.update("jax_num_cpu_devices", number + 1)
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:
        _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def create_cpu_devices(mapping: MappingConfig, num_clients: int) -> None:
    """Let JAX see the processor as several devices, one for each core that has clients to work on.

    A core with its own clients waits for nobody, whereas one client's small layers keep only one and a half of two cores busy.
    Without effect once JAX runs, and where JAX_NUM_CPU_DEVICES or XLA_FLAGS already say how many. Of several processes each
    has so many. Raises ConfigError where JAX has no devices of the kind that JAX_PLATFORMS names, and in a process in which JAX
    would wait for ever.
    """
    if _is_forked:
        raise ConfigError(
            "this process was forked after JAX had started, and JAX would hang in it; start it with multiprocessing's spawn, "
            'as in multiprocessing.get_context("spawn")'
        )
    if jax.config.jax_num_cpu_devices < 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # a program that uses us as a library has started JAX already: so be it
            jax.config.update("jax_num_cpu_devices", num_cpu_devices(mapping, num_clients))
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the second: of a platform that JAX knows and has not installed
        wanted = jax.config.jax_platforms
        raise ConfigError(f"JAX_PLATFORMS={wanted}: JAX finds no such device here; unset it or install that JAX") from error


def num_cpu_devices(mapping: MappingConfig, num_clients: int) -> int:
    """The devices that `create_cpu_devices` makes of a processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return mapping.num_devices or min(cores, num_clients)
