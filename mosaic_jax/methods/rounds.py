"""A federated method by itself."""

from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Stage


def rounds(problem: Problem, federation: Federation) -> tuple[Stage, ...]:
    """As many rounds as Mosaic has in warm-up and fine-tuning together, all at the warm-up rate."""
    config = problem.config
    num_rounds = config.warmup.num_rounds + config.finetune.num_rounds
    return (federated_stage(problem, "warmup", num_rounds, config.warmup.client_learning_rate, federation),)
