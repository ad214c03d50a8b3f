"""Label skew by Dirichlet proportions: clients of unequal and of equal size."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from mosaic_jax.data.partition.dealing import Draw, Rejected, as_partition, checked, first_large_enough, generator, unheard
from mosaic_jax.types import Partition


def dirichlet_unbalanced(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, min_samples: int = 10, max_draws: int = 1000,
    repaired: bool = False, rejected: Rejected = unheard,
) -> Partition:  # fmt: skip
    """Deals each class out by its own Dirichlet proportions, until the smallest client has min_samples images.

    For class k: p ~ Dirichlet(alpha, ..., alpha) over the C clients; p[j] = 0 for a client that already holds N / C
    images or more; p /= sum(p); the shuffled class is cut at floor(cumsum(p) * n_k). Where nothing of p is left (for a
    tiny alpha the draw lies on full clients alone, or is not finite), the class goes whole to the client that is smallest
    so far, the first of equals: the limit alpha -> 0, and no further draw, so the rest of the stream stays as it was.
    If `repaired`, the first draw counts and `repair` moves the fewest images that give every client min_samples.

    labels: integers [N] in 0..K-1, K = max label + 1. Errors as in `first_large_enough`.
    Source: public code of arXiv 2505.19699, same draws from the same seed.
    """
    labels = checked(labels, num_clients, alpha)
    random = generator(seed)
    draws = _unbalanced_draws(labels, num_clients, alpha, random)
    taken = first_large_enough(draws, alpha, len(labels), num_clients, min_samples, max_draws, repaired, random, rejected)
    return as_partition(*taken, labels)


def _unbalanced_draws(labels: np.ndarray, num_clients: int, alpha: float, random: np.random.RandomState) -> Iterator[Draw]:
    """Draw after draw from one stream; to ask for the next one rejects the last."""
    classes = _by_class(labels)
    alphas, average = np.full(num_clients, alpha), len(labels) / num_clients
    while True:
        shuffled, dealt = [], []
        sizes = np.zeros(num_clients, np.int64)
        for members in classes:
            members = members.copy()
            random.shuffle(members)
            shares = np.where(sizes < average, random.dirichlet(alphas), 0.0)
            total = shares.sum()
            shares = shares / total if 0 < total < np.inf else np.eye(num_clients)[sizes.argmin()]
            cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            counts = np.diff(cuts, prepend=0, append=len(members))
            shuffled.append(members)
            dealt.append(counts)
            sizes += counts
        yield sizes, partial(_arranged, shuffled, dealt, sizes, random)
        pass_over_shuffles(random, sizes)  # The public code shuffles the clients of a rejected draw as well.


def _arranged(shuffled: list[np.ndarray], dealt: list[np.ndarray], sizes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """The images of a draw one client after another, each client's shuffled: those of each class, and how many each client gets."""
    owners = np.concatenate([np.repeat(np.arange(len(sizes)), counts) for counts in dealt])
    order = np.concatenate(shuffled)[np.argsort(owners, kind="stable")]
    for client in np.split(order, np.cumsum(sizes)[:-1]):  # views: shuffled in place
        random.shuffle(client)
    return order


def pass_over_shuffles(random: np.random.RandomState, sizes: np.ndarray) -> None:
    """Leaves the generator where shuffling rows of these sizes, one after another, would, in a tenth of the time for short ones.

    A shuffle of n draws a position below n, n - 1, ..., 2, which the legacy generator does alike one by one and all at once.
    """
    below = np.repeat(np.cumsum(sizes), sizes) - np.arange(sizes.sum())
    random.randint(0, below[below > 1])


def dirichlet_balanced(labels: np.ndarray, num_clients: int, alpha: float, seed: int) -> Partition:
    """Gives every client the same number of images in its own Dirichlet mixture of classes.

    Client i, in order: p ~ Dirichlet(alpha, ..., alpha) over the K classes; it takes floor(N / C) images, the last
    N mod C clients one more so that none is left over. Class counts are multinomial in p over the classes that still
    have images, drawn again for what an exhausted class could not give; where nothing of p is left (late clients, tiny
    alpha), all come from the class with most images left, the first of equals. So the last clients take what is left.

    labels: integers [N] in 0..K-1, K = max label + 1. Raises ConfigError when a client would hold nothing.
    Source: the balanced variant described for arXiv 2505.19699.
    """
    labels = checked(labels, num_clients, alpha)
    random = generator(seed)
    classes = _by_class(labels)
    for members in classes:
        random.shuffle(members)
    left = np.array([len(members) for members in classes])
    clients = []
    for client in range(num_clients):
        mixture = random.dirichlet([alpha] * len(classes))
        wanted = len(labels) // num_clients + (client >= num_clients - len(labels) % num_clients)
        taken = []
        # Ends after at most K + 1 turns: a turn that leaves something wanted has emptied a class.
        while wanted > 0:
            shares = np.where(left > 0, mixture, 0.0)
            total = shares.sum()
            shares = shares / total if 0 < total < np.inf else np.eye(len(classes))[left.argmax()]
            counts = np.minimum(random.multinomial(wanted, shares), left)
            for members, available, count in zip(classes, left, counts, strict=True):
                taken.append(members[available - count : available])
            left = left - counts
            wanted -= counts.sum()
        held = np.concatenate(taken)
        random.shuffle(held)
        clients.append(held)
    return as_partition(np.concatenate(clients), np.array([len(held) for held in clients]), labels)


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The positions of each class in ascending order; an empty array for a label that does not occur."""
    return [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
