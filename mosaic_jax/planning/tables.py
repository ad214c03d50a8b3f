"""A run's plan for the terminal."""

import jax

from mosaic_jax.io.console import Console, duration, human_bytes
from mosaic_jax.mapping import Plan
from mosaic_jax.planning.limit import mapped
from mosaic_jax.planning.rates import Rate
from mosaic_jax.planning.run_plan import RunPlan
from mosaic_jax.planning.stage_plans import StagePlan


def show(plan: RunPlan, console: Console) -> None:
    """Prints networks, stages, state, memory and traffic; warns where the estimate is more than there is."""
    console.message(plan.title)
    console.table(
        "networks (numbers in one copy)", ("network", "parameters ", "statistics ", "copies", "all copies "),
        [(n.name, f"{n.parameters:,}", f"{n.statistics:,}", n.copies, human_bytes(n.bytes)) for n in plan.networks],
    )  # fmt: skip
    console.table(
        "stages", ("stage", "length ", "steps of a program ", "clients", "programs to compile"),
        [(s.name, _count(s.num_steps, s.unit), str(s.segment), _clients(s, plan.clients), ", ".join(s.programs))
         for s in plan.stages],
    )  # fmt: skip
    if plan.rates:
        console.table(
            "time, from earlier runs of the same work, compiling apart",
            ("stage", "a step ", "in all ", "measured on"),
            [(s.name, *_time(s, plan.rates[s.name])) for s in plan.stages if s.name in plan.rates],
        )
    for line in plan.choice:
        console.message(line)
    console.message(
        f"{sum(len(stage.programs) for stage in plan.stages)} programs to compile, and those of the evaluation at the end"
    )
    rows = [
        (s.name if first else "", part.name, part.arrays, human_bytes(part.bytes))
        for s in plan.stages
        for first, part in zip([True, *[False] * len(s.state)], s.state, strict=False)
    ]
    console.table("state, all clients together", ("stage", "part", "arrays", "size "), rows)
    console.table(
        "memory on a device, an estimate",
        ("stage", "state ", "inputs ", "data ", "activations ", "held ", "together ", "all devices "),
        [(s.name, *map(human_bytes, (*s.memory[:5], s.memory.device, s.memory.machine))) for s in plan.stages],
    )  # fmt: skip
    console.message(
        "held: data, and outputs of earlier stages; activations: kept for one gradient step of the clients that run together, or "
        "taken by the experts that do. XLA's own temporaries come on top."
    )
    console.table("traffic, at most", ("stage", "up ", "down ", "up a round ", "down a round "), _traffic(plan.stages))
    _compare_with_capacity(plan, console)


def _time(stage: StagePlan, rate: Rate) -> tuple[str, str, str]:
    return f"{1000 * rate.seconds:,.1f} ms", duration(rate.seconds * stage.num_steps), f"{rate.hardware} ({rate.commit})"


def _clients(stage: StagePlan, clients: Plan) -> str:
    return mapped(clients) if stage.mapped else "at the server"


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
    """One line: the stage that needs most, beside what there is; and what to change where that is too much."""
    most = max(plan.stages, key=lambda stage: stage.memory.needed)
    has = f"; {'this machine' if jax.default_backend() == 'cpu' else 'a device'} has {human_bytes(plan.capacity)}"
    console.message(f"{most.name} needs most, about {human_bytes(most.memory.needed)}{has if plan.capacity else ''}")
    if plan.shortage is not None:
        console.warning(plan.shortage.text)
