"""Networks as pure functions; Flax Linen stays inside this package."""

from typing import Any

import jax
import jax.numpy as jnp

from mosaic_jax.config import GeneratorConfig, MetaConfig, ModelConfig
from mosaic_jax.models.attention_meta import AttentionMeta
from mosaic_jax.models.cnn import CNN
from mosaic_jax.models.dcgan import DCGANDiscriminator, DCGANGenerator
from mosaic_jax.models.layers import Statistics
from mosaic_jax.models.resnet import BLOCKS, EXPANSION, ResNet
from mosaic_jax.types import Classifier, Discriminator, Generator, MetaModel, PyTree, Variables

IMAGE_SHAPE = (32, 32, 3)


def _variables(collections: dict[str, Any]) -> Variables:
    return Variables(collections["params"], collections.get("batch_stats", {}))


def _apply(module: Any, variables: Variables, inputs: jax.Array, train: bool, **kwargs: Any) -> tuple[jax.Array, PyTree]:
    """Outputs and the BatchNorm statistics after the call (moved in train mode, unchanged in eval mode)."""
    collections = {"params": variables.params, "batch_stats": variables.batch_stats}
    if not train:
        return module.apply(collections, inputs, train, **kwargs), variables.batch_stats
    outputs, moved = module.apply(collections, inputs, train, mutable=["batch_stats"], **kwargs)
    return outputs, moved.get("batch_stats", {})


def build_classifier(config: ModelConfig, num_classes: int) -> Classifier:
    """The client, global and student network that a configuration names; see `types.Classifier`."""
    if config.name == "cnn":
        module: Any = CNN(num_classes, config.width)
        feature_size = 8 * config.width
    else:
        module = ResNet(config.name, num_classes, config.width)
        feature_size = 8 * config.width * EXPANSION[BLOCKS[config.name][0]]

    def input_statistics(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree, tuple]:
        record: list[Statistics] = []
        logits, batch_stats = _apply(module, variables, images, train, record=record)
        return logits, batch_stats, tuple(record)

    return Classifier(
        init=lambda key: _variables(module.init(key, jnp.zeros((2, *IMAGE_SHAPE)), True)),
        apply=lambda variables, images, train: _apply(module, variables, images, train),
        features=lambda variables, images, train: _apply(module, variables, images, train, method="features"),
        head=lambda variables, features: module.apply({"params": variables.params}, features, method="head"),
        input_statistics=input_statistics,
        num_classes=num_classes,
        feature_size=feature_size,
    )


def build_generator(config: GeneratorConfig) -> Generator:
    """The DCGAN generator of every client; see `types.Generator`."""
    module = DCGANGenerator(config.width)
    return Generator(
        init=lambda key: _variables(module.init(key, jnp.zeros((2, config.latent_size)), True)),
        apply=lambda variables, noise, train: _apply(module, variables, noise, train),
        latent_size=config.latent_size,
    )


def build_discriminator(config: GeneratorConfig) -> Discriminator:
    """The separate DCGAN discriminator of the public code."""
    module = DCGANDiscriminator(config.width)
    return Discriminator(
        init=lambda key: _variables(module.init(key, jnp.zeros((2, *IMAGE_SHAPE)), True)),
        apply=lambda variables, images, train: _apply(module, variables, images, train),
    )


def classifier_as_discriminator(classifier: Classifier) -> Discriminator:
    """The paper's reading of a K-class network as discriminator: D(x) = Z / (Z + 1), Z = sum_k exp(logit_k).

    The score logit of that probability is logsumexp over the class logits.
    """

    def apply(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        logits, batch_stats = classifier.apply(variables, images, train)
        return jax.nn.logsumexp(logits, axis=-1), batch_stats

    return Discriminator(init=classifier.init, apply=apply)


def build_meta_model(config: MetaConfig, num_classes: int, num_experts: int) -> MetaModel:
    """The attention meta model over E experts; dropout runs only when a key is given."""
    module = AttentionMeta(num_classes, config.expansion, config.feed_forward_size, config.dropout_rate, config.pooling)

    def apply(params: PyTree, expert_logits: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        return module.apply({"params": params}, expert_logits, dropout_key is None, rngs=rngs)

    def init(key: jax.Array) -> PyTree:
        return module.init(key, jnp.zeros((1, num_experts, num_classes)), True)["params"]

    return MetaModel(init, apply)
