"""The clock that tells a stage's work from JAX's compiling."""

import time

import jax
import jax.numpy as jnp
import pytest

from mosaic_jax.io.stage_clock import Spans, StageClock


def test_the_total_of_spans_counts_no_time_twice() -> None:
    spans = Spans()
    for start, end in ((1.0, 2.0), (2.5, 3.0), (0.5, 4.0), (5.0, 5.25)):
        spans.add(start, end)
    assert spans.total() == 3.75


def test_whatever_is_compiled_is_compile_time_and_the_rest_is_work() -> None:
    clock = StageClock()
    begun = time.perf_counter()
    jax.jit(lambda x: jnp.sin(jax.jit(jnp.cos)(x) @ x.T))(jnp.ones((300, 400))).block_until_ready()
    middle = clock.read()
    time.sleep(0.2)
    end = clock.read()
    assert middle["compile_seconds"] > 0.01
    assert end["compile_seconds"] == middle["compile_seconds"]
    assert end["elapsed_seconds"] - middle["elapsed_seconds"] >= 0.2
    assert sum(end.values()) == pytest.approx(time.perf_counter() - begun, abs=0.5)
