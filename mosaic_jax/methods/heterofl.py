"""HeteroFL (Diao et al. 2021): narrower clients hold the first channels of every layer."""

from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.widths import width_federation
from mosaic_jax.steps.submodels import first_channels


def heterofl(problem: Problem) -> Federation:
    """Channels 0..ceil(rate size)-1 of each layer, in every round."""
    return width_federation(problem, lambda sizes, held, round_, key: first_channels(sizes, held))
