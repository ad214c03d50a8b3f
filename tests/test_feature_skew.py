"""Feature skew: each client's images turned and made noisy by its own measure, the same whoever looks at them."""

import jax
import numpy as np
import pytest
from conftest import tiny

from mosaic_jax.config import PartitionConfig
from mosaic_jax.data import feature_skew
from mosaic_jax.data.feature_skew import rotate, skew
from mosaic_jax.io.datasets import load
from mosaic_jax.stages.evaluation import evaluate_clients
from mosaic_jax.stages.problem import build_problem
from mosaic_jax.types import Variables

IMAGES = np.random.RandomState(0).randint(0, 256, (30, 32, 32, 3)).astype(np.uint8)
COLOURED = np.full((400, 16, 16, 3), 128, np.uint8) + np.array([0, 0, 1], np.uint8)
CLIENTS = [np.arange(client, 28, 4) for client in range(4)]  # four clients; the last two images are nobody's


def skewed(images=IMAGES, clients=CLIENTS, seed=0, name="train", at_once=256, rotation=0.0, noise=0.0):
    return skew(images, clients, PartitionConfig(feature_rotation=rotation, feature_noise=noise), seed, name, at_once)


def test_without_skew_the_images_are_the_same_array_and_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_skew.jax, "jit", lambda *_: pytest.fail("compiled"))
    assert skewed() is IMAGES
    dataset = load("digits", 32)
    monkeypatch.undo()
    problem = build_problem(tiny(), dataset)
    assert problem.dataset.train_images is dataset.train_images
    assert problem.client_test_images is dataset.test_images


def test_four_clients_and_a_full_turn_are_turned_by_quarters() -> None:
    turned = skewed(rotation=360.0)
    for client, indices in enumerate(CLIENTS):
        np.testing.assert_array_equal(turned[indices], np.rot90(IMAGES[indices], client + 1, axes=(1, 2)))
    np.testing.assert_array_equal(turned[28:], IMAGES[28:])


def test_a_turn_takes_a_point_where_trigonometry_says_and_leaves_black_beyond_the_edge() -> None:
    rows, columns = np.mgrid[:33, :33] - 16
    spot = 200.0 * np.exp(-(rows**2 + (columns - 10) ** 2) / 8)[..., None]  # ten pixels to the right of the middle
    turned = np.asarray(jax.jit(rotate)(np.repeat(spot, 3, axis=-1).astype(np.float32), 30.0))[..., 0]
    assert turned.sum() == pytest.approx(spot.sum(), rel=1e-2)
    assert (turned * rows).sum() / turned.sum() == pytest.approx(-10 * np.sin(np.pi / 6), abs=0.05)
    assert (turned * columns).sum() / turned.sum() == pytest.approx(10 * np.cos(np.pi / 6), abs=0.05)
    white = np.asarray(jax.jit(rotate)(np.full((32, 32, 3), 255.0, np.float32), 45.0))
    assert white[0, 0].max() == 0.0 and white[16, 16].min() == pytest.approx(255.0, abs=1e-3)


def test_noise_grows_evenly_with_the_client_and_has_the_deviation_asked_for() -> None:
    clients = np.array_split(np.arange(400), 4)
    noisy = skewed(COLOURED, clients, noise=0.2).astype(float) - COLOURED
    for client, indices in enumerate(clients):
        assert noisy[indices].std() / 255 == pytest.approx(0.2 * (client + 1) / 4, rel=0.03)
        assert abs(noisy[indices].mean()) < 0.5
    one, two = noisy[-1, ..., 0].ravel(), noisy[-1, ..., 1].ravel()
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.25  # channels of a coloured image have their own noise


def test_a_grey_image_stays_grey() -> None:
    grey = np.repeat(IMAGES[..., :1], 3, axis=-1)
    noisy = skewed(grey, [np.arange(30)], rotation=33.0, noise=0.2)
    assert (noisy == noisy[..., :1]).all()
    assert (noisy != skewed(grey, [np.arange(30)], rotation=33.0)).mean() > 0.5


@pytest.mark.parametrize("at_once", [1, 7, 30])
def test_images_are_skewed_alike_however_many_at_once(at_once: int) -> None:
    whole = skewed(rotation=70.0, noise=0.1)
    np.testing.assert_array_equal(skewed(rotation=70.0, noise=0.1, at_once=at_once), whole)


def test_noise_depends_on_seed_set_and_position_alone() -> None:
    whole = skewed(noise=0.1)
    np.testing.assert_array_equal(skewed(noise=0.1), whole)
    np.testing.assert_array_equal(skewed(noise=0.1, clients=[indices[:2] for indices in CLIENTS])[:8], whole[:8])
    for other in ({"seed": 1}, {"name": "test"}):
        assert (skewed(noise=0.1, **other)[:28] != whole[:28]).mean() > 0.5
    same = skewed(np.tile(IMAGES[:1], (2, 1, 1, 1)), [np.arange(2)], noise=0.1)
    assert not np.array_equal(same[0], same[1])


def test_training_validation_and_test_share_of_a_client_are_skewed_and_the_servers_test_set_is_not() -> None:
    dataset = load("digits", 32)
    settings = {"feature_rotation": 360.0, "num_clients": 4}
    problem = build_problem(tiny(partition=settings), dataset)
    plain = build_problem(tiny(partition={"num_clients": 4}), dataset)
    for client in range(4):
        own = {"train": problem.splits.train[client], "validation": problem.splits.validation[client]}
        np.testing.assert_array_equal(own["train"], plain.splits.train[client])
        for indices in own.values():
            expected = np.rot90(dataset.train_images[indices], client + 1, axes=(1, 2))
            np.testing.assert_array_equal(problem.dataset.train_images[indices], expected)
        test = problem.splits.test[client]
        np.testing.assert_array_equal(
            problem.client_test_images[test], np.rot90(dataset.test_images[test], client + 1, axes=(1, 2))
        )
    np.testing.assert_array_equal(problem.train_arrays()[0], problem.dataset.train_images)
    assert problem.dataset.test_images is dataset.test_images


def test_clients_are_judged_on_their_test_shares_as_they_see_them() -> None:
    problem = build_problem(tiny(), load("digits", 32))

    def bright_is_class_1(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, tuple]:
        return jax.nn.one_hot((images.mean(axis=(1, 2, 3)) > 0).astype(int), 10), ()

    group = problem.groups[0]
    problem = problem._replace(groups=(group._replace(classifier=group.classifier._replace(apply=bright_is_class_1)),))
    models = (Variables(np.zeros(problem.num_clients), ()),)
    assert evaluate_clients(problem, models)["test_per_class"][:2] == [1.0, 0.0]  # digits are white on black
    inverted = problem._replace(client_test_images=255 - problem.dataset.test_images)
    assert evaluate_clients(inverted, models)["test_per_class"][:2] == [0.0, 1.0]
