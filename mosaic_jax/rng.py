"""Keys derived from (seed, stage, step, client), never carried: a resumed run draws what the unbroken run drew."""

import zlib

import jax
import numpy as np


def root_of(seed: int) -> np.ndarray:
    """The words of key(seed), u32[...]: an array, which a program can be given where a number would be part of it."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def key_at(seed: int | np.ndarray, stage: str, step: jax.Array | int = 0) -> jax.Array:
    """The key of one step of one stage: fold_in(fold_in(key(seed), crc32(stage)), step).

    seed: Python int in [0, 2^31), or what `root_of` makes of it; stage: any name; step: Python int or i32[] (may be traced).
    Returns a typed scalar key.
    """
    root = jax.random.key(seed) if isinstance(seed, int) else jax.random.wrap_key_data(seed)
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(stage.encode())), step)


def client_key(key: jax.Array, client_id: jax.Array | int) -> jax.Array:
    """The key of one client under a step's key; it does not depend on who else is in the cohort."""
    return jax.random.fold_in(key, client_id)
