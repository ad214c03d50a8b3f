"""Prototypes: the masked k-means against scikit-learn, and classes with few features or none."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans

from mosaic_jax.steps.prototypes import class_prototypes, kmeans


def test_kmeans_ends_where_scikit_learn_ends_from_the_same_starts() -> None:
    random = np.random.default_rng(0)
    points = random.standard_normal((60, 5)).astype(np.float32)
    mask = random.uniform(size=60) < 0.7
    starts = kmeans(jax.random.key(3), jnp.asarray(points), jnp.asarray(mask), 4, 0).features
    expected = KMeans(4, init=np.asarray(starts), n_init=1, algorithm="lloyd", max_iter=200, tol=0.0).fit(points[mask])
    ours = kmeans(jax.random.key(3), jnp.asarray(points), jnp.asarray(mask), 4, 200)
    assert ours.valid.all()
    np.testing.assert_allclose(ours.features, expected.cluster_centers_, rtol=1e-4, atol=1e-5)


def test_kmeans_starts_at_distinct_masked_points_chosen_by_the_key() -> None:
    points = jnp.arange(20.0)[:, None]
    mask = jnp.arange(20) % 2 == 0
    starts = [np.sort(kmeans(jax.random.key(seed), points, mask, 5, 0).features[:, 0]) for seed in range(2)]
    for chosen in starts:
        assert len(set(chosen)) == 5 and set(chosen % 2) == {0.0}
    assert (starts[0] != starts[1]).any()


def test_a_class_with_fewer_points_than_centres_has_its_mean_and_an_absent_class_nothing() -> None:
    features = jnp.asarray([[1.0, 2.0], [3.0, 6.0], [0.0, 0.0], [1.0, 1.0], [8.0, 8.0]])
    labels = jnp.asarray([0, 0, 2, 2, 2])
    prototypes = class_prototypes(jax.random.key(0), features, labels, 3, 3, 10)
    np.testing.assert_array_equal(prototypes.valid, [[True, False, False], [False] * 3, [True] * 3])
    np.testing.assert_allclose(prototypes.features[0, 0], [2.0, 4.0])
    assert not prototypes.features[1].any()
    assert {tuple(centre) for centre in np.asarray(prototypes.features[2])} == {(0.0, 0.0), (1.0, 1.0), (8.0, 8.0)}
