"""Multi-head attention over rows, and dropout under a key of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaic_jax import ops

xavier = nn.initializers.xavier_uniform()


class Dropout(nn.Module):
    """ops.dropout under a key of its own, with a ReLU before it where `relu`; if deterministic nothing but that ReLU."""

    rate: float
    relu: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return jax.nn.relu(inputs) if self.relu else inputs
        return (ops.relu_dropout if self.relu else ops.dropout)(inputs, self.make_rng("dropout"), self.rate)


class Attention(nn.Module):
    """Multi-head attention over groups of `tokens` rows: queries, memory f32[B * tokens, M] -> f32[B * tokens, M].

    The q, k and v projections are packed, as PyTorch's.
    """

    num_heads: int
    dropout_rate: float

    @nn.compact
    def __call__(self, queries: jax.Array, memory: jax.Array, tokens: int, deterministic: bool) -> jax.Array:
        width = queries.shape[-1]
        kernel = self.param("in_proj_kernel", lambda key, shape: xavier(key, shape), (width, 3 * width))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * width,))
        weights = jnp.split(kernel, 3, axis=1)
        biases = jnp.split(bias, 3)
        split = lambda x: x.reshape(-1, tokens, self.num_heads, width // self.num_heads)  # noqa: E731
        q, k, v = (split(x @ w + b) for x, w, b in zip((queries, memory, memory), weights, biases, strict=True))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // self.num_heads) ** 0.5
        attention = Dropout(self.dropout_rate)(jax.nn.softmax(scores), deterministic)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", attention, v).reshape(-1, width)
        return nn.Dense(width, kernel_init=xavier, name="out_proj")(mixed)
