"""What federated methods differ in, what they have in common, and clients that differ in network or that fail."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny, train

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.driving import host_arrays
from mosaic_jax.io.datasets import load
from mosaic_jax.methods import stages_of
from mosaic_jax.methods.fedbn import batch_norm_leaves
from mosaic_jax.stages.federated import FederatedState
from mosaic_jax.stages.groups import in_client_order
from mosaic_jax.stages.problem import Problem, build_problem, with_networks
from mosaic_jax.stages.stage import Stage, placements
from mosaic_jax.stages.widths import masked_loss
from mosaic_jax.steps.client_update import Local, plain_loss
from mosaic_jax.steps.statistics import static_statistics
from mosaic_jax.types import Classifier, PyTree, Variables

PLAIN = {"masked_loss": False, "batch_norm": "averaged"}


def problem_of(config: Config) -> Problem:
    return build_problem(config, load("digits", 32))


def rounds(problem: Problem, num: int = 2) -> tuple[Stage, list[FederatedState]]:
    """The stage of a federated method, and its states before the first round and after each."""
    (stage,) = stages_of(problem)
    state = jax.tree.map(jnp.copy, jax.jit(stage.init)(()))
    home, everywhere = placements(problem, stage, state)
    state, data = jax.device_put((state, stage.data), (home, everywhere))
    run, states = jax.jit(stage.run), [state]
    for index in range(num):
        state, series = run(state, (), data, host_arrays(stage, (), index), jnp.int32(index), jnp.int32(index + 1))
        assert np.isfinite(series.losses["loss"]).all()
        states.append(state)
    assert run._cache_size() <= 2  # the first round's state is placed by hand
    return stage, states


def assert_close(ours: PyTree, theirs: PyTree, atol: float = 2e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), ours, theirs)


def without_batch_norm(problem: Problem) -> Problem:
    """The problem with a linear classifier, which has no BatchNorm."""

    def features(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        return jnp.mean(images, axis=(1, 3)), {}

    def head(variables: Variables, features: jax.Array) -> jax.Array:
        return features @ variables.params["linear"]["kernel"]

    linear = Classifier(
        init=lambda key: Variables({"linear": {"kernel": 0.1 * jax.random.normal(key, (32, 10))}}, {}),
        apply=lambda variables, images, train: (head(variables, features(variables, images, train)[0]), {}),
        features=features, head=head, input_statistics=lambda *_: ((), {}, ()), num_classes=10, feature_size=32,
    )  # fmt: skip
    return with_networks(problem, linear, None, None)


# --- a method with its own part switched off is FedAvg ---


@pytest.fixture(scope="module")
def fedavg() -> FederatedState:
    return rounds(problem_of(tiny(method="fedavg")))[1][-1]


@pytest.mark.parametrize(
    ("method", "off", "on"),
    [
        ("fedprox", {"fedprox": {"mu": 0.0}}, {"fedprox": {"mu": 5.0}}),
        ("fedrs", {"fedrs": {"alpha": 1.0}}, {}),
        ("heterofl", {"clients": PLAIN}, {}),
        ("fedrolex", {"clients": PLAIN}, {}),
        ("federated_dropout", {"clients": PLAIN}, {}),
    ],
)  # fmt: skip
def test_a_method_whose_part_is_off_is_fedavg(method: str, off: dict, on: dict, fedavg: FederatedState) -> None:
    found = rounds(problem_of(tiny(method=method, **off)))[1][-1]
    assert_close(found.servers, fedavg.servers)
    assert_close(found.clients, fedavg.clients)
    if on:
        with pytest.raises(AssertionError):
            assert_close(rounds(problem_of(tiny(method=method, **on)))[1][-1].servers, fedavg.servers)


def test_fedbn_without_batch_norm_is_fedavg() -> None:
    ours, theirs = (rounds(without_batch_norm(problem_of(tiny(method=method))))[1][-1] for method in ("fedbn", "fedavg"))
    jax.tree.map(np.testing.assert_array_equal, ours.servers, theirs.servers)
    assert ours.personal == ([],)


def test_fedbn_keeps_each_clients_batch_norm_and_averages_the_rest() -> None:
    problem = problem_of(tiny(method="fedbn"))
    stage, (_, first, second) = rounds(problem)
    own = batch_norm_leaves(first.clients[0])
    kept = [leaf for leaf, stays in zip(jax.tree.leaves(first.clients[0]), jax.tree.leaves(own), strict=True) if stays]
    assert len(kept) == 4 * 4  # scale, bias, mean and variance of four layers
    jax.tree.map(np.testing.assert_array_equal, first.personal[0], kept)
    # A round begins with what the client had: other statistics than the server's, moved by its own images.
    assert not np.allclose(first.personal[0][0][0], first.personal[0][0][1])
    assert not np.allclose(second.personal[0][0], first.personal[0][0])
    model = sum(leaf.size * 4 for leaf in jax.tree.leaves(first.servers[0]))
    stays = sum(leaf.size * 4 for leaf in jax.tree.leaves(kept)) // 3
    assert stage.traffic(second) == {way: 5 * 3 * (model - stays) for way in ("up", "down")}


def test_fine_tuning_under_fedbn_goes_on_with_each_clients_own_batch_norm() -> None:
    problem = problem_of(tiny(warmup={"method": "fedbn"}))
    warmup, *_, finetune = stages_of(problem)
    before = jax.jit(warmup.init)(())
    own = [[leaf + place for place, leaf in enumerate(kept)] for kept in before.personal]
    inputs = finetune.inputs({"warmup": before._replace(personal=tuple(own)), "distill": before.servers[0]})
    after = jax.jit(finetune.init)(inputs).rounds
    jax.tree.map(np.testing.assert_array_equal, after.personal, tuple(own))
    jax.tree.map(np.testing.assert_array_equal, after.servers, before.servers)


# --- losses ---


def local(**values: Any) -> Local:
    given = {
        "logits": jnp.array([[1.0, 2.0, 3.0]]), "labels": jnp.array([0]), "params": {}, "received": {},
        "label_counts": jnp.array([4.0, 0.0, 2.0]),
    }  # fmt: skip
    return Local(**({"features": jnp.zeros((1, 1))} | given | values))


def test_the_masked_loss_takes_logits_of_absent_classes_as_zero() -> None:
    expected = -1.0 + np.log(np.exp(1.0) + np.exp(0.0) + np.exp(3.0))
    np.testing.assert_allclose(masked_loss(local()), expected, rtol=1e-6)


def test_fedprox_adds_half_mu_times_the_squared_distance_to_what_was_received() -> None:
    from mosaic_jax.methods.fedprox import fedprox

    loss = fedprox(problem_of(tiny(method="fedprox", fedprox={"mu": 0.5}))).loss
    moved = local(params={"w": jnp.array([1.0, 2.0])}, received={"w": jnp.array([0.0, 4.0])})
    np.testing.assert_allclose(loss(moved), plain_loss(moved) + 0.25 * 5.0, rtol=1e-6)


def test_fedrs_scales_logits_of_absent_classes() -> None:
    from mosaic_jax.methods.fedrs import fedrs

    loss = fedrs(problem_of(tiny(method="fedrs", fedrs={"alpha": 0.5}))).loss
    np.testing.assert_allclose(loss(local()), -1.0 + np.log(np.exp(1.0) + np.exp(1.0) + np.exp(3.0)), rtol=1e-6)


# --- widths ---


def test_narrower_clients_hold_smaller_tensors_and_move_their_own_channels_of_the_server_alone() -> None:
    clients = {"rates": (0.5, 0.25, 0.5), **PLAIN}
    problem = problem_of(tiny(method="heterofl", model={"width": 4}, clients=clients))
    stage, (before, after) = rounds(problem, 1)
    assert [(group.rate, group.clients.tolist()) for group in problem.groups] == [(0.5, [0, 2]), (0.25, [1])]
    kernels = [models.params["conv2"]["kernel"].shape for models in after.clients]
    assert kernels == [(2, 3, 3, 2, 4), (1, 3, 3, 1, 2)]
    old, new = (np.asarray(state.servers[0].params["conv2"]["kernel"]) for state in (before, after))
    assert (new[:, :, :2, :4] != old[:, :, :2, :4]).any()
    np.testing.assert_array_equal(new[:, :, 2:], old[:, :, 2:])
    np.testing.assert_array_equal(new[:, :, :, 4:], old[:, :, :, 4:])
    # What only the wider two hold is their mean, weighted by their images.
    weights = problem.num_samples[[0, 2]] / problem.num_samples[[0, 2]].sum()
    wide = np.tensordot(weights, np.asarray(after.clients[0].params["conv2"]["kernel"]), axes=1)
    np.testing.assert_allclose(new[:, :, 1, 2:4], wide[:, :, 1, 2:4], rtol=1e-5)
    assert stage.traffic(after)["up"] == 5 * sum(
        leaf.size * 4 for models in after.clients for leaf in jax.tree.leaves(models)
    )  # fmt: skip


def test_a_class_column_is_the_mean_over_the_clients_that_hold_the_class() -> None:
    partition = {"kind": "shards", "shards_per_client": 4}
    problem = problem_of(tiny(method="heterofl", partition=partition, clients={"batch_norm": "averaged"}))
    state = rounds(problem, 1)[1][-1]
    holds = problem.label_counts > 0
    assert not holds.all()
    sent = np.asarray(state.clients[0].params["linear"]["bias"])
    weights = problem.num_samples[:, None] * holds
    np.testing.assert_allclose(
        state.servers[0].params["linear"]["bias"], (sent * weights).sum(axis=0) / weights.sum(axis=0), rtol=1e-5, atol=1e-7
    )


def test_static_batch_norm_has_the_statistics_of_the_images_under_the_model_itself() -> None:
    problem = problem_of(tiny(method="heterofl", partition={"num_clients": 1}))
    classifier = problem.classifier
    variables = jax.jit(classifier.init)(jax.random.key(3))
    images = jnp.asarray(problem.dataset.train_images[:16].reshape(2, 8, 32, 32, 3))
    found = static_statistics(classifier, variables, images, jax.random.key(0), problem.preprocess)
    first = [classifier.input_statistics(variables, problem.decode(batch), True)[2][0] for batch in images]
    np.testing.assert_allclose(found["bn1"]["mean"], (first[0][0] + first[1][0]) / 2, rtol=1e-5, atol=1e-6)
    unbiased = 8 * 32 * 32 / (8 * 32 * 32 - 1)
    np.testing.assert_allclose(found["bn1"]["var"], unbiased * (first[0][1] + first[1][1]) / 2, rtol=1e-4)
    stage, states = rounds(problem, 1)
    looked, _ = stage.watch(states[-1], (), 1)
    assert_close(looked.servers[0].params, states[-1].servers[0].params, atol=0)
    assert not np.allclose(looked.servers[0].batch_stats["bn1"]["mean"], states[-1].servers[0].batch_stats["bn1"]["mean"])


def test_groups_are_put_back_in_the_order_of_the_clients() -> None:
    problem = problem_of(tiny(method="heterofl", clients={"rates": (0.5, 1.0, 0.5)}))
    parts = [group.clients * 10.0 for group in problem.groups]
    np.testing.assert_array_equal(in_client_order(problem.groups, parts), [0.0, 10.0, 20.0])


@pytest.mark.parametrize(("experts", "expected"), [("parameters", "prototypes"), ("logits", "generated"), ("auto", "generated")])
def test_the_meta_model_learns_from_prototypes_where_all_experts_read_the_same_features(experts: str, expected: str) -> None:
    widths = {"warmup": {"method": "fedrolex"}, "clients": {"rates": (0.5, 0.5, 0.5)}}
    assert tiny(experts=experts, **widths).meta_source == expected
    assert tiny(experts=experts).meta_source == "prototypes"


# --- participation ---


def test_the_mean_is_over_those_whose_work_arrives_and_a_round_without_any_changes_nothing() -> None:
    clients = {"dropout_rate": 0.7}
    problem = problem_of(tiny(method="fedavg", clients=clients, warmup={"num_rounds": 10}))
    (stage,) = stages_of(problem)
    arrives = [host_arrays(stage, (), index)[0].arrives for index in range(12)]
    sums = [int(each.sum()) for each in arrives]
    assert 0 in sums and any(0 < each < 3 for each in sums)
    first = next(index for index, each in enumerate(sums) if 0 < each < 3)
    nobody = sums.index(0)
    state = jax.tree.map(jnp.copy, jax.jit(stage.init)(()))
    home, everywhere = placements(problem, stage, state)
    state, data = jax.device_put((state, stage.data), (home, everywhere))
    run = jax.jit(stage.run)
    after = run(state, (), data, host_arrays(stage, (), first), jnp.int32(first), jnp.int32(first + 1))[0]
    weights = problem.num_samples * arrives[first]
    mean = np.tensordot(weights / weights.sum(), np.asarray(after.clients[0].params["linear"]["kernel"]), axes=1)
    np.testing.assert_allclose(after.servers[0].params["linear"]["kernel"], mean, rtol=1e-5, atol=1e-7)
    gone = int(np.argmin(arrives[first]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[gone], b[gone]), after.clients, state.clients)
    same = run(state, (), data, host_arrays(stage, (), nobody), jnp.int32(nobody), jnp.int32(nobody + 1))[0]
    jax.tree.map(np.testing.assert_array_equal, same.servers, state.servers)
    assert stage.notices(nobody, nobody + 1) == [
        f"warmup: round {nobody}: the work of no client arrived; the global model stays as it was"
    ]
    assert stage.notices(first, first + 1) == []
    begun = sum(sums)
    model = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.servers))
    assert stage.traffic(after) == {"up": begun * model, "down": begun * model}


def test_work_that_comes_too_late_was_sent_down_but_not_up() -> None:
    problem = problem_of(tiny(method="fedavg", clients={"straggler_rate": 0.5}))
    (stage,) = stages_of(problem)
    traffic = stage.traffic(jax.jit(stage.init)(()))
    assert traffic["up"] < traffic["down"] == 5 * 3 * sum(
        leaf.size * 4 for leaf in jax.tree.leaves(jax.eval_shape(problem.classifier.init, jax.random.key(0)))
    )  # fmt: skip


def test_a_client_that_never_takes_part_has_no_generator_and_no_share_in_an_expert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def config(seed: int) -> Config:
        return tiny(
            seed=seed, clients={"dropout_rate": 0.75}, warmup={"num_rounds": 2}, generator={"num_steps": 1}, meta={"num_steps": 1},
            distill={"num_steps": 1}, finetune={"num_rounds": 0},
        )  # fmt: skip

    def participants(seed: int) -> list[int]:
        try:
            return problem_of(config(seed)).participants.tolist()
        except ConfigError as error:
            assert "nobody's work arrives in" in str(error)
            return []

    found = {seed: participants(seed) for seed in range(12)}
    assert [] in found.values()
    seed = next(seed for seed, clients in found.items() if len(clients) == 2)
    (absent,) = {0, 1, 2} - set(found[seed])
    assert train(config(seed), tmp_path / "run") == 0
    assert f"these clients never take part in the warm-up and have no generator: {absent}" in capsys.readouterr().err
    from mosaic_jax import restored
    from mosaic_jax.io.console import Console

    _, outputs = restored.restore(tmp_path / "run", Console(quiet=True))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(outputs["generators"])} == {2}
    assert set(json.loads((tmp_path / "run" / "results.json").read_text())["models"]) >= {"mixture", "student"}


def test_a_cohort_takes_clients_of_every_group_and_refuses_fewer_than_there_are() -> None:
    settings = {"partition": {"num_clients": 6}, "clients": {"rates": (1.0, 0.5, 0.5, 0.5, 0.5, 1.0)}}
    problem = problem_of(tiny(method="fedrolex", warmup={"clients_per_round": 3}, **settings))
    (stage,) = stages_of(problem)
    for index in range(5):
        wide, narrow = host_arrays(stage, (), index)
        assert (len(wide.clients), len(narrow.clients)) == (1, 2)
        assert set(wide.clients) <= {0, 5} and set(narrow.clients) <= {1, 2, 3, 4}
    with pytest.raises(ConfigError, match=r"warmup\.clients_per_round=1: fewer than the 2 groups of equal clients; use at least 2"):
        stages_of(problem_of(tiny(method="fedrolex", warmup={"clients_per_round": 1}, **settings)))[0].host((), 0)
