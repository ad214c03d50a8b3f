"""The partition and the splits of a client's images."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_jax.config import ConfigError, PartitionConfig
from mosaic_jax.data.partition import dirichlet_balanced, dirichlet_unbalanced, iid, partition
from mosaic_jax.data.splits import label_counts, split

GOLDEN = np.load(Path(__file__).parent / "golden" / "partition_dirichlet_unbalanced.npz")
# Twelve classes of different sizes in mixed order; label 5 occurs nowhere.
LABELS = np.random.RandomState(7).choice(np.delete(np.arange(13), 5), 1500, p=np.linspace(1, 3, 12) / np.linspace(1, 3, 12).sum())


@pytest.mark.parametrize("name", GOLDEN.files)
def test_unbalanced_label_counts_are_those_of_the_public_code(name):
    seed, alpha, clients, classes, per_class = re.fullmatch(
        r"seed(\d+)_alpha([\d.]+)_clients(\d+)_classes(\d+)_per(\d+)", name
    ).groups()
    labels = np.repeat(np.arange(int(classes)), int(per_class))
    np.testing.assert_array_equal(
        dirichlet_unbalanced(labels, int(clients), float(alpha), int(seed)).label_counts, GOLDEN[name]
    )


def assert_deals_out_every_image_once(result, labels, num_clients):
    assert len(result.client_indices) == num_clients
    assert all(indices.dtype == np.int32 for indices in result.client_indices)
    np.testing.assert_array_equal(np.sort(np.concatenate(result.client_indices)), np.arange(len(labels)))
    expected = [[np.sum(labels[indices] == label) for label in range(labels.max() + 1)] for indices in result.client_indices]
    np.testing.assert_array_equal(result.label_counts, expected)
    assert result.label_counts.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["iid", "dirichlet_unbalanced", "dirichlet_balanced"]),
    num_clients=st.integers(1, 60),
    alpha=st.sampled_from([1e-6, 1e-4, 0.01, 0.1, 1.0, 50.0]),
    seed=st.integers(0, 2**31 - 1),
    min_samples=st.integers(1, 30),
)
def test_every_image_is_dealt_once_and_the_minimum_met_or_a_clear_error_given(kind, num_clients, alpha, seed, min_samples):
    config = PartitionConfig(kind=kind, alpha=alpha, num_clients=num_clients, min_samples=min_samples, max_draws=20)
    try:
        result = partition(LABELS, config, seed)
    except ConfigError as error:
        assert kind == "dirichlet_unbalanced"
        message = str(error)
        assert "\n" not in message
        assert f"partition.num_clients={num_clients}" in message and f"partition.min_samples={min_samples}" in message
        return
    assert_deals_out_every_image_once(result, LABELS, num_clients)
    sizes = result.label_counts.sum(axis=1)
    if kind == "dirichlet_unbalanced":
        assert sizes.min() >= min_samples
    else:
        assert sizes.max() - sizes.min() <= 1
        assert sizes.min() == len(LABELS) // num_clients


@pytest.mark.parametrize("deal", [dirichlet_unbalanced, dirichlet_balanced])
def test_a_smaller_alpha_gives_a_client_fewer_classes(deal):
    labels = np.repeat(np.arange(10), 200)

    def classes_held(alpha):
        return np.mean([(deal(labels, 10, alpha, seed).label_counts > 0).sum(axis=1).mean() for seed in range(5)])

    assert classes_held(0.01) < 0.5 * classes_held(1.0) < 0.5 * classes_held(100.0)
    assert classes_held(100.0) > 9.8


def test_same_seed_gives_the_same_clients_and_another_seed_others():
    for deal in (lambda seed: iid(LABELS, 7, seed), lambda seed: dirichlet_unbalanced(LABELS, 7, 0.5, seed),
                 lambda seed: dirichlet_balanced(LABELS, 7, 0.5, seed)):
        first, again, other = deal(3), deal(3), deal(4)
        assert all(np.array_equal(a, b) for a, b in zip(first.client_indices, again.client_indices, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(first.client_indices, other.client_indices, strict=True))


def test_an_impossible_minimum_is_refused_without_a_draw():
    with pytest.raises(ConfigError, match=r"partition\.num_clients=200 times partition\.min_samples=10 exceeds .* at most 150"):
        dirichlet_unbalanced(LABELS, 200, 0.1, 0, max_draws=10**12)


def test_a_minimum_that_no_draw_meets_is_refused_after_max_draws():
    one_class = np.zeros(100, np.int64)
    with pytest.raises(ConfigError, match=r"partition\.alpha=0\.01 .*partition\.max_draws=50 draws .*raise alpha"):
        dirichlet_unbalanced(one_class, 10, 0.01, 0, max_draws=50)


@pytest.mark.parametrize(
    ("labels", "num_clients", "alpha", "message"),
    [
        (LABELS, 0, 1.0, "partition.num_clients=0"),
        (LABELS[:5], 6, 1.0, "partition.num_clients=6"),
        (LABELS, 5, 0.0, "partition.alpha=0.0"),
        (LABELS, 5, float("nan"), "partition.alpha=nan"),
        (np.array([], int), 5, 1.0, "labels of shape (0,)"),
        (np.array([0.0, 1.0]), 1, 1.0, "type float64"),
        (np.array([-1, 1]), 1, 1.0, "integers from 0"),
    ],
)
def test_bad_input_is_refused_with_its_value(labels, num_clients, alpha, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        dirichlet_balanced(labels, num_clients, alpha, 0)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5])
def test_validation_is_a_stratified_share_and_the_rest_is_for_training(fraction):
    dealt = dirichlet_unbalanced(LABELS, 12, 0.3, 1)
    splits = split(dealt, LABELS, 401, fraction, seed=5)
    for held, train, validation in zip(dealt.client_indices, splits.train, splits.validation, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.sort(held))
        assert len(validation) == min(round(len(held) * fraction), len(held) - 1)
        counts = label_counts([held, validation], LABELS, 13)
        assert np.all(np.abs(counts[1] - counts[0] * fraction) <= 1.5)
        # Both keep the client's own order, which order="fixed" walks.
        assert train.tolist() == [index for index in held if index in set(train)]
    np.testing.assert_array_equal(np.sort(np.concatenate(splits.test)), np.arange(401))
    sizes = [len(test) for test in splits.test]
    assert max(sizes) - min(sizes) <= 1


def test_tiny_clients_keep_an_image_for_training_and_empty_ones_stay_empty():
    clients = tuple(np.arange(start, start + size, dtype=np.int32) for start, size in ((0, 1), (1, 2), (3, 0)))
    dealt = partition(LABELS, PartitionConfig(kind="iid", num_clients=3), 0)._replace(client_indices=clients)
    splits = split(dealt, LABELS, 2, 0.9, seed=0)
    assert [len(train) for train in splits.train] == [1, 1, 0]
    assert [len(validation) for validation in splits.validation] == [0, 1, 0]
    assert [len(test) for test in splits.test] == [1, 1, 0]


def test_a_clients_validation_share_does_not_depend_on_the_other_clients():
    dealt = iid(LABELS, 6, 0)
    fewer = dealt._replace(client_indices=dealt.client_indices[:2])
    for whole, part in zip(split(dealt, LABELS, 10, 0.2, 3).validation, split(fewer, LABELS, 10, 0.2, 3).validation, strict=False):
        np.testing.assert_array_equal(whole, part)
    other = split(dealt, LABELS, 10, 0.2, 4)
    assert not np.array_equal(split(dealt, LABELS, 10, 0.2, 3).validation[0], other.validation[0])


def test_a_validation_fraction_of_everything_is_refused():
    with pytest.raises(ConfigError, match=r"data\.validation_fraction=1\.0"):
        split(iid(LABELS, 3, 0), LABELS, 10, 1.0, 0)
