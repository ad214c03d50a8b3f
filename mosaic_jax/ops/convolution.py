"""Convolutions that stay fast when every client has its own weights.

Under `vmap` a convolution over per-client weights becomes a grouped convolution, and inside `scan` or `lax.map` XLA's CPU backend
runs the gradients that autodiff writes in naive loops: both are ten to three hundred times slower than one plain convolution. Here
the three bilinear maps of a convolution (forward, gradient to the images, gradient to the kernel) are each written as plain forward
convolutions or matrix products, and on a CPU `vmap` over weights visits the clients one at a time. The maps are each other's
derivatives, because all are partial derivatives of the trilinear form <cotangent, convolution(images, kernel)>, so any order of
reverse-mode derivative stays in this form.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from mosaic_jax.config import ConfigError

LOWERINGS = ("auto", "grouped", "map")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_lowering = "auto"


def set_lowering(name: str) -> None:
    """Choose how convolutions are lowered from now on (config field `mapping.convolution`); compiled functions keep theirs.

    grouped: plain `lax.conv_general_dilated`, whose vmap over kernels is a grouped convolution. map: the forms of this module, one
    client after another. auto: map on a CPU, grouped elsewhere, decided when a function is traced. Raises ConfigError for another name.
    """
    global _lowering
    if name not in LOWERINGS:
        raise ConfigError(f"mapping.convolution = {name!r} is unknown; choose one of {', '.join(LOWERINGS)}")
    _lowering = name


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """`set_lowering(name)` for the functions traced inside a `with` block."""
    before = _lowering
    set_lowering(name)
    try:
        yield
    finally:
        set_lowering(before)


def conv2d(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Convolve images with a kernel, as torch.nn.functional.conv2d does.

    out[n, y, x, o] = sum_{i, j, c} images[n, stride y + i - padding, stride x + j - padding, c] kernel[i, j, c, o], zero outside.
    images: float[B, H, W, I]; kernel: float[k, k, I, O] of the same dtype (a torch weight [O, I, k, k] transposed by (2, 3, 1, 0));
    returns float[B, (H + 2 padding - k) // stride + 1, same of W, O]. Raises ValueError for shapes that do not fit.
    """
    size = _square(images, kernel)
    height, width = images.shape[1:3]
    if min(height, width) + 2 * padding < size:
        raise ValueError(f"conv2d: a kernel of {size} is larger than images of {height}x{width} padded by {padding}")
    if _use_grouped():
        return _plain_forward(images, kernel, stride, padding)
    return _maps(_Geometry(size, stride, padding, height, width)).forward(images, kernel)


