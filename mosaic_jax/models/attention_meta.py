"""The meta model: one post-norm transformer encoder layer and one decoder layer over the expert tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaic_jax import ops
from mosaic_jax.models.attention import Attention, Dropout, xavier
from mosaic_jax.models.layers import Linear


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
