"""The three bilinear maps of a convolution over stacked weights, as matrix products on a GPU that read their patches in place.

cuDNN's grouped convolution over the weights of ten clients runs at an eighth to two thirds of the speed of one plain convolution
on as many images, and one client's images do not fill the GPU. Here every client has its own tiles of one launch, in Pallas for
Triton: a tile of the result is a sum over taps and channels of small matrix products, whose factors are gathered where they lie.
Letters as in ops/canonical, each with a leading axis of clients: x [C, B, H, W, I], k [C, size, size, I, O], g [C, B, H', W', O].
Sums are float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mosaic_jax.ops.canonical import Geometry
from mosaic_jax.ops.gpu_kernels import call, in_parts, load, store, tile, triton

# Tiles and warps measured on an H200 in bf16, ResNet-18 of width 64, ten clients x 64 images: 280 to 480 TFLOP/s for each map.
PIXELS = 128  # of one tile of g or x
PROGRAMS = 720  # that the gradient to a kernel is cut into at least, where it has pixels enough
FEW_CHANNELS = 16  # fewer are gathered with their patch beforehand: a tile would be mostly padding


def forward(geometry: Geometry, x: jax.Array, k: jax.Array) -> jax.Array:
    """x, k -> g."""
    if is_gathered(geometry, x):
        return forward(pointwise(geometry), gathered(geometry, x), flat(k))
    numbers = x.shape[1] * geometry.output(geometry.height) * geometry.output(geometry.width) * k.shape[-1]
    return in_parts(functools.partial(_forward, geometry), numbers, x, k)


def to_images(geometry: Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    """g, k -> x."""
    return in_parts(functools.partial(_to_images, geometry), g.shape[1] * geometry.height * geometry.width * k.shape[-2], g, k)


def to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """x, g -> k."""
    channels = x.shape[-1]
    if is_gathered(geometry, x):
        return unflat(to_kernel(pointwise(geometry), gathered(geometry, x), g), geometry.size, channels)
    return in_parts(functools.partial(_to_kernel, geometry), geometry.size**2 * channels * g.shape[-1], x, g)


def _forward(geometry: Geometry, x: jax.Array, k: jax.Array) -> jax.Array:
    clients, batch, height, width, inputs = x.shape
    size, stride, outputs = geometry.size, geometry.stride, k.shape[-1]
    rows, columns = geometry.output(height), geometry.output(width)
    pixels = batch * rows * columns
    block, depth = tile(outputs), _depth(inputs, x.dtype)
    steps = pl.cdiv(inputs, depth)

    def kernel(x_ref: jax.Ref, k_ref: jax.Ref, g_ref: jax.Ref) -> None:
        client = pl.program_id(2)
        pixel = pl.program_id(0) * PIXELS + jnp.arange(PIXELS)
        channel = pl.program_id(1) * block + jnp.arange(block)
        image, place = lax.div(pixel, rows * columns), lax.rem(pixel, rows * columns)
        top = lax.div(place, columns) * stride - geometry.padding
        left = lax.rem(place, columns) * stride - geometry.padding

        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            tap, own = lax.div(step, steps), lax.rem(step, steps) * depth + jnp.arange(depth)
            y, x = top + lax.div(tap, size), left + lax.rem(tap, size)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (pixel < pixels)
            row = ((client * batch + image) * height + y) * width + x
            patch = load(x_ref, row, own, inside, own < inputs)
            weights = load(k_ref, (client * size**2 + tap) * inputs + own, channel, own < inputs, channel < outputs)
            return total + triton.dot(patch, weights)

        total = lax.fori_loop(0, size**2 * steps, add, jnp.zeros((PIXELS, block), jnp.float32))
        store(g_ref, client * pixels + pixel, channel, pixel < pixels, channel < outputs, total)

    grid = (pl.cdiv(pixels, PIXELS), pl.cdiv(outputs, block), clients)
    g = _product(kernel, (clients * pixels, outputs), x.dtype, grid, block, x, k)
    return g.reshape(clients, batch, rows, columns, outputs)


def _to_images(geometry: Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    """Pixels of x of one remainder modulo the stride (a phase) meet every stride-th tap, so that no product is with a zero."""
    clients, batch, rows, columns, outputs = g.shape
    size, stride, inputs = geometry.size, geometry.stride, k.shape[3]
    height, width = geometry.height, geometry.width
    high, wide = pl.cdiv(height, stride), pl.cdiv(width, stride)
    pixels = batch * high * wide  # of the largest phase
    block, depth = tile(inputs), _depth(outputs, g.dtype)
    steps = pl.cdiv(outputs, depth)

    def kernel(g_ref: jax.Ref, k_ref: jax.Ref, x_ref: jax.Ref) -> None:
        client, phase = pl.program_id(2), lax.rem(pl.program_id(0), stride**2)
        pixel = lax.div(pl.program_id(0), stride**2) * PIXELS + jnp.arange(PIXELS)
        channel = pl.program_id(1) * block + jnp.arange(block)
        image, place = lax.div(pixel, high * wide), lax.rem(pixel, high * wide)
        down, right = lax.div(phase, stride), lax.rem(phase, stride)
        y, x = lax.div(place, wide) * stride + down, lax.rem(place, wide) * stride + right
        first_down, first_right = lax.rem(down + geometry.padding, stride), lax.rem(right + geometry.padding, stride)
        bottom, end = (lax.div(at + geometry.padding - first, stride) for at, first in ((y, first_down), (x, first_right)))
        # Taps first, first + stride, ...; their number is fixed where all phases have as many.
        downs, rights = (
            size // stride if size % stride == 0 else lax.div(size - first + stride - 1, stride)
            for first in (first_down, first_right)
        )

        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            tap, own = lax.div(step, steps), lax.rem(step, steps) * depth + jnp.arange(depth)
            i, j = lax.div(tap, rights), lax.rem(tap, rights)
            row, column = bottom - i, end - j
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns) & (pixel < pixels)
            cotangents = load(g_ref, ((client * batch + image) * rows + row) * columns + column, own, inside, own < outputs)
            tap = (first_down + i * stride) * size + first_right + j * stride
            weights = load(k_ref, (client * size**2 + tap) * inputs + channel, own, channel < inputs, own < outputs)
            return total + triton.dot(cotangents, weights, trans_b=True)

        total = lax.fori_loop(0, downs * rights * steps, add, jnp.zeros((PIXELS, block), jnp.float32))
        real = (pixel < pixels) & (y < height) & (x < width)
        store(x_ref, ((client * batch + image) * height + y) * width + x, channel, real, channel < inputs, total)

    grid = (pl.cdiv(pixels, PIXELS) * stride**2, pl.cdiv(inputs, block), clients)
    x = _product(kernel, (clients * batch * height * width, inputs), g.dtype, grid, block, g, k)
    return x.reshape(clients, batch, height, width, inputs)


def _to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    clients, batch, height, width, inputs = x.shape
    size, stride = geometry.size, geometry.stride
    rows, columns, outputs = g.shape[2:]
    pixels = batch * rows * columns
    tall, block, depth = tile(inputs), tile(outputs), _depth(pixels, x.dtype)
    tiles = pl.cdiv(inputs, tall) * pl.cdiv(outputs, block)
    parts = max(min(pl.cdiv(PROGRAMS, size**2 * tiles * clients), pixels // (4 * depth)), 1)
    steps = pl.cdiv(pixels, parts * depth)

    def kernel(x_ref: jax.Ref, g_ref: jax.Ref, k_ref: jax.Ref) -> None:
        client, part = pl.program_id(2), pl.program_id(1)
        tap, piece = lax.div(pl.program_id(0), tiles), lax.rem(pl.program_id(0), tiles)
        channel = lax.div(piece, pl.cdiv(outputs, block)) * tall + jnp.arange(tall)
        output = lax.rem(piece, pl.cdiv(outputs, block)) * block + jnp.arange(block)

        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            pixel = (part * steps + step) * depth + jnp.arange(depth)
            image, place = lax.div(pixel, rows * columns), lax.rem(pixel, rows * columns)
            y = lax.div(place, columns) * stride - geometry.padding + lax.div(tap, size)
            x = lax.rem(place, columns) * stride - geometry.padding + lax.rem(tap, size)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (pixel < pixels)
            patch = load(x_ref, ((client * batch + image) * height + y) * width + x, channel, inside, channel < inputs)
            cotangents = load(g_ref, client * pixels + pixel, output, pixel < pixels, output < outputs)
            return total + triton.dot(patch, cotangents, trans_a=True)

        total = lax.fori_loop(0, steps, add, jnp.zeros((tall, block), jnp.float32))
        row = ((part * clients + client) * size**2 + tap) * inputs + channel
        store(k_ref, row, output, channel < inputs, output < outputs, total)

    shape = (parts * clients * size**2 * inputs, outputs)
    k = _product(kernel, shape, x.dtype if parts == 1 else jnp.float32, (size**2 * tiles, parts, clients), min(tall, block), x, g)
    return k.reshape(parts, clients, size, size, inputs, outputs).sum(0).astype(x.dtype)


def _product(
    kernel: Callable[..., None], shape: tuple[int, int], dtype: jnp.dtype, grid: tuple[int, ...], block: int, *arrays: jax.Array
) -> jax.Array:
    """The kernel of matrix products in blocks of at least `block` channels -> a matrix."""
    return call(kernel, jax.ShapeDtypeStruct(shape, dtype), grid, 8 if block >= 64 else 4, *arrays)


def _depth(length: int, dtype: jnp.dtype) -> int:
    """Channels or pixels summed over in one product: 128 bytes of them."""
    return max(16, min(128 // dtype.itemsize, pl.next_power_of_2(length)))


def is_gathered(geometry: Geometry, x: jax.Array) -> bool:
    """Whether patches of so few channels are gathered beforehand."""
    return x.shape[-1] < FEW_CHANNELS and geometry.size > 1


def pointwise(geometry: Geometry) -> Geometry:
    """The convolution that is left when the patches are gathered."""
    return Geometry(1, 1, 0, geometry.output(geometry.height), geometry.output(geometry.width))


def gathered(geometry: Geometry, x: jax.Array) -> jax.Array:
    """[C, B, H, W, I] -> [C, B, H', W', size size I], filled with zeros to a multiple of 16."""
    edge, stride = (geometry.padding,) * 2, geometry.stride
    x = jnp.pad(x, ((0, 0), (0, 0), edge, edge, (0, 0)))
    ends = [(geometry.output(length) - 1) * stride + 1 for length in (geometry.height, geometry.width)]
    taps = [x[:, :, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(geometry.size) for j in range(geometry.size)]
    missing = -len(taps) * x.shape[-1] % 16
    taps.append(jnp.zeros((*taps[0].shape[:-1], missing), x.dtype))
    return jnp.concatenate(taps, axis=-1)


def flat(k: jax.Array) -> jax.Array:
    """The kernel that meets `gathered` images."""
    clients, size, _, inputs, outputs = k.shape
    k = k.reshape(clients, 1, 1, size * size * inputs, outputs)
    return jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, -size * size * inputs % 16), (0, 0)))


def unflat(k: jax.Array, size: int, channels: int) -> jax.Array:
    """The kernel that `flat` made the argument of."""
    return k[:, :, :, : size**2 * channels].reshape(-1, size, size, channels, k.shape[-1])
