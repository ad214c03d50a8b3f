"""The one loop over a stage's steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from mosaic_jax.driving import Drive, NonFiniteLoss, means
from mosaic_jax.io.datasets import load
from mosaic_jax.methods import stages_of
from mosaic_jax.stages.problem import build_problem
from mosaic_jax.stages.stage import Stage
from mosaic_jax.types import Series


def stage_of(sharding: object = None) -> Stage:
    """A stage of which only the names matter."""
    return Stage(
        name="s", unit="step", num_steps=9, segment=3, save_every=1, sharding=sharding, inputs=dict, init=dict, host=dict, data=(),
        run=dict, watch=None, watch_every=0, output=dict, traffic=dict,
    )  # fmt: skip


def test_a_mean_counts_every_step_that_was_done_a_loss_of_zero_too() -> None:
    assert means(stage_of(), Series({"agreement": np.array([0.0, 0.0, 0.5])}), 0, 3) == {"agreement": pytest.approx(1 / 6)}
    assert means(stage_of(), Series({"agreement": np.array([0.0, 0.5, 9.0])}), 0, 2) == {"agreement": 0.25}
    done = np.array([[True, False], [True, True]])
    assert means(stage_of(), Series({"loss": np.array([[1.0, np.nan], [3.0, 5.0]])}, done), 0, 2) == {"loss": 3.0}
    assert means(stage_of(), Series({"loss": np.ones((2, 2))}, np.zeros((2, 2), bool)), 0, 2) == {"loss": 0.0}


def test_a_loss_that_is_not_finite_is_named_by_its_step_and_client() -> None:
    losses = {"loss": np.array([[1.0, 2.0], [3.0, np.inf]])}
    with pytest.raises(NonFiniteLoss, match="s: loss is not finite at step 4, client 1; lower the learning rate"):
        means(stage_of("clients"), Series(losses), 3, 5)


def test_segments_begin_with_the_start_and_end_with_the_stage_and_a_stage_goes_on_from_any_of_them() -> None:
    problem = build_problem(tiny(method="fedavg", warmup={"num_rounds": 1}, finetune={"num_rounds": 2}), load("digits", 32))
    (stage,) = stages_of(problem)
    drive, kept = Drive(problem, stage, ()), []
    for segment in drive.segments():
        kept.append((segment.start, segment.stop, sorted(segment.losses), sorted(segment.records), drive.step))
        if segment.stop == 1:
            middle = jax.tree.map(jnp.copy, drive.state)
    assert kept == [(0, 0, [], ["validation"], 0), *((n, n + 1, ["loss"], ["validation"], n + 1) for n in range(3))]
    resumed = Drive(problem, stage, (), (1, middle))
    assert [segment.start for segment in resumed.segments()] == [1, 2]
    jax.tree.map(np.testing.assert_array_equal, resumed.state, drive.state)
