"""The one loop over the steps of a stage: its program compiled, its state donated, segment after segment.

No disk, no clock and no signals: who takes the segments adds those.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.mapping import bring_here, place
from mosaic_jax.programs import Compiled, compiled
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Records, Stage, placements
from mosaic_jax.types import PyTree, Series


class NonFiniteLoss(Exception):
    """A loss became NaN or infinite; what was there before it stands."""


class Segment(NamedTuple):
    """What a stage has just done: its steps start..stop-1, none before its first one.

    losses: the mean of each loss over the steps, and the clients, that were done; records: what a look at the state found, empty
    where there was none.
    """

    stage: str
    start: int
    stop: int
    losses: dict[str, float]
    records: Records


class Drive:
    """A stage on its way. state: after `step` of its steps; donated to the next segment, so a caller who keeps it copies it."""

    def __init__(self, problem: Problem, stage: Stage, inputs: PyTree, resumed: tuple[int, PyTree] | None = None) -> None:
        """inputs: of `stage.inputs`; resumed: a step and the state after it, None for the stage's start."""
        self.stage, self.is_fresh = stage, resumed is None
        # Copies: jit hands inputs through unchanged, and the state is donated.
        self.step, state = resumed or (0, jax.tree.map(jnp.copy, jit_once(stage.init)(inputs)))
        self._home, self._everywhere = placements(problem, stage, state)
        where = (self._home, self._everywhere, self._everywhere)
        self.state, self.inputs, self._data = place((state, inputs, stage.data), where)
        self._programs: dict[str, Compiled] = {}
        self._drawn: tuple[int, PyTree] = (-1, ())

    def host(self, start: int) -> PyTree:
        """The host's arrays of the segment that begins at `start`, drawn beforehand where it is the next."""
        return self._drawn[1] if self._drawn[0] == start else host_arrays(self.stage, self.inputs, start)

    def prepare(self, start: int, stop: int) -> tuple[Compiled, tuple]:
        """The program of a segment, compiled, and its arguments for the steps start..stop-1."""
        host = self.host(start)
        arguments = (self.state, self.inputs, self._data, host, np.int32(start), np.int32(stop))
        # Rounds of a cohort and rounds of all clients differ in shape.
        shapes = str(jax.tree.map(np.shape, host))
        if shapes not in self._programs:
            self._programs[shapes] = compiled(
                self.stage.run, arguments, donate_first=True, out_shardings=(self._home, self._everywhere),
                constants_at=self._everywhere,
            )  # fmt: skip
        return self._programs[shapes], arguments

    def advance(self, start: int, stop: int, following: int | None = None) -> Series:
        """A segment's steps start..stop-1; following: where the segment begins that is drawn while the devices work."""
        program, arguments = self.prepare(start, stop)
        self.state, series = program(*arguments)
        if following is not None:
            self._drawn = following, host_arrays(self.stage, self.inputs, following)
        return jax.device_get(series)

    def segments(self, traced: Callable[[bool], AbstractContextManager] = lambda last: nullcontext()) -> Iterator[Segment]:
        """The stage's start, where this is one, and each segment to its end, after each of which `state` and `step` have moved.

        traced: what to run a segment in, given whether it is the last one. Raises NonFiniteLoss, naming step and client.
        """
        stage = self.stage
        if self.is_fresh:
            yield Segment(stage.name, 0, 0, {}, self._look())
        while self.step < stage.num_steps:
            start, stop = self.step, min(self.step + stage.segment, stage.num_steps)
            with traced(stop == stage.num_steps):
                series = self.advance(start, stop, stop if stop < stage.num_steps else None)
            losses = means(stage, series, start, stop)
            self.step = stop
            is_due = stage.watch_every and (stop % stage.watch_every == 0 or stop == stage.num_steps)
            yield Segment(stage.name, start, stop, losses, self._look() if is_due else {})

    def _look(self) -> Records:
        if self.stage.watch is None:
            return {}
        self.state, records = self.stage.watch(self.state, self.inputs, self.step)
        return records

    def output(self) -> PyTree:
        """What later stages read, whole arrays on the first local device."""
        return bring_here(self.stage.output(self.state, self.inputs))


def host_arrays(stage: Stage, inputs: PyTree, start: int) -> PyTree:
    """The NumPy arrays of the segment that begins at `start`: the batches of its steps."""
    return stage.host(inputs, start)


def means(stage: Stage, series: Series, start: int, stop: int) -> dict[str, float]:
    """Mean of each loss over the steps start..stop-1, and over clients, where they were done.

    Raises NonFiniteLoss naming stage, step and client.
    """
    num = max(stop - start, 1)
    found = {}
    for name, values in series.losses.items():
        values = np.asarray(values)[..., :num]
        done = np.broadcast_to(True if series.done is None else np.asarray(series.done)[..., :num], values.shape)
        bad = np.argwhere(~np.isfinite(values) & done)
        if len(bad):
            *client, slot = bad[np.argmin(bad[:, -1])]
            who = f", client {client[0]}" if stage.sharding is not None and client else ""
            raise NonFiniteLoss(f"{stage.name}: {name} is not finite at {stage.unit} {start + slot}{who}; lower the learning rate")
        found[name] = float(values[done].mean()) if done.any() else 0.0
    return found


def jit_once(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """jax.jit for a program that runs once: on a CPU, optimizing many small random draws takes far longer than drawing them."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(function, compiler_options=options)
