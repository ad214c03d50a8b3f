"""Convolutions that stay fast when every client has its own weights.

Under `vmap` a convolution over per-client weights becomes a grouped convolution, and inside `scan` or `lax.map` XLA's CPU backend
runs the gradients that autodiff writes in naive loops: both are ten to three hundred times slower than one plain convolution. Here
the three bilinear maps of a convolution (forward, gradient to the images, gradient to the kernel) are each written as plain forward
convolutions or matrix products, and on a CPU `vmap` over weights visits the clients one at a time. The maps are each other's
derivatives, because all are partial derivatives of the trilinear form <cotangent, convolution(images, kernel)>, so any order of
reverse-mode derivative stays in this form. On a CPU with a C++ compiler the maps are our own kernels (ops/native), which are faster
still; on a GPU one client's maps are XLA's and those over stacked weights our own kernels (ops/stacked, ops/hopper) or cuDNN's.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from mosaic_jax.ops import canonical, hopper, native, plain, stacked
from mosaic_jax.ops.gpu_kernels import stacked_alike
from mosaic_jax.ops.lowering import is_shared, lowering_of
from mosaic_jax.ops.normalization import scale_shift

_Map = Callable[[jax.Array, jax.Array], jax.Array]


def conv2d(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Convolve images with a kernel, as torch.nn.functional.conv2d does.

    out[n, y, x, o] = sum_{i, j, c} images[n, stride y + i - padding, stride x + j - padding, c] kernel[i, j, c, o], zero outside.
    images: float[B, H, W, I]; kernel: float[k, k, I, O] of the same dtype (a torch weight [O, I, k, k] transposed by (2, 3, 1, 0));
    returns float[B, (H + 2 padding - k) // stride + 1, same of W, O]. Raises ValueError for shapes that do not fit.
    """
    return _maps_of(_geometry(images, kernel, stride, padding), images.dtype).forward(images, kernel)


def conv2d_affine(
    images: jax.Array, kernel: jax.Array, factor: jax.Array, offset: jax.Array, residual: jax.Array | None = None, *,
    stride: int = 1, padding: int = 0, relu: bool = False,
) -> jax.Array:  # fmt: skip
    """A convolution and what BatchNorm with fixed statistics, a shortcut and a ReLU make of it, on a CPU in one pass.

    conv2d(images, kernel) factor + offset + residual, max(that, 0) if `relu`. images, kernel, stride, padding: as of `conv2d`;
    factor, offset: float[O] of the dtype that they are computed in; residual: like the outputs, or None for 0.
    Raises ValueError for shapes that do not fit.
    """
    geometry = _geometry(images, kernel, stride, padding)
    if lowering_of(images.dtype, factor.dtype, offset.dtype) == "native" and not geometry.is_patches:
        return _native_affine(geometry, is_shared(), relu)(images, kernel * factor, offset, residual)
    outputs = _maps_of(geometry, images.dtype).forward(images, kernel)
    if residual is None:
        return scale_shift(outputs, factor, offset, relu)
    outputs = scale_shift(outputs, factor, offset) + residual
    return jax.nn.relu(outputs) if relu else outputs


