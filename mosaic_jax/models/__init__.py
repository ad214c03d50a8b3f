"""Networks as pure functions; Flax Linen stays inside this package.

A network computes in the dtype of what it is given: here images and noise are cast to the run's precision on the way in, and
outputs to float32 on the way out. Parameters and BatchNorm statistics are float32 throughout.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mosaic_jax.config import GeneratorConfig, MetaConfig, ModelConfig
from mosaic_jax.models.attention_meta import AttentionMeta
from mosaic_jax.models.cnn import CNN
from mosaic_jax.models.dcgan import DCGANDiscriminator, DCGANGenerator
from mosaic_jax.models.layers import Statistics, narrowed
from mosaic_jax.models.resnet import BLOCKS, EXPANSION, ResNet
from mosaic_jax.models.vit import ViT
from mosaic_jax.registry import GENERATORS, META_MODELS, NETWORKS
from mosaic_jax.types import Classifier, Discriminator, Generator, MetaModel, PyTree, Variables

DTYPES = {"float32": jnp.float32, "bf16": jnp.bfloat16}


def _variables(collections: dict[str, Any]) -> Variables:
    return Variables(collections["params"], collections.get("batch_stats", {}))


@dataclasses.dataclass(frozen=True)
class _Network:
    """A Flax module and the dtype it computes in."""

    module: Any
    precision: str

    def apply(self, variables: Variables, inputs: jax.Array, train: bool, **kwargs: Any) -> tuple[jax.Array, PyTree]:
        """Outputs f32 and the BatchNorm statistics after the call (moved in train mode, unchanged in eval mode)."""
        collections = {"params": variables.params, "batch_stats": variables.batch_stats}
        inputs = inputs.astype(DTYPES[self.precision])
        if not train:
            return self.module.apply(collections, inputs, train, **kwargs).astype(jnp.float32), variables.batch_stats
        outputs, moved = self.module.apply(collections, inputs, train, mutable=["batch_stats"], **kwargs)
        return outputs.astype(jnp.float32), moved.get("batch_stats", {})


def build_classifier(
    config: ModelConfig,
    num_classes: int,
    precision: str = "float32",
    rate: float = 1.0,
    scaler: bool = False,
    image_size: int = 32,
    settings: Any = None,
) -> Classifier:
    """The client, global and student network that a configuration names; see `types.Classifier`.

    image_size: height and width of its images, which decides a shape in networks without convolutions alone. settings: the section
    that was registered with the network, if one was.

    rate: a narrower version of it in which every layer has ceil(rate * channels) of its channels, all K outputs and the same
    tree of parameters; see `models.channels`. scaler: in train mode what goes into a BatchNorm is divided by the rate (HeteroFL).
    """
    narrower = {"rate": rate, "scaler": scaler} if NETWORKS.entry(config.name).narrower else {}
    return NETWORKS[config.name](config, num_classes, image_size=image_size, precision=precision, settings=settings, **narrower)


def cnn_classifier(
    config: ModelConfig, num_classes: int, *, image_size: int, precision: str, settings: None = None, rate: float, scaler: bool
) -> Classifier:
    """The small convolutional network."""
    module = CNN(num_classes, config.width, rate, rate if scaler else 1.0, config.norm)
    return flax_classifier(module, num_classes, narrowed(8 * config.width, rate), image_size, precision)


def resnet_classifier(
    config: ModelConfig, num_classes: int, *, image_size: int, precision: str, settings: None = None, rate: float, scaler: bool
) -> Classifier:
    """The ResNet that `config.name` says."""
    module = ResNet(config.name, num_classes, config.width, rate, rate if scaler else 1.0, config.norm)
    feature_size = narrowed(8 * config.width * EXPANSION[BLOCKS[config.name][0]], rate)
    return flax_classifier(module, num_classes, feature_size, image_size, precision)


def vit_classifier(config: ModelConfig, num_classes: int, *, image_size: int, precision: str, settings: None = None) -> Classifier:
    """The small vision transformer."""
    return flax_classifier(ViT(num_classes, config.width, image_size), num_classes, 8 * config.width, image_size, precision)


def flax_classifier(
    module: Any, num_classes: int, feature_size: int, image_size: int = 32, precision: str = "float32"
) -> Classifier:
    """A Classifier out of a Flax Linen module, whose parts it calls.

    module: `__call__(images f32[B, S, S, 3], train, record=None) -> logits f32[B, K]`, methods features(images, train) -> f32[B, D]
    and head(features) -> logits; record: a list that takes the Statistics of what goes into each BatchNorm, if it has any.
    """
    network = _Network(module, precision)

    def input_statistics(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree, tuple]:
        record: list[Statistics] = []
        logits, batch_stats = network.apply(variables, images, train, record=record)
        return logits, batch_stats, tuple(record)

    return Classifier(
        init=lambda key: _variables(module.init(key, jnp.zeros((2, image_size, image_size, 3)), True)),
        apply=network.apply,
        features=lambda variables, images, train: network.apply(variables, images, train, method="features"),
        head=lambda variables, features: module.apply({"params": variables.params}, features, method="head"),
        input_statistics=input_statistics,
        num_classes=num_classes,
        feature_size=feature_size,
    )


def build_generator(config: GeneratorConfig, precision: str = "float32", image_size: int = 32, settings: Any = None) -> Generator:
    """The generator of every client that a configuration names; see `types.Generator`. settings: its registered section."""
    return GENERATORS[config.name](config, image_size=image_size, precision=precision, settings=settings)


def dcgan_generator(config: GeneratorConfig, *, image_size: int, precision: str, settings: None = None) -> Generator:
    """The DCGAN generator."""
    module = DCGANGenerator(config.width, image_size)
    return Generator(
        init=lambda key: _variables(module.init(key, jnp.zeros((2, config.latent_size)), True)),
        apply=_Network(module, precision).apply,
        latent_size=config.latent_size,
    )


def build_discriminator(config: GeneratorConfig, precision: str = "float32", image_size: int = 32) -> Discriminator:
    """The separate DCGAN discriminator of the public code."""
    module = DCGANDiscriminator(config.width, image_size)
    return Discriminator(
        init=lambda key: _variables(module.init(key, jnp.zeros((2, image_size, image_size, 3)), True)),
        apply=_Network(module, precision).apply,
    )


def classifier_as_discriminator(classifier: Classifier) -> Discriminator:
    """The paper's reading of a K-class network as discriminator: D(x) = Z / (Z + 1), Z = sum_k exp(logit_k).

    The score logit of that probability is logsumexp over the class logits.
    """

    def apply(variables: Variables, images: jax.Array, train: bool) -> tuple[jax.Array, PyTree]:
        logits, batch_stats = classifier.apply(variables, images, train)
        return jax.nn.logsumexp(logits, axis=-1), batch_stats

    return Discriminator(init=classifier.init, apply=apply)


def judge_of(gan: GeneratorConfig, classifier: Classifier, precision: str, image_size: int) -> Discriminator:
    """What judges a generator's images: its own network, or the client's classifier."""
    if gan.discriminator == "classifier":
        return classifier_as_discriminator(classifier)
    return build_discriminator(gan, precision, image_size)


def build_meta_model(config: MetaConfig, num_classes: int, num_experts: int, settings: Any = None) -> MetaModel:
    """The meta model over E experts that a configuration names; see `types.MetaModel`. settings: its registered section."""
    return META_MODELS[config.name](config, num_classes, num_experts, settings=settings)


def attention_meta_model(config: MetaConfig, num_classes: int, num_experts: int, *, settings: None = None) -> MetaModel:
    """The attention meta model; dropout runs only when a key is given."""
    module = AttentionMeta(num_classes, config.expansion, config.feed_forward_size, config.dropout_rate, config.pooling)

    def apply(params: PyTree, expert_logits: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        return module.apply({"params": params}, expert_logits, dropout_key is None, rngs=rngs)

    def init(key: jax.Array) -> PyTree:
        return module.init(key, jnp.zeros((1, num_experts, num_classes)), True)["params"]

    return MetaModel(init, apply)
