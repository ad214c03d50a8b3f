"""FedRS (Li and Zhan 2021): restricted softmax against classes that a client does not hold."""

import jax
import jax.numpy as jnp

from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps.client_update import Local, plain_loss


def fedrs(problem: Problem) -> Federation:
    """Local loss: cross-entropy of s_c logit_c, s_c = 1 where the client holds class c and alpha where it does not."""
    alpha = problem.config.fedrs.alpha

    def loss(local: Local) -> jax.Array:
        return plain_loss(local._replace(logits=local.logits * jnp.where(local.label_counts > 0, 1.0, alpha)))

    return Federation(loss=loss)
