"""Programs that know nothing of the seed: what it decides is given to them, so that one compilation serves all seeds."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from conftest import tiny

from mosaic_jax import restored
from mosaic_jax.driving import host_arrays
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import load
from mosaic_jax.methods import stages_of
from mosaic_jax.programs import compiled
from mosaic_jax.stages.problem import Problem, build_problem
from mosaic_jax.stages.stage import Outputs


def programs(problem: Problem, outputs: Outputs) -> dict[str, str]:
    """The program of every stage of a problem, as JAX's text, given these outputs of earlier stages."""
    found = {}
    for stage in stages_of(problem):
        inputs = stage.inputs(outputs)
        state = jax.eval_shape(stage.init, inputs)
        arguments = (state, inputs, stage.data, host_arrays(stage, inputs, 0), np.int32(0), np.int32(1))
        found[stage.name] = re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(stage.run)(*arguments).jaxpr))
    return found


def test_the_programs_of_every_stage_are_those_of_another_seed(finished: Path) -> None:
    problem, outputs = restored.restore(finished, Console(quiet=True))
    other = build_problem(tiny(seed=1), load("digits", 32))
    assert (problem.label_counts != other.label_counts).any()
    assert programs(problem, outputs) == programs(other, outputs)


def test_arrays_that_a_function_closes_over_are_arguments_of_its_program() -> None:
    def adding(number: float) -> Callable[[jax.Array], dict[str, jax.Array]]:
        added = np.full(3, number, np.float32)
        return lambda x: {"sum": jax.lax.fori_loop(0, 2, lambda i, x: x + added, x)}

    x, texts = jnp.zeros(3), []
    for number in (1.0, 2.0):
        program = compiled(adding(number), (x,))
        np.testing.assert_array_equal(program(x)["sum"], 2 * number)
        texts.append(program.as_text())
    assert texts[0] == texts[1]
