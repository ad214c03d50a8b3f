"""The prior of an image's client in the teacher, and the students that validation chooses from."""

import doctest
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fingerprints, series, tiny, train

from mosaic_jax import runner
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import apply_preset
from mosaic_jax.io.console import Console
from mosaic_jax.steps import distill_step
from mosaic_jax.steps.distill_step import with_label_prior

EPS = 1e-3


def teacher_logits(num: int = 6) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (num, 3))


def test_equal_label_counts_change_no_probability() -> None:
    corrected = with_label_prior(teacher_logits(), jnp.full((2, 3), 7.0), 1.0, EPS)
    np.testing.assert_allclose(jax.nn.softmax(corrected), jax.nn.softmax(teacher_logits()), rtol=1e-5)


def test_a_strength_of_zero_is_the_teacher_as_it_is() -> None:
    logits = teacher_logits()
    assert with_label_prior(logits, jnp.array([[5.0, 0.0, 0.0], [0.0, 1.0, 2.0]]), 0.0, EPS) is logits


def test_images_of_a_client_of_one_class_get_that_class() -> None:
    corrected = with_label_prior(teacher_logits(), jnp.array([[5.0, 0.0, 0.0], [0.0, 0.0, 9.0]]), 1.0, EPS)
    np.testing.assert_array_equal(jnp.argmax(corrected, -1), [0, 0, 0, 2, 2, 2])


def test_the_prior_is_that_of_bayes_rule() -> None:
    counts = np.array([[6.0, 3.0, 1.0]])
    posterior = np.asarray(jax.nn.softmax(teacher_logits(4)), np.float64) * (counts / 10 + EPS) ** 0.5
    corrected = jax.nn.softmax(with_label_prior(teacher_logits(4), jnp.asarray(counts, jnp.float32), 0.5, EPS))
    np.testing.assert_allclose(corrected, posterior / posterior.sum(1, keepdims=True), rtol=1e-5)


def test_the_docstring_tells_what_the_prior_does() -> None:
    assert doctest.testmod(distill_step, extraglobs={"jnp": jnp}).failed == 0


def distilled(tmp_path: Path, finished: Path, name: str, **distill: object) -> Path:
    """A run that takes from `finished` all that comes before distilling."""
    reuse = {stage: [finished] for stage in ("warmup", "generators", "experts", "meta")}
    config = tiny(partition={"kind": "dirichlet_unbalanced", "alpha": 1.0}, distill=distill, finetune={"num_rounds": 0})
    directory = tmp_path / name
    assert runner.train(config, directory, stop_after=None, tensorboard=False, console=Console(quiet=True), reuse=reuse) == 0
    return directory


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prior") / "run"
    assert train(tiny(partition={"kind": "dirichlet_unbalanced", "alpha": 1.0}), directory, stop_after="meta") == 0
    return directory


def test_a_student_is_the_same_whatever_others_are_distilled_beside_it(before: Path, tmp_path: Path) -> None:
    alone = distilled(tmp_path, before, "alone", label_prior=(0.0,))
    three = distilled(tmp_path, before, "three", label_prior=(0.0, 0.5, 1.0))
    found = {(step, name): value for stage, step, name, value in series(three) if stage == "distill"}
    first = {(step, name): value for stage, step, name, value in series(alone) if stage == "distill" and "loss" in name}
    assert first and first == {(step, "loss"): found[step, "loss/prior=0"] for step, _ in first}
    assert all(found[step, "loss/prior=1"] != value for (step, _), value in first.items())


@pytest.mark.parametrize("keep", ["best", "last"])
def test_validation_chooses_among_the_students(before: Path, tmp_path: Path, keep: str) -> None:
    run = distilled(tmp_path, before, "run", label_prior=(0.0, 1.0), keep=keep)
    found = {(step, name): value for stage, step, name, value in series(run) if stage == "distill"}
    looks = [max(found[step, "validation/prior=0"], found.get((step, "validation/prior=1"), 0.0)) for step in (0, 2, 4)]
    assert [found[step, "validation"] for step in (0, 2, 4)] == looks
    assert found[4, "best_validation"] == (max(looks) if keep == "best" else looks[-1])
    assert found[4, "best_prior"] in (0.0, 1.0)


def test_several_strengths_without_validation_images_are_refused_with_a_remedy(tmp_path: Path) -> None:
    config = tiny(data={"validation_fraction": 0.0}, distill={"keep": "last"})
    with pytest.raises(ConfigError, match=r"distill\.label_prior=0\.0,0\.5,1\.0: .* give one strength, 0 for no prior"):
        train(config, tmp_path / "run")
    alone = tiny(data={"validation_fraction": 0.0}, distill={"keep": "last", "label_prior": (0.0,), "num_steps": 0})
    assert train(alone, tmp_path / "alone", stop_after="distill") == 0
    assert "distill" in fingerprints(tmp_path / "alone")


@pytest.mark.parametrize("strengths", [(), (0.5, 0.5), (1.5,)])
def test_strengths_that_make_no_sense_are_refused(strengths: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"distill\.label_prior="):
        tiny(distill={"label_prior": strengths})


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_neither_the_paper_nor_the_public_code_has_a_prior(preset: str) -> None:
    assert Config().distill.label_prior == (0.0, 0.5, 1.0)
    assert apply_preset(Config(), preset).distill.label_prior == (0.0,)
