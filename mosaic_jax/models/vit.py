"""A small vision transformer (Dosovitskiy et al. 2021) for 32x32 and 64x64 images: no convolution over images, no BatchNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaic_jax.models.attention import Attention
from mosaic_jax.models.layers import Linear

PATCH = 4  # pixels, height and width
DEPTH = 4  # blocks
HEAD_SIZE = 32  # channels of one attention head, or all where there are fewer


class Block(nn.Module):
    """tokens + attention(norm(tokens)), then + mlp(norm(tokens)), hidden width 4 D, GELU; rows f32[B * tokens, D]."""

    @nn.compact
    def __call__(self, rows: jax.Array, tokens: int) -> jax.Array:
        size = rows.shape[-1]
        normed = nn.LayerNorm(name="norm1")(rows)
        rows = rows + Attention(max(size // HEAD_SIZE, 1), 0.0, name="attention")(normed, normed, tokens, True)
        hidden = jax.nn.gelu(Linear(4 * size, name="linear1")(nn.LayerNorm(name="norm2")(rows)))
        return rows + Linear(size, name="linear2")(hidden)


class ViT(nn.Module):
    """images f32[B, S, S, 3] -> tokens of PATCH x PATCH pixels -> features f32[B, D], their mean -> logits f32[B, K].

    D = 8 * width; computed in float32.
    """

    num_classes: int
    width: int
    image_size: int

    def setup(self) -> None:
        tokens = (self.image_size // PATCH) ** 2
        self.position = self.param("position", nn.initializers.normal(0.02), (tokens, 8 * self.width))
        self.embedding = Linear(8 * self.width)
        self.blocks = [Block(name=f"block{index + 1}") for index in range(DEPTH)]
        self.norm = nn.LayerNorm()
        self.linear = Linear(self.num_classes)

    def features(self, images: jax.Array, train: bool, record: None = None) -> jax.Array:
        batch, side, _, channels = images.shape
        high, tokens = side // PATCH, (side // PATCH) ** 2
        patches = images.astype(jnp.float32).reshape(batch, high, PATCH, high, PATCH, channels).transpose(0, 1, 3, 2, 4, 5)
        rows = self.embedding(patches.reshape(batch * tokens, PATCH * PATCH * channels)) + jnp.tile(self.position, (batch, 1))
        for block in self.blocks:
            rows = block(rows, tokens)
        return jnp.mean(self.norm(rows).reshape(batch, tokens, -1), axis=1)

    def head(self, features: jax.Array) -> jax.Array:
        return self.linear(features)

    def __call__(self, images: jax.Array, train: bool, record: None = None) -> jax.Array:
        return self.head(self.features(images, train))
