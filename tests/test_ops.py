"""Convolutions over stacked weights and BatchNorm, against lax, NumPy and their own loops."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core import Jaxpr
from jax.test_util import check_grads

from mosaic_jax.config import ConfigError
from mosaic_jax.ops import batch_norm_train, canonical, conv2d, conv2d_transpose, lowering

# (kernel size, stride, padding, image size) of the ResNets, the DCGAN discriminator and odd sizes.
CONVOLUTIONS = [(3, 1, 1, 6), (3, 2, 1, 8), (3, 2, 1, 7), (1, 1, 0, 5), (1, 2, 0, 8), (1, 2, 0, 7), (4, 2, 1, 8), (2, 2, 0, 2)]
# (kernel size, stride, padding, image size) of the DCGAN generator.
TRANSPOSED = [(4, 1, 0, 1), (4, 2, 1, 4), (1, 1, 0, 5)]


@pytest.fixture(autouse=True)
def _map_and_strict_dtypes() -> Iterator[None]:
    # Nearly all of this file's time is compilation, which LLVM's optimisations make three times longer.
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with lowering("map"), jax.numpy_dtype_promotion("strict"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def normal(seed: int, *shape: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def reference_conv2d(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def stamped_transpose(images: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """ConvTranspose2d by its definition: each input pixel adds the kernel, as it stands, to the output."""
    batch, height, width, _ = images.shape
    size = kernel.shape[0]
    out = np.zeros((batch, (height - 1) * stride + size, (width - 1) * stride + size, kernel.shape[3]))
    for y in range(height):
        for x in range(width):
            out[:, y * stride : y * stride + size, x * stride : x * stride + size] += np.einsum(
                "bc,ijco->bijo", images[:, y, x], kernel
            )
    return out[:, padding : out.shape[1] - padding, padding : out.shape[2] - padding]


def value_and_gradients(function: Callable[..., jax.Array], images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    out, pullback = jax.vjp(function, images, kernel)
    return out, *pullback(jnp.sin(out + 1))


def assert_close(actual: object, expected: object, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest expected entry, leaf by leaf."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = float(np.max(np.abs(other))) if np.size(other) else 1.0
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize(("size", "stride", "padding", "length"), CONVOLUTIONS)
def test_convolution_and_its_gradients_equal_lax_and_autodiff(size: int, stride: int, padding: int, length: int) -> None:
    images, kernel = normal(0, 3, length, length, 4), normal(1, size, size, 4, 5)
    ours = functools.partial(conv2d, stride=stride, padding=padding)
    plain = functools.partial(reference_conv2d, stride=stride, padding=padding)
    actual = jax.jit(functools.partial(value_and_gradients, ours))(images, kernel)
    assert_close(actual, jax.jit(functools.partial(value_and_gradients, plain))(images, kernel))


# vmap over clients: of nothing, of images and weights, of either alone.
AXES = (None, (0, 0), (0, None), (None, 0))


@given(
    size=st.integers(1, 4), stride=st.integers(1, 3), padding=st.integers(0, 2), height=st.integers(1, 8), width=st.integers(1, 8),
    axes=st.sampled_from(AXES), how=st.sampled_from(("map", "grouped")),
)  # fmt: skip
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_geometry_equals_lax_client_by_client(
    size: int, stride: int, padding: int, height: int, width: int, axes: tuple[int | None, int | None] | None, how: str
) -> None:
    padding = min(padding, size - 1)
    height, width = max(height, size - 2 * padding), max(width, size - 2 * padding)
    images, kernel = normal(0, 3, 2, height, width, 2), normal(1, 3, size, size, 2, 3)
    of_images, of_kernel = axes or (None, None)
    images, kernel = images if of_images == 0 else images[0], kernel if of_kernel == 0 else kernel[0]

    def gradients(convolve: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
        return functools.partial(value_and_gradients, functools.partial(convolve, stride=stride, padding=padding))

    with lowering(how):
        actual = jax.jit(jax.vmap(gradients(conv2d), axes) if axes else gradients(conv2d))(images, kernel)
    of_one = jax.jit(gradients(reference_conv2d))
    if axes is None:
        assert_close(actual, of_one(images, kernel))
        return
    for client in range(3):
        alone = of_one(images[client] if of_images == 0 else images, kernel[client] if of_kernel == 0 else kernel)
        assert_close(tuple(leaf[client] for leaf in actual), alone)


@pytest.mark.parametrize(("batch", "dtype"), [(16, jnp.float32), (21, jnp.float32), (18, jnp.bfloat16)])
def test_gradients_summed_over_groups_of_images_equal_those_of_the_whole_batch(
    batch: int, dtype: jnp.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, kernel = normal(0, batch, 6, 6, 3, dtype=dtype), normal(1, 3, 3, 3, 5, dtype=dtype)
    monkeypatch.setattr(canonical, "GROUP_BYTES", 4 * 8 * 6 * 6 * 5)  # cotangents of eight images
    assert canonical.group_size(batch, 6 * 6 * 5) == 8
    ours = value_and_gradients(functools.partial(conv2d, padding=1), images, kernel)
    assert all(part.dtype == dtype for part in ours)
    theirs = value_and_gradients(lambda x, k: reference_conv2d(x, k, 1, 1), images, kernel)
    as_float = lambda tree: jax.tree.map(lambda part: part.astype(jnp.float32), tree)  # noqa: E731
    assert_close(as_float(ours), as_float(theirs), 1e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize(
    ("inputs", "outputs", "width", "expected"),
    [(3, 16, 32, 4), (3, 64, 32, 1), (3, 10, 32, 4), (16, 16, 32, 2), (16, 16, 31, 1), (8, 8, 18, 2), (8, 8, 8, 1)],
)
def test_few_channels_take_neighbouring_pixels_to_fill_the_lanes(inputs: int, outputs: int, width: int, expected: int) -> None:
    assert canonical.columns(inputs, outputs, width) == expected


@pytest.mark.parametrize(("size", "stride", "padding", "length"), [(3, 1, 1, 16), (3, 2, 1, 32), (4, 2, 1, 32)])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 8), (8, 16), (16, 3)])
def test_widened_convolutions_and_their_gradients_equal_lax(
    size: int, stride: int, padding: int, length: int, inputs: int, outputs: int
) -> None:
    images, kernel = normal(0, 2, length, length, inputs), normal(1, size, size, inputs, outputs)
    assert canonical.columns(inputs, outputs, length // stride) > 1
    ours = value_and_gradients(functools.partial(conv2d, stride=stride, padding=padding), images, kernel)
    assert_close(ours, value_and_gradients(lambda x, k: reference_conv2d(x, k, stride, padding), images, kernel))


@pytest.mark.parametrize(
    ("batch", "numbers", "expected"),
    [
        (64, 32 * 32 * 64, 4),  # five images fit; a multiple of four
        (320, 32 * 32 * 16, 20),
        (64, 32 * 32 * 16, 16),  # four equal groups rather than 20, 20, 20 and 4
        (50, 16 * 16 * 128, 8),
        (50, 16 * 16 * 8, 50),
        (3, 64 * 64 * 64, 3),
        (6, 64 * 64 * 64, 4),
        (16, 10**9, 4),
    ],
)
def test_groups_fit_the_cache_in_multiples_of_four_images(batch: int, numbers: int, expected: int) -> None:
    assert canonical.group_size(batch, numbers) == expected


@pytest.mark.parametrize("name", ["map", "grouped"])
@pytest.mark.parametrize(("size", "stride", "padding", "length"), [*TRANSPOSED, (3, 2, 1, 4), (4, 1, 0, 3)])
def test_transposed_convolution_stamps_the_unflipped_kernel(name: str, size: int, stride: int, padding: int, length: int) -> None:
    images, kernel = normal(0, 2, length, length, 3), normal(1, size, size, 3, 4)
    with lowering(name):
        actual = conv2d_transpose(images, kernel, stride=stride, padding=padding)
    assert_close(actual, stamped_transpose(np.asarray(images), np.asarray(kernel), stride, padding))


@pytest.mark.parametrize(("size", "stride", "padding", "length"), TRANSPOSED)
def test_transposed_convolution_in_both_lowerings_has_the_same_gradients(size: int, stride: int, padding: int, length: int) -> None:
    images, kernel = normal(0, 2, length, length, 3), normal(1, size, size, 3, 4)
    results = []
    for name in ("map", "grouped"):
        function = functools.partial(conv2d_transpose, stride=stride, padding=padding)
        with lowering(name):
            results.append(jax.jit(lambda x, k, f=function: value_and_gradients(f, x, k))(images, kernel))
    assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("transposed", "size", "stride", "padding", "length"),
    [(False, 3, 2, 1, 5), (False, 1, 2, 0, 5), (False, 4, 2, 1, 4), (True, 4, 2, 1, 3), (True, 4, 1, 0, 1)],
)
def test_first_and_second_derivatives_agree_with_finite_differences(
    transposed: bool, size: int, stride: int, padding: int, length: int
) -> None:
    function = conv2d_transpose if transposed else conv2d
    with jax.enable_x64(True):
        images, kernel = normal(0, 2, length, length, 2, dtype=jnp.float64), normal(1, size, size, 2, 2, dtype=jnp.float64)
        smooth = jax.jit(lambda x, k: jnp.sin(function(x, k, stride=stride, padding=padding)))
        check_grads(smooth, (images, kernel), order=2, modes=["rev"])


@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)], ids=["weights", "images", "both"])
@pytest.mark.parametrize(("size", "stride"), [(3, 2), (1, 2)])
def test_vmap_equals_the_loop_over_clients(axes: tuple[int | None, int | None], size: int, stride: int) -> None:
    clients, padding = 3, size // 2
    images, kernel = normal(0, clients, 2, 6, 6, 3), normal(1, clients, size, size, 3, 4)
    images, kernel = (array if axis == 0 else array[0] for array, axis in zip((images, kernel), axes, strict=True))

    def one(x: jax.Array, k: jax.Array) -> tuple[jax.Array, ...]:
        return value_and_gradients(lambda a, b: conv2d(a, b, stride=stride, padding=padding), x, k)

    alone = jax.jit(one)
    loop = [
        alone(*(array[i] if axis == 0 else array for array, axis in zip((images, kernel), axes, strict=True)))
        for i in range(clients)
    ]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    assert_close(jax.jit(jax.vmap(one, axes))(images, kernel), expected)
    with lowering("grouped"):
        assert_close(jax.jit(jax.vmap(one, axes))(images, kernel), expected)


def network_gradient(kernels: tuple[jax.Array, jax.Array, jax.Array], images: jax.Array) -> tuple[jax.Array, ...]:
    """Gradient of a small network with every kind of layer: stride 1, stride 2, transposed."""

    def loss(kernels: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        hidden = jnp.sin(conv2d(images, kernels[0], padding=1))
        hidden = jnp.sin(conv2d(hidden, kernels[1], stride=2, padding=1))
        return jnp.sum(jnp.sin(conv2d_transpose(hidden, kernels[2], stride=2, padding=1)))

    return jax.grad(jax.checkpoint(loss))(kernels)


def stacked_network(*leading: int) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    kernels = (normal(1, *leading, 3, 3, 3, 4), normal(2, *leading, 4, 4, 4, 5), normal(3, *leading, 4, 4, 5, 2))
    return kernels, normal(0, *leading, 2, 8, 8, 3)


@pytest.mark.parametrize("loop", ["scan", "fori_loop", "map"])
def test_gradients_inside_nested_vmaps_inside_loops_equal_plain_calls(loop: str) -> None:
    kernels, images = stacked_network(2, 2, 2)
    nested = jax.vmap(jax.vmap(network_gradient))

    @jax.jit
    def looped(kernels: tuple[jax.Array, ...], images: jax.Array) -> tuple[jax.Array, ...]:
        if loop == "scan":
            return lax.scan(lambda carry, step: (carry, nested(*step)), None, (kernels, images))[1]
        if loop == "map":
            return lax.map(lambda step: nested(*step), (kernels, images))
        start = jax.tree.map(jnp.zeros_like, kernels)

        def body(i: jax.Array, out: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            gradients = nested(jax.tree.map(lambda leaf: leaf[i], kernels), images[i])
            return jax.tree.map(lambda old, new: old.at[i].set(new), out, gradients)

        return lax.fori_loop(0, 2, body, start)

    plain = jax.jit(network_gradient)
    actual = looped(kernels, images)
    for index in np.ndindex(2, 2, 2):
        own_kernels, own_actual = (jax.tree.map(lambda leaf, i=index: leaf[i], tree) for tree in (kernels, actual))
        assert_close(own_actual, plain(own_kernels, images[index]))


def convolutions_in(jaxpr: Jaxpr) -> list[dict]:
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            found.append(equation.params)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += convolutions_in(inner)
    return found


def test_mapped_gradients_hold_only_canonical_ungrouped_convolutions() -> None:
    """The forms that XLA's CPU backend runs fast inside loops: NHWC, HWIO, no groups, no dilated images, no reversed window."""
    found = convolutions_in(jax.make_jaxpr(jax.vmap(network_gradient))(*stacked_network(3)).jaxpr)
    assert len(found) >= 8
    for parameters in found:
        numbers = parameters["dimension_numbers"]
        assert tuple(numbers) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
        assert parameters["feature_group_count"] == parameters["batch_group_count"] == 1
        assert parameters["lhs_dilation"] == (1, 1)
    with lowering("grouped"):
        grouped = convolutions_in(jax.make_jaxpr(jax.vmap(network_gradient))(*stacked_network(3)).jaxpr)
    assert any(parameters["feature_group_count"] == 3 for parameters in grouped)


