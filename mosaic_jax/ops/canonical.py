"""The three bilinear maps of a convolution, written as forward convolutions in NHWC/HWIO form or as matrix products.

XLA's CPU backend sends a convolution to its fast kernels if it is in this form; others it first rewrites, but not inside the bodies
of loops, where they run naively (measured: 0.3 against 40 GFLOP/s for the gradient to the kernel that autodiff writes). Letters:
x images [B, H, W, I], k kernel [size, size, I, O], g outputs or cotangents [B, H', W', O].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Measured on a Xeon with 2 MiB of second-level cache a core: the gradient to a kernel runs at 100 GFLOP/s up to about this size of
# the cotangents, above it at 30.
GROUP_BYTES = 5 * 2**18


class Geometry(NamedTuple):
    """A convolution's static sizes; height and width are those of its (larger) input images."""

    size: int
    stride: int
    padding: int
    height: int
    width: int

    def output(self, length: int) -> int:
        """Height or width of g for that of x."""
        return (length + 2 * self.padding - self.size) // self.stride + 1

    @property
    def step(self) -> int:
        """Pixels from one patch to the next where `is_patches`; a single patch needs no gap."""
        return self.size if self.height == self.width == self.size else self.stride

    @property
    def is_patches(self) -> bool:
        """Whether no pixel is in two patches and none is padded: a matrix product."""
        return self.padding == 0 and (self.stride >= self.size or self.height == self.width == self.size)


def forward(geometry: Geometry, x: jax.Array, k: jax.Array) -> jax.Array:
    """x, k -> g."""
    return _widened(x, k, geometry.stride, [(geometry.padding,) * 2] * 2)


def _widened(x: jax.Array, k: jax.Array, stride: int, pads: list[tuple[int, int]]) -> jax.Array:
    """A convolution that makes `columns` neighbouring pixels at once, as channels of one, where there are few channels.

    The kernel stands `columns` times in a wider one, each time `stride` pixels further, zeros around it.
    """
    width = (x.shape[2] + sum(pads[1]) - k.shape[1]) // stride + 1
    num = columns(k.shape[2], k.shape[3], width)
    if num > 1:
        steps = [(place * stride, (num - 1 - place) * stride) for place in range(num)]
        k = lax.optimization_barrier(jnp.concatenate([jnp.pad(k, ((0, 0), step, (0, 0), (0, 0))) for step in steps], axis=3))
    g = lax.conv_general_dilated(x, k, (stride, stride * num), pads, dimension_numbers=DIMENSIONS)
    return g.reshape(*g.shape[:2], width, -1)


def columns(inputs: int, outputs: int, width: int) -> int:
    """Pixels that one of `_widened` makes: what fills the lanes of a core pays for the multiplications by zero.

    Measured at 32x32 on a Xeon with AVX-512, times as fast: 3 -> 16 channels 4.8, 3 -> 32 4.6, 8 -> 8 2.6, 16 -> 16 1.6; slower
    from 32 channels. Narrow images are left alone: they cost little, but each such convolution costs compiling.
    """
    most = 64 // outputs if inputs <= 4 else 32 // outputs if max(inputs, outputs) <= 16 else 1
    if width < 16:
        return 1
    return next(num for num in (8, 4, 2, 1) if num <= max(most, 1) and width % num == 0)


