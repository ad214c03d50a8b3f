"""Batches of a client as a function of the step, and the augmentation of a batch."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mosaic_jax.config import DataConfig
from mosaic_jax.data.augment import crop_flip, decode, translate
from mosaic_jax.data.sampling import batch_indices

SIZES = (1, 3, 8, 37, 200)
CLIENTS = [np.random.RandomState(size).permutation(10_000)[:size].astype(np.int32) for size in SIZES]


def draw(start, num_steps, clients=CLIENTS, **options):
    settings_ = {"client_ids": range(len(clients)), "seed": 0, "stage": "warmup", "batch_size": 8} | options
    return batch_indices(clients, start=start, num_steps=num_steps, **settings_)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=5),
    batch_size=st.integers(1, 20),
    batches_per_pass=st.integers(0, 4),
    order=st.sampled_from(["shuffled", "fixed"]),
    keys_at_once=st.sampled_from([1, 100, 2**20]),
)
def test_the_same_batches_come_whatever_the_segments(cuts, batch_size, batches_per_pass, order, keys_at_once):
    options = {"batch_size": batch_size, "batches_per_pass": batches_per_pass, "order": order}
    whole = draw(0, 60, **options)
    edges = sorted([0, *cuts, 60])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaic_jax.data.sampling._KEYS_AT_ONCE", keys_at_once)
        pieces = [draw(a, b - a, **options) for a, b in itertools.pairwise(edges)]
    assert whole.shape == (len(SIZES), 60, batch_size) and whole.dtype == np.int32
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_each_pass_takes_every_image_once_in_a_new_order():
    passes = draw(0, 50, clients=CLIENTS[3:], batch_size=37).reshape(2, -1)
    first_client = passes[0].reshape(50, 37)
    np.testing.assert_array_equal(np.sort(first_client, axis=1), np.tile(np.sort(CLIENTS[3]), (50, 1)))
    assert len(np.unique(first_client, axis=0)) == 50
    np.testing.assert_array_equal(np.sort(passes[1][:200]), np.sort(CLIENTS[4]))


def test_every_order_of_three_images_is_equally_likely():
    orders, counts = np.unique(draw(0, 6000, clients=CLIENTS[1:2], batch_size=3)[0], axis=0, return_counts=True)
    assert len(orders) == 6
    assert np.abs(counts - 1000).max() < 150


def test_a_client_smaller_than_a_batch_repeats_within_it():
    batches = draw(0, 3)
    assert set(batches[0].ravel()) == set(CLIENTS[0])
    np.testing.assert_array_equal(np.sort(batches[1].ravel()), np.sort(np.tile(CLIENTS[1], 8)))


def test_fixed_order_walks_the_clients_own_order_at_every_pass():
    walked = draw(0, 30, order="fixed").reshape(len(SIZES), -1)
    for row, client in zip(walked, CLIENTS, strict=True):
        np.testing.assert_array_equal(row, np.resize(client, 240))


def test_batches_per_pass_reshuffles_after_so_many_batches():
    batches = draw(0, 400, clients=CLIENTS[1:], batch_size=8, batches_per_pass=2)
    large = batches[3].reshape(200, 16)
    assert all(len(set(row)) == 16 for row in large)
    assert set(large.ravel()) == set(CLIENTS[4])
    # Three images in a pass of sixteen positions: the pass wraps in its own order.
    small = batches[0].reshape(200, 16)
    np.testing.assert_array_equal(small[:, 3:], small[:, :-3])
    assert len(np.unique(small, axis=0)) == 6


def test_batches_depend_on_seed_stage_and_client_id_and_not_on_the_cohort():
    whole = draw(5, 10)
    np.testing.assert_array_equal(draw(5, 10, clients=[CLIENTS[4], CLIENTS[2]], client_ids=[4, 2]), whole[[4, 2]])
    for other in ({"seed": 1}, {"stage": "generators"}, {"client_ids": np.arange(5) + 1}):
        assert not np.array_equal(draw(5, 10, **other)[4], whole[4])


def test_a_client_without_images_is_named():
    with pytest.raises(ValueError, match="client 7 has no images"):
        draw(0, 1, clients=[CLIENTS[0], np.zeros(0, np.int32)], client_ids=[3, 7])


@pytest.mark.parametrize("bad", [{"order": "random"}, {"batch_size": 0}, {"batches_per_pass": -1}])
def test_impossible_requests_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        draw(0, 1, **bad)


def test_a_late_start_costs_what_an_early_one_does():
    clients = [np.arange(500, dtype=np.int32)] * 100
    draw(0, 1)
    started = time.perf_counter()
    draw(10**9, 10, clients=clients, batch_size=64)
    assert time.perf_counter() - started < 0.5


BYTES = np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3)).astype(np.uint8)


def test_decoding_gives_the_runs_image_range():
    symmetric = decode(BYTES, DataConfig())
    np.testing.assert_allclose(symmetric, BYTES.astype(np.float64) / 127.5 - 1, atol=1e-6)
    assert symmetric.dtype == jnp.float32
    config = DataConfig(image_range="normalized", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    expected = (BYTES / 255 - np.array(config.mean)) / np.array(config.std)
    np.testing.assert_allclose(decode(BYTES, config), expected, atol=1e-5)


def test_crop_flip_cuts_a_window_of_the_black_padded_image_and_mirrors_half():
    images = np.maximum(np.tile(BYTES, (40, 1, 1, 1)), 1)
    changed = np.asarray(jax.jit(crop_flip)(jax.random.key(3), images))
    assert changed.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = []
    for image, result in zip(padded, changed, strict=True):
        fits = [
            (row, column, mirrored)
            for row in range(9)
            for column in range(9)
            for mirrored in (False, True)
            if np.array_equal(image[row : row + 32, column : column + 32][:, :: -1 if mirrored else 1], result)
        ]
        assert len(fits) == 1
        seen += fits
    rows, columns, mirrored = np.array(seen).T
    assert set(rows) == set(columns) == set(range(9))
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize("change", [crop_flip, translate])
def test_the_same_key_changes_images_alike_and_another_key_otherwise(change):
    images = np.tile(BYTES.astype(np.float32), (4, 1, 1, 1))
    first, again, other = (np.asarray(jax.jit(change)(jax.random.key(seed), images)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_translation_moves_each_image_by_whole_pixels_up_to_an_eighth_and_fills_with_zeros():
    images = np.tile(BYTES.astype(np.float32) + 1, (40, 1, 1, 1))
    moved = np.asarray(jax.jit(translate)(jax.random.key(1), images))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    shifts = []
    for image, result in zip(padded, moved, strict=True):
        fits = [
            (row, column)
            for row in range(9)
            for column in range(9)
            if np.array_equal(image[row : row + 32, column : column + 32], result)
        ]
        assert len(fits) == 1
        shifts += fits
    assert {row for row, _ in shifts} == {column for _, column in shifts} == set(range(9))


def test_the_gradient_of_translation_is_that_of_its_finite_differences():
    images = jnp.asarray(np.random.RandomState(1).standard_normal((3, 16, 16, 3)), jnp.float32)
    check_grads(jax.jit(lambda x: translate(jax.random.key(0), x)), (images,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("change", [crop_flip, translate])
def test_an_image_is_changed_alike_whatever_the_batch_and_the_mapping(change):
    images, jitted = BYTES.astype(np.float32), jax.jit(change)
    np.testing.assert_array_equal(jitted(jax.random.key(0), images[:2]), jitted(jax.random.key(0), images)[:2])
    stacked, make_keys = np.stack([images] * 4), jax.vmap(jax.random.key)
    looped = np.stack([jitted(jax.random.key(client), images) for client in range(4)])
    np.testing.assert_array_equal(jax.jit(jax.vmap(change))(make_keys(jnp.arange(4)), stacked), looped)
    chunked = jax.jit(lambda *pairs: jax.lax.map(lambda pair: change(*pair), pairs, batch_size=3))
    np.testing.assert_array_equal(chunked(make_keys(jnp.arange(4)), stacked), looped)
    assert not np.array_equal(looped[0], looped[1])
