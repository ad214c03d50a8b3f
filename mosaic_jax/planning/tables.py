"""A run's plan for the terminal."""

from mosaic_jax.io.console import Console, human_bytes
from mosaic_jax.mapping import Plan
from mosaic_jax.planning.run_plan import RunPlan, StagePlan


def show(plan: RunPlan, console: Console) -> None:
    """Prints networks, stages, state, memory and traffic; warns where the estimate is more than there is."""
    console.message(plan.title)
    console.table(
        "networks (numbers in one copy)", ("network", "parameters ", "statistics ", "copies"),
        [(n.name, f"{n.parameters:,}", f"{n.statistics:,}", n.copies) for n in plan.networks],
    )  # fmt: skip
    console.table(
        "stages", ("stage", "length ", "steps of a program ", "clients", "programs to compile"),
        [(s.name, _count(s.num_steps, s.unit), str(s.segment), _clients(s, plan.clients), ", ".join(s.programs))
         for s in plan.stages],
    )  # fmt: skip
    console.message(
        f"clients are mapped {_mapping(plan.clients)}: {plan.clients.reason}; "
        f"{sum(len(stage.programs) for stage in plan.stages)} programs to compile, and those of the evaluation at the end"
    )
    rows = [(s.name if first else "", part.name, part.arrays, human_bytes(part.bytes))
            for s in plan.stages for first, part in zip([True, *[False] * len(s.state)], s.state, strict=False)]
    console.table("state, all clients together", ("stage", "part", "arrays", "size "), rows)
    console.table(
        "memory on a device, an estimate",
        ("stage", "state ", "inputs ", "data ", "activations ", "held ", "together ", "all devices "),
        [(s.name, *map(human_bytes, (*s.memory[:5], s.memory.device, s.memory.machine))) for s in plan.stages],
    )  # fmt: skip
    console.message(
        "held: data, and outputs of earlier stages; activations: kept for one gradient step of the clients that run together. "
        "XLA's own temporaries come on top."
    )
    console.table("traffic, at most", ("stage", "up ", "down ", "up a round ", "down a round "), _traffic(plan.stages))
    _compare_with_capacity(plan, console)


def _mapping(clients: Plan) -> str:
    at_once = {0: "all at once", 1: "one at a time"}.get(clients.chunk, f"{clients.chunk} at a time")
    return at_once if len(clients.devices) < 2 else f"{at_once} on each of {len(clients.devices)} devices"


def _clients(stage: StagePlan, clients: Plan) -> str:
    return _mapping(clients) if stage.mapped else "at the server"


def _count(num: int, unit: str) -> str:
    return "at once" if num == 0 else f"{num:,} {unit}{'s' if num > 1 else ''}"


def _traffic(stages: tuple[StagePlan, ...]) -> list[tuple[str, ...]]:
    rows = []
    for stage in stages:
        rounds = stage.num_steps if stage.unit == "round" else 0
        each = [human_bytes(sent / rounds) if rounds else "-" for sent in (stage.up, stage.down)]
        rows.append((stage.name, human_bytes(stage.up), human_bytes(stage.down), *each))
    total = [human_bytes(sum(column)) for column in zip(*((s.up, s.down) for s in stages), strict=True)]
    return [*rows, ("total", *total, "", "")]


def _compare_with_capacity(plan: RunPlan, console: Console) -> None:
    """One line: the stage that needs most, beside what there is."""
    if not plan.capacity:
        return
    on_cpu = plan.clients.devices[0].platform == "cpu"

    def need(stage: StagePlan) -> int:
        return stage.memory.machine if on_cpu else stage.memory.device

    most = max(plan.stages, key=need)
    line = f"{most.name} needs most, about {human_bytes(need(most))}; {'this machine' if on_cpu else 'a device'} has "
    line += human_bytes(plan.capacity)
    console.warning(line) if need(most) > plan.capacity else console.message(line)
