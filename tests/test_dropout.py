"""ops.dropout against its definition, and its bits against the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaic_jax import ops
from mosaic_jax.ops.dropout import threefry

RATE = 0.2


def keys(num: int) -> jax.Array:
    return jax.random.split(jax.random.key(7), num)


# Test vectors of the Random123 library (kat_vectors, threefry2x32 of 20 rounds): counter, key, output.
@pytest.mark.parametrize(
    ("counter", "key", "output"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_words(counter: tuple, key: tuple, output: tuple) -> None:
    words = threefry(*(jnp.uint32(word) for word in (*key, *counter)))
    assert tuple(int(word) for word in words) == output


def test_with_64_bit_numbers_the_same_elements_are_dropped() -> None:
    x = jnp.ones((64, 64), jnp.float32)
    plain = np.asarray(ops.dropout(x, jax.random.key(2), RATE))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(np.asarray(ops.dropout(x, jax.random.key(2), RATE)), plain)


def test_kept_elements_are_scaled_the_others_are_zero_and_their_share_is_the_rate() -> None:
    x = jax.random.normal(jax.random.key(1), (500, 1000))
    y = np.asarray(jax.jit(ops.dropout, static_argnums=2)(x, jax.random.key(2), RATE))
    dropped = y == 0
    np.testing.assert_array_equal(y, np.where(dropped, 0, np.asarray(x / (1 - RATE))))
    # Five standard deviations, over all elements and along rows and columns.
    for axis, num in ((None, dropped.size), (0, 500), (1, 1000)):
        assert np.abs(dropped.mean(axis) - RATE).max() < 5 * (RATE * (1 - RATE) / num) ** 0.5


def test_masks_of_two_keys_and_neighbouring_elements_are_independent() -> None:
    ones = jnp.ones((400, 1000))
    one, two = (np.asarray(ops.dropout(ones, key, RATE)) == 0 for key in keys(2))
    for pair in ((one, two), (one[:, 1:], one[:, :-1]), (one[1:], one[:-1])):
        both = (pair[0] & pair[1]).mean()
        assert abs(both - RATE**2) < 5 * (RATE**2 / one.size) ** 0.5


def test_the_same_key_drops_the_same_elements_anywhere() -> None:
    x = jax.random.normal(jax.random.key(1), (3, 8, 40))
    alone = jnp.stack([ops.dropout(one, key, RATE) for one, key in zip(x, keys(3), strict=True)])
    together = jax.vmap(lambda one, key: ops.dropout(one, key, RATE))(x, keys(3))
    scanned = jax.jit(lambda x: jax.lax.map(lambda pair: ops.dropout(*pair, RATE), (x, keys(3))))(x)
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    np.testing.assert_allclose(scanned, alone, rtol=1e-6)


def test_relu_dropout_and_its_gradient_are_those_of_dropout_after_relu() -> None:
    x, weights = jax.random.normal(jax.random.key(1), (2, 60, 50))
    key = jax.random.key(3)

    def loss(x: jax.Array, fused: bool) -> tuple[jax.Array, jax.Array]:
        y = ops.relu_dropout(x, key, RATE) if fused else ops.dropout(jax.nn.relu(x), key, RATE)
        return jnp.sum(weights * y**2), y

    plain, fused = (jax.grad(loss, has_aux=True)(x, fused) for fused in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), fused, plain)
    assert np.any(fused[0] != 0)
