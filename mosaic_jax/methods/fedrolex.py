"""FedRolex (Alam et al. 2022): narrower clients hold a window of channels that rolls on by one a round."""

from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.widths import width_federation
from mosaic_jax.steps.submodels import rolling_channels


def fedrolex(problem: Problem) -> Federation:
    """Channels roll(0..size-1, round mod size)[:ceil(rate size)] of each layer, the same for all clients of a rate."""
    return width_federation(problem, lambda sizes, held, round_, key: rolling_channels(sizes, held, round_))
