"""Groups of clients: those that hold the same network at the same rate are stacked and mapped together."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax.config import Config, ModelConfig
from mosaic_jax.models import build_classifier
from mosaic_jax.models.channels import channel_axes, channel_sizes, uncut_axes
from mosaic_jax.registry import NETWORKS
from mosaic_jax.types import Classifier, PyTree, Variables


class Architecture(NamedTuple):
    """A network that clients hold, whole or narrower, and of which the server has one model.

    name: as in clients.models; axes: the channel space of each axis of each leaf; sizes: channels of each space.
    """

    name: str
    model: ModelConfig
    classifier: Classifier
    axes: Variables
    sizes: dict[str, int]


class Group(NamedTuple):
    """Clients of one architecture and rate.

    architecture: position in Problem.architectures; clients: i64[C_g], ascending; classifier: their network, as narrow as it
    is; sizes: channels that they hold of each space.
    """

    architecture: int
    rate: float
    clients: np.ndarray
    classifier: Classifier
    sizes: dict[str, int]


def build_groups(config: Config, num_classes: int) -> tuple[tuple[Architecture, ...], tuple[Group, ...]]:
    """The architectures, the student's first where clients have it, and the groups, by architecture and from wide to narrow."""
    models, rates = config.client_models, config.client_rates
    kinds = sorted(dict.fromkeys(models), key=lambda model: model != config.model)
    size = config.data.image_size

    def whole_network(model: ModelConfig) -> Classifier:
        settings = config.section_of(model.name)
        return build_classifier(model, num_classes, config.precision, image_size=size, settings=settings)

    def architecture(model: ModelConfig) -> Architecture:
        name, classifier = f"{model.name}:{model.width}", whole_network(model)
        if NETWORKS.entry(model.name).narrower:
            return Architecture(name, model, classifier, channel_axes(model), channel_sizes(model))
        return Architecture(name, model, classifier, uncut_axes(classifier), {})

    architectures = tuple(map(architecture, kinds))
    members: dict[tuple[int, float], list[int]] = {}
    for client, (model, rate) in enumerate(zip(models, rates, strict=True)):
        members.setdefault((kinds.index(model), rate), []).append(client)

    def group(index: int, rate: float) -> Group:
        model, whole = kinds[index], architectures[index]
        classifier = whole.classifier
        if rate < 1:
            classifier = build_classifier(model, num_classes, config.precision, rate, config.clients.scaler, size)
        sizes = channel_sizes(model, rate) if rate < 1 else whole.sizes
        return Group(index, rate, np.array(members[index, rate]), classifier, sizes)

    return architectures, tuple(group(*key) for key in sorted(members, key=lambda key: (key[0], -key[1])))


def in_client_order(groups: Sequence[Group], parts: Sequence[PyTree]) -> PyTree:
    """Equal trees of every group, leaves [C_g, ...], as one with leaves [C, ...] in the order of the clients' numbers."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate([group.clients for group in groups]), kind="stable")
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[order], *parts)
