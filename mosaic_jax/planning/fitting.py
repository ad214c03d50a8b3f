"""The problem of a configuration: its data read and dealt, its networks built, its mapping chosen for the memory there is."""

import jax

from mosaic_jax import ops
from mosaic_jax.config import Config, ConfigError
from mosaic_jax.devices import create_cpu_devices
from mosaic_jax.io import native_library
from mosaic_jax.io.console import Console
from mosaic_jax.io.datasets import dataset_of
from mosaic_jax.io.label_counts import read_table
from mosaic_jax.io.redraws import shown_redraws
from mosaic_jax.planning.limit import fit
from mosaic_jax.planning.stage_plans import StagePlan
from mosaic_jax.stages.problem import Problem, build_problem
from mosaic_jax.types import Dataset


def fitted_problem(
    config: Config, console: Console, *, dataset: Dataset | None = None, kernels: bool = True, there: int | None = None
) -> tuple[Problem, tuple[StagePlan, ...]]:
    """The problem, and the plan of its stages.

    dataset: None reads what `data` names. kernels: whether something will be trained, for which the C++ kernels are compiled
    unless they are kept; there: as in `fit`. Raises ConfigError for what no stage could run with.
    """
    if jax.config.jax_enable_x64:
        raise ConfigError("JAX_ENABLE_X64: is on, and a run computes in float32; unset it")
    create_cpu_devices(config.mapping, config.partition.num_clients)
    # Data that are missing are said before kernels are compiled, which takes seconds.
    dataset = dataset_of(config, console) if dataset is None else dataset
    if kernels:
        native_library.set_lowering(config.mapping.convolution, console.warning)
    else:
        ops.set_lowering(config.mapping.convolution)
    if config.partition.has_feature_skew:
        console.message("feature skew: turning the clients' images or making them noisy, once")
    with shown_redraws(config.partition, console) as rejected:
        problem = build_problem(config, dataset, read_table(config.partition, dataset.class_names), rejected)
    return fit(problem, there)
