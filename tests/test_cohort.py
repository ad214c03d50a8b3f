"""A cohort of clients in every round: who is drawn, what each one does, what the server holds, sends and hands on."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import StoppingConsole, assert_same_run, fingerprints, series, tiny, train

from mosaic_jax import cli, restored
from mosaic_jax.config import Config, ConfigError, PartitionConfig, WarmupConfig
from mosaic_jax.config_io import with_values
from mosaic_jax.data.participation import draw_cohort
from mosaic_jax.data.sampling import batch_indices
from mosaic_jax.driving import host_arrays
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.methods import stages_of
from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.local_rounds import Cohort
from mosaic_jax.stages.problem import Problem, build_problem
from mosaic_jax.stages.stage import Stage, placements
from mosaic_jax.trees import num_bytes, weighted_mean
from mosaic_jax.types import Dataset, PyTree

CLIENTS = 5
COHORT = 2


def cohorts(size: int = COHORT, clients: int = CLIENTS, method: str = "fedavg", **sections: Any) -> Config:
    """The tiny configuration with `size` of `clients` clients in a round."""
    warmup = {"clients_per_round": size} | sections.pop("warmup", {})
    return tiny(method=method, partition={"num_clients": clients}, warmup=warmup, **sections)


def problem_of(config: Config) -> Problem:
    return build_problem(config, load("digits", 32))


def one_round(problem: Problem, stage: Stage, cohort: Cohort | None = None) -> PyTree:
    """The state after round 0, of the drawn cohort or another."""
    state = jax.tree.map(jnp.copy, jax.jit(stage.init)(()))
    home, everywhere = placements(problem, stage, state)
    state, data = jax.device_put((state, stage.data), (home, everywhere))
    return jax.jit(stage.run)(state, (), data, (cohort,) if cohort else host_arrays(stage, (), 0), jnp.int32(0), jnp.int32(1))[0]


def assert_close(ours: PyTree, theirs: PyTree) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


# --- who is drawn ---


def test_a_cohort_holds_each_client_at_most_once_and_everyone_where_it_is_as_large_as_all() -> None:
    for round_ in range(50):
        cohort = draw_cohort(10, 4, seed=0, stage="warmup", round_=round_)
        assert cohort.dtype == np.int32
        assert (np.diff(cohort) > 0).all() and len(cohort) == 4 and cohort[0] >= 0 and cohort[-1] < 10
    np.testing.assert_array_equal(draw_cohort(10, 10, seed=3, stage="finetune", round_=7), np.arange(10))


def test_a_cohort_depends_on_seed_stage_and_round_alone() -> None:
    options = {"seed": 0, "stage": "warmup", "round_": 5}
    drawn = draw_cohort(1000, 20, **options)
    np.testing.assert_array_equal(draw_cohort(1000, 20, **options), drawn)
    for other in ({"seed": 1}, {"stage": "finetune"}, {"round_": 6}):
        assert not np.array_equal(draw_cohort(1000, 20, **(options | other)), drawn)


def test_every_client_is_drawn_equally_often() -> None:
    counts = np.zeros(10)
    for round_ in range(3000):
        counts[draw_cohort(10, 3, seed=0, stage="warmup", round_=round_)] += 1
    assert np.abs(counts / 3000 - 0.3).max() < 0.03


@pytest.mark.parametrize("size", [0, 11])
def test_a_cohort_of_nobody_or_of_more_than_all_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size={size} must be 1 to num_clients=10"):
        draw_cohort(10, size, seed=0, stage="warmup", round_=0)


def test_more_clients_in_a_round_than_there_are_is_refused_by_field_value_and_remedy(
    tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", *tiny_arguments, "warmup.clients_per_round=4"]) == 2
    message = "error: warmup.clients_per_round=4: must be at most partition.num_clients=3; use 0 for all of them\n"
    assert capsys.readouterr().err == message
    with pytest.raises(ConfigError, match=r"warmup\.clients_per_round=11: must be at most partition\.num_clients=10"):
        Config(warmup=WarmupConfig(clients_per_round=11))


@pytest.mark.parametrize("num_rounds", [0, 3])
def test_mosaic_refuses_prototypes_of_every_round_for_they_leave_none_to_a_cohort(num_rounds: int) -> None:
    config = cohorts(method="mosaic", prototypes={"num_rounds": num_rounds})
    with pytest.raises(ConfigError, match=f"warmup.clients_per_round=2: .*prototypes.num_rounds={num_rounds} .*set it from 1"):
        problem_of(config)
    problem_of(with_values(config, {"warmup.clients_per_round": CLIENTS}))
    problem_of(with_values(config, {"method": "fedavg"}))


# --- what is done ---


def test_a_cohort_of_all_clients_is_bitwise_the_run_without_cohorts(tmp_path: Path) -> None:
    for size in (0, CLIENTS):
        assert train(cohorts(size, finetune={"num_rounds": 0}), tmp_path / str(size)) == 0
    assert_same_run(tmp_path / "0", tmp_path / str(CLIENTS))


def test_only_the_clients_of_the_cohort_have_work_and_their_batches_are_those_without_a_cohort() -> None:
    problem = problem_of(cohorts())
    (stage,) = stages_of(problem)
    (everyone,) = stages_of(problem_of(cohorts(0)))
    for round_ in range(4):
        (cohort,), (alle,) = host_arrays(stage, (), round_), everyone.host((), round_)
        assert cohort.indices.shape == (COHORT, 2, 8)
        np.testing.assert_array_equal(cohort.clients, draw_cohort(CLIENTS, COHORT, seed=0, stage="warmup", round_=round_))
        np.testing.assert_array_equal(cohort.indices, alle.indices[cohort.clients])


def test_what_a_client_sends_does_not_depend_on_the_cohort_and_the_mean_is_weighted_over_it() -> None:
    augmented = {"data": {"augment": "crop_flip"}, "mapping": {"num_devices": 1}}
    everyone = problem_of(cohorts(0, **augmented))
    (stage,) = stages_of(everyone)
    (drawn,) = host_arrays(stage, (), 0)
    (sent,) = one_round(everyone, stage).clients
    problem = problem_of(cohorts(**augmented))
    (stage,) = stages_of(problem)
    for members in ([3], [0, 3], [3, 4]):
        state = one_round(problem, stage, Cohort(drawn.clients[members], drawn.indices[members], drawn.arrives[members]))
        chosen = jax.tree.map(lambda leaf, members=members: leaf[np.array(members)], sent)
        assert_close(state.servers[0], weighted_mean(chosen, jnp.asarray(problem.num_samples[members], jnp.float32)))
        assert state.clients == ()


@pytest.mark.parametrize("mapping", [{"client_chunk": 2}, {"num_devices": 1}, {"num_devices": 2}, {"num_devices": 4}])
def test_a_cohort_ends_alike_however_its_clients_are_grouped_and_shared_among_devices(mapping: dict[str, int]) -> None:
    one_by_one = {"client_chunk": 1, "num_devices": 1}
    ours, theirs = (problem_of(cohorts(3, mapping=how, data={"augment": "crop_flip"})) for how in (mapping, one_by_one))
    states = [one_round(problem, stages_of(problem)[0]) for problem in (ours, theirs)]
    assert_close(states[0].servers, states[1].servers)


def test_a_loss_that_is_not_finite_is_named_by_its_client_and_not_by_its_place_in_the_cohort(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {seed: int(draw_cohort(CLIENTS, COHORT, seed=seed, stage="warmup", round_=0)[0]) for seed in range(10)}
    seed = next(seed for seed in first if first[seed] > 0)
    assert train(cohorts(seed=seed, warmup={"client_learning_rate": 1e30}), tmp_path / "run") == 3
    assert f"loss is not finite at round 0, client {first[seed]};" in capsys.readouterr().err


# --- what is held, sent and handed on ---


def test_a_run_of_cohorts_stopped_after_every_round_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    config = cohorts(method="fedavg_finetune", finetune={"num_rounds": 1})
    assert train(config, tmp_path / "unbroken") == 0
    statuses = []
    while not statuses or statuses[-1] == 143:
        statuses.append(train(config, tmp_path / "stopped", console=StoppingConsole()))
    assert statuses == [143, 143, 143, 143, 0]
    assert_same_run(tmp_path / "stopped", tmp_path / "unbroken")
    assert list(json.loads((tmp_path / "unbroken" / "results.json").read_text())["models"]) == ["global", "finetuned"]


def test_fedavg_with_cohorts_holds_and_computes_the_same_for_a_hundred_clients_and_a_thousand() -> None:
    sizes, work = [], []
    for clients in (100, 1000):
        problem = problem_of(cohorts(10, clients, data={"validation_fraction": 0.0}))
        (stage,) = stages_of(problem)
        state = jax.eval_shape(stage.init, ())
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(state)))
        arguments = (state, (), stage.data, host_arrays(stage, (), 0), jnp.int32(0), jnp.int32(1))
        work.append(jax.jit(stage.run).lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[0] == sizes[1]
    assert work[1] - work[0] < 64 * 900, "more than some numbers for each client"


def test_the_bytes_are_those_of_the_models_that_the_cohorts_send_and_receive() -> None:
    problem = problem_of(cohorts())
    for rounds_of_all, models in ((0, 3 * COHORT), (1, 2 * COHORT + CLIENTS)):
        stage = federated_stage(problem, "warmup", 3, 0.01, Federation(), num_full_rounds=rounds_of_all)
        state = jax.jit(stage.init)(())
        model = num_bytes(state.servers)
        assert stage.traffic(state) == {"up": model * models, "down": model * models}


def test_the_last_round_of_mosaics_warm_up_has_every_client_so_that_later_stages_have_all_models_and_prototypes(
    tmp_path: Path,
) -> None:
    config = cohorts(2, 3, "mosaic")
    assert train(config, tmp_path / "run", stop_after="warmup") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["models"]) == ["global", "clients"]
    problem, outputs = restored.restore(tmp_path / "run", Console(quiet=True))
    stages = {stage.name: stage for stage in stages_of(problem)}
    assert [len(stages["warmup"].host((), round_)[0].clients) for round_ in range(3)] == [2, 2, 3]
    assert [len(stages["finetune"].host((), round_)[0].clients) for round_ in range(2)] == [2, 2]
    warmup = outputs["warmup"]
    valid = np.asarray(warmup.prototypes.valid)
    assert valid.shape[:2] == (1, 3) and valid.any(axis=(2, 3)).all()
    assert_close(warmup.servers[0], weighted_mean(warmup.clients[0], jnp.asarray(problem.num_samples, jnp.float32)))
    finetune = stages["finetune"]
    assert jax.eval_shape(finetune.init, finetune.inputs(outputs | {"distill": warmup.servers[0]})).rounds.clients == ()
    # Also where it is stopped between rounds of different shape.
    while train(config, tmp_path / "stopped", stop_after="warmup", console=StoppingConsole()) == 143:
        pass
    assert fingerprints(tmp_path / "stopped")["warmup"] == fingerprints(tmp_path / "run")["warmup"]
    assert series(tmp_path / "stopped") == series(tmp_path / "run")


def test_ten_thousand_clients_are_dealt_and_drawn_in_seconds() -> None:
    """50,000 images as of CIFAR: five each; images are not copied, so an empty one stands for all."""
    images = np.broadcast_to(np.zeros((32, 32, 3), np.uint8), (50_000, 32, 32, 3))
    labels = np.random.RandomState(0).randint(0, 10, 50_000).astype(np.int32)
    dataset = Dataset(images, labels, images[:10_000], labels[:10_000], tuple("0123456789"))
    config = with_values(cohorts(100, 10_000), {"data.validation_fraction": 0.1})
    assert config.partition == PartitionConfig(kind="iid", num_clients=10_000)
    started = time.perf_counter()
    problem = build_problem(config, dataset)
    assert time.perf_counter() - started < 10
    assert set(problem.num_samples) == {5}
    started = time.perf_counter()
    for round_ in range(10):
        cohort = draw_cohort(10_000, 100, seed=0, stage="warmup", round_=round_)
        own = [problem.splits.train[client] for client in cohort]
        batch_indices(own, client_ids=cohort, seed=0, stage="warmup", start=10 * round_, num_steps=10, batch_size=16)
    assert time.perf_counter() - started < 2
