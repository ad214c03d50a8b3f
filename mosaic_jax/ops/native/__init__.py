"""The three bilinear maps of a convolution as C++ of our own for CPUs, called by XLA as foreign functions.

XLA's CPU kernels run at 50 to 80 GFLOP/s a core forward and need detours for both gradients; these run all three at 70 to 90
(AMD EPYC, AVX2, of 105), also inside loops, where narrow channels and strides cost others most. Compiled on the machine that runs
them (io/native_library.py); where that cannot be, ops/canonical.py does the same work.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.ops.canonical import Geometry

SOURCES = Path(__file__).parent
_TARGETS = ("mosaic_forward", "mosaic_to_images", "mosaic_to_kernel")
_registered = False
_shared = True


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


def is_shared() -> bool:
    """Whether functions traced now share one convolution among the cores."""
    return _shared


@contextlib.contextmanager
def one_core_each() -> Iterator[None]:
    """Functions traced inside a `with` block keep to their own core, for every core has such work of its own."""
    global _shared
    before, _shared = _shared, False
    try:
        yield
    finally:
        _shared = before


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
