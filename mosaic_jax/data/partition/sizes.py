"""Partitions by size alone, whatever the labels: equal clients and quantity skew."""

import numpy as np

from mosaic_jax.data.partition.dealing import as_partition, check_minimum, checked, generator, no_draw, repair
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
    repaired: bool = False,
) -> Partition:  # fmt: skip
    """Deals one random permutation out in consecutive pieces of Dirichlet sizes: clients differ in size, hardly in classes.

    q ~ Dirichlet(alpha, ..., alpha) over the C clients, cut at floor(cumsum(q) * N); drawn again until the smallest client has
    min_samples images, or, if `repaired`, drawn once and `repair` moves the fewest images that do it. Where q is not finite
    (a tiny alpha) one client, drawn evenly, gets everything: the limit alpha -> 0.

    labels: integers [N] in 0..K-1, K = max label + 1. Raises ConfigError at once when num_clients * min_samples > N, and
    after max_draws draws without success. Source: Li et al. 2022 (NIID-Bench, arXiv 2102.02079), quantity skew.
    """
    labels = checked(labels, num_clients, alpha)
    check_minimum(num_clients, min_samples, len(labels))
    random = generator(seed)
    order = random.permutation(len(labels))
    smallest = 0
    for _ in range(max_draws):
        shares = random.dirichlet([alpha] * num_clients)
        if not np.isfinite(shares).all():
            shares = np.eye(num_clients)[random.randint(num_clients)]
        cuts = (np.cumsum(shares)[:-1] * len(labels)).astype(np.int64)
        sizes = np.diff(cuts, prepend=0, append=len(labels))
        if sizes.min() >= min_samples:
            return as_partition(order, sizes, labels)
        if repaired:
            return as_partition(*repair(order, sizes, min_samples, random), labels)
        smallest = max(smallest, int(sizes.min()))
    raise no_draw(alpha, num_clients, min_samples, max_draws, smallest)
