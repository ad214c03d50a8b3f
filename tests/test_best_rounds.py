"""Fine-tuning hands on the best of the models that it went through."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import series, tiny, train

import mosaic_jax as mj
from mosaic_jax.io.datasets import load
from mosaic_jax.stages.best_rounds import best_rounds
from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.stage import Stage


def rounds_with(validations: list[float]) -> tuple[mj.Problem, Stage, list[Any]]:
    """A stage of four rounds whose looks find these validations, and the models that it had at each look."""
    problem = mj.build_problem(tiny(method="fedavg"), load("digits", 32))
    stage = federated_stage(problem, "warmup", 4, 0.1, mj.Federation())
    seen: list[Any] = []

    def watch(state: Any, inputs: Any, step: int) -> tuple[Any, dict[str, float]]:
        seen.append(jax.tree.map(jnp.copy, state.servers))
        return state, {"validation": validations[step]} if validations else {}

    return problem, stage._replace(watch=watch, watch_every=1), seen


@pytest.mark.parametrize(
    ("validations", "place"),
    [([0.5, 0.4, 0.7, 0.7, 0.6], 2), ([0.9, 0.4, 0.7, 0.7, 0.6], 0), ([0.1, 0.2, 0.3, 0.4, 0.5], 4), ([], 4)],
    ids=["the first of the best", "the start", "the last", "without validation images the last"],
)
def test_the_models_of_the_best_look_are_handed_on(validations: list[float], place: int) -> None:
    problem, stage, seen = rounds_with(validations)
    outputs = mj.run(problem, [best_rounds(stage)])
    jax.tree.map(np.testing.assert_array_equal, outputs["warmup"].servers, seen[place])


@pytest.mark.parametrize("method", ["mosaic", "fedavg_finetune"])
def test_what_is_fine_tuned_is_no_worse_by_validation_than_what_it_began_with(method: str, tmp_path: Path) -> None:
    config = tiny(method=method, finetune={"num_rounds": 2, "client_learning_rate": 5.0})  # a rate that ruins a model
    assert train(config, tmp_path / "run") == 0
    found = {(step, name): value for stage, step, name, value in series(tmp_path / "run") if stage == "finetune"}
    looks = [found[step, "validation"] for step in range(3)]
    assert found[2, "best_validation"] == max(looks)
    assert looks[2] < max(looks)


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_the_paper_and_the_public_code_keep_the_last(preset: str) -> None:
    from mosaic_jax.config_io import apply_preset

    assert mj.Config().finetune.keep == "best"
    assert apply_preset(mj.Config(), preset).finetune.keep == "last"
