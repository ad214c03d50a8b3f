"""The pathological partition of the first paper on federated averaging: few classes a client."""

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.data.partition.dealing import as_partition, by_owner, checked, generator
from mosaic_jax.types import Partition


def shards(labels: np.ndarray, num_clients: int, shards_per_client: int, seed: int) -> Partition:
    """Sorts the images by label, cuts them into num_clients * shards_per_client shards and deals each client as many at random.

    Shards follow one another and their sizes differ by at most one, so every image is dealt; images of one class are in random
    order. A shard that ends with its class has one class, another has two (or more, of classes smaller than a shard).

    labels: integers [N] in 0..K-1, K = max label + 1. Raises ConfigError when a shard would be empty.
    Source: McMahan et al. 2017 (arXiv 1602.05629): MNIST, 200 shards of 300 images, 2 for each of 100 clients.
    """
    labels = checked(labels, num_clients)
    num_shards = num_clients * shards_per_client
    if num_shards > len(labels):
        raise ConfigError(
            f"partition.shards_per_client={shards_per_client} times partition.num_clients={num_clients} is more shards than the "
            f"{len(labels)} training images: at most {len(labels) // num_clients} shards a client"
        )
    random = generator(seed)
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    shard_sizes = len(labels) // num_shards + (np.arange(num_shards) < len(labels) % num_shards)
    owners = np.repeat(random.permutation(np.repeat(np.arange(num_clients), shards_per_client)), shard_sizes)
    return as_partition(by_owner(order, owners, random), np.bincount(owners, minlength=num_clients), labels)
