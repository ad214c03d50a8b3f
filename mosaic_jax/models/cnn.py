"""A small convolutional network for CPUs: four 3x3 convolutions with a norm, the last three at stride 2."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaic_jax.models.layers import NORMS, Conv, Linear, Statistics, narrowed


class CNN(nn.Module):
    """images f32[B, S, S, 3] -> features f32[B, 8 * width] (mean over S/8 x S/8 positions) -> logits f32[B, K].

    rate: every layer but the classifier has so much of its channels; divisor: HeteroFL's scaler, see `BatchNorm`;
    norm: a key of NORMS.
    """

    num_classes: int
    width: int
    rate: float = 1.0
    divisor: float = 1.0
    norm: str = "batch"

    def setup(self) -> None:
        channels = [narrowed(self.width * 2**index, self.rate) for index in range(4)]
        self.convs = [Conv(channels[index], 3, 1 if index == 0 else 2, 1, name=f"conv{index + 1}") for index in range(4)]
        self.norms = [NORMS[self.norm](name=f"bn{index + 1}") for index in range(4)]
        self.linear = Linear(self.num_classes)

    def features(self, images: jax.Array, train: bool, record: list[Statistics] | None = None) -> jax.Array:
        hidden = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = norm(conv(hidden, defer=True), train, record, relu=True, divisor=self.divisor)
        return jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)

    def head(self, features: jax.Array) -> jax.Array:
        return self.linear(features)

    def __call__(self, images: jax.Array, train: bool, record: list[Statistics] | None = None) -> jax.Array:
        return self.head(self.features(images, train, record))
