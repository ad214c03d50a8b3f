"""The face from Python: what is imported, what runs in memory, and the parts of Mosaic as arguments."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

import mosaic_jax as mj
from mosaic_jax.io.datasets import load
from mosaic_jax.io.results_file import read_results

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "scripts" / "examples"
FEW = {"method": "fedavg", "warmup": {"num_rounds": 1}, "finetune": {"num_rounds": 0}}


def problem_of(**values: object) -> mj.Problem:
    return mj.build_problem(tiny(**values), load("digits", 32))


def test_importing_the_package_loads_no_jax_and_lists_every_name() -> None:
    code = "import sys, mosaic_jax as mj; print('jax' in sys.modules, len(dir(mj)), all(hasattr(mj, name) for name in dir(mj)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", str(len(mj.__all__)), "True"]
    with pytest.raises(AttributeError, match="module 'mosaic_jax' has no attribute 'nothing'"):
        mj.nothing  # noqa: B018


def test_a_run_in_memory_is_that_of_a_run_directory(finished: Path) -> None:
    heard: list[mj.Segment] = []
    problem = problem_of()
    outputs = mj.run(problem, on_segment=heard.append)
    results = read_results(finished)
    assert results is not None
    table = mj.evaluate(problem, outputs)
    assert list(table) == list(results["models"])
    for name, values in results["models"].items():
        assert table[name]["test"] == pytest.approx(values["test"]), name
        assert table[name]["validation"] == pytest.approx(values["validation"]), name
    assert list(dict.fromkeys(segment.stage for segment in heard)) == results["stages"]
    assert {segment.stop for segment in heard if segment.stage == "distill"} == {0, 2, 4}


def test_a_run_directory_is_read_back_and_predicts_what_its_table_says(finished: Path) -> None:
    run = mj.open_run(finished)
    assert (run.config.warmup, run.final_model, list(run.outputs)[-1]) == (tiny().warmup, "finetuned", "finetune")
    dataset, results = run.problem.dataset, read_results(finished)
    assert results is not None
    logits = run.predict(dataset.test_images, batch_size=100)
    assert logits.shape == (len(dataset.test_labels), 10) and logits.dtype == np.float32
    accuracy = np.mean(logits.argmax(1) == dataset.test_labels)
    assert accuracy == pytest.approx(results["models"]["finetuned"]["test"])
    grey = run.predict(np.zeros((3, 8, 12), np.uint8))
    np.testing.assert_allclose(grey[0], grey[2], rtol=1e-5)
    assert run.predict(np.zeros((0, 8, 8), np.uint8)).shape == (0, 10)
    with pytest.raises(mj.ConfigError, match=r"images: float32\[2, 8, 8\]; must be uint8"):
        run.predict(np.zeros((2, 8, 8), np.float32))


def test_a_directory_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(mj.ConfigError, match="holds no run"):
        mj.open_run(tmp_path)


def test_it_runs_in_a_thread_and_under_a_running_event_loop_twice_in_one_process() -> None:
    problems = [problem_of(**FEW), problem_of(**FEW, seed=1)]
    expected = [mj.run(problem) for problem in problems]
    found: dict[int, mj.Outputs] = {}

    def work(place: int) -> None:
        found[place] = mj.run(problems[place])

    async def in_a_notebook() -> None:
        work(1)

    thread = threading.Thread(target=work, args=(0,))
    thread.start()
    thread.join()
    asyncio.run(in_a_notebook())
    for place in (0, 1):
        jax.tree.map(np.testing.assert_array_equal, found[place]["warmup"].servers, expected[place]["warmup"].servers)


def test_arrays_of_a_notebook_are_a_data_set_and_wrong_ones_are_named() -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (60, 32, 32, 3), np.uint8), np.arange(60, dtype=np.int32) % 3
    dataset = mj.Dataset(images, labels, images[:9], labels[:9], ("a", "b", "c"))
    problem = mj.build_problem(tiny(**FEW), dataset)
    assert set(mj.evaluate(problem, mj.run(problem))) == {"global", "clients"}
    for wrong, message in (
        (dataset._replace(train_images=images[:, :8]), r"Dataset.train_images: uint8\[60, 8, 32, 3\]; must be uint8\[N, 32, 32"),
        (dataset._replace(test_labels=labels[:4]), r"Dataset.test_labels: int32\[4\]; must be integers \[9\]"),
        (dataset._replace(train_labels=labels + 1), r"Dataset.train_labels: from 1 to 3; must be 0 to 2, as class_names has 3"),
    ):
        with pytest.raises(mj.ConfigError, match=message):
            mj.build_problem(tiny(**FEW), wrong)


def test_every_part_of_mosaic_can_be_another_function_and_is_used() -> None:
    problem = problem_of()
    traced: set[str] = set()

    def used(name: str, value: jax.Array) -> jax.Array:
        traced.add(name)
        return value

    stages = mj.mosaic(
        problem,
        client_loss=lambda local: used("client_loss", mj.plain_loss(local) + 0.01 * jnp.mean(jnp.square(local.features))),
        aggregate=lambda models, weights: used("aggregate", mj.weighted_mean(models, jnp.ones_like(weights))),
        expert_weights=lambda counts: used("expert_weights", mj.class_weights(counts + 1)),
        generator_loss=lambda score_logits: used("generator_loss", -jnp.mean(score_logits)),
        discriminator_loss=lambda real, fake: used("discriminator_loss", jnp.mean(fake) - jnp.mean(real)),
        teacher=lambda expert_logits: used("teacher", jnp.max(expert_logits, axis=1)),
        distillation_loss=lambda student, teacher: used("distillation_loss", jnp.mean(jnp.square(student - teacher))),
    )
    assert [stage.name for stage in stages] == ["warmup", "generators", "experts", "distill", "finetune"]
    outputs = mj.run(problem, stages)
    table = mj.evaluate(problem, outputs)
    assert list(table) == ["global", "clients", "expert_sum", "teacher", "student", "finetuned"]
    assert traced == {
        "client_loss", "aggregate", "expert_weights", "generator_loss", "discriminator_loss", "teacher", "distillation_loss",
    }  # fmt: skip


def test_other_networks_are_trained_and_judged() -> None:
    problem = problem_of()
    discriminator = mj.build_discriminator(tiny(generator={"width": 1}).generator)
    generator = mj.build_generator(tiny(generator={"width": 1, "latent_size": 3}).generator)
    outputs = mj.run(problem, mj.mosaic(problem, discriminator=discriminator, generator=generator)[:2])
    one = jax.eval_shape(generator.init, mj.key_of(0))
    stacked = jax.tree.map(lambda leaf: (problem.num_clients, *leaf.shape), one)
    assert jax.tree.map(jnp.shape, outputs["generators"]) == stacked


def test_a_network_in_the_place_of_several_is_refused() -> None:
    problem = problem_of(clients={"models": ("cnn:2", "cnn:3")})
    with pytest.raises(mj.ConfigError, match=r"classifier=: clients have several networks \(cnn:2,cnn:3\)"):
        mj.mosaic(problem, classifier=problem.classifier)


TINY_VARIANTS = (
    "partition.num_clients=3", "model.width=2", "generator.width=2", "warmup.num_rounds=2", "warmup.num_local_steps=1",
    "warmup.batch_size=8", "generator.num_steps=2", "prototypes.num_rounds=1", "prototypes.per_class=2", "meta.num_steps=2",
    "meta.feed_forward_size=16", "distill.num_steps=2", "distill.samples_per_client=4", "finetune.num_rounds=1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("script", "arguments", "lines"),
    [("variants.py", TINY_VARIANTS, 6), ("fedavg_by_hand.py", ("2",), 2)],
    ids=["variants", "fedavg"],
)
def test_the_examples_run(script: str, arguments: tuple[str, ...], lines: int) -> None:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == lines
