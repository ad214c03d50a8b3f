"""Rules of the server and what clients carry between rounds: FedAvgM, FedAdam, SCAFFOLD, and the hooks that they are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import StoppingConsole, assert_same_run, bits_of, tiny, train

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.driving import host_arrays
from mosaic_jax.io.datasets import load
from mosaic_jax.methods import FEDERATIONS
from mosaic_jax.methods.fedadam import adam_step, init_moments
from mosaic_jax.methods.fedavgm import momentum_step
from mosaic_jax.methods.scaffold import corrected, new_control, scaffold_step
from mosaic_jax.stages.federated import FederatedState, federated_stage
from mosaic_jax.stages.federation import Federation, LocalWork, Uploads
from mosaic_jax.stages.problem import Problem, build_problem, with_networks
from mosaic_jax.stages.stage import Stage
from mosaic_jax.steps.client_update import Local, plain_loss
from mosaic_jax.trees import num_bytes, weighted_mean
from mosaic_jax.types import Classifier, PyTree, Variables

SERVER_METHODS = ("fedavgm", "fedadam", "scaffold")


def problem_of(config: Config) -> Problem:
    return build_problem(config, load("digits", 32))


def after_rounds(problem: Problem, federation: Federation, num: int, rate: float = 0.01) -> tuple[Stage, list[FederatedState]]:
    """The stage of these hooks with two rounds or more, and its states before the first round and after each of `num`."""
    stage = federated_stage(problem, "warmup", max(num, 2), rate, federation)
    run, states = jax.jit(stage.run), [jax.jit(stage.init)(())]
    for index in range(num):
        states.append(run(states[-1], (), stage.data, host_arrays(stage, (), index), jnp.int32(index), jnp.int32(index + 1))[0])
    return stage, states


def of_method(config: Config, num: int = 2) -> tuple[Stage, list[FederatedState]]:
    problem = problem_of(config)
    return after_rounds(problem, FEDERATIONS[config.method](problem), num)


# --- rules as pure functions ---


def test_a_server_rate_of_one_without_momentum_is_the_mean_to_the_last_bit() -> None:
    old, mean, momentum = (jax.random.normal(jax.random.key(seed), (1000,)) * 10.0**seed for seed in range(3))
    mean = mean.at[:2].set(jnp.array([-0.0, 0.0]))
    kept, new = jax.jit(lambda *trees: momentum_step(*trees, learning_rate=1.0, decay=0.0))(momentum, old, mean)
    assert bits_of(new) == bits_of(mean)
    np.testing.assert_array_equal(kept, mean - old)


def test_momentum_sums_the_moves_of_the_means() -> None:
    momentum, new = jnp.array([2.0]), jnp.array([1.0])
    momentum, new = momentum_step(momentum, new, jnp.array([4.0]), learning_rate=0.1, decay=0.5)
    np.testing.assert_allclose((momentum[0], new[0]), (0.5 * 2.0 + 3.0, 1.0 + 0.1 * 4.0), rtol=1e-6)


def test_the_first_step_of_adam_is_that_of_the_formula_and_so_is_the_second() -> None:
    options = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 0.01}
    old, means = jnp.array([1.0, 2.0]), (jnp.array([1.5, 2.0]), jnp.array([1.0, 3.0]))
    moments, new = init_moments(old, 0.01), old
    m, v, x = np.zeros(2), np.full(2, 0.01**2), np.array([1.0, 2.0])
    for mean in means:
        moments, new = adam_step(moments, new, mean, **options)
        m = 0.9 * m + 0.1 * (np.asarray(mean) - x)
        v = 0.99 * v + 0.01 * m**2
        x = x + 0.1 * m / (np.sqrt(v) + 0.01)
        np.testing.assert_allclose(new, x, rtol=1e-6)
    np.testing.assert_allclose(moments, (m, v), rtol=1e-5)


def test_a_clients_new_control_is_the_mean_gradient_of_its_steps() -> None:
    gradients, control, own, rate = np.array([1.0, -2.0, 4.0]), 0.3, 0.5, 0.1
    sent = 7.0 - rate * np.sum(gradients - own + control)
    work = LocalWork(Variables(7.0, {}), Variables(jnp.float32(sent), {}), own, control, 3, rate)
    new, message = new_control(work)
    np.testing.assert_allclose((new, message), (gradients.mean(), gradients.mean() - own), rtol=1e-5)


def test_the_servers_control_stays_the_mean_of_all_clients_weighted_by_their_images() -> None:
    sizes, controls = np.array([1.0, 2.0, 5.0]), np.array([3.0, -1.0, 2.0])
    cohort, changes = np.array([0, 2]), np.array([0.5, -1.0])
    models = Variables(jnp.array([1.0, 4.0]), {})
    sent = Uploads(jnp.asarray(cohort), models, {}, jnp.asarray(changes), jnp.float32(sizes.sum()))
    before = jnp.float32(np.dot(sizes, controls) / sizes.sum())
    control, new = scaffold_step(before, Variables(jnp.float32(2.0), {}), sent, jnp.asarray(sizes[cohort]), learning_rate=0.5)
    controls[cohort] += changes
    np.testing.assert_allclose(control, np.dot(sizes, controls) / sizes.sum(), rtol=1e-6)
    np.testing.assert_allclose(new.params, 2.0 + 0.5 * ((1.0 + 20.0) / 6.0 - 2.0), rtol=1e-6)


def test_the_correction_changes_the_gradient_and_not_the_value() -> None:
    def loss(params: PyTree, wrap: Callable) -> jax.Array:
        local = Local(params["w"][None], jnp.array([0]), params, params, jnp.ones(2), jnp.zeros((1, 1)), {"w": OWN}, {"w": CONTROL})
        return wrap(plain_loss)(local)

    OWN, CONTROL = jnp.array([1.0, 2.0]), jnp.array([0.5, 4.0])
    params = {"w": jnp.array([0.3, -0.1])}
    plain, ours = (jax.value_and_grad(loss)(params, wrap) for wrap in (lambda same: same, corrected))
    assert ours[0] == plain[0]
    np.testing.assert_allclose(ours[1]["w"], plain[1]["w"] + CONTROL - OWN, rtol=1e-6)


# --- rules in rounds ---


def test_fedavgm_at_rate_one_without_momentum_is_fedavg_to_the_last_bit_and_with_it_from_the_second_round_on_is_not() -> None:
    off = {"momentum": 0.0, "server_learning_rate": 1.0}
    fedavg, ours, other = (
        of_method(tiny(**values))[1]
        for values in ({"method": "fedavg"}, {"method": "fedavgm", "fedavgm": off}, {"method": "fedavgm"})
    )
    assert bits_of((ours[2].servers, ours[2].clients)) == bits_of((fedavg[2].servers, fedavg[2].clients))
    assert bits_of(other[1].servers) == bits_of(fedavg[1].servers)  # nothing to go on with yet
    assert bits_of(other[2].servers) != bits_of(fedavg[2].servers)


@pytest.mark.parametrize("method", [method for method in FEDERATIONS if method not in SERVER_METHODS])
def test_a_method_without_states_keeps_no_leaf_for_them(method: str) -> None:
    _, (state,) = of_method(tiny(method=method), 0)
    assert jax.tree.leaves((state.server_states, state.client_states)) == []


@pytest.mark.parametrize("method", ["fedavgm", "fedadam"])
def test_the_rule_moves_parameters_and_statistics_are_averaged(method: str) -> None:
    _, (_, first) = of_method(tiny(method=method, fedavgm={"server_learning_rate": 0.5}), 1)
    mean = weighted_mean(first.clients[0], jnp.asarray(problem_of(tiny(method=method)).num_samples, jnp.float32))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7),
        first.servers[0].batch_stats, mean.batch_stats,
    )  # fmt: skip
    assert jax.tree.leaves(mean.batch_stats)
    kernel = first.servers[0].params["linear"]["kernel"]
    assert not np.allclose(kernel, mean.params["linear"]["kernel"], rtol=1e-4)


@pytest.mark.parametrize("method", SERVER_METHODS)
def test_where_nothing_arrives_neither_the_server_nor_a_client_changes_in_anything(method: str) -> None:
    config = tiny(method=method, clients={"dropout_rate": 0.7}, warmup={"num_rounds": 10})
    problem = of_one_vector(problem_of(config))
    stage = federated_stage(problem, "warmup", 12, 0.01, FEDERATIONS[method](problem))
    arrived = [int(host_arrays(stage, (), index)[0].arrives.sum()) for index in range(12)]
    some, nobody = next(index for index, count in enumerate(arrived) if 0 < count < 3), arrived.index(0)
    run = jax.jit(stage.run)

    def round_(state: FederatedState, index: int) -> FederatedState:
        return run(state, (), stage.data, host_arrays(stage, (), index), jnp.int32(index), jnp.int32(index + 1))[0]

    before = round_(jax.jit(stage.init)(()), some)
    assert bits_of(before.servers) == bits_of(round_(before, nobody).servers)
    assert bits_of(before) == bits_of(round_(before, nobody))
    if method == "scaffold":
        arrives = host_arrays(stage, (), some)[0].arrives
        moved = [np.abs(leaf).max(axis=tuple(range(1, leaf.ndim))) > 0 for leaf in jax.tree.leaves(before.client_states)]
        np.testing.assert_array_equal(np.any(moved, axis=0), arrives > 0)


def test_scaffolds_control_variates_are_counted_both_ways() -> None:
    for cohort, models in ((0, 3), (2, 2)):
        stage, (state,) = of_method(tiny(method="scaffold", warmup={"clients_per_round": cohort}), 0)
        server = state.servers[0]
        one_way = 2 * models * (num_bytes(server) + num_bytes(server.params))
        assert stage.traffic(state) == {"up": one_way, "down": one_way}


def test_the_step_after_the_mean_is_given_what_the_round_sent_and_what_it_returns_is_kept() -> None:
    problem, seen = problem_of(tiny(method="fedavg", clients={"models": ("cnn:2", "cnn:3")})), []

    def step(states: tuple, models: tuple, groups: Any, sent: Any, weights: Any, key: jax.Array) -> tuple:
        seen.append([(group.architecture, *each.clients.shape) for group, each in zip(groups, sent, strict=True)])
        assert [own.shape for own in weights] == [(2,), (1,)]
        draw = jax.random.normal(key)
        halved = tuple(jax.tree.map(lambda leaf: leaf / 2, model) for model in models)
        return tuple((count + 1, draw) for count, _ in states), halved

    hooks = Federation(server_step=step, init_server=lambda model: (jnp.int32(0), jnp.float32(0.0)))
    _, (_, first, second) = after_rounds(problem, hooks, 2)
    assert seen[0] == [(0, 2), (1, 1)]
    for server, group, sent in zip(first.servers, problem.groups, first.clients, strict=True):
        mean = weighted_mean(sent, jnp.asarray(problem.num_samples[group.clients], jnp.float32))
        jax.tree.map(lambda ours, of_mean: np.testing.assert_allclose(ours, of_mean / 2, rtol=1e-5, atol=1e-7), server, mean)
    assert [int(state[0]) for state in second.server_states] == [2, 2]
    assert first.server_states[0][1] != second.server_states[0][1]  # the key is the round's own


def test_scaffolds_cohorts_with_drop_outs_stopped_after_every_round_end_as_the_unbroken_run(tmp_path: Path) -> None:
    """In two stages: what the server and the clients keep begins anew with the second."""
    config = tiny(
        method="fedavg_finetune", partition={"num_clients": 5}, clients={"dropout_rate": 0.3},
        warmup={"method": "scaffold", "clients_per_round": 2, "num_rounds": 2}, finetune={"num_rounds": 1},
    )  # fmt: skip
    assert train(config, tmp_path / "unbroken") == 0
    statuses = []
    while not statuses or statuses[-1] == 143:
        statuses.append(train(config, tmp_path / "stopped", console=StoppingConsole()))
    assert statuses == [143, 143, 143, 0]
    assert_same_run(tmp_path / "stopped", tmp_path / "unbroken")


def test_a_client_rate_of_zero_is_refused_where_scaffold_divides_by_it() -> None:
    with pytest.raises(ConfigError, match=r"warmup\.client_learning_rate=0: scaffold .*; set it above 0"):
        tiny(method="scaffold", warmup={"client_learning_rate": 0.0})
    with pytest.raises(ConfigError, match=r"finetune\.client_learning_rate=0: scaffold .*; set it above 0"):
        tiny(warmup={"method": "scaffold"}, finetune={"client_learning_rate": 0.0})
    tiny(method="scaffold", finetune={"client_learning_rate": 0.0})  # whose rounds are all at the warm-up rate


# --- a quadratic whose optimum is known ---


def of_one_vector(problem: Problem) -> Problem:
    """The problem with a network that is one vector f32[K], for losses of the parameters alone."""

    def features(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        return jnp.zeros((images.shape[0], 1)), {}

    def head(variables: Variables, features: jax.Array) -> jax.Array:
        return jnp.broadcast_to(variables.params["w"], (features.shape[0], 10))

    network = Classifier(
        init=lambda key: Variables({"w": jnp.zeros(10)}, {}),
        apply=lambda variables, images, train: (head(variables, features(variables, images, train)[0]), {}),
        features=features, head=head, input_statistics=lambda *_: ((), {}, ()), num_classes=10, feature_size=1,
    )  # fmt: skip
    return with_networks(problem, network, None, None)


def curvature_and_optimum(label_counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a, b of a client's loss sum_k a_k / 2 (w_k - b_k)^2: both differ from client to client with its label counts."""
    shares = label_counts / jnp.max(label_counts)
    return 0.2 + shares, 1.0 - 3.0 * shares


