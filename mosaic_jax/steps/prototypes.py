"""Feature prototypes of one client: a masked k-means for every class at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Prototypes(NamedTuple):
    """features: f32[..., K, P, D]; valid: bool[..., K, P], False where a class has no such centre."""

    features: jax.Array
    valid: jax.Array


def kmeans(key: jax.Array, points: jax.Array, mask: jax.Array, num_centres: int, num_steps: int) -> Prototypes:
    """Lloyd's algorithm on the masked points of one class, started at random distinct points.

    points: f32[N, D]; mask: bool[N]. With fewer than P masked points the one centre is their mean; with none, no centre.
    Centres that lose all points stay where they are. Returns features f32[P, D], valid bool[P].
    """
    weights = mask.astype(points.dtype)
    count = jnp.sum(mask)
    order = jnp.argsort(jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0))
    starts = points[jnp.resize(order, (num_centres,))]

    def lloyd(_: jax.Array, centres: jax.Array) -> jax.Array:
        distances = jnp.sum(jnp.square(centres), axis=1) - 2.0 * points @ centres.T
        member = jax.nn.one_hot(jnp.argmin(distances, axis=1), num_centres, dtype=points.dtype) * weights[:, None]
        sizes = jnp.sum(member, axis=0)
        return jnp.where(sizes[:, None] > 0, (member.T @ points) / jnp.maximum(sizes, 1.0)[:, None], centres)

    centres = jax.lax.fori_loop(0, num_steps, lloyd, starts)
    mean = (weights @ points) / jnp.maximum(jnp.sum(weights), 1.0)
    enough = count >= num_centres
    valid = jnp.where(enough, True, (jnp.arange(num_centres) == 0) & (count > 0))
    features = jnp.where(enough, centres, mean)
    return Prototypes(jnp.where(valid[:, None], features, 0.0), valid)


def class_prototypes(
    key: jax.Array, features: jax.Array, labels: jax.Array, num_classes: int, num_centres: int, num_steps: int
) -> Prototypes:
    """P prototypes of every class: features f32[N, D], labels i32[N] -> Prototypes [K, P, D]. Source: SPEC stage 4."""

    def one(class_index: jax.Array) -> Prototypes:
        class_key = jax.random.fold_in(key, class_index)
        return kmeans(class_key, features, labels == class_index, num_centres, num_steps)

    return jax.vmap(one)(jnp.arange(num_classes))
