"""The DCGAN pair: no biases, convolutions start at N(0, 0.02), BatchNorm scales at N(1, 0.02).

At 32x32 the last convolutions are the public code's, at 64x64 those of DCGAN itself (arXiv 1511.06434), all others are the same.
"""

import flax.linen as nn
import jax

from mosaic_jax.models.layers import BatchNorm, Conv, ConvTranspose, dcgan_kernel_init, dcgan_scale_init


class DCGANGenerator(nn.Module):
    """noise f32[B, Z] -> images f32[B, S, S, 3] in [-1, 1], S = 32 or 64; channels 8w, 4w, 2w, w, 3."""

    width: int
    image_size: int = 32

    @nn.compact
    def __call__(self, noise: jax.Array, train: bool) -> jax.Array:
        hidden = noise[:, None, None, :]
        for index, (multiple, stride, padding) in enumerate(((8, 1, 0), (4, 2, 1), (2, 2, 1), (1, 2, 1)), start=1):
            hidden = ConvTranspose(multiple * self.width, 4, stride, padding, name=f"conv{index}")(hidden)
            hidden = BatchNorm(scale_init=dcgan_scale_init, name=f"bn{index}")(hidden, train, relu=True)
        kernel, stride, padding = {32: (1, 1, 0), 64: (4, 2, 1)}[self.image_size]
        return jax.nn.tanh(ConvTranspose(3, kernel, stride, padding, name="conv5")(hidden))


class DCGANDiscriminator(nn.Module):
    """images f32[B, S, S, 3] -> score logits f32[B]; channels w, 2w, 4w, 8w, 1; BatchNorm on all but first and last."""

    width: int
    image_size: int = 32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        hidden = images
        for index, multiple in enumerate((1, 2, 4, 8), start=1):
            hidden = Conv(multiple * self.width, 4, 2, 1, dcgan_kernel_init, name=f"conv{index}")(hidden)
            if index > 1:
                hidden = BatchNorm(scale_init=dcgan_scale_init, name=f"bn{index}")(hidden, train)
            hidden = jax.nn.leaky_relu(hidden, 0.2)
        kernel, stride = {32: (2, 2), 64: (4, 1)}[self.image_size]
        return Conv(1, kernel, stride, 0, dcgan_kernel_init, name="conv5")(hidden)[:, 0, 0, 0]
