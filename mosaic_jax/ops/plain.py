"""The three bilinear maps of a convolution as XLA writes them, which is fast for one kernel on a GPU; letters as in canonical."""

import jax
from jax import lax

from mosaic_jax.ops.canonical import DIMENSIONS, Geometry


def forward(geometry: Geometry, x: jax.Array, k: jax.Array) -> jax.Array:
    """x, k -> g."""
    stride, padding = (geometry.stride,) * 2, [(geometry.padding,) * 2] * 2
    return lax.conv_general_dilated(x, k, stride, padding, dimension_numbers=DIMENSIONS)


def to_images(geometry: Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    """g, k -> x."""
    shape = (g.shape[0], geometry.height, geometry.width, k.shape[2])
    (x,) = jax.linear_transpose(lambda x: forward(geometry, x, k), jax.ShapeDtypeStruct(shape, g.dtype))(g)
    return x


def to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """x, g -> k."""
    shape = (geometry.size, geometry.size, x.shape[3], g.shape[3])
    (k,) = jax.linear_transpose(lambda k: forward(geometry, x, k), jax.ShapeDtypeStruct(shape, g.dtype))(g)
    return k
