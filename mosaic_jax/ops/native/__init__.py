"""The three maps of a convolution and the parts of BatchNorm as C++ of our own for CPUs, called by XLA as foreign functions.

On an AMD EPYC with AVX2, whose core has a peak of 102 GFLOP/s, XLA's kernels run forward at 48 to 84 and need detours for both
gradients; these run all three at 70 to 88, also inside loops. Winograd's form, which 3x3 convolutions of stride 1 have from 16
channels on and kernels of up to twice their stride from 32, makes that the like of 120 to 230 on a Zen 4 core, which multiplies
matrices at 103.
XLA's loops over pixels with a number for each channel, which BatchNorm consists of, run at a third of these ones' speed or less.
Compiled on the machine that runs them (io/native_library.py); where that cannot be, ops/canonical.py does the same work.
"""

import ctypes
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.ops.canonical import Geometry

SOURCES = Path(__file__).parent
_TARGETS = (
    "mosaic_forward", "mosaic_forward_affine", "mosaic_to_images", "mosaic_to_kernel", "mosaic_moments", "mosaic_scale_shift",
    "mosaic_products", "mosaic_combine",
)  # fmt: skip
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
    return _call("mosaic_forward", geometry, shared, _outputs(geometry, x, k), x, k)


def forward_affine(
    geometry: Geometry, shared: bool, relu: bool, x: jax.Array, k: jax.Array, offset: jax.Array, residual: jax.Array | None
) -> jax.Array:
    """x, k -> g + offset, + residual where there is one, behind it a ReLU if `relu`: offset f32[O], residual like g."""
    added = jnp.zeros((0,), jnp.float32) if residual is None else residual
    return _call("mosaic_forward_affine", geometry, shared, _outputs(geometry, x, k), x, k, offset, added, relu=relu)


def to_images(geometry: Geometry, shared: bool, g: jax.Array, k: jax.Array) -> jax.Array:
    """g, k -> x."""
    return _call("mosaic_to_images", geometry, shared, (g.shape[0], geometry.height, geometry.width, k.shape[2]), g, k)


def to_kernel(geometry: Geometry, shared: bool, x: jax.Array, g: jax.Array) -> jax.Array:
    """x, g -> k."""
    return _call("mosaic_to_kernel", geometry, shared, (geometry.size, geometry.size, x.shape[3], g.shape[3]), x, g)


def _outputs(geometry: Geometry, x: jax.Array, k: jax.Array) -> tuple[int, ...]:
    return x.shape[0], geometry.output(geometry.height), geometry.output(geometry.width), k.shape[3]


def _call(target: str, geometry: Geometry, shared: bool, shape: tuple[int, ...], *arrays: jax.Array, **settings: bool) -> jax.Array:
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential")
    return call(*arrays, stride=np.int64(geometry.stride), padding=np.int64(geometry.padding), share=shared, **settings)


def moments(shared: bool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel: f32[..., C] -> f32[C] each."""
    return _of_pixels("mosaic_moments", (x.shape[-1:],) * 2, x, share=shared)


def scale_shift(shared: bool, relu: bool, x: jax.Array, center: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """(x - center) factor + offset, behind it a ReLU if `relu`: f32[..., C], f32[C] each -> f32[..., C]."""
    return _of_pixels("mosaic_scale_shift", (x.shape,), x, center, factor, offset, relu=relu, share=shared)[0]


def products(shared: bool, relu: bool, g: jax.Array, x: jax.Array, y: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sum g and sum g (x - mean) of each channel, with g only where y > 0 if `relu`: f32[..., C] each, f32[C] -> f32[C] each."""
    return _of_pixels("mosaic_products", (mean.shape,) * 2, g, x, y, mean, relu=relu, share=shared)


def combine(
    shared: bool, relu: bool, g: jax.Array, x: jax.Array, y: jax.Array, center: jax.Array, factor: jax.Array, slope: jax.Array,
    offset: jax.Array,
) -> jax.Array:  # fmt: skip
    """g factor + (x - center) slope + offset, with g only where y > 0 if `relu`: f32[..., C] each, f32[C] each -> f32[..., C]."""
    return _of_pixels("mosaic_combine", (x.shape,), g, x, y, center, factor, slope, offset, relu=relu, share=shared)[0]


def _of_pixels(target: str, shapes: tuple[tuple[int, ...], ...], *arrays: jax.Array, **settings: bool) -> tuple[jax.Array, ...]:
    call = jax.ffi.ffi_call(target, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes], vmap_method="sequential")
    return tuple(call(*arrays, **settings))
