"""Batch normalisation over the images of one batch."""

import functools

import jax
from jax import lax

_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_train(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each channel by its own statistics over the batch.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, with mean and biased var over B, H, W.
    x: float[B, H, W, C]; scale, bias: float[C] of the same dtype; returns y like x, and mean and var, float[C].
    Gradients flow to x, scale and bias from y, mean and var alike. Source: Ioffe and Szegedy, 2015, eq. 1 to 4 and section 3.
    """
    # Two passes: E[x^2] - E[x]^2 loses every digit of a channel whose mean is large beside its deviation.
    mean = x.mean((0, 1, 2))
    centered = x - mean
    var = (centered * centered).mean((0, 1, 2))
    return centered * (scale * lax.rsqrt(var + epsilon)) + bias, mean, var


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
    centered = x - mean
    to_bias = to_y.sum((0, 1, 2))
    to_scale = (to_y * centered).sum((0, 1, 2)) * inverse
    slope = (2 * to_var - scale * inverse**2 * to_scale) / count
    to_x = to_y * (scale * inverse) + centered * slope + (to_mean - scale * inverse * to_bias) / count
    return to_x, to_scale, to_bias


batch_norm_train.defvjp(_forward, _backward)
