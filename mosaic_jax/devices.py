"""Which devices JAX has."""

import contextlib
import os

import jax

from mosaic_jax.config import ConfigError, MappingConfig


def create_cpu_devices(mapping: MappingConfig, num_clients: int) -> None:
    """Let JAX see the processor as several devices, one for each core that has clients to work on.

    A core with its own clients waits for nobody, whereas one client's small layers keep only one and a half of two cores busy.
    Without effect once JAX runs, and where JAX_NUM_CPU_DEVICES or XLA_FLAGS already say how many. Of several processes each
    has so many. Raises ConfigError where JAX has no devices of the kind that JAX_PLATFORMS names.
    """
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
