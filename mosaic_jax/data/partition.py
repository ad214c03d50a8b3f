"""Which client holds which training images. NumPy only, with its legacy generator so that the public tables are met."""

import numpy as np

from mosaic_jax.config import ConfigError, PartitionConfig
from mosaic_jax.data.splits import label_counts
from mosaic_jax.types import Partition

# Added to the seed by the public code; part of its published label tables.
SEED_OFFSET = 5363


def partition(labels: np.ndarray, config: PartitionConfig, seed: int) -> Partition:
    """Deals the images out as config.kind says; labels: integers [N]; errors as in the function that is called."""
    if config.kind == "iid":
        return iid(labels, config.num_clients, seed)
    if config.kind == "dirichlet_unbalanced":
        return dirichlet_unbalanced(labels, config.num_clients, config.alpha, seed, config.min_samples, config.max_draws)
    if config.kind == "dirichlet_balanced":
        return dirichlet_balanced(labels, config.num_clients, config.alpha, seed)
    raise ConfigError(f"partition.kind={config.kind!r} must be one of iid, dirichlet_unbalanced, dirichlet_balanced")


def iid(labels: np.ndarray, num_clients: int, seed: int) -> Partition:
    """Deals one random permutation out in consecutive pieces whose sizes differ by at most one.

    labels: integers [N] in 0..K-1, K = max label + 1. Raises ConfigError when a client would hold nothing.
    """
    labels = _checked(labels, num_clients)
    order = np.random.RandomState(seed + SEED_OFFSET).permutation(len(labels))
    return _partition(np.array_split(order, num_clients), labels)


def dirichlet_unbalanced(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, min_samples: int = 10, max_draws: int = 1000
) -> Partition:
    """Deals each class out by its own Dirichlet proportions, until the smallest client has min_samples images.

    For class k: p ~ Dirichlet(alpha, ..., alpha) over the C clients; p[j] = 0 for a client that already holds N / C
    images or more; p /= sum(p); the shuffled class is cut at floor(cumsum(p) * n_k). Where nothing of p is left (for a
    tiny alpha the draw lies on full clients alone, or is not finite), the class goes whole to the client that is smallest
    so far, the first of equals: the limit alpha -> 0, and no further draw, so the rest of the stream stays as it was.

    labels: integers [N] in 0..K-1, K = max label + 1. Raises ConfigError at once when num_clients * min_samples > N, and
    after max_draws draws without success. Source: public code of arXiv 2505.19699, same draws from the same seed.
    """
    labels = _checked(labels, num_clients, alpha)
    if num_clients * min_samples > len(labels):
        raise ConfigError(
            f"partition.num_clients={num_clients} times partition.min_samples={min_samples} exceeds the {len(labels)} training "
            f"images: at most {len(labels) // min_samples} clients, or a smaller partition.min_samples"
        )
    random = np.random.RandomState(seed + SEED_OFFSET)
    classes = _by_class(labels)
    smallest = 0
    for _ in range(max_draws):
        orders, owners = [], []
        sizes = np.zeros(num_clients, np.int64)
        for members in classes:
            order = members.copy()
            random.shuffle(order)
            shares = random.dirichlet([alpha] * num_clients)
            shares = np.where(sizes < len(labels) / num_clients, shares, 0.0)
            total = shares.sum()
            shares = shares / total if 0 < total < np.inf else np.eye(num_clients)[sizes.argmin()]
            cuts = (np.cumsum(shares)[:-1] * len(order)).astype(np.int64)
            counts = np.diff(cuts, prepend=0, append=len(order))
            orders.append(order)
            owners.append(np.repeat(np.arange(num_clients), counts))
            sizes += counts
        grouped = np.concatenate(orders)[np.argsort(np.concatenate(owners), kind="stable")]
        clients = np.split(grouped, np.cumsum(sizes)[:-1])
        for client in clients:
            random.shuffle(client)
        if sizes.min() >= min_samples:
            return _partition(clients, labels)
        smallest = max(smallest, int(sizes.min()))
    raise ConfigError(
        f"partition.alpha={alpha} gave each of partition.num_clients={num_clients} clients partition.min_samples={min_samples} "
        f"images in none of partition.max_draws={max_draws} draws (best: {smallest}): raise alpha "
        "or lower num_clients or min_samples"
    )


def dirichlet_balanced(labels: np.ndarray, num_clients: int, alpha: float, seed: int) -> Partition:
    """Gives every client the same number of images in its own Dirichlet mixture of classes.

    Client i, in order: p ~ Dirichlet(alpha, ..., alpha) over the K classes; it takes floor(N / C) images, the last
    N mod C clients one more so that none is left over. Class counts are multinomial in p over the classes that still
    have images, drawn again for what an exhausted class could not give; where nothing of p is left (late clients, tiny
    alpha), all come from the class with most images left, the first of equals. So the last clients take what is left.

    labels: integers [N] in 0..K-1, K = max label + 1. Raises ConfigError when a client would hold nothing.
    Source: the balanced variant described for arXiv 2505.19699.
    """
    labels = _checked(labels, num_clients, alpha)
    random = np.random.RandomState(seed + SEED_OFFSET)
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
    return _partition(clients, labels)


def _checked(labels: np.ndarray, num_clients: int, alpha: float = 1.0) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ConfigError(f"labels of shape {labels.shape} and type {labels.dtype} must be a non-empty row of integers from 0")
    if not 1 <= num_clients <= len(labels):
        raise ConfigError(f"partition.num_clients={num_clients} must be 1 to {len(labels)}, the number of training images")
    if not 0.0 < alpha < np.inf:
        raise ConfigError(f"partition.alpha={alpha} must be positive and finite")
    return labels


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The positions of each class in ascending order; an empty array for a label that does not occur."""
    return [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]


def _partition(clients: list[np.ndarray], labels: np.ndarray) -> Partition:
    indices = tuple(client.astype(np.int32) for client in clients)
    return Partition(indices, label_counts(indices, labels, int(labels.max()) + 1))
