"""Batch normalisation over the images of one batch, and the ReLU behind it where there is one: they share passes over memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from mosaic_jax.ops import channel_sums, gpu_kernels, native
from mosaic_jax.ops.gpu_kernels import stacked_alike
from mosaic_jax.ops.lowering import chosen_lowering, is_shared, lowering_of

_Residuals = tuple[jax.Array, jax.Array | None, jax.Array, jax.Array, jax.Array]
_Pair = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm_train(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5, relu: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each channel by its own statistics over the batch.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with mean and biased var over B, H, W; max(y, 0) if `relu`.
    x: float[B, H, W, C]; scale, bias: float[C] of the dtype that all is computed in; returns y like x, and mean and var, float[C].
    Gradients flow to x, scale and bias from y, mean and var alike. Source: Ioffe and Szegedy, 2015, eq. 1 to 4 and section 3.
    """
    mean, var = _moments(x)
    return _scale_shift(x, mean, scale * lax.rsqrt(var + epsilon), bias, relu), mean, var


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, relu: bool
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Residuals]:
    y, mean, var = batch_norm_train(x, scale, bias, epsilon, relu)
    return (y, mean, var), (x, y if relu else None, scale, mean, var)


def _backward(
    epsilon: float, relu: bool, residuals: _Residuals, cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Closed form in two sums and one pass; autodiff takes the same sums twice and keeps x - mean as well as x."""
    x, y, scale, mean, var = residuals
    to_y, to_mean, to_var = cotangents
    count = x.size // x.shape[3]
    inverse = lax.rsqrt(var + epsilon)
    to_bias, products = _products(to_y, x, y, mean)
    to_scale = products * inverse
    slope = (2 * to_var - scale * inverse**2 * to_scale) / count
    offset = (to_mean - scale * inverse * to_bias) / count
    return _combine(to_y, x, y, mean, scale * inverse, slope, offset), to_scale, to_bias


batch_norm_train.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def scale_shift(x: jax.Array, factor: jax.Array, offset: jax.Array, relu: bool = False) -> jax.Array:
    """x factor + offset in each channel, max(that, 0) if `relu`: what BatchNorm is with statistics that do not depend on x.

    x: float[B, H, W, C]; factor, offset: float[C] of the dtype that it is computed in; returns y like x.
    """
    return _scale_shift(x, jnp.zeros_like(factor), factor, offset, relu)


def _shift_forward(
    x: jax.Array, factor: jax.Array, offset: jax.Array, relu: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None, jax.Array]]:
    y = scale_shift(x, factor, offset, relu)
    return y, (x, y if relu else None, factor)


def _shift_backward(
    relu: bool, residuals: tuple[jax.Array, jax.Array | None, jax.Array], to_y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, y, factor = residuals
    zero = jnp.zeros_like(factor)
    to_offset, to_factor = _products(to_y, x, y, zero)
    return _combine(to_y, x, y, zero, factor, zero, zero), to_factor, to_offset


scale_shift.defvjp(_shift_forward, _shift_backward)


# What the two are made of. y: the outputs where a ReLU stands behind them, which lets through what has a positive one; or None.


def _moments(x: jax.Array) -> _Pair:
    """Mean and biased variance over B, H, W, float32 at least."""

    def plain(x: jax.Array) -> _Pair:
        x = x.astype(jnp.float32 if x.dtype.itemsize < 4 else x.dtype)
        # Two passes: E[x^2] - E[x]^2 loses every digit of a channel whose mean is large beside its deviation.
        mean = x.mean((0, 1, 2))
        centered = x - mean
        return mean, (centered * centered).mean((0, 1, 2))

    if lowering_of(x.dtype) == "native":
        return _differentiable(functools.partial(native.moments, is_shared()), plain)(x)
    return _of_stacks(plain, channel_sums.moments, x)(x)


def _scale_shift(x: jax.Array, center: jax.Array, factor: jax.Array, offset: jax.Array, relu: bool) -> jax.Array:
    """(x - center) factor + offset like x, behind it a ReLU if `relu`."""

    def plain(x: jax.Array, center: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
        y = (x.astype(center.dtype) - center) * factor + offset
        return (jax.nn.relu(y) if relu else y).astype(x.dtype)

    if lowering_of(x.dtype, center.dtype, factor.dtype, offset.dtype) == "native":
        return _differentiable(functools.partial(native.scale_shift, is_shared(), relu), plain)(x, center, factor, offset)
    return plain(x, center, factor, offset)


def _products(g: jax.Array, x: jax.Array, y: jax.Array | None, mean: jax.Array) -> _Pair:
    """sum g and sum g (x - mean) over B, H, W, of the g that pass the ReLU."""

    def plain(g: jax.Array, x: jax.Array, mean: jax.Array) -> _Pair:
        g, x = g.astype(mean.dtype), x.astype(mean.dtype)
        return g.sum((0, 1, 2)), (g * (x - mean)).sum((0, 1, 2))

    if lowering_of(x.dtype, mean.dtype) == "native":
        return _native_of_passed(native.products, plain, g, x, y, mean)
    return _of_stacks(plain, channel_sums.products, x)(_passed(g, y), x, mean)


def _combine(
    g: jax.Array, x: jax.Array, y: jax.Array | None, center: jax.Array, factor: jax.Array, slope: jax.Array, offset: jax.Array
) -> jax.Array:
    """g factor + (x - center) slope + offset like x, of the g that pass the ReLU."""

    def plain(g: jax.Array, x: jax.Array, center: jax.Array, factor: jax.Array, slope: jax.Array, offset: jax.Array) -> jax.Array:
        return (g.astype(center.dtype) * factor + (x.astype(center.dtype) - center) * slope + offset).astype(x.dtype)

    if lowering_of(x.dtype, center.dtype, factor.dtype) == "native":
        return _native_of_passed(native.combine, plain, g, x, y, center, factor, slope, offset)
    return plain(_passed(g, y), x, center, factor, slope, offset)


def _passed(g: jax.Array, y: jax.Array | None) -> jax.Array:
    return g if y is None else jnp.where(y > 0, g, jnp.zeros_like(g))


def _native_of_passed(
    function: Callable[..., Any], plain: Callable[..., Any], g: jax.Array, x: jax.Array, y: jax.Array | None, *others: jax.Array
) -> Any:
    """A function of native, which looks at y itself, for plain(g that pass, x, *others)."""
    relu = y is not None

    def same(g: jax.Array, x: jax.Array, y: jax.Array, *others: jax.Array) -> Any:
        return plain(_passed(g, y if relu else None), x, *others)

    return _differentiable(functools.partial(function, is_shared(), relu), same)(g, x, y if relu else x, *others)


def _differentiable(function: Callable[..., jax.Array | _Pair], plain: Callable[..., jax.Array | _Pair]) -> Callable[..., Any]:
    """A foreign function with the derivative of a plain one that computes the same: for derivatives of derivatives."""
    differentiable = jax.custom_vjp(function)
    differentiable.defvjp(lambda *a: (function(*a), a), lambda saved, cotangents: jax.vjp(plain, *saved)[1](cotangents))
    return differentiable


def _of_stacks(function: Callable[..., _Pair], over_clients: Callable[..., _Pair], x: jax.Array) -> Callable[..., _Pair]:
    """`function` of images, of which `over_clients` takes stacks of clients, pixels in one axis, where that has kernels."""
    if chosen_lowering() != "stacked" or gpu_kernels.triton is None or x.dtype.itemsize > 4:
        return function
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: list[bool], *arrays: jax.Array) -> tuple[_Pair, tuple[bool, bool]]:
        arrays = stacked_alike(axis_size, in_batched, arrays)
        return over_clients(*(a.reshape(axis_size, -1, a.shape[-1]) if a.ndim > 2 else a for a in arrays)), (True, True)

    return mapped
