"""The arrays and functions that stages hand to one another.

State NamedTuples hold arrays only; a leading `C` means "stacked over clients", `E` over experts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any


class Variables(NamedTuple):
    """Everything that a network is made of.

    params: pytree of f32, moved by optimizers.
    batch_stats: pytree of f32, BatchNorm running means and variances; empty for a network without them.
    """

    params: PyTree
    batch_stats: PyTree


class Batch(NamedTuple):
    """Labelled images as a network sees them.

    images: f32[..., B, H, W, 3], in the run's image range ([-1, 1] unless `data.image_range` says otherwise).
    labels: i32[..., B] in 0..K-1.
    """

    images: jax.Array
    labels: jax.Array


class Classifier(NamedTuple):
    """A classifier as pure functions; `train` chooses batch statistics and returns the moved running ones.

    init(key) -> Variables
    apply(variables, images f32[B, H, W, 3], train) -> (logits f32[B, K], batch_stats)
    features(variables, images, train) -> (features f32[B, D], batch_stats)
    head(variables, features f32[B, D]) -> logits f32[B, K]
    input_statistics(variables, images, train) -> (logits, batch_stats, tuple of (mean, var, running_mean, running_var)
        per BatchNorm layer in module order), the statistics of each layer's inputs over the batch
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[[Variables, jax.Array, bool], tuple[jax.Array, PyTree]]
    features: Callable[[Variables, jax.Array, bool], tuple[jax.Array, PyTree]]
    head: Callable[[Variables, jax.Array], jax.Array]
    input_statistics: Callable[[Variables, jax.Array, bool], tuple[jax.Array, PyTree, tuple]]
    num_classes: int
    feature_size: int


class Generator(NamedTuple):
    """An image generator: apply(variables, noise f32[B, Z], train) -> (images f32[B, S, S, 3] in [-1, 1], batch_stats)."""

    init: Callable[[jax.Array], Variables]
    apply: Callable[[Variables, jax.Array, bool], tuple[jax.Array, PyTree]]
    latent_size: int


class Discriminator(NamedTuple):
    """A real-or-fake network: apply(variables, images, train) -> (score logits f32[B], batch_stats); sigmoid gives P(real)."""

    init: Callable[[jax.Array], Variables]
    apply: Callable[[Variables, jax.Array, bool], tuple[jax.Array, PyTree]]


class MetaModel(NamedTuple):
    """The mixture over experts: apply(params, expert_logits f32[B, E, K], dropout_key or None) -> logits f32[B, K]."""

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array, jax.Array | None], jax.Array]


class Series(NamedTuple):
    """The losses of a segment's steps.

    losses: of each name f32[T], or f32[C, T] of a stage of clients; done: bool[T] or [C, T], which of these steps there were, for
    clients may have fewer steps than others, or none; None where all were done.
    """

    losses: dict[str, jax.Array]
    done: jax.Array | None = None


class Dataset(NamedTuple):
    """Labelled images on the host, as read from a source.

    train_images, test_images: u8[N, S, S, 3]; train_labels, test_labels: i32[N] in 0..K-1; class_names: K strings.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


class Partition(NamedTuple):
    """Which training images each client holds.

    client_indices: C arrays of i32 positions into the training set, disjoint, in the client's own order.
    label_counts: i64[C, K], label_counts[i, c] = images of class c at client i.
    """

    client_indices: tuple[np.ndarray, ...]
    label_counts: np.ndarray


class Splits(NamedTuple):
    """Each client's images by use: C arrays of i32 positions each; train and validation point into the training set.

    train, validation: disjoint parts of the client's partition; test: its IID share of the test set.
    """

    train: tuple[np.ndarray, ...]
    validation: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]
