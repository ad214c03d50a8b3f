"""What methods of unequal widths have in common: the loss and the BatchNorm of HeteroFL."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps.client_update import Local, plain_loss
from mosaic_jax.steps.submodels import Channels, Sizes


def masked_loss(local: Local) -> jax.Array:
    """Cross-entropy with 0 in the place of logits of classes that the client does not hold -> f32[]. Source: HeteroFL."""
    return plain_loss(local._replace(logits=jnp.where(local.label_counts > 0, local.logits, 0.0)))


def width_federation(problem: Problem, channels: Callable[[Sizes, Sizes, jax.Array, jax.Array], Channels]) -> Federation:
    """A method that gives clients these channels, with the loss and the BatchNorm that `clients` asks for."""
    clients = problem.config.clients
    return Federation(
        loss=masked_loss if clients.masked_loss else plain_loss,
        channels=channels,
        heads_by_class=clients.masked_loss,
        static_batch_norm=clients.batch_norm == "static",
    )
