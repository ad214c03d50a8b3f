"""Statistics over few seeds against values that are known."""

import numpy as np
import pytest

from mosaic_jax.seed_statistics import (
    MOST_FLIPPED,
    bootstrap_interval,
    mean_and_std,
    rank_by_seeds,
    ranks,
    sign_flip_p,
    smallest_p,
    wins_draws_losses,
)

# Heights of cross- and self-fertilised maize, in eighths of an inch: Darwin 1876, in Fisher, The Design of Experiments, section 17.
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_a_mean_needs_every_value_and_a_deviation_two() -> None:
    assert mean_and_std([0.5, 0.7, 0.9]) == (pytest.approx(0.7), pytest.approx(0.2))
    assert mean_and_std([0.5]) == (0.5, None)
    assert mean_and_std([0.5, None]) == mean_and_std([]) == (None, None)


def test_the_interval_of_few_values_is_that_of_all_their_resamples() -> None:
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)  # a quarter of the means are 0, a quarter 1
    assert bootstrap_interval([1.0, 2.0, 6.0]) == (1.0, 6.0)  # one of 27 means is 1: more than 2.5%
    assert bootstrap_interval([0.3, 0.3, 0.3]) == (pytest.approx(0.3), pytest.approx(0.3))
    assert bootstrap_interval([0.3]) is None


def test_the_interval_of_many_normal_values_is_the_normal_one_and_the_same_each_time() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    half = 1.96 * values.std() / 20
    low, high = bootstrap_interval(values.tolist()) or (0.0, 0.0)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_interval(values.tolist()) == (low, high)


def test_the_sign_flip_test_is_fishers_of_darwins_maize() -> None:
    assert sign_flip_p(DARWIN) == 2 * 863 / 2**15  # section 21: 863 of the 32,768 sums are 314 or more


@pytest.mark.parametrize(
    ("differences", "p"),
    [([0.1], 1.0), ([0.1, 0.2, 0.3], 0.25), ([-0.1, -0.2, -0.3], 0.25), ([0.1, 0.2, -0.3], 1.0), ([0.0, 0.0], 1.0),
     ([0.1] * 5, 0.0625), ([0.1, 0.2, 0.3, -0.1], 0.375)],
)  # fmt: skip
def test_the_sign_flip_test_counts_sums_as_large_whatever_rounding_does(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == p


@pytest.mark.parametrize("number", [1, 3, 5, MOST_FLIPPED])
def test_no_p_is_below_the_smallest_that_so_few_seeds_allow(number: int) -> None:
    assert sign_flip_p([1.0] * number) == smallest_p(number) == 2 / 2**number


def test_with_many_seeds_signs_are_drawn_and_the_differences_counted_with_them() -> None:
    many = DARWIN + DARWIN
    assert sign_flip_p(many) == sign_flip_p(many)
    assert sign_flip_p(many) == pytest.approx(0.0065, abs=0.002)  # of the normal approximation: 628 / sqrt(sum of squares)
    assert sign_flip_p([1.0] * 40) == smallest_p(40) == 2**-MOST_FLIPPED


def test_equal_scores_share_the_mean_of_their_places() -> None:
    assert ranks([0.3, 0.1, 0.3, 0.2]) == [1.5, 4.0, 1.5, 3.0]
    assert ranks([0.5, 0.5, 0.5]) == [2.0, 2.0, 2.0]
    assert ranks([]) == []


def test_rows_are_ranked_over_the_seeds_that_all_of_them_have() -> None:
    assert rank_by_seeds({"a": {0: 0.5, 1: 0.1}, "b": {0: 0.4, 2: 0.9}}) == {"a": 1.0, "b": 2.0}
    assert rank_by_seeds({"a": {0: 0.5}, "b": {1: 0.4}}) == rank_by_seeds({}) == {}


def test_wins_draws_and_losses_are_above_at_and_below_0() -> None:
    assert wins_draws_losses([0.1, 0.2, 0.0, -0.3]) == (2, 1, 1)
