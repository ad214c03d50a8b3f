"""The partition that a table of label counts prescribes."""

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.data.partition.dealing import as_partition, by_owner, checked, generator
from mosaic_jax.types import Partition


def fixed(labels: np.ndarray, counts: np.ndarray, seed: int) -> Partition:
    """Gives client i counts[i, c] images of class c, chosen at random; images that the table leaves over go to nobody.

    labels: integers [N] in 0..K-1; counts: integers [C, K'], zero from the largest label on. Raises ConfigError for a table that
    asks for more images of a class than there are, and for a client without images.
    """
    labels = checked(labels, len(counts))
    num_clients, num_classes = counts.shape
    there = np.bincount(labels, minlength=num_classes)
    asked = np.zeros(len(there), np.int64)
    asked[:num_classes] = counts.sum(axis=0)
    if (asked > there).any():
        worst = int(np.argmax(asked - there))
        raise ConfigError(
            f"partition.table asks for {asked[worst]} images of class {worst} (counted from 0), of which {there[worst]} are for "
            "training: lower its column"
        )
    if counts.sum(axis=1).min() == 0:
        raise ConfigError(f"partition.table gives client {int(np.argmin(counts.sum(axis=1)))} no image: give it one or take it out")
    random = generator(seed)
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    first = np.cumsum(there) - there
    dealt = np.concatenate([order[start : start + count] for start, count in zip(first, asked, strict=True)])
    owners = np.concatenate([np.repeat(np.arange(num_clients), column) for column in counts.T])
    return as_partition(by_owner(dealt, owners, random), counts.sum(axis=1), labels)
