"""Mosaic from Python, a notebook or a thread: problems, stages, outputs and tables in memory, and run directories read back."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mosaic_jax import config_io, jax_settings, restored
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.driving import Drive, Segment
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import check_dataset
from mosaic_jax.io.datasets.pixels import VIEWER, pixels
from mosaic_jax.methods import METHODS, stages_of
from mosaic_jax.methods.mosaic import mosaic
from mosaic_jax.planning.fitting import fitted_problem
from mosaic_jax.plugins import load_plugins
from mosaic_jax.stages.evaluation import evaluate_models
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Stage
from mosaic_jax.types import Dataset, PyTree

__all__ = ["METHODS", "Outputs", "Run", "build_problem", "evaluate", "load_config", "mosaic", "open_run", "run"]


class Outputs(dict[str, PyTree]):
    """What each finished stage hands over, by the stage's name; stages: those that were run, which know how to judge it."""

    def __init__(self, stages: Sequence[Stage], values: Iterable[tuple[str, PyTree]] = ()) -> None:
        super().__init__(values)
        self.stages = tuple(stages)


def load_config(
    path: str | Path, assignments: Iterable[str] = (), *, preset: str | None = None, plugins: Iterable[str | Path] = ()
) -> Config:
    """The Config that a Python file's get_config() returns, under a preset and then each `NAME=VALUE` of assignments.

    plugins: files that register parts which the configuration may name. Raises ConfigError, one line naming the file or the
    setting, its value and what is valid.
    """
    load_plugins(plugins)
    return config_io.resolve(path, preset, assignments)


def build_problem(config: Config, dataset: Dataset | None = None) -> Problem:
    """A configuration with its data dealt to clients, its networks, and its mapping to this machine's devices.

    dataset: arrays in the place of what `config.data` names, images u8[N, S, S, 3], where S is config.data.image_size.
    Raises ConfigError for data or settings with which no stage could run.
    """
    if dataset is not None:
        check_dataset(dataset, config.data.image_size)
    return fitted_problem(config, Console(quiet=True), dataset=dataset)[0]


@jax_settings.fixed()
def run(problem: Problem, stages: Sequence[Stage] | None = None, *, on_segment: Callable[[Segment], None] | None = None) -> Outputs:
    """Run stages one after another in memory: no run directory, no signals, nothing printed.

    stages: None is those of the configuration's method. on_segment: hears of every segment of steps (stage, start, stop, losses,
    records). Raises NonFiniteLoss where a loss becomes NaN or infinite.
    """
    outputs = Outputs(stages_of(problem) if stages is None else stages)
    for stage in outputs.stages:
        drive = Drive(problem, stage, stage.inputs(outputs))
        for segment in drive.segments():
            if on_segment is not None:
                on_segment(segment)
        outputs[stage.name] = drive.output()
    return outputs


@jax_settings.fixed()
def evaluate(problem: Problem, outputs: Outputs) -> dict[str, Any]:
    """What results.json holds under "models": {name: {validation, test, test_per_class}}, accuracies in 0..1."""
    return evaluate_models(problem, outputs, outputs.stages)[0]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory read back: its configuration, its problem, and the outputs of its finished stages."""

    directory: Path
    config: Config
    problem: Problem
    outputs: Outputs

    @property
    def final_model(self) -> str:
        """The name of the model that the run hands over, or would so far."""
        return next(stage.hands_over for stage in reversed(self.outputs.stages) if stage.name in self.outputs and stage.hands_over)

    def predict(self, images: np.ndarray, *, batch_size: int = 500) -> np.ndarray:
        """Logits f32[N, K] of the model that the run hands over.

        images: u8[N, H, W, 3] or u8[N, H, W] (grey) of any size, stretched to the run's own. Raises ConfigError for other arrays.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
            raise ConfigError(f"images: {images.dtype}{list(images.shape)}; must be uint8[N, H, W, 3] or uint8[N, H, W]")
        size = self.config.data.image_size
        squares = [pixels(image, size, VIEWER)[0] for image in images]
        fitting = np.stack(squares) if squares else np.zeros((0, size, size, 3), np.uint8)
        name = self.final_model
        stage = next(stage for stage in self.outputs.stages if stage.hands_over == name)
        outputs = dict(self.outputs)

        @jax.jit
        def logits(outputs: dict[str, PyTree], batch: jax.Array) -> jax.Array:
            return stage.judged.predict(outputs, self.problem.decode(batch))[name]

        with jax_settings.fixed():
            found = [np.asarray(logits(outputs, batch)) for batch in _batches(fitting, batch_size)]
        return np.concatenate(found)[: len(images)]


def _batches(images: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Equal batches, the last one filled up with black images, so that one program does all."""
    size = min(batch_size, max(len(images), 1))
    for start in range(0, max(len(images), 1), size):
        batch = images[start : start + size]
        filled = np.zeros((size - len(batch), *images.shape[1:]), np.uint8)
        yield np.concatenate([batch, filled])


def open_run(directory: str | Path, *, data_dir: str | None = None, plugins: Iterable[str | Path] = ()) -> Run:
    """A run that `mosaic-jax train` made, read back from its checkpoints; data_dir: where its data are, if they have moved.

    plugins: files that register what its configuration names. Raises ConfigError where there is no run, nothing of it is finished,
    or a plugin is not the one that it was made with.
    """
    load_plugins(plugins)
    directory = Path(directory)
    problem, outputs = restored.restore(directory, Console(quiet=True), data_dir)
    return Run(directory, problem.config, problem, Outputs(stages_of(problem), outputs.items()))
