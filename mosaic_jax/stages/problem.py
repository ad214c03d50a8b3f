"""What a run works on, and what a stage is."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.config import Config, ConfigError, DistillConfig
from mosaic_jax.data.augment import crop_flip, decode
from mosaic_jax.data.feature_skew import skew
from mosaic_jax.data.named import with_own_settings
from mosaic_jax.data.partition import partition
from mosaic_jax.data.partition.dealing import Rejected, unheard
from mosaic_jax.data.splits import label_counts, split
from mosaic_jax.mapping import ExpertPlan, Plan, make_expert_plan, make_plan
from mosaic_jax.models import build_classifier, build_generator, build_meta_model
from mosaic_jax.models.channels import uncut_axes
from mosaic_jax.rng import root_of
from mosaic_jax.settings import show
from mosaic_jax.stages.groups import Architecture, Group, build_groups
from mosaic_jax.stages.participation import Participation
from mosaic_jax.steps.experts import class_weights
from mosaic_jax.types import Classifier, Dataset, Generator, MetaModel, Splits


class Problem(NamedTuple):
    """A configuration with its networks and its data dealt to clients.

    config: with the data set's own settings in the place of auto; root: of its seed, for `key_at`.
    label_counts: i64[C, K] and num_samples: i64[C] count the clients' TRAINING images, validation shares taken out;
    partition_counts: i64[C, K] counts all images dealt, as papers print them. client_plan, expert_plan: how both are mapped.
    expert_weights: label counts f32[C, K] -> f32[K, C], the share of each client in each class expert.
    classifier: the student's network, that of `model`; architectures, groups: the clients' networks, and who holds which.
    participants: i64[], ascending, the clients whose work arrives in some round of the warm-up; others have neither a generator nor
    a share in an expert.
    Under feature skew the dataset's training images are those that the clients see, and client_test_images: u8[N, S, S, 3] the
    test images as the client of each one's test share sees it; dataset.test_images, on which the server is judged, stay as read.
    """

    config: Config
    root: np.ndarray
    dataset: Dataset
    splits: Splits
    client_test_images: np.ndarray
    partition_counts: np.ndarray
    label_counts: np.ndarray
    classifier: Classifier
    architectures: tuple[Architecture, ...]
    groups: tuple[Group, ...]
    participants: np.ndarray
    generator: Generator
    meta_model: MetaModel
    client_plan: Plan
    expert_plan: ExpertPlan
    expert_weights: Callable[[jax.Array], jax.Array] = class_weights

    @property
    def num_clients(self) -> int:
        return len(self.splits.train)

    @property
    def num_classes(self) -> int:
        return len(self.dataset.class_names)

    @property
    def num_samples(self) -> np.ndarray:
        return self.label_counts.sum(axis=1)

    @property
    def student(self) -> int | None:
        """The position of the student's network among the architectures; None where no client has it."""
        found = [kind for kind, each in enumerate(self.architectures) if each.model == self.config.model]
        return found[0] if found else None

    @property
    def feature_size(self) -> int:
        """D of the prototypes: the features of the first architecture, whole."""
        return self.architectures[0].classifier.feature_size

    @property
    def kept_prototypes(self) -> int:
        """Prototypes of a class that a client sends."""
        return min(self.config.prototypes.keep_per_class or self.config.prototypes.per_class, self.config.prototypes.per_class)

    def decode(self, images: jax.Array) -> jax.Array:
        """u8[..., S, S, 3] -> f32 in the run's image range."""
        return decode(images, self.config.data)

    def preprocess(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """A training batch as the network sees it: augmented by `data.augment`, then decoded."""
        return self.decode(crop_flip(key, images) if self.config.data.augment == "crop_flip" else images)

    def train_arrays(self) -> tuple[jax.Array, jax.Array]:
        """All training images u8[N, S, S, 3] and labels i32[N] on the device."""
        return jnp.asarray(self.dataset.train_images), jnp.asarray(self.dataset.train_labels)


def build_problem(config: Config, dataset: Dataset, table: np.ndarray | None = None, rejected: Rejected = unheard) -> Problem:
    """Deal the data to clients, build the networks and plan their mapping, as if everything fitted into memory.

    table: integers [C, K], what `partition.table` holds; rejected: hears of redraws, as `partition` says.
    Raises ConfigError where a stage could not run.
    """
    _check_cohort(config)
    config = dataclasses.replace(config, data=with_own_settings(config.data))
    of_kind = config.section_of(config.partition.kind)
    dealt = partition(dataset.train_labels, config.partition, config.seed, table, rejected, of_kind)
    splits = split(dealt, dataset.train_labels, len(dataset.test_labels), config.data.validation_fraction, config.seed)
    num_classes = len(dataset.class_names)
    for client, indices in enumerate(splits.train):
        if len(indices) == 0:
            clients = config.partition.num_clients
            raise ConfigError(f"partition.num_clients={clients}: client {client} got no image; use fewer clients")
    if config.method == "mosaic" and not any(len(v) for v in splits.validation):
        _check_unvalidated(config.distill)
    architectures, groups = build_groups(config, num_classes)
    return Problem(
        config=config,
        root=root_of(config.seed),
        dataset=dataset._replace(
            train_images=skew(dataset.train_images, dealt.client_indices, config.partition, config.seed, "train")
        ),
        splits=splits,
        client_test_images=skew(dataset.test_images, splits.test, config.partition, config.seed, "test"),
        partition_counts=label_counts(dealt.client_indices, dataset.train_labels, num_classes),
        label_counts=label_counts(splits.train, dataset.train_labels, num_classes),
        classifier=build_classifier(
            config.model,
            num_classes,
            config.precision,
            image_size=config.data.image_size,
            settings=config.section_of(config.model.name),
        ),
        architectures=architectures,
        groups=groups,
        participants=_participants(config, groups),
        generator=build_generator(
            config.generator, config.precision, config.data.image_size, config.section_of(config.generator.name)
        ),
        meta_model=build_meta_model(config.meta, num_classes, num_classes, config.section_of(config.meta.name)),
        client_plan=make_plan(config.mapping, config.partition.num_clients),
        expert_plan=make_expert_plan(config.mapping, config.memory, num_classes, stored_fit=True, fitting=num_classes),
    )


def with_networks(
    problem: Problem, classifier: Classifier | None, generator: Generator | None, meta_model: MetaModel | None
) -> Problem:
    """The problem with other networks where they are not None; raises ConfigError for a classifier where clients have several."""
    problem = problem if generator is None else problem._replace(generator=generator)
    problem = problem if meta_model is None else problem._replace(meta_model=meta_model)
    if classifier is None:
        return problem
    if len(problem.groups) > 1 or problem.groups[0].rate < 1:
        given = show(problem.config.clients.models) or f"rates {show(problem.config.client_rates)}"
        raise ConfigError(f"classifier=: clients have several networks ({given}); give them by clients.models, or give all one")
    (architecture,), (group,) = problem.architectures, problem.groups
    return problem._replace(
        classifier=classifier,
        architectures=(architecture._replace(classifier=classifier, axes=uncut_axes(classifier), sizes={}),),
        groups=(group._replace(classifier=classifier, sizes={}),),
    )


def _check_unvalidated(distill: DistillConfig) -> None:
    """Raises ConfigError where Mosaic would choose a student without validation images."""
    if distill.keep == "best":
        raise ConfigError("distill.keep=best needs validation images; set data.validation_fraction above 0 or distill.keep=last")
    if len(distill.label_prior) > 1:
        raise ConfigError(
            f"distill.label_prior={show(distill.label_prior)}: choosing a strength needs validation images; set "
            "data.validation_fraction above 0 or give one strength, 0 for no prior"
        )


def _check_cohort(config: Config) -> None:
    """Raises ConfigError where Mosaic's rounds with prototypes, which have all clients, would leave no round to a cohort."""
    cohort, rounds = config.warmup.clients_per_round, config.prototypes.num_rounds
    partial = 0 < cohort < config.partition.num_clients
    if config.method == "mosaic" and partial and not 0 < rounds < config.warmup.num_rounds:
        raise ConfigError(
            f"warmup.clients_per_round={cohort}: rounds with prototypes have all clients, and prototypes.num_rounds={rounds} "
            f"makes all warmup.num_rounds={config.warmup.num_rounds} such rounds; set it from 1 to fewer, or clients_per_round=0"
        )


def warmup_participation(config: Config, groups: tuple[Group, ...]) -> Participation:
    """The cohorts of Mosaic's warm-up, whose last rounds have all clients: those with prototypes, or one where there are none."""
    rounds = config.warmup.num_rounds
    return Participation(config, groups, "warmup", rounds, min(config.prototypes.num_rounds or rounds, rounds))


def _participants(config: Config, groups: tuple[Group, ...]) -> np.ndarray:
    """Raises ConfigError where nobody takes part in Mosaic's warm-up, or a cohort is too small for the groups."""
    everyone = np.arange(config.partition.num_clients)
    if config.method != "mosaic":
        return everyone
    found = warmup_participation(config, groups).took_part()
    if len(found) == 0:
        raise ConfigError(
            f"clients.dropout_rate={config.clients.dropout_rate}, clients.straggler_rate={config.clients.straggler_rate}: nobody's "
            "work arrives in any round of the warm-up; lower them"
        )
    parts = warmup_participation(config, groups)
    last = range(parts.num_rounds - parts.num_full_rounds, parts.num_rounds)
    if parts.some_are_missing and not any(arrives.any() for index in last for arrives in parts.round(index).arrives):
        raise ConfigError(
            f"clients.dropout_rate={config.clients.dropout_rate}, prototypes.num_rounds={config.prototypes.num_rounds}: nobody's "
            "work arrives in these last rounds of the warm-up, so there are no prototypes; raise the one or lower the other"
        )
    return found
