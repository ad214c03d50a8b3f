"""The registries: a federated method is the hooks of a round, a method the stages of a run. A new one is a file here and a row."""

from collections.abc import Callable

from mosaic_jax.methods.fedadam import fedadam
from mosaic_jax.methods.fedavg import fedavg
from mosaic_jax.methods.fedavg_finetune import fedavg_finetune
from mosaic_jax.methods.fedavgm import fedavgm
from mosaic_jax.methods.fedbn import fedbn
from mosaic_jax.methods.federated_dropout import federated_dropout
from mosaic_jax.methods.fedprox import fedprox
from mosaic_jax.methods.fedrolex import fedrolex
from mosaic_jax.methods.fedrs import fedrs
from mosaic_jax.methods.heterofl import heterofl
from mosaic_jax.methods.mosaic import mosaic
from mosaic_jax.methods.rounds import rounds
from mosaic_jax.methods.scaffold import scaffold
from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Stage

FEDERATIONS: dict[str, Callable[[Problem], Federation]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedbn": fedbn,
    "fedrs": fedrs,
    "fedavgm": fedavgm,
    "fedadam": fedadam,
    "scaffold": scaffold,
    "heterofl": heterofl,
    "fedrolex": fedrolex,
    "federated_dropout": federated_dropout,
}
# Of several stages, with the rounds of `warmup.method`; a federated method by itself is its rounds.
METHODS: dict[str, Callable[[Problem, Federation], tuple[Stage, ...]]] = {
    "mosaic": mosaic,
    "fedavg_finetune": fedavg_finetune,
    **dict.fromkeys(FEDERATIONS, rounds),
}


def stages_of(problem: Problem) -> tuple[Stage, ...]:
    """The stages of the method that the configuration names, in order."""
    config = problem.config
    return METHODS[config.method](problem, FEDERATIONS[config.federated](problem))