def test_bfloat16_stays_bfloat16_and_near_float32() -> None:
    kernels, images = stacked_network(2)
    kernels = jax.tree.map(lambda leaf: leaf * 0.1, kernels)
    gradient = jax.jit(jax.vmap(network_gradient))
    half = gradient(*jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (kernels, images)))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in half)
    full = gradient(kernels, images)
    assert_close(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half), full, tolerance=0.05)


def test_lowering_is_restored_and_an_unknown_one_refused() -> None:
    with pytest.raises(ConfigError, match=r"mapping\.convolution = 'im2col' is unknown; choose one of auto, grouped, map"):
        lowering("im2col").__enter__()

    def grouped() -> bool:
        kernel = normal(0, 2, 3, 3, 1, 1)
        text = str(jax.make_jaxpr(jax.vmap(lambda x, k: conv2d(x, k)))(normal(1, 2, 1, 4, 4, 1), kernel))
        return "feature_group_count=2" in text

    assert not grouped()
    with pytest.raises(RuntimeError, match="inside"), lowering("grouped"):
        assert grouped()
        raise RuntimeError("inside")
    assert not grouped()
    with lowering("auto"):
        assert grouped() == (jax.default_backend() != "cpu")


@pytest.mark.parametrize(
    ("images", "kernel", "message"),
    [
        ((2, 8, 8, 3), (3, 3, 4, 5), "needs images"),
        ((2, 8, 8, 3), (3, 2, 3, 5), "needs images"),
        ((2, 2, 2, 3), (4, 4, 3, 5), "larger"),
        ((0, 8, 8, 3), (3, 3, 3, 5), "at least one of everything"),
        ((2, 8, 8, 3), (3, 3, 3, 0), "at least one of everything"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(images: tuple[int, ...], kernel: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.zeros(images), jnp.zeros(kernel))


@pytest.mark.parametrize("convolve", [conv2d, conv2d_transpose])
@pytest.mark.parametrize("padding", [-1, 3])
def test_padding_as_wide_as_the_kernel_is_refused(convolve: Callable[..., jax.Array], padding: int) -> None:
    with pytest.raises(ValueError, match=f"padding {padding} must be 0 to 2"):
        convolve(jnp.zeros((1, 8, 8, 1)), jnp.zeros((3, 3, 1, 1)), stride=1, padding=padding)


def test_gradients_of_float64_are_summed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical, "GROUP_BYTES", 4 * 8 * 6 * 6 * 5)
    with jax.enable_x64(True):
        images, kernel = normal(0, 16, 6, 6, 3, dtype=jnp.float64), normal(1, 3, 3, 3, 5, dtype=jnp.float64)
        ours = value_and_gradients(functools.partial(conv2d, padding=1), images, kernel)
        assert_close(ours, value_and_gradients(lambda x, k: reference_conv2d(x, k, 1, 1), images, kernel), 1e-13)


def test_mixed_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="one dtype"):
        conv2d(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1), jnp.bfloat16))


