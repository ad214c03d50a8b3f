"""Mosaic (arXiv 2505.19699): warm-up, client generators, class experts, meta model, distillation, fine-tuning."""

from collections.abc import Callable

import jax

from mosaic_jax.stages.best_rounds import best_rounds
from mosaic_jax.stages.distill import Teacher, distill_stage
from mosaic_jax.stages.experts import experts_stage
from mosaic_jax.stages.federated import federated_stage
from mosaic_jax.stages.federation import Federation, mean_of_models
from mosaic_jax.stages.generators import auxiliary_stage, generators_stage, needs_classifier
from mosaic_jax.stages.meta import meta_stage
from mosaic_jax.stages.problem import Problem, warmup_participation, with_networks
from mosaic_jax.stages.stage import Stage
from mosaic_jax.steps.client_update import ClientLoss
from mosaic_jax.steps.generator_step import gan_losses
from mosaic_jax.types import Classifier, Discriminator, Generator, MetaModel, Variables


def mosaic(
    problem: Problem,
    federation: Federation | None = None,
    *,
    classifier: Classifier | None = None,
    generator: Generator | None = None,
    discriminator: Discriminator | None = None,
    meta_model: MetaModel | None = None,
    client_loss: ClientLoss | None = None,
    aggregate: Callable[[Variables, jax.Array], Variables] | None = None,
    expert_weights: Callable[[jax.Array], jax.Array] | None = None,
    generator_loss: Callable[[jax.Array], jax.Array] | None = None,
    discriminator_loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    teacher: Teacher | None = None,
    distillation_loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[Stage, ...]:
    """The stages of the paper's sections in order; auxiliary classifiers only where the generator's loss asks for local ones.

    The clients that have the student's network fine-tune it; where nobody has, the student is what the run hands over.
    Each function takes the place of a part; None is what the configuration names.

    federation: the hooks of a round, None is FedAvg.
    classifier: of all clients and the student; generator, discriminator, meta_model: networks as of `mosaic_jax.types`.
    client_loss(Local) -> f32[]; aggregate(models [C, ...], weights f32[C]) -> the mean's place, in warm-up and fine-tuning.
    expert_weights(label_counts f32[C, K]) -> f32[K, C], the share of each client in each class expert.
    generator_loss(score_logits f32[B]) -> f32[]; discriminator_loss(real_score_logits, fake_score_logits, f32[B] each) -> f32[].
    teacher(expert_logits f32[B, E, K]) -> f32[B, K], in the place of the meta model, whose stage then falls away.
    distillation_loss(student_logits f32[B, K], teacher_logits f32[B, K]) -> f32[].
    Raises ConfigError for a classifier where clients have several networks or widths.
    """
    federation = federation or Federation()
    federation = federation if client_loss is None else federation._replace(loss=client_loss)
    federation = federation if aggregate is None else federation._replace(aggregate=mean_of_models(aggregate))
    problem = with_networks(problem, classifier, generator, meta_model)
    problem = problem if expert_weights is None else problem._replace(expert_weights=expert_weights)
    config, student = problem.config, problem.student
    gan = gan_losses(config.generator)
    gan = gan._replace(generator=generator_loss or gan.generator, discriminator=discriminator_loss or gan.discriminator)
    student_loss = None
    if distillation_loss is not None:

        def student_loss(student: jax.Array, teacher: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, dict]:
            return distillation_loss(student, teacher), {}

    local = config.generator.classifier == "local" and needs_classifier(problem)
    warmup = federated_stage(
        problem, "warmup", config.warmup.num_rounds, config.warmup.client_learning_rate, federation,
        num_full_rounds=warmup_participation(config, problem.groups).num_full_rounds,
        prototypes=config.meta_source == "prototypes" and teacher is None,
    )  # fmt: skip
    stages = (
        warmup,
        *((auxiliary_stage(problem),) if local else ()),
        generators_stage(problem, discriminator=discriminator, losses=gan),
        experts_stage(problem),
        *((meta_stage(problem),) if teacher is None else ()),
        distill_stage(problem, teacher=teacher, loss=student_loss),
    )
    if student is None:
        return stages
    finetune = federated_stage(
        problem, "finetune", config.finetune.num_rounds, config.finetune.client_learning_rate, federation,
        start_from=lambda outputs: (outputs["distill"],),
        groups=tuple(group for group in problem.groups if group.architecture == student),
    )  # fmt: skip
    return (*stages, best_rounds(finetune) if config.finetune.keep == "best" else finetune)
