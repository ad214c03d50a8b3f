"""Statistics over few seeds: means, a bootstrap interval and a sign-flip test of paired differences, ranks. NumPy alone."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

NUM_RESAMPLES = 10_000
MOST_FLIPPED = 16  # seeds; with more, as many sign patterns are drawn as 16 seeds have
ROUNDING = 1e-12


def mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); no mean where a value is missing or there is none, no deviation of one value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """The percentile interval of the mean of values [n] that are drawn again with replacement; None of a single value.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3. With few values it is too narrow.
    """
    if len(values) < 2:
        return None
    places = np.random.default_rng(seed).integers(0, len(values), (NUM_RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values, float)[places].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """The two-sided p of paired differences [n], n > 0: the share of all 2^n ways to give them signs with |sum| at least theirs.

    It is exact for up to MOST_FLIPPED differences; of more, that many ways are drawn and the differences' own counted with them.
    Source: Fisher, The Design of Experiments, 1935, section 21.
    """
    values = np.asarray(differences, float)
    if len(values) <= MOST_FLIPPED:
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    else:
        drawn = np.random.default_rng(seed).choice((-1, 1), (2**MOST_FLIPPED - 1, len(values)))
        signs = np.concatenate([np.ones((1, len(values)), int), drawn])
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) - ROUNDING))


def smallest_p(num_differences: int) -> float:
    """The smallest p that `sign_flip_p` has of so many differences: all have one sign, and only that and its mirror count."""
    return 2.0 ** (1 - num_differences) if num_differences <= MOST_FLIPPED else 2.0**-MOST_FLIPPED


def ranks(scores: Sequence[float]) -> list[float]:
    """The rank of each score, 1 for the highest; equal scores share the mean of their places."""
    values = np.asarray(scores, float)
    higher, equal = (values[None, :] > values[:, None]).sum(axis=1), (values[None, :] == values[:, None]).sum(axis=1)
    return [float(rank) for rank in 1 + higher + (equal - 1) / 2]


def rank_by_seeds(scores: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """The rank of each row's mean over the seeds that all rows have; empty where they have none together.

    scores: row to {seed: score}.
    """
    common = set.intersection(*(set(each) for each in scores.values())) if scores else set()
    if not common:
        return {}
    means = [statistics.fmean(each[seed] for seed in sorted(common)) for each in scores.values()]
    return dict(zip(scores, ranks(means), strict=True))


def wins_draws_losses(differences: Sequence[float]) -> tuple[int, int, int]:
    """How many differences are above, at and below 0."""
    above, below = (sum(sign * value > 0 for value in differences) for sign in (1, -1))
    return above, len(differences) - above - below, below
