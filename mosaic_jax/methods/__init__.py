"""The registry: a method is a function from a problem to its stages. A new one is a file here and a row below."""

from collections.abc import Callable

from mosaic_jax.methods.fedavg import fedavg, fedavg_finetune
from mosaic_jax.methods.mosaic import mosaic
from mosaic_jax.stages.problem import Problem, Stage

METHODS: dict[str, Callable[[Problem], tuple[Stage, ...]]] = {
    "mosaic": mosaic,
    "fedavg": fedavg,
    "fedavg_finetune": fedavg_finetune,
}
