"""What every kind of partition checks first, how clients that were drawn too small are refused or repaired, and the result."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.data.splits import label_counts
from mosaic_jax.types import Partition

# Added to the seed by the public code; part of its published label tables.
SEED_OFFSET = 5363

# A draw: the clients' sizes i64[C], and what gives the order of their images i64[N], one client after another.
Draw = tuple[np.ndarray, Callable[[], np.ndarray]]
Rejected = Callable[[int, int], None]


def unheard(draws: int, smallest: int) -> None:
    """The `rejected` of who does not want to hear of rejected draws."""


def generator(seed: int) -> np.random.RandomState:
    """The legacy generator that a partition is drawn from, so that the public tables are met."""
    return np.random.RandomState(seed + SEED_OFFSET)


def checked(labels: np.ndarray, num_clients: int, alpha: float = 1.0) -> np.ndarray:
    """The labels as an array; raises ConfigError for labels, a number of clients or an alpha that no partition can have."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ConfigError(f"labels of shape {labels.shape} and type {labels.dtype} must be a non-empty row of integers from 0")
    if not 1 <= num_clients <= len(labels):
        raise ConfigError(f"partition.num_clients={num_clients} must be 1 to {len(labels)}, the number of training images")
    if not 0.0 < alpha < np.inf:
        raise ConfigError(f"partition.alpha={alpha} must be positive and finite")
    return labels


def first_large_enough(
    draws: Iterator[Draw], alpha: float, num_images: int, num_clients: int, min_samples: int, max_draws: int, repaired: bool,
    random: np.random.RandomState, rejected: Rejected,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The first of the draws in which every client has min_samples images, or if `repaired` the very first, mended: (order, sizes).

    rejected(n, smallest) is told of every draw that is not taken: how many there were, and the size of the smallest client in the
    best of them. Nothing is drawn where no partition could do. Raises ConfigError then, and after max_draws draws.
    """
    if num_clients * min_samples > num_images:
        raise ConfigError(
            f"partition.num_clients={num_clients} times partition.min_samples={min_samples} exceeds the {num_images} training "
            f"images: at most {num_images // min_samples} clients, or a smaller partition.min_samples"
        )
    smallest = 0
    for number, (sizes, order) in enumerate(itertools.islice(draws, max_draws), 1):
        if sizes.min() >= min_samples:
            return order(), sizes
        if repaired:
            return repair(order(), sizes, min_samples, random)
        smallest = max(smallest, int(sizes.min()))
        rejected(number, smallest)
    raise ConfigError(
        f"partition.alpha={alpha} gave each of partition.num_clients={num_clients} clients partition.min_samples={min_samples} "
        f"images in none of partition.max_draws={max_draws} draws (best: {smallest}): raise alpha, lower num_clients or "
        "min_samples, or set partition.repair=true"
    )


def repair(order: np.ndarray, sizes: np.ndarray, min_samples: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Moves the fewest images that give every client min_samples of them.

    A client that lacks d[i] = max(min_samples - sizes[i], 0) images gets exactly so many, so sum(d) images move; fewer cannot do.
    The largest clients give: all above a common level come down to it, which is the lowest largest size that sum(d) moves
    can reach. A client gives the last images of its own order, and chance decides who gets which.

    order: integers [N], the clients' images one client after another, each client's in random order; sizes: integers [C], with
    C * min_samples at most N. Returns both anew; images that stay keep their order.
    """
    lacking = np.maximum(min_samples - sizes, 0)
    total = lacking.sum()
    at_least = np.cumsum(np.bincount(sizes)[::-1])[::-1]  # [s]: clients with s images or more
    above = np.cumsum(at_least[::-1])[::-1] - at_least  # [s]: images that clients have beyond s of them, in all
    level = int(np.argmax(above <= total))
    giving = np.maximum(sizes - level, 0)
    giving[np.flatnonzero(sizes >= level)[: total - giving.sum()]] += 1

    owners = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    owners[places >= np.repeat(sizes - giving, sizes)] = random.permutation(np.repeat(np.arange(len(sizes)), lacking))
    return order[np.argsort(owners, kind="stable")], sizes + lacking - giving


def by_owner(images: np.ndarray, owners: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """The images one client after another, each client's in random order; owners: the client of each image."""
    shuffled = random.permutation(len(images))
    return images[shuffled][np.argsort(owners[shuffled], kind="stable")]


def as_partition(order: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> Partition:
    """order: the images of client 0, then those of client 1, and so on; sizes: how many each client has."""
    indices = tuple(np.split(order.astype(np.int32), np.cumsum(sizes)[:-1]))
    return Partition(indices, label_counts(indices, labels, int(labels.max()) + 1))
