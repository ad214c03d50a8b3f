"""FedAvgM (Hsu et al. 2019; Reddi et al. 2021, "Adaptive Federated Optimization"): SGD with momentum at the server."""

import jax
import jax.numpy as jnp

from mosaic_jax.stages.federation import Federation, Uploads
from mosaic_jax.stages.problem import Problem
from mosaic_jax.trees import weighted_mean
from mosaic_jax.types import PyTree, Variables


def momentum_step(momentum: PyTree, old: PyTree, mean: PyTree, *, learning_rate: float, decay: float) -> tuple[PyTree, PyTree]:
    """m <- decay m + (mean - old); new = old + learning_rate m -> (m, new), trees of f32.

    Written so that learning_rate 1 and decay 0 give `mean` to the last bit.
    """
    moved = jax.tree.map(jnp.subtract, mean, old)
    momentum = jax.tree.map(lambda m, delta: decay * m + delta, momentum, moved)
    return momentum, jax.tree.map(lambda of_mean, delta, m: of_mean - (delta - learning_rate * m), mean, moved, momentum)


def fedavgm(problem: Problem) -> Federation:
    """The parameters move by `momentum_step`; BatchNorm statistics are the mean."""
    settings = problem.config.fedavgm

    def aggregate(momentum: PyTree, old: Variables, sent: Uploads, weights: jax.Array) -> tuple[PyTree, Variables]:
        mean = weighted_mean(sent.models, weights)
        momentum, params = momentum_step(
            momentum, old.params, mean.params, learning_rate=settings.server_learning_rate, decay=settings.momentum
        )
        return momentum, mean._replace(params=params)

    return Federation(aggregate=aggregate, init_server=lambda model: jax.tree.map(jnp.zeros_like, model.params))
