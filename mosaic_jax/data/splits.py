"""How each client's images are divided by use, and how many of each class it holds. NumPy only."""

import zlib
from collections.abc import Sequence

import numpy as np

from mosaic_jax.config import ConfigError
from mosaic_jax.types import Partition, Splits


def label_counts(client_indices: Sequence[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the images of every class at every client: n[i, c] = #{j in client i : labels[j] = c}.

    client_indices: C integer arrays of positions into labels. labels: integers [N] in 0..num_classes-1. Returns i64[C, K].
    """
    return np.stack([np.bincount(labels[indices], minlength=num_classes) for indices in client_indices]).astype(np.int64)


def split(partition: Partition, train_labels: np.ndarray, num_test: int, validation_fraction: float, seed: int) -> Splits:
    """Holds back a stratified validation share at every client and deals the test set out IID.

    A client with n images gives m = min(round(n * validation_fraction), n - 1) of them to validation. Its images are
    ordered by class, randomly inside a class, and those at floor((u + j) * n / m), j = 0..m-1, are taken, u uniform in
    [0, 1): every class gives its share up to one image. Both parts keep the client's own order. A client's draw depends
    on the seed and its number alone; the test shares are consecutive pieces of one permutation of 0..num_test-1.
    Raises ConfigError when validation_fraction is outside [0, 1). Source: SPEC-free choice of this project; the public
    code has no validation split.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise ConfigError(f"data.validation_fraction={validation_fraction} must be at least 0 and below 1")
    train, validation = [], []
    for client, indices in enumerate(partition.client_indices):
        held_back = _stratified(train_labels[indices], validation_fraction, _generator(seed, "validation", client))
        train.append(indices[~held_back])
        validation.append(indices[held_back])
    order = _generator(seed, "test", 0).permutation(num_test).astype(np.int32)
    return Splits(tuple(train), tuple(validation), tuple(np.array_split(order, len(partition.client_indices))))


def _generator(seed: int, name: str, client: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(name.encode()), client))


def _stratified(labels: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Marks the held-back images of one client: bool[n]."""
    marked = np.zeros(len(labels), bool)
    count = min(round(len(labels) * fraction), len(labels) - 1)
    if count > 0:
        by_class = np.lexsort((generator.random(len(labels)), labels))
        marked[by_class[((generator.random() + np.arange(count)) * (len(labels) / count)).astype(np.int64)]] = True
    return marked
