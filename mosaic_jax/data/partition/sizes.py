"""Partitions by size alone, whatever the labels: equal clients and quantity skew."""

from collections.abc import Iterator

import numpy as np

from mosaic_jax.data.partition.dealing import Draw, Rejected, as_partition, checked, first_large_enough, generator, unheard
from mosaic_jax.types import Partition


def iid(labels: np.ndarray, num_clients: int, seed: int) -> Partition:
    """Deals one random permutation out in consecutive pieces whose sizes differ by at most one.

    labels: integers [N] in 0..K-1, K = max label + 1. Raises ConfigError when a client would hold nothing.
    """
    labels = checked(labels, num_clients)
    sizes = len(labels) // num_clients + (np.arange(num_clients) < len(labels) % num_clients)
    return as_partition(generator(seed).permutation(len(labels)), sizes, labels)


def quantity_skew(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, min_samples: int = 10, max_draws: int = 1000,
    repaired: bool = False, rejected: Rejected = unheard,
) -> Partition:  # fmt: skip
    """Deals one random permutation out in consecutive pieces of Dirichlet sizes: clients differ in size, hardly in classes.

    q ~ Dirichlet(alpha, ..., alpha) over the C clients, cut at floor(cumsum(q) * N); drawn again until the smallest client has
    min_samples images, or, if `repaired`, drawn once and `repair` moves the fewest images that do it. Where q is not finite
    (a tiny alpha) one client, drawn evenly, gets everything: the limit alpha -> 0.

    labels: integers [N] in 0..K-1, K = max label + 1. Errors as in `first_large_enough`.
    Source: Li et al. 2022 (NIID-Bench, arXiv 2102.02079), quantity skew.
    """
    labels = checked(labels, num_clients, alpha)
    random = generator(seed)
    draws = _draws_of_sizes(len(labels), num_clients, alpha, random)
    taken = first_large_enough(draws, alpha, len(labels), num_clients, min_samples, max_draws, repaired, random, rejected)
    return as_partition(*taken, labels)


def _draws_of_sizes(num_images: int, num_clients: int, alpha: float, random: np.random.RandomState) -> Iterator[Draw]:
    """Draw after draw from one stream, all of them pieces of one permutation."""
    order = random.permutation(num_images)
    alphas = np.full(num_clients, alpha)
    while True:
        shares = random.dirichlet(alphas)
        if not np.isfinite(shares).all():
            shares = np.eye(num_clients)[random.randint(num_clients)]
        cuts = (np.cumsum(shares)[:-1] * num_images).astype(np.int64)
        yield np.diff(cuts, prepend=0, append=num_images), lambda: order
