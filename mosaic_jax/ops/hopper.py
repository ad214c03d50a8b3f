"""The three bilinear maps of a convolution over stacked weights for Hopper's matrix units (wgmma), in Pallas for Mosaic GPU.

For where Pallas' Triton backend, which ops/stacked is written for, is gone or slower. Letters and shapes as there; bfloat16 and
float16 only, sums are float32. A tile of the result is a sum of products of two tiles that the copy engine fetches. It can begin a
tile only at every eighth row of a matrix, so every tap that would have it begin elsewhere has its own shifted copy of the images.

Never run on a GPU so far: interpreted, and lowered for one, by tests. ops/lowering takes it only where io/stacked_choice has
measured it on the device at hand and found its numbers right.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mosaic_jax.ops import canonical, stacked
from mosaic_jax.ops.canonical import Geometry
from mosaic_jax.ops.gpu_kernels import compute_capability

try:
    from jax.experimental.pallas import mosaic_gpu
except ImportError:
    mosaic_gpu = None

DEPTH = 64  # channels or pixels summed over in one product: as many 16-bit numbers as the widest swizzle has
ROWS = 8  # of a matrix, at a multiple of which the copy engine can begin a tile
PIXELS = 128  # of one tile of outputs
STAGES = 4  # tiles on their way at once


def complaint(dtype: jnp.dtype | None = None) -> str:
    """Why these kernels cannot run on the GPU that JAX uses, or on arrays of this dtype; empty where they can."""
    if mosaic_gpu is None:
        return "this JAX has no Mosaic GPU"
    if compute_capability() != 9:
        return "is for NVIDIA's Hopper"  # whose wgmma no other GPU has
    return "is for 16-bit numbers" if dtype is not None and not takes(dtype) else ""


def takes(dtype: jnp.dtype) -> bool:
    """Whether these kernels are for arrays of this dtype."""
    return jnp.dtype(dtype).itemsize == 2


def forward(geometry: Geometry, x: jax.Array, k: jax.Array) -> jax.Array:
    """x, k -> g."""
    if stacked.is_gathered(geometry, x):
        return forward(stacked.pointwise(geometry), stacked.gathered(geometry, x), stacked.flat(k))
    return _convolution(x, k, geometry.stride, [(geometry.padding,) * 2] * 2)


def to_images(geometry: Geometry, g: jax.Array, k: jax.Array) -> jax.Array:
    """g, k -> x."""
    return canonical.to_images_by(_convolution, geometry, g, k)


def to_kernel(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """x, g -> k."""
    if stacked.is_gathered(geometry, x):
        k = to_kernel(stacked.pointwise(geometry), stacked.gathered(geometry, x), g)
        return stacked.unflat(k, geometry.size, x.shape[-1])
    size, inputs, outputs = geometry.size, x.shape[4], g.shape[4]
    clients, batch, height, width = g.shape[:4]
    tall = _tall(size, geometry.stride, height, width)
    edge = (geometry.padding,) * 2
    x = jnp.pad(x, ((0, 0), (0, 0), edge, edge, (0, 0)))
    products = pl.cdiv(batch * tall * width, DEPTH)
    tiles = pl.cdiv(outputs, DEPTH)
    parts = max(min(pl.cdiv(stacked.PROGRAMS, size**2 * tiles * pl.cdiv(inputs, DEPTH) * clients), products // 4), 1)
    steps = pl.cdiv(products, parts)
    shifts = _shifts(x, (size, size), geometry.stride, (height, width), parts * steps * DEPTH)
    g = jnp.pad(g, ((0, 0), (0, 0), (0, tall - height), (0, 0), (0, -outputs % DEPTH)))
    g = _filled(g.reshape(clients, -1, g.shape[4]), parts * steps * DEPTH)

    def of_cotangents(tile: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lax.rem(tile, tiles) * DEPTH, lax.div(tile, tiles * size**2) * steps + step

    def of_images(tile: jax.Array, step: jax.Array) -> jax.Array:
        return shifts.start(lax.rem(lax.div(tile, tiles), size**2)) + (lax.div(tile, tiles * size**2) * steps + step) * DEPTH

    all_tiles = parts * size**2 * tiles
    k = _product(g.swapaxes(1, 2), shifts.rows, jnp.dtype(jnp.float32), DEPTH, all_tiles, steps, of_cotangents, of_images)
    k = k.reshape(clients, parts, size, size, tiles * DEPTH, -1).sum(1)
    return k[..., :outputs, :inputs].swapaxes(3, 4).astype(x.dtype)


class _Shifts(NamedTuple):
    """Shifted copies of each client's images, one below the other, in which the pixels that a tap meets are neighbouring rows.

    rows: [C, N, channels]; start: the first row of a tap, a multiple of ROWS.
    """

    rows: jax.Array
    start: Callable[[jax.Array], jax.Array]


def _shifts(x: jax.Array, taps: tuple[int, int], stride: int, output: tuple[int, int], least: int) -> _Shifts:
    """Copies of padded images [C, B, H, W, I] for taps (size, size') and outputs (H', W'); least: rows read from a start."""
    (height, width), (down, across) = output, taps
    tall = _tall(down, stride, height, width)
    shares = _is_shared(width)
    lines = range(min(stride, down) if shares else down)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, stride), (0, 0), (0, -x.shape[4] % DEPTH)))
    ends = (tall - 1) * stride + 1, (width - 1) * stride + 1
    copies = [x[:, :, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in lines for j in range(across)]
    length = _up(x.shape[1] * tall * width, ROWS)
    copies = [_filled(copy.reshape(x.shape[0], -1, x.shape[4]), length) for copy in copies]
    furthest = (tall - height) * width
    rows = _filled(jnp.concatenate(copies, axis=1), (len(copies) - 1) * length + furthest + max(least, length))

    def start(tap: jax.Array) -> jax.Array:
        i, j = lax.div(tap, across), lax.rem(tap, across)
        phase, below = (lax.rem(i, stride), lax.div(i, stride)) if shares else (i, 0)
        return (phase * across + j) * length + below * width

    return _Shifts(rows, start)


def _is_shared(width: int) -> bool:
    """Whether taps of one column and one phase share a copy: they begin whole rows of pixels apart."""
    return width % ROWS == 0


def _tall(size: int, stride: int, height: int, width: int) -> int:
    """Rows of pixels that each image has in a copy: those of outputs, below them those that lower taps reach."""
    return height + ((size - 1) // stride if _is_shared(width) else 0)


def _convolution(x: jax.Array, k: jax.Array, stride: int, pads: list[tuple[int, int]]) -> jax.Array:
    """Images [C, B, H, W, I] and kernels [C, size, size', I, O] -> [C, B, H', W', O]; pads: (before, after) of both axes."""
    batch, (clients, down, across, _, outputs) = x.shape[1], k.shape
    x = jnp.pad(x, ((0, 0), (0, 0), *pads, (0, 0)))
    height, width = ((length - size) // stride + 1 for length, size in zip(x.shape[2:4], (down, across), strict=True))
    tall = _tall(down, stride, height, width)
    pixels = batch * tall * width
    shifts = _shifts(x, (down, across), stride, (height, width), _up(pixels, PIXELS))
    inputs = shifts.rows.shape[2]
    k = jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, inputs - k.shape[3]), (0, -outputs % DEPTH)))
    k = k.reshape(clients, down * across * inputs, -1)
    steps = inputs // DEPTH

    def of_images(tile: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return shifts.start(lax.div(step, steps)) + tile * PIXELS, lax.rem(step, steps)

    of_kernel = lambda _, step: step * DEPTH  # noqa: E731
    g = _product(shifts.rows, k, x.dtype, PIXELS, pl.cdiv(pixels, PIXELS), down * across * steps, of_images, of_kernel)
    return g[:, :pixels, :outputs].reshape(clients, batch, tall, width, outputs)[:, :, :height]


def _product(
    a: jax.Array, b: jax.Array, dtype: jnp.dtype, tall: int, tiles: int, steps: int,
    of_a: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]], of_b: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:  # fmt: skip
    """a [C, M, K], b [C, K', N] -> [C, tiles tall, N]: every client's tiles, each a sum over steps of a tile of a by one of b.

    of_a, of_b: tile, step -> the first row of what is multiplied there; of_a also which DEPTH columns.
    """
    names = "client", "tile", "column"
    wide = 2 * DEPTH if b.shape[2] % (2 * DEPTH) == 0 else DEPTH

    def transforms(dtype: jnp.dtype) -> tuple:
        row = 128 // dtype.itemsize
        return mosaic_gpu.TilingTransform((ROWS, row)), mosaic_gpu.SwizzleTransform(128)

    def kernel(a_ref: jax.Ref, b_ref: jax.Ref, out_ref: jax.Ref) -> None:
        client, tile, column = (lax.axis_index(name) for name in names)

        def summed(total: jax.Ref) -> jax.Array:
            def add(_: tuple[jax.Array, ...], a_tile: jax.Ref, b_tile: jax.Ref) -> None:
                mosaic_gpu.wgmma(total, a_tile, b_tile)
                mosaic_gpu.wgmma_wait(1)  # of the product before: its tiles may be overwritten, as delay_release says

            blocks = [
                mosaic_gpu.BlockSpec(shape, place, transforms=transforms(a.dtype), delay_release=1)
                for shape, place in (
                    ((pl.Element(tall), pl.Blocked(DEPTH)), lambda step: of_a(tile, step)),
                    ((pl.Element(DEPTH), pl.Blocked(wide)), lambda step: (of_b(tile, step), column)),
                )
            ]
            stages = max(min(STAGES, steps), 2)
            pipeline = mosaic_gpu.emit_pipeline(add, grid=(steps,), in_specs=blocks, max_concurrent_steps=stages)
            pipeline(a_ref.at[client], b_ref.at[client])
            return total[...]

        numbers = pl.run_scoped(summed, mosaic_gpu.ACC((tall, wide), jnp.float32))

        def write(out: jax.Ref) -> None:
            out[...] = numbers.astype(dtype)
            mosaic_gpu.commit_smem()
            mosaic_gpu.copy_smem_to_gmem(out, out_ref.at[client, pl.ds(tile * tall, tall), pl.ds(column * wide, wide)])
            mosaic_gpu.wait_smem_to_gmem(0)

        pl.run_scoped(write, mosaic_gpu.SMEM((tall, wide), dtype, transforms=transforms(dtype)))

    return mosaic_gpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((b.shape[0], tiles * tall, b.shape[2]), dtype),
        grid=(b.shape[0], tiles, b.shape[2] // wide),
        grid_names=names,
        compiler_params=mosaic_gpu.CompilerParams(lowering_semantics=mosaic_gpu.LoweringSemantics.Warpgroup),
    )(a, b)


def _up(number: int, step: int) -> int:
    """The next multiple of `step`."""
    return pl.cdiv(number, step) * step


def _filled(rows: jax.Array, length: int) -> jax.Array:
    """Rows of zeros below matrices [C, N, channels], up to `length`."""
    return jnp.pad(rows, ((0, 0), (0, length - rows.shape[1]), (0, 0)))
