"""The methods by name: a federated method is the hooks of a round, a method the stages of a run; `registry` has a row for each."""

from mosaic_jax.config import ConfigError
from mosaic_jax.registry import FEDERATIONS, METHODS
from mosaic_jax.stages.problem import Problem
from mosaic_jax.stages.stage import Stage

__all__ = ["FEDERATIONS", "METHODS", "stages_of"]


def stages_of(problem: Problem) -> tuple[Stage, ...]:
    """The stages of the method that the configuration names, in order.

    Raises ConfigError where that gives no stages of different names, or none that hands over a model.
    """
    config = problem.config
    stages = METHODS[config.method](problem, FEDERATIONS[config.federated](problem))
    if not isinstance(stages, tuple | list) or not all(isinstance(stage, Stage) for stage in stages):
        raise ConfigError(f"method={config.method}: gives {type(stages).__name__}; it must return a tuple of Stage")
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"method={config.method}: two stages have one name ({', '.join(names)}); name each otherwise")
    final = next((stage for stage in reversed(stages) if stage.hands_over), None)
    if final is None or final.judged is None or final.hands_over not in final.judged.names:
        raise ConfigError(f"method={config.method}: no stage hands over a model by which it is judged; set hands_over and judged")
    return tuple(stages)
