"""FedAvg (McMahan et al. 2017), and the control that matters most: its model, fine-tuned at a low rate without distilling."""

from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.problem import Problem, Stage


def fedavg(problem: Problem) -> tuple[Stage, ...]:
    """As many rounds as Mosaic has in warm-up and fine-tuning together, all at the warm-up rate."""
    config = problem.config
    num_rounds = config.warmup.num_rounds + config.finetune.num_rounds
    return (federated_stage(problem, "warmup", num_rounds, config.warmup.client_learning_rate, 0, None),)


def fedavg_finetune(problem: Problem) -> tuple[Stage, ...]:
    """Mosaic's warm-up and Mosaic's fine-tuning, nothing between."""
    config = problem.config
    return (
        federated_stage(problem, "warmup", config.warmup.num_rounds, config.warmup.client_learning_rate, 0, None),
        federated_stage(
            problem, "finetune", config.finetune.num_rounds, config.finetune.client_learning_rate, 0,
            lambda outputs: outputs["warmup"].global_,
        ),
    )