def quadratic(local: Local) -> jax.Array:
    curvature, optimum = curvature_and_optimum(local.label_counts)
    return 0.5 * jnp.sum(curvature * jnp.square(local.params["w"] - optimum))


@pytest.mark.parametrize("cohort", [0, 3])
def test_scaffold_reaches_the_optimum_of_the_weighted_mean_and_fedavg_with_many_local_steps_stays_beside_it(cohort: int) -> None:
    config = tiny(
        method="scaffold", partition={"kind": "dirichlet_unbalanced", "alpha": 0.3, "num_clients": 5, "min_samples": 2},
        warmup={"num_local_steps": 10, "batch_size": 1, "weight_decay": 0.0, "clients_per_round": cohort},
    )  # fmt: skip
    problem = of_one_vector(problem_of(config))
    counts = np.asarray(problem.label_counts, np.float32)
    curvature, optimum = jax.vmap(curvature_and_optimum)(counts)
    weights = problem.num_samples[:, None] * np.asarray(curvature)
    expected = (weights * np.asarray(optimum)).sum(axis=0) / weights.sum(axis=0)

    def distance(federation: Federation, num: int) -> float:
        state = after_rounds(problem, federation, num, rate=0.1)[1][-1]
        return float(np.abs(np.asarray(state.servers[0].params["w"]) - expected).max())

    num = 200 if cohort else 60
    assert distance(FEDERATIONS["scaffold"](problem)._replace(loss=corrected(quadratic)), num) < 1e-3
    assert distance(Federation(loss=quadratic), num) > 0.05
