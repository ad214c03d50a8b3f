"""JAX's own settings, which the environment or a program may have changed: those that a run fixes and those that it records."""

import contextlib
import os
from collections.abc import Iterator

import jax

# JAX's defaults. Others would draw other random numbers, or end a run with an error about the inside of it.
FIXED = {
    "threefry_partitionable": True, "numpy_dtype_promotion": "standard", "numpy_rank_promotion": "allow", "disable_jit": False,
    "transfer_guard": "allow",
}  # fmt: skip
# What rounds otherwise, and may be meant to.
ROUNDING = ("jax_default_matmul_precision", "jax_softmax_custom_jvp", "jax_disable_most_optimizations", "jax_optimization_level")
VARIABLES = ("XLA_FLAGS", "NVIDIA_TF32_OVERRIDE")
NUMBER_OF_DEVICES = "--xla_force_host_platform_device_count"


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """A block, or a function decorated with it, for which JAX has its own defaults in all that is `FIXED`."""
    with contextlib.ExitStack() as held:
        for name, value in FIXED.items():
            if hasattr(jax, name):  # a JAX that no longer has the choice needs none
                held.enter_context(getattr(jax, name)(value))
        yield


def rounding() -> dict[str, str]:
    """The settings on which the last bits of a run's numbers depend, by name."""
    found = {name: str(getattr(jax.config, name)) for name in ROUNDING if hasattr(jax.config, name)}
    for name in VARIABLES:
        words = os.environ.get(name, "").split()
        found[name] = " ".join(word for word in words if not word.startswith(NUMBER_OF_DEVICES))
    return found
