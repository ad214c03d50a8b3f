"""BatchNorm statistics of images under a model that is not trained on them."""

import jax
import jax.numpy as jnp

from mosaic_jax.models.layers import RUNNING_MOMENTUM
from mosaic_jax.steps.client_update import Preprocess
from mosaic_jax.types import Classifier, PyTree, Variables


def static_statistics(
    classifier: Classifier, variables: Variables, images: jax.Array, key: jax.Array, preprocess: Preprocess
) -> PyTree:
    """Mean and unbiased variance of every BatchNorm layer's inputs, averaged over T batches, parameters fixed.

    images: u8[T, B, S, S, 3] -> the tree of `variables.batch_stats`. Source: static BatchNorm of HeteroFL (Diao et al. 2021),
    which adds the batches up with equal weights.
    """
    # From zero, running <- momentum 0 + (1 - momentum) batch: a batch's own statistics are what it leaves, scaled.
    zeros = jax.tree.map(jnp.zeros_like, variables.batch_stats)
    num = images.shape[0]

    def add(total: PyTree, scanned: tuple[jax.Array, jax.Array]) -> tuple[PyTree, None]:
        batch, index = scanned
        seen = preprocess(jax.random.fold_in(key, index), batch)
        moved = classifier.apply(variables._replace(batch_stats=zeros), seen, True)[1]
        return jax.tree.map(lambda old, new: old + new / ((1.0 - RUNNING_MOMENTUM) * num), total, moved), None

    return jax.lax.scan(add, zeros, (images, jnp.arange(num)))[0]