def plain_batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias, mean, var


def test_batch_norm_keeps_its_digits_when_the_mean_is_large() -> None:
    x = np.asarray(normal(0, 16, 8, 8, 5)) * 0.5 + np.asarray([0, 1, -10, 100, 1000], np.float32)
    scale, bias = normal(1, 5), normal(2, 5)
    y, mean, var = jax.jit(lambda *a: batch_norm_train(*a, 1e-5))(x, scale, bias)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-5)
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5) * np.asarray(scale) + np.asarray(bias)
    assert_close(y[..., :4], expected[..., :4], tolerance=1e-4)


def test_batch_norm_gradients_through_outputs_mean_and_variance_equal_autodiff() -> None:
    with jax.enable_x64(True):
        x, scale, bias = normal(0, 3, 2, 4, 5, dtype=jnp.float64), normal(1, 5, dtype=jnp.float64), normal(2, 5, dtype=jnp.float64)
        cotangents = (normal(3, *x.shape, dtype=jnp.float64), normal(4, 5, dtype=jnp.float64), normal(5, 5, dtype=jnp.float64))
        ours = jax.jit(lambda *a: batch_norm_train(*a, 1e-5))
        actual, expected = (jax.jit(jax.vjp(function, x, scale, bias)[1])(cotangents) for function in (ours, plain_batch_norm))
        assert_close(actual, expected, tolerance=1e-12)
        check_grads(ours, (x, scale, bias), order=2, modes=["rev"])


def test_batch_norm_under_vmap_equals_the_loop_over_clients() -> None:
    x, scale, bias = normal(0, 3, 4, 2, 2, 5), normal(1, 3, 5), normal(2, 3, 5)

    def gradients(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        def loss(*a: jax.Array) -> jax.Array:
            y, mean, var = batch_norm_train(*a, 1e-5)
            return jnp.sum(jnp.sin(y)) + jnp.sum(mean**2) + jnp.sum(jnp.sqrt(var))

        return jax.grad(loss, (0, 1, 2))(*arguments)

    alone = jax.jit(gradients)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[alone(x[i], scale[i], bias[i]) for i in range(3)])
    assert_close(jax.jit(jax.vmap(gradients))(x, scale, bias), expected)
