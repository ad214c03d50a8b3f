"""Mosaic (arXiv 2505.19699): warm-up, client generators, class experts, meta model, distillation, fine-tuning."""

from mosaic_jax.stages.distill import distill_stage
from mosaic_jax.stages.experts import experts_stage
from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.generators import auxiliary_stage, generators_stage, needs_classifier
from mosaic_jax.stages.meta import meta_stage
from mosaic_jax.stages.problem import Problem, Stage


def mosaic(problem: Problem) -> tuple[Stage, ...]:
    """The stages of SPEC 1 to 7, in order; auxiliary classifiers only where the generator's loss asks for local ones."""
    config = problem.config
    prototype_rounds = min(config.prototypes.num_rounds or config.warmup.num_rounds, config.warmup.num_rounds)
    local = config.generator.classifier == "local" and needs_classifier(problem)
    return (
        federated_stage(problem, "warmup", config.warmup.num_rounds, config.warmup.client_learning_rate, prototype_rounds, None),
        *((auxiliary_stage(problem),) if local else ()),
        generators_stage(problem),
        experts_stage(problem),
        meta_stage(problem),
        distill_stage(problem),
        federated_stage(
            problem, "finetune", config.finetune.num_rounds, config.finetune.client_learning_rate, 0,
            lambda outputs: outputs["distill"],
        ),
    )
