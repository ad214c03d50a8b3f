"""Mosaic (arXiv 2505.19699): warm-up, client generators, class experts, meta model, distillation, fine-tuning."""

from mosaic_jax.stages.distill import distill_stage
from mosaic_jax.stages.experts import experts_stage
from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.generators import auxiliary_stage, generators_stage, needs_classifier
from mosaic_jax.stages.meta import meta_stage
from mosaic_jax.stages.problem import Problem, Stage, warmup_participation


def mosaic(problem: Problem, federation: Federation) -> tuple[Stage, ...]:
    """The stages of SPEC 1 to 7, in order; auxiliary classifiers only where the generator's loss asks for local ones.

    The clients that have the student's network fine-tune it; where nobody has, the student is what the run hands over.
    """
    config, student = problem.config, problem.student
    local = config.generator.classifier == "local" and needs_classifier(problem)
    warmup = federated_stage(
        problem, "warmup", config.warmup.num_rounds, config.warmup.client_learning_rate, federation,
        num_full_rounds=warmup_participation(config, problem.groups).num_full_rounds,
        prototypes=config.meta_source == "prototypes",
    )  # fmt: skip
    middle = (generators_stage(problem), experts_stage(problem), meta_stage(problem), distill_stage(problem))
    stages = (warmup, *((auxiliary_stage(problem),) if local else ()), *middle)
    if student is None:
        return stages
    finetune = federated_stage(
        problem, "finetune", config.finetune.num_rounds, config.finetune.client_learning_rate, federation,
        start_from=lambda outputs: (outputs["distill"],),
        groups=tuple(group for group in problem.groups if group.architecture == student),
    )  # fmt: skip
    return (*stages, finetune)
