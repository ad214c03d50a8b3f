"""The meta model: one post-norm transformer encoder layer and one decoder layer over the expert tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaic_jax import ops
from mosaic_jax.models.layers import Linear

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


class FeedForward(nn.Module):
    """linear2(dropout(relu(linear1(x)))), hidden width `size`, on rows f32[N, M]."""

    size: int
    dropout_rate: float

    @nn.compact
    def __call__(self, inputs: jax.Array, deterministic: bool) -> jax.Array:
        hidden = nn.Dense(self.size, kernel_init=xavier, name="linear1")(inputs)
        hidden = Dropout(self.dropout_rate, relu=True)(hidden, deterministic)
        product = lambda rows, kernel, *_, **__: ops.narrowing_product(rows, kernel)  # noqa: E731
        return nn.Dense(inputs.shape[-1], kernel_init=xavier, dot_general=product, name="linear2")(hidden)


class AttentionMeta(nn.Module):
    """expert logits f32[B, E, K] -> logits f32[B, K]: Linear K -> M, encoder, decoder (src = tgt), pool over E, Linear M -> K."""

    num_classes: int
    expansion: int
    feed_forward_size: int
    dropout_rate: float
    pooling: str

    @nn.compact
    def __call__(self, expert_logits: jax.Array, deterministic: bool) -> jax.Array:
        batch, experts, _ = expert_logits.shape

        def norm(name: str, inputs: jax.Array) -> jax.Array:
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)(inputs)

        def dropout(inputs: jax.Array) -> jax.Array:
            return Dropout(self.dropout_rate)(inputs, deterministic)

        def attend(name: str, queries: jax.Array, memory: jax.Array) -> jax.Array:
            return dropout(Attention(self.num_classes, self.dropout_rate, name=name)(queries, memory, experts, deterministic))

        def feed_forward(name: str, inputs: jax.Array) -> jax.Array:
            return dropout(FeedForward(self.feed_forward_size, self.dropout_rate, name=name)(inputs, deterministic))

        # Tokens are rows: over [B, E, M] XLA's CPU backend runs the products of the gradients in slower forms.
        tokens = Linear(self.expansion * self.num_classes, name="fc_expand")(expert_logits.reshape(batch * experts, -1))
        memory = norm("encoder_norm1", tokens + attend("encoder_self_attn", tokens, tokens))
        memory = norm("encoder_norm2", memory + feed_forward("encoder_feed_forward", memory))
        memory = norm("encoder_norm", memory)
        hidden = norm("decoder_norm1", tokens + attend("decoder_self_attn", tokens, tokens))
        hidden = norm("decoder_norm2", hidden + attend("decoder_multihead_attn", hidden, memory))
        hidden = norm("decoder_norm3", hidden + feed_forward("decoder_feed_forward", hidden))
        hidden = norm("decoder_norm", hidden)
        pooled = {"sum": jnp.sum, "mean": jnp.mean}[self.pooling](hidden.reshape(batch, experts, -1), axis=1)
        return Linear(self.num_classes, name="fc")(pooled)
