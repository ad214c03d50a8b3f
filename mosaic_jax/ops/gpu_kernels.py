"""What the GPU kernels of this room share: Pallas for Triton, over arrays seen as matrices of their last axis.

On a CPU the kernels are interpreted, for tests.
"""

import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mosaic_jax.types import PyTree

try:  # JAX 0.11 calls this backend deprecated: where it is gone, convolutions are grouped
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

CHANNELS = 128  # at most, of one tile
MOST_NUMBERS = 2**31 - 1  # of one array: places are int32


def complaint() -> str:
    """Why these kernels cannot run on the GPU that JAX uses, NVIDIA's from Ampere on; empty where they can."""
    if triton is None:
        return "this JAX has no Triton"
    return "" if compute_capability() >= 8 else "is for NVIDIA GPUs from Ampere on"


def compute_capability() -> int:
    """The first number of the compute capability of the GPU that JAX uses: 8 Ampere, 9 Hopper; 0 where it is not NVIDIA's."""
    if jax.default_backend() != "gpu":
        return 0
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).partition(".")[0]
    return int(major) if major.isdecimal() else 0


def call(kernel: Callable[..., None], out: PyTree, grid: tuple[int, ...], warps: int, *arrays: jax.Array) -> PyTree:
    """The kernel over arrays seen as matrices of their last axis; out: ShapeDtypeStructs of what it fills."""
    params = triton.CompilerParams(num_warps=warps, num_stages=3)
    run = pl.pallas_call(kernel, out, grid=grid, compiler_params=params, interpret=jax.default_backend() == "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")
        return run(*(array.reshape(-1, array.shape[-1]) for array in arrays))


def load(ref: jax.Ref, rows: jax.Array, columns: jax.Array, real_rows: jax.Array, real_columns: jax.Array) -> jax.Array:
    """A tile of a matrix, zeros where rows or columns are not real."""
    return triton.load(ref.at[rows[:, None], columns[None, :]], mask=real_rows[:, None] & real_columns[None, :], other=0)


def store(
    ref: jax.Ref, rows: jax.Array, columns: jax.Array, real_rows: jax.Array, real_columns: jax.Array, tile: jax.Array
) -> None:
    mask = real_rows[:, None] & real_columns[None, :]
    triton.store(ref.at[rows[:, None], columns[None, :]], tile.astype(ref.dtype), mask=mask)


def tile(channels: int) -> int:
    """Channels of one tile: a power of two, at least 16 as the matrix units want."""
    return max(16, min(CHANNELS, pl.next_power_of_2(channels)))


def in_parts(function: Callable[..., PyTree], numbers: int, *arrays: jax.Array) -> PyTree:
    """`function` of arrays [C, ...] over all clients, or over as many at once as int32 can count the numbers of.

    numbers: in one client's result.
    """
    clients = arrays[0].shape[0]
    most = max(MOST_NUMBERS // max(numbers, *(math.prod(array.shape[1:]) for array in arrays)), 1)
    if clients <= most:
        return function(*arrays)
    found = [function(*(array[at : at + most] for array in arrays)) for at in range(0, clients, most)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def stacked_alike(axis_size: int, in_batched: list[bool], arrays: tuple[jax.Array, ...]) -> list[jax.Array]:
    """What a rule of custom_vmap is given, with the leading axis of clients at all of them."""
    return [
        array if own else jnp.broadcast_to(array, (axis_size, *array.shape)) for array, own in zip(arrays, in_batched, strict=True)
    ]
