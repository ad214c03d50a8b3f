"""FedBN (Li et al. 2021): BatchNorm stays on the clients."""

from typing import Any

import jax

from mosaic_jax.stages.federation import Federation
from mosaic_jax.stages.problem import Problem
from mosaic_jax.types import PyTree, Variables


def batch_norm_leaves(variables: Variables) -> Variables:
    """True at BatchNorm scales, biases and statistics, shortcuts' too: at the parameters of modules that have statistics."""

    def of_module(params: PyTree, stats: Any) -> PyTree:
        if not isinstance(params, dict):
            return bool(stats) and not any(isinstance(leaf, dict) for leaf in stats.values())
        return {name: of_module(each, stats.get(name, {}) if isinstance(each, dict) else stats) for name, each in params.items()}

    return Variables(of_module(variables.params, variables.batch_stats), jax.tree.map(lambda leaf: True, variables.batch_stats))


def fedbn(problem: Problem) -> Federation:
    """Each client goes on with its own BatchNorm; the global model, whose BatchNorm nobody receives, has the mean of theirs.

    That mean is a choice of ours, for evaluation and for what later stages start from; the method itself has no global model.
    """
    return Federation(personal=batch_norm_leaves)
