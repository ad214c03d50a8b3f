"""The partition and the splits of a client's images."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_jax.config import ConfigError, PartitionConfig
from mosaic_jax.data.partition import (
    describe,
    dirichlet_balanced,
    dirichlet_unbalanced,
    fixed,
    iid,
    partition,
    quantity_skew,
    shards,
)
from mosaic_jax.data.partition.dirichlet import pass_over_shuffles
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
    np.testing.assert_array_equal(dirichlet_unbalanced(labels, int(clients), float(alpha), int(seed)).label_counts, GOLDEN[name])


def assert_deals_out_every_image_once(result, labels, num_clients):
    assert len(result.client_indices) == num_clients
    assert all(indices.dtype == np.int32 for indices in result.client_indices)
    np.testing.assert_array_equal(np.sort(np.concatenate(result.client_indices)), np.arange(len(labels)))
    expected = [[np.sum(labels[indices] == label) for label in range(labels.max() + 1)] for indices in result.client_indices]
    np.testing.assert_array_equal(result.label_counts, expected)
    assert result.label_counts.dtype == np.int64


KINDS = ["iid", "dirichlet_unbalanced", "dirichlet_balanced", "shards", "quantity_skew", "table"]
DRAWN = ("dirichlet_unbalanced", "quantity_skew")  # kinds whose clients have a minimum size


def a_table(num_clients, seed):
    """Label counts that LABELS can give: each client takes a part of what is left, at least one image."""
    random, left = np.random.RandomState(seed), np.bincount(LABELS)
    rows = []
    for client in range(num_clients):
        row = random.binomial(left, 1 / (num_clients - client + 1))
        if row.sum() == 0:
            row[left.argmax()] = 1
        left = left - row
        rows.append(row)
    return np.array(rows)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    num_clients=st.integers(1, 60),
    alpha=st.sampled_from([1e-6, 1e-4, 0.01, 0.1, 1.0, 50.0]),
    seed=st.integers(0, 2**31 - 1),
    min_samples=st.integers(1, 30),
    repair=st.booleans(),
    shards_per_client=st.integers(1, 5),
)
def test_every_image_is_dealt_once_and_the_minimum_met_or_a_clear_error_given(
    kind, num_clients, alpha, seed, min_samples, repair, shards_per_client
):
    config = PartitionConfig(
        kind=kind, alpha=alpha, num_clients=num_clients, min_samples=min_samples, max_draws=20, repair=repair,
        shards_per_client=shards_per_client, table="some.csv",
    )  # fmt: skip
    table = a_table(num_clients, seed) if kind == "table" else None
    try:
        result = partition(LABELS, config, seed, table)
    except ConfigError as error:
        assert kind in DRAWN
        assert not repair or num_clients * min_samples > len(LABELS)
        message = str(error)
        assert "\n" not in message
        assert f"partition.num_clients={num_clients}" in message and f"partition.min_samples={min_samples}" in message
        return
    sizes = result.label_counts.sum(axis=1)
    if kind == "table":
        np.testing.assert_array_equal(result.label_counts, table)
        dealt = np.concatenate(result.client_indices)
        assert len(set(dealt)) == len(dealt) == table.sum()
        return
    assert_deals_out_every_image_once(result, LABELS, num_clients)
    if kind in DRAWN:
        assert sizes.min() >= min_samples
    else:
        assert sizes.max() - sizes.min() <= (shards_per_client if kind == "shards" else 1)
        assert sizes.min() >= len(LABELS) // (num_clients * shards_per_client) * shards_per_client
        assert kind == "shards" or sizes.min() == len(LABELS) // num_clients


@pytest.mark.parametrize("deal", [dirichlet_unbalanced, dirichlet_balanced])
def test_a_smaller_alpha_gives_a_client_fewer_classes(deal):
    labels = np.repeat(np.arange(10), 200)

    def classes_held(alpha):
        return np.mean([(deal(labels, 10, alpha, seed).label_counts > 0).sum(axis=1).mean() for seed in range(5)])

    assert classes_held(0.01) < 0.5 * classes_held(1.0) < 0.5 * classes_held(100.0)
    assert classes_held(100.0) > 9.8


def test_same_seed_gives_the_same_clients_and_another_seed_others():
    for kind in KINDS:
        config = PartitionConfig(kind=kind, num_clients=7, alpha=0.5, table="some.csv")
        first, again, other = (partition(LABELS, config, seed, a_table(7, 0)) for seed in (3, 3, 4))
        assert all(np.array_equal(a, b) for a, b in zip(first.client_indices, again.client_indices, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(first.client_indices, other.client_indices, strict=True))


def test_an_impossible_minimum_is_refused_without_a_draw():
    message = r"partition\.num_clients=200 times partition\.min_samples=10 exceeds .* at most 150"
    for deal in (dirichlet_unbalanced, quantity_skew):
        for repaired in (False, True):
            with pytest.raises(ConfigError, match=message):
                deal(LABELS, 200, 0.1, 0, max_draws=10**12, repaired=repaired)


def test_a_minimum_that_no_draw_meets_is_refused_after_max_draws():
    one_class = np.zeros(100, np.int64)
    for deal in (dirichlet_unbalanced, quantity_skew):
        with pytest.raises(ConfigError, match=r"partition\.alpha=0\.01 .*partition\.max_draws=50 draws .*raise alpha"):
            deal(one_class, 10, 0.01, 0, max_draws=50)


@pytest.mark.parametrize(("deal", "alpha", "min_samples"), [(dirichlet_unbalanced, 0.5, 20), (quantity_skew, 2.0, 12)])
def test_a_rejected_draw_is_told_with_the_smallest_client_of_the_best_so_far_and_the_taken_one_is_not(deal, alpha, min_samples):
    told = []
    result = deal(LABELS, 40, alpha, 0, min_samples, 1000, rejected=lambda *draw: told.append(draw))
    assert result.label_counts.sum(axis=1).min() >= min_samples
    numbers, smallest = zip(*told, strict=True)
    assert numbers == tuple(range(1, len(told) + 1)) and len(told) > 3
    assert list(smallest) == sorted(smallest) and 0 <= smallest[0] < smallest[-1] < min_samples
    with pytest.raises(ConfigError, match=rf"max_draws={len(told)} draws \(best: {smallest[-1]}\)"):
        deal(LABELS, 40, alpha, 0, min_samples, len(told))


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=40), seed=st.integers(0, 2**31 - 1))
def test_passing_over_shuffles_leaves_the_generator_where_shuffling_does(sizes, seed):
    shuffling, passing = np.random.RandomState(seed), np.random.RandomState(seed)
    for size in sizes:
        shuffling.shuffle(np.arange(size))
    pass_over_shuffles(passing, np.array(sizes))
    np.testing.assert_array_equal(shuffling.randint(0, 2**31, 700), passing.randint(0, 2**31, 700))


@pytest.mark.parametrize("num_clients", [200, 500])
def test_hundreds_of_clients_at_a_small_alpha_end_in_an_error_or_repaired(num_clients):
    labels = np.repeat(np.arange(10), 5000)
    config = PartitionConfig(num_clients=num_clients, alpha=0.01, max_draws=30)
    with pytest.raises(ConfigError, match=r"partition\.max_draws=30 draws .*partition\.repair=true"):
        partition(labels, config, 0)
    repaired = partition(labels, PartitionConfig(num_clients=num_clients, alpha=0.01, repair=True), 0)
    assert_deals_out_every_image_once(repaired, labels, num_clients)
    assert repaired.label_counts.sum(axis=1).min() == 10


def owners_of(result):
    owners = np.empty(sum(map(len, result.client_indices)), int)
    for client, indices in enumerate(result.client_indices):
        owners[indices] = client
    return owners


@settings(max_examples=60, deadline=None)
@given(
    deal=st.sampled_from([dirichlet_unbalanced, quantity_skew]),
    num_clients=st.integers(1, 150),
    alpha=st.sampled_from([1e-6, 0.01, 0.1, 1.0, 50.0]),
    seed=st.integers(0, 2**31 - 1),
    share=st.floats(0.0, 1.0),
)
def test_repair_moves_as_many_images_as_clients_lack_and_no_more(deal, num_clients, alpha, seed, share):
    min_samples = int(share * len(LABELS) / num_clients)
    before, after = deal(LABELS, num_clients, alpha, seed, 0), deal(LABELS, num_clients, alpha, seed, min_samples, 1, True)
    old, new = (result.label_counts.sum(axis=1) for result in (before, after))
    # Each client has to be given what it lacks, so no repair moves fewer.
    lacking = np.maximum(min_samples - old, 0)
    assert np.sum(owners_of(before) != owners_of(after)) == lacking.sum()
    np.testing.assert_array_equal(new[lacking > 0], min_samples)
    # Those that give are the largest ones: nobody who gave is left more than an image below one who did not have to.
    gave = new < old
    assert not gave.any() or new[gave].max() - new[gave].min() <= 1
    assert not gave.any() or new.max() <= new[gave].min() + 1
    for kept, held in zip(before.client_indices, after.client_indices, strict=True):
        np.testing.assert_array_equal(kept[np.isin(kept, held)], held[np.isin(held, kept)])  # what stays keeps its order


def test_a_partition_that_meets_its_minimum_is_not_touched_by_repair():
    for deal in (dirichlet_unbalanced, quantity_skew):
        plain, repaired = (deal(LABELS, 10, 1.0, 1, 1, 1, repaired) for repaired in (False, True))
        assert all(np.array_equal(a, b) for a, b in zip(plain.client_indices, repaired.client_indices, strict=True))


def test_shards_are_those_of_mcmahan():
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 600))
    result = shards(labels, 100, 2, 0)
    # 200 shards of 30 images of one class; two for each client, sometimes of the same class.
    assert set(np.unique(result.label_counts)) == {0, 30, 60}
    np.testing.assert_array_equal(result.label_counts.sum(axis=1), 60)
    assert not all(np.all(np.diff(labels[indices]) >= 0) for indices in result.client_indices)  # a client's own order is mixed
    one = shards(labels, 10, 1, 3)
    np.testing.assert_array_equal(np.sort(one.label_counts.argmax(axis=1)), np.arange(10))
    with pytest.raises(ConfigError, match=r"partition\.shards_per_client=700 .*at most 600 shards a client"):
        shards(labels, 10, 700, 0)


def test_quantity_skew_is_of_sizes_and_leaves_the_classes_mixed():
    labels = np.repeat(np.arange(10), 2000)
    sizes = [quantity_skew(labels, 20, alpha, 0).label_counts.sum(axis=1) for alpha in (0.5, 5.0, 500.0)]
    assert sizes[0].std() > 2 * sizes[1].std() > 4 * sizes[2].std()
    counts = quantity_skew(labels, 20, 0.5, 0).label_counts
    large = counts[counts.sum(axis=1) > 1000]
    assert len(large) > 3
    np.testing.assert_allclose(large / large.sum(axis=1, keepdims=True), 0.1, atol=0.03)


def test_images_that_a_table_leaves_over_go_to_nobody_and_chance_decides_which():
    table = np.zeros((2, 13), int)
    table[0, 3], table[1, 3], table[1, 7] = 5, 6, 7
    first, other = fixed(LABELS, table, 0), fixed(LABELS, table, 1)
    assert [len(indices) for indices in first.client_indices] == [5, 13]
    assert set(LABELS[first.client_indices[0]]) == {3}
    assert not np.array_equal(np.sort(first.client_indices[1]), np.sort(other.client_indices[1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((0, 3, 10_000), "images of class 3 (counted from 0), of which"),
        ((1, 5, 1), "partition.table asks for 1 images of class 5 (counted from 0), of which 0 are for training"),
        ((2, slice(None), 0), "partition.table gives client 2 no image"),
    ],
)
def test_a_table_that_cannot_be_dealt_is_refused(change, message):
    table = a_table(4, 0)
    table[change[0], change[1]] = change[2]
    with pytest.raises(ConfigError, match=re.escape(message)):
        partition(LABELS, PartitionConfig(kind="table", num_clients=4, table="some.csv"), 0, table)


def test_a_table_of_another_number_of_clients_is_refused():
    with pytest.raises(ConfigError, match=r"partition\.num_clients=5: .*some\.csv has 4 clients; set partition\.num_clients=4"):
        partition(LABELS, PartitionConfig(kind="table", num_clients=5, table="some.csv"), 0, a_table(4, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_clients_are_dealt_and_split_in_seconds(kind):
    labels = np.repeat(np.arange(10), 6000)
    table = iid(labels, 10_000, 0).label_counts
    config = PartitionConfig(kind=kind, num_clients=10_000, min_samples=5, repair=True, table="some.csv")
    started = time.process_time()
    result = partition(labels, config, 0, table)
    dealt = time.process_time()
    split(result, labels, 10_000, 0.1, 0)
    assert dealt - started < 2.0
    assert time.process_time() - dealt < 2.0
    np.testing.assert_array_equal(np.sort(np.concatenate(result.client_indices)), np.arange(60_000))
    assert len(result.client_indices) == 10_000 and min(map(len, result.client_indices)) >= 5


def test_a_partition_is_described_by_the_settings_that_its_kind_looks_at():
    assert describe(PartitionConfig(kind="iid")) == "10 clients, iid"
    assert describe(PartitionConfig(alpha=0.05)) == "10 clients, dirichlet_unbalanced, alpha 0.05"
    assert describe(PartitionConfig(kind="shards", repair=True)) == "10 clients, shards, 2 a client"
    skewed = PartitionConfig(kind="quantity_skew", repair=True, min_samples=3, feature_rotation=45.0, feature_noise=0.1)
    assert describe(skewed) == (
        "10 clients, quantity_skew, alpha 0.1, repaired to at least 3 images, rotated by up to 45 degrees, noise up to 0.1"
    )


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
    assert not np.array_equal(splits.test[0], split(dealt, LABELS, 401, fraction, seed=6).test[0])


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
