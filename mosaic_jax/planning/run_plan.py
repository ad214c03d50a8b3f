"""The plan of a run: what `mosaic-jax plan` prints."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

from mosaic_jax import jax_settings
from mosaic_jax.config import Config
from mosaic_jax.data.partition import describe
from mosaic_jax.io.console import Console
from mosaic_jax.mapping import Plan
from mosaic_jax.models import judge_of
from mosaic_jax.planning.fitting import fitted_problem
from mosaic_jax.planning.limit import Shortage, choice, shortage
from mosaic_jax.planning.memory import capacity
from mosaic_jax.planning.rates import Rate, measured
from mosaic_jax.planning.stage_plans import StagePlan
from mosaic_jax.rng import key_of
from mosaic_jax.stages.problem import Problem
from mosaic_jax.trees import broadcast, num_bytes
from mosaic_jax.types import PyTree, Variables


class Network(NamedTuple):
    """parameters, statistics: numbers in one copy (all copies of the expert bank); copies: who holds it; bytes: of all copies."""

    name: str
    parameters: int
    statistics: int
    copies: str
    bytes: int


class RunPlan(NamedTuple):
    """A run before it starts.

    clients: how they are mapped; choice: how clients and experts are mapped, and why, a line each; capacity: bytes of a device
    (CPU: of the machine), or 0; shortage: what needs more memory than there may be, if anything does.
    """

    title: str
    networks: tuple[Network, ...]
    stages: tuple[StagePlan, ...]
    clients: Plan
    choice: tuple[str, ...]
    capacity: int
    shortage: Shortage | None
    rates: dict[str, Rate]


@jax_settings.fixed()
def plan_run(config: Config, console: Console | None = None, results: Iterable[Path] = ()) -> RunPlan:
    """The plan of a run on this machine; raises ConfigError where training would, but for what does not fit into memory.

    results: directories of result files, in which rates of the same work are looked for.
    """
    problem, stages = fitted_problem(config, console or Console(quiet=True), kernels=False)
    title = (
        f"{config.method}, seed {config.seed}: {config.data.source}, {len(problem.dataset.train_labels)} training images, "
        f"{problem.num_classes} classes, {describe(config.partition)}"
    )
    return RunPlan(
        title, _networks(problem, [stage.name for stage in stages]), stages, problem.client_plan, choice(problem), capacity(),
        shortage(problem, stages), measured(problem.config, results),
    )  # fmt: skip


def _networks(problem: Problem, stages: list[str]) -> tuple[Network, ...]:
    key, clients = key_of(0), problem.num_clients
    each = f"{clients}, one for each client"

    def network(name: str, variables: Variables, copies: str, num: int) -> Network:
        return Network(name, _count(variables.params), _count(variables.batch_stats), copies, num * num_bytes(variables))

    classifier = jax.eval_shape(problem.classifier.init, key)
    if len(problem.groups) == 1:
        found = [network("classifier", classifier, f"the global one and {each}", clients + 1)]
    else:
        wholes = [(architecture.name, architecture.classifier, "the global one", 1) for architecture in problem.architectures]
        own = [
            (f"{problem.architectures[group.architecture].name} at rate {group.rate:g}", group.classifier, "one for each client",
             len(group.clients))
            for group in problem.groups
        ]  # fmt: skip
        found = [
            network(f"classifier {name}", jax.eval_shape(one.init, key), f"{num}, {copies}", num)
            for name, one, copies, num in wholes + own
        ]
    if "auxiliary" in stages:
        found.append(network("auxiliary classifier", classifier, each, clients))
    if "generators" in stages:
        config = problem.config
        judge = judge_of(config.generator, problem.classifier, config.precision, config.data.image_size)
        found.append(network("generator", jax.eval_shape(problem.generator.init, key), each, clients))
        found.append(network("discriminator", jax.eval_shape(judge.init, key), each, clients))
    if "experts" in stages:
        num, kind = _experts(problem)
        bank = jax.eval_shape(lambda one: broadcast(one, num), classifier)
        found.append(network("expert bank", bank, f"{num} {kind}, counted together", 1))
    if "meta" in stages:
        found.append(network("meta model", Variables(jax.eval_shape(problem.meta_model.init, key), ()), "1", 1))
    return tuple(found)


def _experts(problem: Problem) -> tuple[int, str]:
    """How many models are held for the experts beside the clients' own, and what they are."""
    if problem.config.expert_space == "logits":
        return problem.num_clients, "client models, mixed for each class"
    if problem.expert_plan.stored:
        return problem.num_classes, "class experts"
    return problem.expert_plan.chunk, f"of {problem.num_classes} class experts, recomputed as they run"


def _count(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
