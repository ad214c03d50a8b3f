"""What a run may take of memory: what is left to us is chosen to fit, and what does not fit is said with what to change."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from mosaic_jax.config import Config, ConfigError
from mosaic_jax.config_io import flatten
from mosaic_jax.io.console import human_bytes
from mosaic_jax.mapping import Plan, make_expert_plan, make_plan
from mosaic_jax.methods import stages_of
from mosaic_jax.planning.memory import capacity, expert_bytes
from mosaic_jax.planning.stage_plans import StagePlan, plan_stages
from mosaic_jax.stages.problem import Problem

# What runs together may take this share of the memory that is left: an estimate knows nothing of XLA's temporaries.
SHARE = 0.5
WITH_EXPERTS = ("experts", "meta", "distill", "finetune")  # while these run, stored experts are held


class Shortage(NamedTuple):
    """text: what needs too much memory and what to change, in one line; refused: more than the user allows, or a state that no
    device can hold."""

    text: str
    refused: bool


def limit(config: Config) -> int:
    """Bytes of `memory.limit_gib`, 0 where it sets none."""
    return round(config.memory.limit_gib * 2**30)


def fit(problem: Problem, there: int | None = None) -> tuple[Problem, tuple[StagePlan, ...]]:
    """The problem with its mapping chosen for the memory that there may be, and the plan of its stages.

    Left to us are the clients and the experts that run together (mapping.client_chunk=0, mapping.expert_chunk=0; on a CPU always
    one at a time) and whether experts are stored (memory.experts=auto). Where the memory is not known everything is taken to fit.
    there: bytes that there are, if that is not for this process alone to say; of several each must choose the same.
    """
    room = min(filter(None, (limit(problem.config), capacity() if there is None else there)), default=0)
    if not room:
        return problem, plan_stages(problem)
    # The least that can be needed; then stored experts; then as much more at a time as there is room for.
    least = _chosen(problem, clients=1, experts=1, stored=True)
    stages = plan_stages(least)
    stored = all(stage.memory.needed <= room for stage in stages if stage.name in WITH_EXPERTS)
    if not stored and problem.config.memory.experts == "auto":
        least = _chosen(problem, clients=1, experts=1, stored=False)
        stages = plan_stages(least)
    if jax.default_backend() == "cpu":
        return least, stages

    def more(stage: StagePlan, each: int) -> int:
        return max(int(SHARE * (room - stage.memory.needed)), 0) // each

    clients = min(1 + more(stage, stage.memory.activations) for stage in stages if stage.mapped and stage.memory.activations)
    experts = min((1 + more(stage, expert_bytes(least)) for stage in stages if stage.name == "distill"), default=1)
    fitted = _chosen(problem, clients, experts, stored)
    return fitted, plan_stages(fitted)


def _chosen(problem: Problem, clients: int, experts: int, stored: bool) -> Problem:
    config = problem.config
    return problem._replace(
        client_plan=make_plan(config.mapping, problem.num_clients, clients),
        expert_plan=make_expert_plan(config.mapping, config.memory, problem.num_classes, stored, experts),
    )


def choice(problem: Problem) -> tuple[str, ...]:
    """How clients and experts are mapped, and why, a line each."""
    clients, experts = problem.client_plan, problem.expert_plan
    lines = [f"clients are mapped {mapped(clients)}: {clients.reason}"]
    if problem.config.method == "mosaic":
        together = "one at a time" if experts.chunk == 1 else f"{experts.chunk} at a time"
        if problem.config.expert_space == "logits":
            lines.append(f"experts are mixed out of the logits of the clients' models, which run {together}: experts=logits")
        else:
            held = "stored" if experts.stored else "recomputed from the clients' models as they run"
            lines.append(f"experts are {held}, {together}: {experts.reason}")
    return tuple(lines)


def mapped(clients: Plan) -> str:
    """`one at a time on each of 2 devices`."""
    at_once = {0: "all at once", 1: "one at a time"}.get(clients.chunk, f"{clients.chunk} at a time")
    return at_once if len(clients.devices) < 2 else f"{at_once} on each of {len(clients.devices)} devices"


def shortage(problem: Problem, stages: tuple[StagePlan, ...]) -> Shortage | None:
    """The first stage that needs more than there may be, if one does."""
    own, there = limit(problem.config), capacity()
    for allowed, refused in ((own, True), (there, False)):
        first = next((stage for stage in stages if stage.memory.needed > allowed), None)
        if allowed and first is not None:
            parts = sorted(zip(first.memory._fields[:5], first.memory[:5], strict=True), key=lambda part: -part[1])[:2]
            needs = f"{first.name} needs about {human_bytes(first.memory.needed)}"
            needs += f" ({', '.join(f'{name} {human_bytes(size)}' for name, size in parts)})"
            change = remedies(problem, first.name)
            if refused:
                said = f"memory.limit_gib={problem.config.memory.limit_gib:g}"
                return Shortage(f"{said}: {needs}; raise the limit, or {change}", True)
            has = f"{'this machine' if jax.default_backend() == 'cpu' else 'a device'} has {human_bytes(there)}"
            # Activations are an estimate, a state is not. XLA's CPU client (jaxlib 0.10) waits for ever for the other outputs of a
            # program one of whose outputs it cannot allocate, so this must not be tried.
            return Shortage(f"{needs}, and {has}; {change}", first.memory.state > there)
    return None


def check(problem: Problem, stages: tuple[StagePlan, ...], warn: Callable[[str], None]) -> None:
    """Warns where a run is estimated to need more memory than there is; raises ConfigError for more than memory.limit_gib, and
    for a state that is more than there is."""
    short = shortage(problem, stages)
    if short is not None and short.refused:
        raise ConfigError(short.text)
    if short is not None:
        warn(short.text)


def remedies(problem: Problem, stage: str) -> str:
    """What to change where a stage, or the evaluation, needs too much memory, in words; what a run can go on with comes first."""
    config, clients, experts = problem.config, problem.client_plan, problem.expert_plan
    mosaic, on_cpu = config.method == "mosaic", jax.default_backend() == "cpu"
    for_clients = {
        "mapping.client_chunk=1": clients.chunk != 1,
        "mapping.num_devices=1": on_cpu and len(clients.devices) > 1,
    }
    for_experts = {
        "memory.experts=recomputed": mosaic and problem.config.expert_space == "parameters" and experts.stored,
        "mapping.expert_chunk=1": mosaic and experts.chunk > 1,
    }
    prototypes = {
        "prototypes.num_rounds": mosaic and config.prototypes.num_rounds != 1,
        "prototypes.keep_per_class": mosaic and (config.prototypes.keep_per_class or config.prototypes.per_class) > 1,
    }
    network = {"model.width": config.model.width > 1}
    placement, smaller = {
        "warmup": (for_clients, {**prototypes, "warmup.batch_size": True, **network}),
        "auxiliary": (for_clients, {"warmup.batch_size": True, **network}),
        "generators": (for_clients, {"generator.batch_size": True, "generator.width": config.generator.width > 1}),
        "experts": (for_experts, network),
        "meta": (for_experts, {**prototypes, "meta.batch_size": True, "meta.expansion": config.meta.expansion > 1}),
        "distill": (for_experts, {"distill.samples_per_client": config.distill.samples_per_client > 1, **network}),
        "finetune": ({**for_clients, **for_experts}, {"warmup.batch_size": True, **network}),
        "evaluation": (for_experts, {"evaluation.batch_size": True, **network}),
    }.get(stage) or _declared(problem, stage, for_clients)
    words = []
    if settings := [name for name, helps in placement.items() if helps]:
        words.append(f"set {' or '.join(settings)} (a run goes on with it)")
    if settings := [name for name, helps in smaller.items() if helps]:
        words.append(f"lower {' or '.join(settings)} in a new run")
    if config.precision == "float32" and not on_cpu:
        words.append("set precision=bf16 in a new run")
    return ", or ".join(words) or "use a machine with more memory"


def _declared(problem: Problem, name: str, for_clients: dict[str, bool]) -> tuple[dict[str, bool], dict[str, bool]]:
    """What eases the memory of a stage by its own word: placement, and settings to lower that are not at their least."""
    stage, values = next(stage for stage in stages_of(problem) if stage.name == name), flatten(problem.config)
    return for_clients if stage.sharding is not None else {}, {each: values.get(each) != 1 for each in stage.eased_by}