def conv2d_transpose(images: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Transposed convolution, as torch.nn.functional.conv_transpose2d does (no output padding).

    out[n, stride y + i - padding, stride x + j - padding, o] += images[n, y, x, c] kernel[i, j, c, o]: every input pixel stamps the
    kernel, not flipped, on the output. images: float[B, H, W, I]; kernel: float[k, k, I, O] of the same dtype (a torch weight
    [I, O, k, k] transposed by (2, 3, 0, 1)); returns float[B, (H - 1) stride - 2 padding + k, same of W, O].
    Raises ValueError for shapes that do not fit.
    """
    size = _square(images, kernel, padding)
    height, width = ((length - 1) * stride - 2 * padding + size for length in images.shape[1:3])
    if min(height, width) < 1:
        raise ValueError(f"conv2d_transpose: padding {padding} leaves nothing of a kernel of {size} on images {images.shape}")
    backward_kernel = kernel.swapaxes(2, 3)
    return _maps_of(canonical.Geometry(size, stride, padding, height, width), images.dtype).to_images(images, backward_kernel)


def _geometry(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> canonical.Geometry:
    size = _square(images, kernel, padding)
    height, width = images.shape[1:3]
    if min(height, width) + 2 * padding < size:
        raise ValueError(f"conv2d: a kernel of {size} is larger than images of {height}x{width} padded by {padding}")
    return canonical.Geometry(size, stride, padding, height, width)


def _square(images: jax.Array, kernel: jax.Array, padding: int) -> int:
    if images.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or images.shape[3] != kernel.shape[2]:
        raise ValueError(f"convolution needs images [B, H, W, I] and a kernel [k, k, I, O], not {images.shape} and {kernel.shape}")
    if 0 in images.shape or 0 in kernel.shape:
        raise ValueError(f"convolution needs at least one of everything, not images {images.shape} and a kernel {kernel.shape}")
    if not 0 <= padding < kernel.shape[0]:
        raise ValueError(f"convolution: padding {padding} must be 0 to {kernel.shape[0] - 1}, less than the kernel")
    if images.dtype != kernel.dtype:
        raise ValueError(f"convolution needs images and a kernel of one dtype, not {images.dtype} and {kernel.dtype}")
    return kernel.shape[0]


class _Maps(NamedTuple):
    """The three bilinear maps; x images [B, H, W, I], k kernel [k, k, I, O], g outputs or cotangents [B, H', W', O]."""

    forward: _Map  # x, k -> g
    to_images: _Map  # g, k -> x
    to_kernel: _Map  # x, g -> k


_OVERLAPPING = (canonical.forward, canonical.to_images, canonical.to_kernel)
_PATCHES = (canonical.patches_forward, canonical.patches_to_images, canonical.patches_to_kernel)
_NATIVE = (native.forward, native.to_images, native.to_kernel)
_PLAIN = (plain.forward, plain.to_images, plain.to_kernel)
_STACKED = {
    "triton": (stacked.forward, stacked.to_images, stacked.to_kernel),
    "mosaic_gpu": (hopper.forward, hopper.to_images, hopper.to_kernel),
}


def _maps_of(geometry: canonical.Geometry, dtype: jnp.dtype) -> _Maps:
    how = lowering_of(dtype)
    if how == "grouped":  # XLA's derivatives and batching of XLA's convolution
        return _Maps(*_set_to(_PLAIN, geometry))
    if how in _STACKED:
        return _Maps(*_set_to(_PATCHES, geometry)) if geometry.is_patches else _maps(_PLAIN, _STACKED[how], geometry)
    if how == "native" and not geometry.is_patches:
        return _maps(_NATIVE, None, geometry, is_shared())
    overlapping = _OVERLAPPING if jax.default_backend() == "cpu" else _PLAIN
    return _maps(_PATCHES if geometry.is_patches else overlapping, None, geometry)


def _set_to(functions: tuple[Callable[..., jax.Array], ...], *settings: canonical.Geometry | bool) -> list[_Map]:
    return [functools.partial(function, *settings) for function in functions]


@functools.cache
def _maps(
    functions: tuple[Callable[..., jax.Array], ...],
    over_clients: tuple[Callable[..., jax.Array], ...] | None,
    *settings: canonical.Geometry | bool,
) -> _Maps:
    """Maps of one client, with what their vmap over weights becomes: functions of stacked arrays, or None for one after another."""
    forward, to_images, to_kernel = _set_to(functions, *settings)
    stacks = _set_to(over_clients, *settings) if over_clients else (None, None, None)
    f = jax.custom_vjp(_over_clients(forward, stacks[0], foldable=True))
    gx = jax.custom_vjp(_over_clients(to_images, stacks[1], foldable=True))
    gk = jax.custom_vjp(_over_clients(to_kernel, stacks[2], foldable=False))
    # A forward rule calls the map itself, not its body, so that the derivative of a derivative finds these rules again.
    f.defvjp(lambda x, k: (f(x, k), (x, k)), lambda saved, g: (gx(g, saved[1]), gk(saved[0], g)))
    gx.defvjp(lambda g, k: (gx(g, k), (g, k)), lambda saved, x: (f(x, saved[1]), gk(x, saved[0])))
    gk.defvjp(lambda x, g: (gk(x, g), (x, g)), lambda saved, k: (gx(saved[1], k), f(saved[0], k)))
    return _Maps(f, gx, gk)


@functools.cache
def _native_affine(geometry: canonical.Geometry, shared: bool, relu: bool) -> Callable[..., jax.Array]:
    """x, k, offset, residual or None -> y, with the derivatives of its plain form."""
    maps = _maps(_NATIVE, None, geometry, shared)

    @jax.custom_vjp
    def affine(x: jax.Array, k: jax.Array, offset: jax.Array, residual: jax.Array | None) -> jax.Array:
        return native.forward_affine(geometry, shared, relu, x, k, offset, residual)

    def forward(x: jax.Array, k: jax.Array, offset: jax.Array, residual: jax.Array | None) -> tuple[jax.Array, tuple]:
        y = affine(x, k, offset, residual)
        return y, (x, k, y if relu else None, None if residual is None else ())

    def backward(saved: tuple, g: jax.Array) -> tuple[jax.Array | None, ...]:
        x, k, y, added = saved
        g = g if y is None else jnp.where(y > 0, g, 0)
        return maps.to_images(g, k), maps.to_kernel(x, g), g.sum((0, 1, 2)), None if added is None else g

    affine.defvjp(forward, backward)
    return affine


def _over_clients(function: _Map, stack: _Map | None, foldable: bool) -> _Map:
    """`function` whose vmap over weights is `stack`, or visits clients one at a time where that is None.

    Images alone (foldable) become a larger batch.
    """
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: list[bool], left: jax.Array, right: jax.Array) -> tuple[jax.Array, bool]:
        if foldable and not in_batched[1]:
            out = mapped(left.reshape(-1, *left.shape[2:]), right)
            return out.reshape(axis_size, -1, *out.shape[1:]), True
        if stack is not None:
            return _over_stacks(stack)(*stacked_alike(axis_size, in_batched, (left, right))), True
        # Calling `mapped` again keeps this rule for a vmap around this one.
        if all(in_batched):
            return lax.map(lambda pair: mapped(*pair), (left, right)), True
        if in_batched[0]:
            return lax.map(lambda one: mapped(one, right), left), True
        return lax.map(lambda one: mapped(left, one), right), True

    return mapped


def _over_stacks(stack: _Map) -> _Map:
    """`stack`, a function of stacked clients, whose vmap makes one stack of several."""
    mapped = custom_vmap(stack)

    @mapped.def_vmap
    def rule(axis_size: int, in_batched: list[bool], left: jax.Array, right: jax.Array) -> tuple[jax.Array, bool]:
        out = mapped(*(x.reshape(-1, *x.shape[2:]) for x in stacked_alike(axis_size, in_batched, (left, right))))
        return out.reshape(axis_size, -1, *out.shape[1:]), True

    return mapped