def conv2d_transpose(images: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Transposed convolution, as torch.nn.functional.conv_transpose2d does (no output padding).

    out[n, stride y + i - padding, stride x + j - padding, o] += images[n, y, x, c] kernel[i, j, c, o]: every input pixel stamps the
    kernel, not flipped, on the output. images: float[B, H, W, I]; kernel: float[k, k, I, O] of the same dtype (a torch weight
    [I, O, k, k] transposed by (2, 3, 0, 1)); returns float[B, (H - 1) stride - 2 padding + k, same of W, O].
    Raises ValueError for shapes that do not fit.
    """
    size = _square(images, kernel)
    height, width = ((length - 1) * stride - 2 * padding + size for length in images.shape[1:3])
    if min(height, width) < 1:
        raise ValueError(f"conv2d_transpose: padding {padding} leaves nothing of a kernel of {size} on images {images.shape}")
    backward_kernel = kernel.swapaxes(2, 3)
    if _use_grouped():
        return _plain_images(images, backward_kernel, stride, padding)
    return _maps(_Geometry(size, stride, padding, height, width)).to_images(images, backward_kernel)


def _square(images: jax.Array, kernel: jax.Array) -> int:
    if images.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or images.shape[3] != kernel.shape[2]:
        raise ValueError(f"convolution needs images [B, H, W, I] and a kernel [k, k, I, O], not {images.shape} and {kernel.shape}")
    return kernel.shape[0]


def _use_grouped() -> bool:
    return _lowering == "grouped" or (_lowering == "auto" and jax.default_backend() != "cpu")


def _plain_forward(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS)


def _plain_images(outputs: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    edge = kernel.shape[0] - 1 - padding
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(
        outputs, flipped, (1, 1), [(edge, edge)] * 2, lhs_dilation=(stride, stride), dimension_numbers=_DIMENSIONS
    )


class _Geometry(NamedTuple):
    """A convolution's static sizes; height and width are those of its (larger) input images."""

    size: int
    stride: int
    padding: int
    height: int
    width: int

    def output(self, length: int) -> int:
        return (length + 2 * self.padding - self.size) // self.stride + 1

    @property
    def is_patches(self) -> bool:
        """Whether the patches neither overlap nor leave gaps at the front: a matrix product."""
        return self.padding == 0 and (self.stride >= self.size or self.height == self.width == self.size)


class _Maps(NamedTuple):
    """The three bilinear maps; x images [B, H, W, I], k kernel [k, k, I, O], g outputs or cotangents [B, H', W', O]."""

    forward: Callable[[jax.Array, jax.Array], jax.Array]  # x, k -> g
    to_images: Callable[[jax.Array, jax.Array], jax.Array]  # g, k -> x
    to_kernel: Callable[[jax.Array, jax.Array], jax.Array]  # x, g -> k


@functools.cache
def _maps(geometry: _Geometry) -> _Maps:
    if geometry.is_patches:
        functions = (_patches_forward, _patches_images, _patches_kernel)
    else:
        functions = (_forward, _images, _kernel)
    forward, to_images, to_kernel = (functools.partial(function, geometry) for function in functions)
    mapped = _Maps(
        _over_clients(forward, foldable=True), _over_clients(to_images, foldable=True), _over_clients(to_kernel, foldable=False)
    )
    f, gx, gk = jax.custom_vjp(mapped.forward), jax.custom_vjp(mapped.to_images), jax.custom_vjp(mapped.to_kernel)
    f.defvjp(lambda x, k: (f(x, k), (x, k)), lambda saved, g: (gx(g, saved[1]), gk(saved[0], g)))
    gx.defvjp(lambda g, k: (gx(g, k), (g, k)), lambda saved, x: (f(x, saved[1]), gk(x, saved[0])))
    gk.defvjp(lambda x, g: (gk(x, g), (x, g)), lambda saved, k: (gx(saved[1], k), f(saved[0], k)))
    return _Maps(f, gx, gk)


def _over_clients(function: Callable[[jax.Array, jax.Array], jax.Array], foldable: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`function` whose vmap visits clients one at a time; images alone (foldable) become a larger batch."""
    function_ = custom_vmap(function)

    @function_.def_vmap
    def rule(axis_size: int, in_batched: list[bool], left: jax.Array, right: jax.Array) -> tuple[jax.Array, bool]:
        if foldable and not in_batched[1]:
            out = function_(left.reshape(-1, *left.shape[2:]), right)
            return out.reshape(axis_size, -1, *out.shape[1:]), True
        if all(in_batched):
            return lax.map(lambda pair: function_(*pair), (left, right)), True
        if in_batched[0]:
            return lax.map(lambda one: function_(one, right), left), True
        return lax.map(lambda one: function_(left, one), right), True

    return function_


def _forward(geometry: _Geometry, x: jax.Array, k: jax.Array) -> jax.Array:
    return _plain_forward(x, k, geometry.stride, geometry.padding)


def _images(geometry: _Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    """Sub-pixel form: the pixels with the same remainder modulo the stride are one convolution with every stride-th tap."""
    stride = geometry.stride
    k = lax.optimization_barrier(k[::-1, ::-1].swapaxes(2, 3))
    lengths = [-(-length // stride) for length in (geometry.height, geometry.width)]
    rows = []
    for row in range(stride):
        phases = []
        for column in range(stride):
            taps, pads = [], []
            for phase, length, cotangents in zip((row, column), lengths, g.shape[1:3], strict=True):
                shift, first = divmod(phase + geometry.padding, stride)
                count = len(range(first, geometry.size, stride))
                # Taps first, first + stride, ... in the flipped kernel, where tap t stands at size - 1 - t.
                taps.append(slice((geometry.size - 1 - first) % stride, geometry.size - first, stride))
                low = count - 1 - shift
                pads.append((low, length + count - 1 - low - cotangents))
            sub = lax.optimization_barrier(k[taps[0], taps[1]])
            if 0 in sub.shape:
                phases.append(jnp.zeros((g.shape[0], *lengths, sub.shape[3]), g.dtype))
            else:
                phases.append(_conv(g, sub, pads))
        rows.append(jnp.stack(phases, axis=3))
    x = jnp.stack(rows, axis=2)
    x = x.reshape(g.shape[0], lengths[0] * stride, lengths[1] * stride, -1)
    return x[:, : geometry.height, : geometry.width]


def _conv(x: jax.Array, k: jax.Array, pads: list[tuple[int, int]]) -> jax.Array:
    """Stride-1 convolution whose paddings may be negative (pixels left out)."""
    x = x[:, max(0, -pads[0][0]) : x.shape[1] + min(0, pads[0][1]), max(0, -pads[1][0]) : x.shape[2] + min(0, pads[1][1])]
    pads = [(max(0, low), max(0, high)) for low, high in pads]
    return lax.conv_general_dilated(x, k, (1, 1), pads, dimension_numbers=_DIMENSIONS)


def _kernel(geometry: _Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """Batch and channels exchanged: the cotangents, dilated by the stride, are the kernel that meets the images."""
    stride, padding = geometry.stride, geometry.padding
    x = lax.optimization_barrier(x.transpose(3, 1, 2, 0))
    g = lax.optimization_barrier(g.transpose(1, 2, 0, 3))
    pads = []
    for length, cotangents in zip((geometry.height, geometry.width), g.shape[:2], strict=True):
        pads.append((padding, geometry.size + (cotangents - 1) * stride - length - padding))
    x = x[:, : geometry.height + min(0, pads[0][1]), : geometry.width + min(0, pads[1][1])]
    pads = [(low, max(0, high)) for low, high in pads]
    k = lax.conv_general_dilated(x, g, (1, 1), pads, rhs_dilation=(stride, stride), dimension_numbers=_DIMENSIONS)
    return k.transpose(1, 2, 0, 3)


def _patches(geometry: _Geometry, x: jax.Array) -> jax.Array:
    """[B, H, W, I] -> [B, H', W', k k I], patches that do not overlap."""
    size, batch, channels = geometry.size, x.shape[0], x.shape[3]
    rows, columns = geometry.output(geometry.height), geometry.output(geometry.width)
    step = max(size, geometry.stride) if (rows, columns) != (1, 1) else size
    x = jnp.pad(x, ((0, 0), (0, max(0, rows * step - x.shape[1])), (0, max(0, columns * step - x.shape[2])), (0, 0)))
    x = x[:, : rows * step, : columns * step].reshape(batch, rows, step, columns, step, channels)[:, :, :size, :, :size]
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, size * size * channels)


def _patches_forward(geometry: _Geometry, x: jax.Array, k: jax.Array) -> jax.Array:
    return _patches(geometry, x) @ k.reshape(-1, k.shape[3])


def _patches_images(geometry: _Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    batch, rows, columns, _ = g.shape
    size, channels = geometry.size, k.shape[2]
    step = max(size, geometry.stride) if (rows, columns) != (1, 1) else size
    x = (g @ k.reshape(-1, k.shape[3]).T).reshape(batch, rows, columns, size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, step - size), (0, 0), (0, step - size), (0, 0)))
    x = x.reshape(batch, rows * step, columns * step, channels)[:, : geometry.height, : geometry.width]
    return jnp.pad(x, ((0, 0), (0, geometry.height - x.shape[1]), (0, geometry.width - x.shape[2]), (0, 0)))


def _patches_kernel(geometry: _Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    k = jnp.einsum("bhwi,bhwo->io", _patches(geometry, x), g)
    return k.reshape(geometry.size, geometry.size, -1, g.shape[3])
