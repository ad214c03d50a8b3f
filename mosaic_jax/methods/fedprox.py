"""FedProx (Li et al. 2020): clients are held near the model that they received."""

import jax
import jax.numpy as jnp

from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.steps.client_update import Local, plain_loss


def fedprox(problem: Problem) -> Federation:
    """Local loss: cross-entropy + mu / 2 ||theta - theta_received||^2."""
    mu = problem.config.fedprox.mu

    def loss(local: Local) -> jax.Array:
        squares = jax.tree.map(lambda own, received: jnp.sum(jnp.square(own - received)), local.params, local.received)
        return plain_loss(local) + 0.5 * mu * sum(jax.tree.leaves(squares))

    return Federation(loss=loss)
