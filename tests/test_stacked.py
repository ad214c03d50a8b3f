"""The GPU kernels over stacked clients, interpreted on a CPU, against XLA's grouped convolution and sums; and their choice."""

import functools
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import for_interpreted_kernels

from mosaic_jax.ops import batch_norm_train, channel_sums, chosen_lowering, conv2d, conv2d_transpose, gpu_kernels, lowering, stacked

pytestmark = pytest.mark.skipif(gpu_kernels.triton is None, reason="this JAX has no Pallas for Triton")


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    with for_interpreted_kernels():
        yield


def normal(seed: int, *shape: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def compare(function: Callable[..., object], *arrays: jax.Array, tolerance: float = 1e-5) -> None:
    """`function` of arrays is the same with our kernels as with XLA's operations, to `tolerance` of its largest entry."""
    found = []
    for how in ("stacked", "grouped"):
        with lowering(how):
            # A fresh function each time: jit would hand out the program of the other lowering.
            found.append(jax.tree.leaves(jax.jit(lambda *a: function(*a))(*arrays)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = (np.asarray(each, np.float64) for each in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(np.abs(theirs).max(), 1e-3))


def value_and_gradients(function: Callable[..., jax.Array], images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
    out, pullback = jax.vjp(function, images, kernel)
    return out, *pullback(jnp.sin(out + 1))


@pytest.mark.parametrize(
    ("operation", "size", "stride", "padding", "length", "inputs", "outputs"),
    [
        (conv2d, 3, 1, 1, 6, 20, 17),  # channels that fill no tile
        (conv2d, 3, 2, 1, 7, 16, 5),  # an odd size: phases differ
        (conv2d, 3, 1, 1, 5, 3, 18),  # few channels: patches are gathered first
        (conv2d, 4, 2, 1, 8, 3, 16),
        (conv2d, 1, 2, 0, 7, 20, 4),  # patches that do not overlap: a matrix product
        (conv2d_transpose, 4, 2, 1, 4, 17, 3),
        (conv2d_transpose, 4, 1, 0, 1, 6, 5),
        (conv2d, 1, 1, 0, 4, 130, 140),  # several tiles of channels
    ],
)
def test_convolutions_of_stacked_clients_and_their_gradients_equal_grouped_ones(
    operation: Callable[..., jax.Array], size: int, stride: int, padding: int, length: int, inputs: int, outputs: int
) -> None:
    images, kernels = normal(0, 3, 2, length, length, inputs), normal(1, 3, size, size, inputs, outputs)
    one = functools.partial(value_and_gradients, functools.partial(operation, stride=stride, padding=padding))
    compare(jax.vmap(one), images, kernels)


@pytest.mark.parametrize("axes", [(None, 0), (0, None)], ids=["weights", "images"])
def test_what_is_not_stacked_is_shared(axes: tuple[int | None, int | None]) -> None:
    images, kernels = normal(0, 3, 2, 5, 5, 16), normal(1, 3, 3, 3, 16, 4)
    images, kernels = (array if axis == 0 else array[0] for array, axis in zip((images, kernels), axes, strict=True))
    compare(jax.vmap(functools.partial(value_and_gradients, functools.partial(conv2d, padding=1)), axes), images, kernels)


def test_stacks_of_stacks_become_one() -> None:
    images, kernels = normal(0, 2, 3, 2, 5, 5, 16), normal(1, 2, 3, 3, 3, 16, 4)
    one = functools.partial(value_and_gradients, functools.partial(conv2d, stride=2, padding=1))
    compare(jax.vmap(jax.vmap(one)), images, kernels)
    compare(jax.vmap(jax.vmap(one), (0, None)), images, kernels[0])


def test_the_gradient_to_a_kernel_is_summed_over_parts_of_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images, kernels = normal(0, 2, 8, 8, 8, 16), normal(1, 2, 3, 3, 16, 16)
    one = functools.partial(value_and_gradients, functools.partial(conv2d, padding=1))
    compare(jax.vmap(one), images, kernels)
    monkeypatch.setattr(stacked, "PROGRAMS", 1)
    compare(jax.vmap(one), images, kernels)


def test_more_numbers_than_int32_counts_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MOST_NUMBERS", 2 * 2 * 5 * 5 * 16)  # images of two clients
    images, kernels = normal(0, 3, 2, 5, 5, 16), normal(1, 3, 3, 3, 16, 4)
    compare(jax.vmap(functools.partial(value_and_gradients, functools.partial(conv2d, padding=1))), images, kernels)
    compare(jax.vmap(batch_norm), images, normal(2, 3, 16), normal(3, 3, 16))


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    (y, mean, var), pullback = jax.vjp(lambda *a: batch_norm_train(*a, 1e-5), x, scale, bias)
    return y, mean, var, *pullback((jnp.sin(y.astype(jnp.float32) + 1).astype(y.dtype), mean, jnp.sqrt(var)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("channels", [20, 130])
def test_batch_norm_of_stacked_clients_equals_plain_sums(dtype: jnp.dtype, tolerance: float, channels: int) -> None:
    x = (normal(0, 3, 4, 9, 9, channels) * 2 + 5).astype(dtype)
    compare(jax.vmap(batch_norm), x, normal(1, 3, channels), normal(2, 3, channels), tolerance=tolerance)


def test_variance_in_one_pass_keeps_its_digits_when_the_mean_is_large() -> None:
    x = np.asarray(normal(0, 2, 400, 16)) * 0.5 + np.linspace(-1000, 1000, 16, dtype=np.float32)
    mean, var = channel_sums.moments(jnp.asarray(x))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(1), rtol=1e-5)
    np.testing.assert_allclose(var, x.astype(np.float64).var(1), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_networks_of_stacked_clients_become_these_kernels_on_a_gpu(dtype: jnp.dtype) -> None:
    def step(x: jax.Array, k: jax.Array, scale: jax.Array) -> tuple[jax.Array, ...]:
        def loss(k: jax.Array, scale: jax.Array) -> jax.Array:
            y, _, _ = batch_norm_train(conv2d(x, k, padding=1), scale, scale)
            return jnp.sum(conv2d_transpose(y, k, stride=2, padding=1).astype(jnp.float32))

        return jax.grad(loss, (0, 1))(k, scale)

    arrays = jnp.zeros((3, 2, 8, 8, 32), dtype), jnp.zeros((3, 3, 3, 32, 32), dtype), jnp.zeros((3, 32))
    with lowering("stacked"), mock.patch.object(jax, "default_backend", lambda: "gpu"):
        try:
            lowered = jax.jit(lambda *a: jax.vmap(step)(*a)).trace(*arrays).lower(lowering_platforms=("cuda",))
        except RuntimeError as reason:  # JAX 0.11 lowers for a GPU only where there is one
            pytest.skip(str(reason))
    text = lowered.as_text()
    # Of the first convolution its outputs and its kernel's gradient; both sums; both gradients of the second one.
    assert text.count("triton") == 6
    assert "feature_group_count = 3" not in text


def test_auto_takes_these_kernels_where_they_can_run() -> None:
    with lowering("auto"), mock.patch.object(jax, "default_backend", lambda: "gpu"):
        for capability, expected in (("9.0", "stacked"), ("8.0", "stacked"), ("7.5", "grouped"), ("gfx942", "grouped")):
            device = mock.Mock(compute_capability=capability)
            with mock.patch.object(jax, "local_devices", lambda device=device: [device]):
                assert chosen_lowering() == expected
        with mock.patch.object(gpu_kernels, "triton", None):
            assert chosen_lowering() == "grouped"
