"""Keys derived from (seed, stage, step, client), never carried: a resumed run draws what the unbroken run drew."""

import zlib

import jax
import numpy as np

# Named wherever keys are made: JAX_DEFAULT_PRNG_IMPL, JAX_RANDOM_SEED_OFFSET and their like change no run's numbers.
GENERATOR = "threefry2x32"


def root_of(seed: int) -> np.ndarray:
    """The words of a seed's key, u32[2]: an array, which a program can be given where a number would be part of it."""
    return np.array([0, seed], np.uint32)


def key_of(root: int | np.ndarray) -> jax.Array:
    """The key of a seed, a Python int in [0, 2^31), or of what `root_of` makes of it: a typed scalar key."""
    return jax.random.wrap_key_data(root_of(root) if isinstance(root, int) else root, impl=GENERATOR)


def key_at(seed: int | np.ndarray, stage: str, step: jax.Array | int = 0) -> jax.Array:
    """The key of one step of one stage: fold_in(fold_in(key_of(seed), crc32(stage)), step).

    seed: as of `key_of`; stage: any name; step: Python int or i32[] (may be traced). Returns a typed scalar key.
    """
    return jax.random.fold_in(jax.random.fold_in(key_of(seed), zlib.crc32(stage.encode())), step)


def client_key(key: jax.Array, client_id: jax.Array | int) -> jax.Array:
    """The key of one client under a step's key; it does not depend on who else is in the cohort."""
    return jax.random.fold_in(key, client_id)
