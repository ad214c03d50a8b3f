"""Layers shared by the networks: convolutions through `mosaic_jax.ops` and BatchNorm with PyTorch's running statistics."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaic_jax import ops

Statistics = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the start of PyTorch's convolutions and linear layers.
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
dcgan_kernel_init = nn.initializers.normal(0.02)
# running <- momentum running + (1 - momentum) batch: PyTorch's 0.1.
RUNNING_MOMENTUM = 0.9


def dcgan_scale_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """BatchNorm scales of the DCGAN start: N(1, 0.02)."""
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def narrowed(channels: int, rate: float) -> int:
    """Channels that a network of width rate `rate` in (0, 1] has where the full one has `channels`: ceil(rate * channels)."""
    return max(1, math.ceil(round(rate * channels, 6)))  # rounded first: 0.07 * 100 is a little more than 7


class Convolution(NamedTuple):
    """A convolution that the BatchNorm behind it may do in one with itself."""

    images: jax.Array
    kernel: jax.Array
    stride: int
    padding: int

    def outputs(self) -> jax.Array:
        """The convolution by itself: [B, H, W, O]."""
        return ops.conv2d(self.images, self.kernel, stride=self.stride, padding=self.padding)


class Conv(nn.Module):
    """2-D convolution without bias, explicit symmetric padding; images [B, H, W, I] of any float dtype, kernel f32[k, k, I, O].

    defer: whether it is left to the BatchNorm that is given the result.
    """

    channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    kernel_init: Callable[..., jax.Array] = torch_kernel_init

    @nn.compact
    def __call__(self, images: jax.Array, defer: bool = False) -> jax.Array | Convolution:
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape).astype(images.dtype)
        convolution = Convolution(images, kernel, self.stride, self.padding)
        return convolution if defer else convolution.outputs()


class ConvTranspose(nn.Module):
    """PyTorch's ConvTranspose2d without bias; images [B, H, W, I] of any float dtype, kernel f32[k, k, I, O]."""

    channels: int
    kernel_size: int
    stride: int
    padding: int
    kernel_init: Callable[..., jax.Array] = dcgan_kernel_init

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape).astype(images.dtype)
        return ops.conv2d_transpose(images, kernel, stride=self.stride, padding=self.padding)


class BatchNorm(nn.Module):
    """Batch normalisation over B, H, W with PyTorch's running statistics.

    train: y = scale (x - mean) / sqrt(var + 1e-5) + bias with the batch's mean and biased variance, and
    running <- 0.9 running + 0.1 batch, with the UNBIASED batch variance (PyTorch's convention, not Flax's).
    eval: the running statistics instead. `record`, if given, is extended by (mean, biased var, running mean, running var)
    of this layer's inputs, for the inversion loss. residual: added to y; relu: max(., 0) of that. Computed in float32 whatever the
    images' dtype, which is the outputs'.

    divisor: HeteroFL's scaler, x = images / divisor, so that channels trained in a narrow network are of the full network's size
    (arXiv 2010.01264). In eval mode too, unlike the public code, which never evaluates a narrow network: running statistics are of
    what they were taken from.
    """

    scale_init: Callable[..., jax.Array] = nn.initializers.ones
    momentum: float = RUNNING_MOMENTUM
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, images: jax.Array | Convolution, train: bool, record: list[Statistics] | None = None, relu: bool = False,
        residual: jax.Array | None = None, divisor: float = 1.0,
    ) -> jax.Array:  # fmt: skip
        channels = (images.kernel if isinstance(images, Convolution) else images).shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
        offset = bias - running_mean.value * factor
        if isinstance(images, Convolution):
            if not train and record is None:
                inputs, kernel, stride, padding = images
                return ops.conv2d_affine(
                    inputs, kernel, factor / divisor, offset, residual, stride=stride, padding=padding, relu=relu
                )
            images = images.outputs()
        if divisor != 1.0:
            images = images / divisor
        at_once = relu and residual is None
        if train:
            outputs, mean, var = ops.batch_norm_train(images, scale, bias, self.epsilon, at_once)
            if record is not None:
                record.append((mean, var, running_mean.value, running_var.value))
            if not self.is_initializing():
                size = images.size // channels
                keep, move = self.momentum, 1.0 - self.momentum
                running_mean.value = keep * running_mean.value + move * jax.lax.stop_gradient(mean)
                unbiased = jax.lax.stop_gradient(var) * (size / max(size - 1, 1))
                running_var.value = keep * running_var.value + move * unbiased
        else:
            if record is not None:
                seen = images.astype(jnp.float32)
                mean = jnp.mean(seen, axis=(0, 1, 2))
                var = jnp.mean(jnp.square(seen - mean), axis=(0, 1, 2))
                record.append((mean, var, running_mean.value, running_var.value))
            outputs = ops.scale_shift(images, factor, offset, at_once)
        if residual is None:
            return outputs
        return jax.nn.relu(outputs + residual) if relu else outputs + residual


MOST_GROUPS = 32


def num_groups(channels: int) -> int:
    """Groups of a GroupNorm: as many as divide the channels, at most MOST_GROUPS and with two channels or more in each.

    >>> [num_groups(channels) for channels in (1, 2, 16, 24, 128)]
    [1, 1, 8, 12, 32]
    """
    most = min(MOST_GROUPS, max(channels // 2, 1))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


class GroupNorm(nn.Module):
    """Group normalisation of each image by itself (Wu and He 2018): the same in training and evaluation, without statistics.

    y = scale (x - mean) / sqrt(var + 1e-5) + bias with the mean and biased variance over H, W and the channels of a group; see
    `num_groups`. Called as `BatchNorm` is, of whose arguments train and record mean nothing here. Computed in float32.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, images: jax.Array | Convolution, train: bool, record: list[Statistics] | None = None, relu: bool = False,
        residual: jax.Array | None = None, divisor: float = 1.0,
    ) -> jax.Array:  # fmt: skip
        if isinstance(images, Convolution):
            images = images.outputs()
        channels = images.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = num_groups(channels)
        grouped = (images.astype(jnp.float32) / divisor).reshape(*images.shape[:-1], groups, channels // groups)
        mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        var = jnp.mean(jnp.square(grouped - mean), axis=(1, 2, 4), keepdims=True)
        outputs = ((grouped - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(images.shape) * scale + bias
        outputs = outputs.astype(images.dtype)
        if residual is not None:
            outputs = outputs + residual
        return jax.nn.relu(outputs) if relu else outputs


NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "group": GroupNorm}


class Linear(nn.Module):
    """y = x W + b with PyTorch's start (both uniform in +-1/sqrt(fan_in)); kernel f32[I, O], computed in float32."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        fan_in = inputs.shape[-1]
        kernel = self.param("kernel", torch_kernel_init, (fan_in, self.features))
        limit = fan_in**-0.5
        bias = self.param("bias", lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit), (self.features,))
        return inputs @ kernel + bias
