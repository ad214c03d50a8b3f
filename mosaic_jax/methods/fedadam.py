"""FedAdam (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2): Adam at the server."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mosaic_jax.stages.federation import Federation, Uploads
from mosaic_jax.stages.problem import Problem
from mosaic_jax.trees import moving_average, weighted_mean
from mosaic_jax.types import PyTree, Variables


class Moments(NamedTuple):
    """first, second: m and v of the server, trees of f32 as the parameters."""

    first: PyTree
    second: PyTree


def init_moments(params: PyTree, tau: float) -> Moments:
    """m = 0, v = tau^2."""
    return Moments(jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda leaf: jnp.full_like(leaf, tau**2), params))


def adam_step(
    moments: Moments, old: PyTree, mean: PyTree, *, learning_rate: float, beta1: float, beta2: float, tau: float
) -> tuple[Moments, PyTree]:
    """m <- beta1 m + (1 - beta1) (mean - old); v <- beta2 v + (1 - beta2) m^2; new = old + learning_rate m / (sqrt(v) + tau).

    Returns (moments, new), trees of f32; without a correction of bias, as in the paper.
    """
    first = moving_average(moments.first, jax.tree.map(jnp.subtract, mean, old), beta1)
    second = moving_average(moments.second, jax.tree.map(jnp.square, first), beta2)
    new = jax.tree.map(lambda leaf, m, v: leaf + learning_rate * m / (jnp.sqrt(v) + tau), old, first, second)
    return Moments(first, second), new


def fedadam(problem: Problem) -> Federation:
    """The parameters move by `adam_step`; BatchNorm statistics are the mean."""
    settings = problem.config.fedadam

    def aggregate(moments: Moments, old: Variables, sent: Uploads, weights: jax.Array) -> tuple[Moments, Variables]:
        mean = weighted_mean(sent.models, weights)
        moments, params = adam_step(
            moments, old.params, mean.params, learning_rate=settings.server_learning_rate, beta1=settings.beta1,
            beta2=settings.beta2, tau=settings.tau,
        )  # fmt: skip
        return moments, mean._replace(params=params)

    return Federation(aggregate=aggregate, init_server=lambda model: init_moments(model.params, settings.tau))