def to_images(geometry: Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    """g, k -> x."""
    return to_images_by(_widened, geometry, g, k)


def to_images_by(convolution: Callable[..., jax.Array], geometry: Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    """g, k -> x in sub-pixel form: the pixels of one remainder modulo the stride are one convolution with every stride-th tap.

    convolution: images, kernel, stride, pads -> outputs; all arrays may have more leading axes than one client's.
    """
    stride = geometry.stride
    k = lax.optimization_barrier(k[..., ::-1, ::-1, :, :].swapaxes(-2, -1))
    lengths = [-(-length // stride) for length in (geometry.height, geometry.width)]
    rows = []
    for row in range(stride):
        phases = []
        for column in range(stride):
            taps, pads = [], []
            for phase, length, cotangents in zip((row, column), lengths, g.shape[-3:-1], strict=True):
                shift, first = divmod(phase + geometry.padding, stride)
                count = len(range(first, geometry.size, stride))
                # Taps first, first + stride, ... in the flipped kernel, where tap t stands at size - 1 - t.
                taps.append(slice((geometry.size - 1 - first) % stride, geometry.size - first, stride))
                low = count - 1 - shift
                pads.append((low, length + count - 1 - low - cotangents))
            sub = lax.optimization_barrier(k[..., taps[0], taps[1], :, :])
            if 0 in sub.shape:
                phases.append(jnp.zeros((*g.shape[:-3], *lengths, sub.shape[-1]), g.dtype))
            else:
                phases.append(_conv(convolution, g, sub, pads))
        rows.append(jnp.stack(phases, axis=-2))
    x = jnp.stack(rows, axis=-4)
    x = x.reshape(*g.shape[:-3], lengths[0] * stride, lengths[1] * stride, -1)
    return x[..., : geometry.height, : geometry.width, :]


def _conv(convolution: Callable[..., jax.Array], x: jax.Array, k: jax.Array, pads: list[tuple[int, int]]) -> jax.Array:
    """Stride-1 convolution whose paddings may be negative (pixels left out)."""
    ends = [length + min(0, high) for length, (_, high) in zip(x.shape[-3:-1], pads, strict=True)]
    x = x[..., max(0, -pads[0][0]) : ends[0], max(0, -pads[1][0]) : ends[1], :]
    return convolution(x, k, 1, [(max(0, low), max(0, high)) for low, high in pads])


def to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """x, g -> k, summed over groups of images whose cotangents stay in a core's cache."""
    batch = x.shape[0]
    size = group_size(batch, g[0].size)
    if size >= batch:
        return _group_to_kernel(geometry, x, g)
    groups = -(-batch // size)
    # Images of zeros, which add nothing, fill the last group.
    x, g = (jnp.pad(each, ((0, groups * size - batch), (0, 0), (0, 0), (0, 0))) for each in (x, g))

    def add(group: jax.Array, k: jax.Array) -> jax.Array:
        own_x, own_g = (lax.dynamic_slice_in_dim(each, group * size, size) for each in (x, g))
        return k + _group_to_kernel(geometry, own_x, own_g).astype(k.dtype)

    sum_in = jnp.float32 if x.dtype.itemsize < 4 else x.dtype
    k = jnp.zeros((geometry.size, geometry.size, x.shape[3], g.shape[3]), sum_in)
    return lax.fori_loop(0, groups, add, k).astype(x.dtype)


def group_size(batch: int, numbers: int) -> int:
    """Images of one group: equal groups, a multiple of four images, as many as fill GROUP_BYTES; numbers: in g of an image."""
    most = max(GROUP_BYTES // (4 * numbers) // 4 * 4, 4)
    groups = -(-batch // most)
    return min(-(-batch // groups // 4) * 4, batch)


def _group_to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """`to_kernel`, batch and channels exchanged: the cotangents, dilated by the stride, are the kernel that meets the images."""
    stride, padding = geometry.stride, geometry.padding
    x = lax.optimization_barrier(x.transpose(3, 1, 2, 0))
    g = lax.optimization_barrier(g.transpose(1, 2, 0, 3))
    pads = []
    for length, cotangents in zip((geometry.height, geometry.width), g.shape[:2], strict=True):
        pads.append((padding, geometry.size + (cotangents - 1) * stride - length - padding))
    x = x[:, : geometry.height + min(0, pads[0][1]), : geometry.width + min(0, pads[1][1])]
    pads = [(low, max(0, high)) for low, high in pads]
    k = lax.conv_general_dilated(x, g, (1, 1), pads, rhs_dilation=(stride, stride), dimension_numbers=DIMENSIONS)
    return k.transpose(1, 2, 0, 3)


def _patches(geometry: Geometry, x: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, H', W', k k I], patches that do not overlap."""
    size, batch, channels = geometry.size, x.shape[0], x.shape[3]
    rows, columns = geometry.output(geometry.height), geometry.output(geometry.width)
    step = geometry.step
    x = jnp.pad(x, ((0, 0), (0, max(0, rows * step - x.shape[1])), (0, max(0, columns * step - x.shape[2])), (0, 0)))
    x = x[:, : rows * step, : columns * step].reshape(batch, rows, step, columns, step, channels)[:, :, :size, :, :size]
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, size * size * channels)


def patches_forward(geometry: Geometry, x: jax.Array, k: jax.Array) -> jax.Array:
    """`forward` where `is_patches`."""
    return _patches(geometry, x) @ k.reshape(-1, k.shape[3])


def patches_to_images(geometry: Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    """`to_images` where `is_patches`."""
    batch, rows, columns, _ = g.shape
    size, channels = geometry.size, k.shape[2]
    step = geometry.step
    x = (g @ k.reshape(-1, k.shape[3]).T).reshape(batch, rows, columns, size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, step - size), (0, 0), (0, step - size), (0, 0)))
    x = x.reshape(batch, rows * step, columns * step, channels)[:, : geometry.height, : geometry.width]
    return jnp.pad(x, ((0, 0), (0, geometry.height - x.shape[1]), (0, geometry.width - x.shape[2]), (0, 0)))


def patches_to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """`to_kernel` where `is_patches`."""
    k = jnp.einsum("bhwi,bhwo->io", _patches(geometry, x), g)
    return k.reshape(geometry.size, geometry.size, -1, g.shape[3])
