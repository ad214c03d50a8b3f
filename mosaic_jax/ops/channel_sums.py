"""Sums over the pixels of stacked clients, channel by channel, as GPU kernels: what BatchNorm takes of its inputs.

XLA's own reductions of these shapes run at a fifth to a half of the GPU's memory bandwidth. x, g:
float[C, N, K], of C clients N pixels of K channels; sums are float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mosaic_jax.ops.gpu_kernels import call, in_parts, load, tile, triton

NUMBERS = 4096  # of one tile
PROGRAMS = 2048  # at least, where there are pixels enough

_Terms = Callable[..., tuple[jax.Array, jax.Array]]


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel, f32[C, K] each, in one pass.

    var = E[(x - s)^2] - (mean - s)^2 with s a client's first pixel, which is as close to the mean as pixels are: E[x^2] - E[x]^2
    would lose every digit of a channel whose mean is large beside its deviation.
    """
    shift = x[:, 0].astype(jnp.float32)
    first, second = _in_parts(lambda shift, x: (x - shift, (x - shift) * (x - shift)), shift, x)
    first, second = first / x.shape[1], second / x.shape[1]
    return first + shift, jnp.maximum(second - first * first, 0.0)


def products(g: jax.Array, x: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sum g and sum g (x - mean) of each channel, f32[C, K] each; mean: f32[C, K]."""
    return _in_parts(lambda mean, g, x: (g, g * (x - mean)), mean, g, x)


def _in_parts(terms: _Terms, center: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    return in_parts(functools.partial(_sums, terms), 0, center, *arrays)


def _sums(terms: _Terms, center: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over pixels of two terms(center, *arrays) -> f32[C, K] each; center: f32[C, K]."""
    clients, pixels, channels = arrays[0].shape
    block = tile(channels)
    tall = NUMBERS // block
    blocks = pl.cdiv(channels, block)
    parts = max(min(pl.cdiv(PROGRAMS, blocks * clients), pixels // (2 * tall)), 1)
    steps = pl.cdiv(pixels, parts * tall)

    def kernel(center_ref: jax.Ref, *refs: jax.Ref) -> None:
        client, part = pl.program_id(2), pl.program_id(1)
        channel = pl.program_id(0) * block + jnp.arange(block)
        own = triton.load(center_ref.at[client, channel], mask=channel < channels, other=0.0)[None, :]

        def add(step: jax.Array, totals: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            pixel = (part * steps + step) * tall + jnp.arange(tall)
            row, real = client * pixels + pixel, pixel < pixels
            tiles = [load(ref, row, channel, real, channel < channels).astype(jnp.float32) for ref in refs[: len(arrays)]]
            found = terms(own, *tiles)
            return tuple(total + jnp.where(real[:, None], term, 0.0) for total, term in zip(totals, found, strict=True))

        zeros = jnp.zeros((tall, block), jnp.float32)
        for ref, total in zip(refs[len(arrays) :], lax.fori_loop(0, steps, add, (zeros, zeros)), strict=True):
            triton.store(ref.at[part * clients + client, channel], total.sum(0), mask=channel < channels)

    out = (jax.ShapeDtypeStruct((parts * clients, channels), jnp.float32),) * 2
    found = call(kernel, out, (blocks, parts, clients), 4, center, *arrays)
    return tuple(partial.reshape(parts, clients, channels).sum(0) for partial in found)
