"""The kernels for Hopper over stacked clients, interpreted on a CPU, against XLA's grouped convolution; and lowered for a GPU."""

import functools
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import for_interpreted_kernels

from mosaic_jax.ops import batch_norm_train, canonical, conv2d, conv2d_transpose, hopper, lowering, plain
from mosaic_jax.ops.lowering import set_stacked_form

params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params", reason="this JAX does not interpret Mosaic GPU")


@pytest.fixture(autouse=True)
def _hopper() -> Iterator[None]:
    with for_interpreted_kernels():
        yield
    set_stacked_form("")


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def in_form(form: str, function: Callable[..., object], *arrays: jax.Array) -> list[np.ndarray]:
    set_stacked_form(form)
    with lowering("stacked"), params.force_gpu_interpret_mode(params.InterpretGPUParams()):
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(jax.jit(lambda *a: function(*a))(*arrays))]


@pytest.mark.parametrize(
    ("operation", "size", "stride", "padding", "length", "inputs", "outputs", "batch"),
    [
        (conv2d, 3, 1, 1, 8, 20, 17, 2),  # taps of a column share a copy; two tiles of pixels
        (conv2d, 3, 2, 1, 16, 16, 5, 1),  # so do those of a phase
        (conv2d, 3, 2, 1, 7, 16, 5, 1),  # every tap has its own copy
        (conv2d, 3, 1, 1, 5, 3, 18, 2),  # few channels: patches are gathered first
        (conv2d_transpose, 2, 2, 1, 4, 20, 66, 1),  # several tiles of channels
    ],
)
def test_convolutions_of_stacked_clients_and_their_gradients_equal_grouped_ones(
    operation: Callable[..., jax.Array], size: int, stride: int, padding: int, length: int, inputs: int, outputs: int, batch: int
) -> None:
    images, kernels = normal(0, 2, batch, length, length, inputs), normal(1, 2, size, size, inputs, outputs)

    def one(x: jax.Array, k: jax.Array) -> tuple[jax.Array, ...]:
        out, pullback = jax.vjp(functools.partial(operation, stride=stride, padding=padding), x, k)
        return out, *pullback(jnp.sin(out + 1))

    found = in_form("mosaic_gpu", jax.vmap(one), images, kernels)
    for ours, theirs in zip(found, in_form("grouped", jax.vmap(one), images, kernels), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2 * np.abs(theirs).max())


def test_the_gradient_to_a_kernel_is_summed_over_parts_of_the_pixels() -> None:
    geometry = canonical.Geometry(2, 1, 1, 7, 7)
    x, g = normal(0, 2, 7, 7, 7, 20), normal(1, 2, 7, 8, 8, 3)
    (ours,) = in_form("mosaic_gpu", functools.partial(hopper.to_kernel, geometry), x, g)
    (theirs,) = in_form("grouped", jax.vmap(functools.partial(plain.to_kernel, geometry)), x, g)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2 * np.abs(theirs).max())


def test_networks_of_stacked_clients_become_these_kernels_on_a_gpu() -> None:
    def step(x: jax.Array, k: jax.Array, scale: jax.Array) -> jax.Array:
        def loss(k: jax.Array) -> jax.Array:
            y, _, _ = batch_norm_train(conv2d(x, k, padding=1), scale, scale)
            return jnp.sum(conv2d(y, k, padding=1).astype(jnp.float32))

        return jax.grad(loss)(k)

    arrays = normal(0, 3, 2, 8, 8, 32), normal(1, 3, 3, 3, 32, 32), jnp.zeros((3, 32))
    set_stacked_form("mosaic_gpu")
    with lowering("stacked"), mock.patch.object(jax, "default_backend", lambda: "gpu"):
        try:
            lowered = jax.jit(lambda *a: jax.vmap(step)(*a)).trace(*arrays).lower(lowering_platforms=("cuda",))
        except RuntimeError as reason:  # JAX 0.11 lowers for a GPU only where there is one
            pytest.skip(str(reason))
    text = lowered.as_text()
    assert text.count("@mosaic_gpu") == 4  # both kernels' gradients, the outputs of the first and its gradient to the images
    assert "feature_group_count = 3" not in text


def test_these_kernels_are_for_16_bits_on_hopper() -> None:
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
        for capability, expected in (("9.0", ""), ("8.0", "is for NVIDIA's Hopper"), ("10.0", "is for NVIDIA's Hopper")):
            with mock.patch.object(jax, "local_devices", lambda it=capability: [mock.Mock(compute_capability=it)]):
                assert hopper.complaint(jnp.dtype(jnp.bfloat16)) == expected
        with mock.patch.object(jax, "local_devices", lambda: [mock.Mock(compute_capability="9.0")]):
            assert hopper.complaint(jnp.dtype(jnp.float32)) == "is for 16-bit numbers"
