"""Batch normalisation over the images of one batch."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from mosaic_jax.ops import channel_sums
from mosaic_jax.ops.lowering import lowering_of

_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
_Pair = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_train(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each channel by its own statistics over the batch.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with mean and biased var over B, H, W.
    x: float[B, H, W, C]; scale, bias: float[C] of the dtype that all is computed in; returns y like x, and mean and var, float[C].
    Gradients flow to x, scale and bias from y, mean and var alike. Source: Ioffe and Szegedy, 2015, eq. 1 to 4 and section 3.
    """
    mean, var = _of_stacks(_moments, channel_sums.moments, x)(x)
    return ((x.astype(mean.dtype) - mean) * (scale * lax.rsqrt(var + epsilon)) + bias).astype(x.dtype), mean, var


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Residuals]:
    y, mean, var = batch_norm_train(x, scale, bias, epsilon)
    return (y, mean, var), (x, scale, mean, var)


def _backward(
    epsilon: float, residuals: _Residuals, cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Closed form in two sums and one pass; autodiff takes the same sums twice and keeps x - mean as well as x."""
    x, scale, mean, var = residuals
    to_y, to_mean, to_var = cotangents
    count = x.size // x.shape[3]
    inverse = lax.rsqrt(var + epsilon)
    to_bias, products = _of_stacks(_products, channel_sums.products, x)(to_y, x, mean)
    to_scale = products * inverse
    slope = (2 * to_var - scale * inverse**2 * to_scale) / count
    to_y, centered = to_y.astype(mean.dtype), x.astype(mean.dtype) - mean
    to_x = to_y * (scale * inverse) + centered * slope + (to_mean - scale * inverse * to_bias) / count
    return to_x.astype(x.dtype), to_scale, to_bias


batch_norm_train.defvjp(_forward, _backward)


def _moments(x: jax.Array) -> _Pair:
    """Mean and biased variance, float32 at least."""
    x = x.astype(jnp.float32 if x.dtype.itemsize < 4 else x.dtype)
    # Two passes: E[x^2] - E[x]^2 loses every digit of a channel whose mean is large beside its deviation.
    mean = x.mean((0, 1, 2))
    centered = x - mean
    return mean, (centered * centered).mean((0, 1, 2))


def _products(g: jax.Array, x: jax.Array, mean: jax.Array) -> _Pair:
    """sum g and sum g (x - mean) over B, H, W."""
    g, x = g.astype(mean.dtype), x.astype(mean.dtype)
    return g.sum((0, 1, 2)), (g * (x - mean)).sum((0, 1, 2))


def _of_stacks(function: Callable[..., _Pair], over_clients: Callable[..., _Pair], x: jax.Array) -> Callable[..., _Pair]:
    """`function` of images, of which `over_clients` takes stacks of clients, pixels in one axis, where that has kernels."""
    if lowering_of(x.dtype) != "stacked":
        return function
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: list[bool], *arrays: jax.Array) -> tuple[_Pair, tuple[bool, bool]]:
        arrays = (a if own else jnp.broadcast_to(a, (axis_size, *a.shape)) for a, own in zip(arrays, in_batched, strict=True))
        return over_clients(*(a.reshape(axis_size, -1, a.shape[-1]) if a.ndim > 2 else a for a in arrays)), (True, True)

    return mapped
