"""The control that matters most: Mosaic's rounds without what is between them."""

from mosaic_jax.stages.best_rounds import best_rounds
from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Stage


def fedavg_finetune(problem: Problem, federation: Federation) -> tuple[Stage, ...]:
    """Mosaic's warm-up and Mosaic's fine-tuning at the low rate, nothing between."""
    config = problem.config
    finetune = federated_stage(
        problem, "finetune", config.finetune.num_rounds, config.finetune.client_learning_rate, federation,
        start_from=lambda outputs: outputs["warmup"].servers,
    )  # fmt: skip
    return (
        federated_stage(problem, "warmup", config.warmup.num_rounds, config.warmup.client_learning_rate, federation),
        best_rounds(finetune) if config.finetune.keep == "best" else finetune,
    )
