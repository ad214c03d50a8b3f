"""Federated Dropout (Caldas et al. 2018): narrower clients hold random channels of every layer."""

from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.widths import width_federation
from mosaic_jax.steps.submodels import random_channels


def federated_dropout(problem: Problem) -> Federation:
    """A fresh random subset of ceil(rate size) channels for each client, layer and round."""
    return width_federation(problem, lambda sizes, held, round_, key: random_channels(sizes, held, key))
