"""The three bilinear maps of a convolution as C++ of our own for CPUs, called by XLA as foreign functions.

On an AMD EPYC with AVX2, whose core has a peak of 102 GFLOP/s, XLA's kernels run forward at 48 to 84 and need detours for both
gradients; these run all three at 70 to 88, also inside loops, and 3x3 convolutions of stride 1 in Winograd's form faster still.
Compiled on the machine that runs them (io/native_library.py); where that cannot be, ops/canonical.py does the same work.
"""

import ctypes
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.ops.canonical import Geometry

SOURCES = Path(__file__).parent
_TARGETS = ("mosaic_forward", "mosaic_to_images", "mosaic_to_kernel")
_registered = False


def register(library: Path) -> None:
    """Make the functions of a compiled library known to XLA; once in a process, whatever is named later.

    Raises OSError for a file that cannot be loaded.
    """
    global _registered
    if _registered:
        return
    loaded = ctypes.CDLL(str(library))
    for name in _TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    _registered = True


def is_registered() -> bool:
    """Whether this process has a library."""
    return _registered


def forward(geometry: Geometry, shared: bool, x: jax.Array, k: jax.Array) -> jax.Array:
    """x, k -> g."""
    shape = (x.shape[0], geometry.output(geometry.height), geometry.output(geometry.width), k.shape[3])
    return _call("mosaic_forward", geometry, shared, x, k, shape)


def to_images(geometry: Geometry, shared: bool, g: jax.Array, k: jax.Array) -> jax.Array:
    """g, k -> x."""
    return _call("mosaic_to_images", geometry, shared, g, k, (g.shape[0], geometry.height, geometry.width, k.shape[2]))


def to_kernel(geometry: Geometry, shared: bool, x: jax.Array, g: jax.Array) -> jax.Array:
    """x, g -> k."""
    return _call("mosaic_to_kernel", geometry, shared, x, g, (geometry.size, geometry.size, x.shape[3], g.shape[3]))


def _call(target: str, geometry: Geometry, shared: bool, left: jax.Array, right: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, jnp.float32))
    return call(left, right, stride=np.int64(geometry.stride), padding=np.int64(geometry.padding), share=shared)
