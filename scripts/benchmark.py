"""Measures our stages against a PyTorch twin on the same work, in one run, alternately.

Command: python scripts/benchmark.py WHAT [--json FILE] [--repeats N] [--only ROW] [--minutes N] [--ours-only]

WHAT: client-round, generator-step, distill-step, meta-step, scale (ours alone: what a client-step costs at ever more clients), all.
Needs the extra `bench` (torch), except for `scale`. Ours is the library's own stage, compiled, donated and given to the devices as
a run does it; a pass is one dispatch of several steps, with the drawing of its batches. The twin is our PyTorch code for the same
work, a loop over clients: eager in both memory formats, on a GPU also with bf16 autocast and torch.compile; the fastest counts.
Rows in bf16 are for a GPU: on a CPU they are measured only where --only names them.

Before any clock starts, both sides begin with the same weights, images, batches and noise, and the losses of two passes must agree
(without dropout, whose draws differ); exit status 1 where they do not. Times are medians, compiling apart (cold, unless
JAX_COMPILATION_CACHE_DIR holds the programs). `of matmul` is the share of the matrix-multiply rate measured just before, in the
precision of the row.
Peak memory is that of a pass in a process of its own for each side: all of the process on a CPU, the device's on a GPU.
Standard error hears of every pass. After --minutes no pass, no peak and no row is begun any more, but for the first pass of a row
whose sides are compiled; what is left out is said. --ours-only measures no twin and needs no torch. Rows that are for a GPU, where
time is short, are measured and kept without their twin first.
"""

import argparse
import dataclasses
import json
import math
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import sides
from bench.measure import UNLIMITED, Budget, alternate, has_torch, matmul_rate, peak_memory
from bench.results import Result, header, line, scale_lines
from bench.rows import WHATS, Row, Task, chosen

CHECKED_PASSES = 2


class Mismatch(Exception):
    """Both sides do not compute the same; their times would say nothing."""


class Unequal(Exception):
    """Both sides would compute on different devices."""


def loss_error(row: Row, ours: dict[str, np.ndarray], twin: dict[str, np.ndarray], untrained: bool) -> float:
    """Largest |ours - twin| / |twin| over the twin's losses; raises Mismatch above the row's tolerance, or if not finite.

    untrained: whether both sides start from equal weights, so that losses of the first step must agree better.
    """
    largest = 0.0
    for name, theirs in twin.items():
        if ours[name].shape != theirs.shape:
            raise Mismatch(f"{row.name}: {name} has shape {ours[name].shape}, the twin's {theirs.shape}")
        errors = np.abs(ours[name] - theirs) / np.abs(theirs)
        limits = np.full(errors.shape, row.tolerance)
        if untrained and errors.shape[-1] > 1:  # a round reports the mean of its steps, not the first
            limits[..., 0] = row.first_tolerance
        if not (errors <= limits).all():
            worst = np.unravel_index(np.argmax(np.nan_to_num(errors / limits, nan=np.inf)), errors.shape)
            raise Mismatch(f"{row.name}: {name} is {errors[worst]:.1e} off the twin's, more than {limits[worst]:.0e}")
        largest = max(largest, float(errors.max()))
    return largest


def check(row: Row, ours: Any, twins: list[Any], budget: Budget = UNLIMITED) -> tuple[float, int]:
    """CHECKED_PASSES passes of every side, from the same start -> the largest loss error, and the operations of a pass."""
    largest, flops = 0.0, 0
    for index in range(CHECKED_PASSES):
        budget.say(f"checking losses, pass {index + 1} of {CHECKED_PASSES}")
        expected = ours()
        for twin in twins:
            if index == 0 and twin is twins[0]:
                losses, flops = twin.count_flops()
            else:
                losses = twin()
            largest = max(largest, loss_error(row, expected, losses, index == 0))
    return largest, flops


def measure_alone(row: Row, budget: Budget) -> Result:
    """One row without its twin, and without the operations that the twin counts."""
    from bench.ours import Ours

    budget.say("compiling ours")
    ours = Ours(row)
    alternate({"ours": ours}, 1)
    rate = matmul_rate(row.config.precision)
    seconds = alternate({"ours": ours}, budget.repeats, budget=budget)
    return Result(row, seconds["ours"], {}, 0, rate, ours.compile_seconds, 0.0, 0, 0)


def measure(row: Row, budget: Budget) -> Result:
    """One row against every variant of its twin."""
    import jax
    from bench.ours import Ours
    from bench.torch_twin import Twin, variants

    if jax.default_backend() != "cpu":  # TF32 and bf16 round where float32 does not
        row = dataclasses.replace(row, tolerance=max(row.tolerance, 0.05), first_tolerance=0.05)
    choices = variants(row.stage)
    budget.say("compiling")
    checked = dataclasses.replace(row, settings=row.settings | {"meta.dropout_rate": 0.0}) if row.stage == "meta" else row
    ours = Ours(checked)
    task = ours.task()
    twins = [Twin(task, variant) for variant in choices]
    error, flops = check(checked, ours, twins, budget)
    if checked is not row:
        ours = Ours(row)
        task = ours.task()
        twins = [Twin(task, variant) for variant in choices]
        alternate({"ours": ours} | dict(zip(map(str, choices), twins, strict=True)), 1)
    rate = matmul_rate(row.config.precision)
    seconds = alternate({"ours": ours} | dict(zip(map(str, choices), twins, strict=True)), budget.repeats, budget=budget)
    result = Result(row, seconds.pop("ours"), seconds, flops, rate, ours.compile_seconds, error, 0, 0)
    del ours, twins
    return with_peaks(result, budget, task, dict(zip(map(str, choices), choices, strict=True)))


def with_peaks(result: Result, budget: Budget, task: Task | None = None, choices: dict[str, tuple] | None = None) -> Result:
    """The result with the peak memory of ours and of the twin's best variant, where the budget is not spent."""
    if budget.is_spent:
        return result
    budget.say("peak memory")
    result = result._replace(ours_peak=peak_memory(sides.ours, result.row))
    if not choices:
        return result
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "task"
        file.write_bytes(pickle.dumps(task))
        return result._replace(twin_peak=peak_memory(sides.twin, file, tuple(choices[result.best])))


def measure_scale(rows: tuple[Row, ...], budget: Budget) -> list[Result]:
    """Ours alone at each number of clients, the sizes taken in turns."""
    from bench.ours import Ours

    budget.say("compiling")
    ours = {row.name: Ours(row) for row in rows}
    alternate(ours, 1)
    rate = matmul_rate()
    seconds = alternate(ours, budget.repeats, budget=budget)
    results = [Result(row, seconds[row.name], {}, 0, rate, ours[row.name].compile_seconds, 0.0, 0, 0) for row in rows]
    del ours
    return [with_peaks(result, budget) for result in results]


def run(
    rows: tuple[Row, ...], repeats: int, named: bool = False, keep: Callable[[list[Result]], None] = lambda results: None,
    minutes: float = math.inf, ours_only: bool = False,
) -> None:  # fmt: skip
    """Measure and print row after row; named: whether a row that is for a GPU was asked for by its name.

    keep: is given all results so far after every row. minutes: after which nothing more is begun; ours_only: without twins. Raises
    Unequal where the two sides would compute on different devices.
    """
    import jax

    from mosaic_jax.config import MappingConfig
    from mosaic_jax.devices import create_cpu_devices
    from mosaic_jax.io.run_directory import hardware

    # Before anything starts JAX, which would leave clients on one device.
    create_cpu_devices(MappingConfig(), max(row.clients for row in rows))
    if jax.default_backend() == "cpu" and not named:
        rows = tuple(row for row in rows if not row.accelerator)

    against = [row for row in rows if row.what != "scale"]
    version = ""
    if against and not ours_only:
        import torch

        ours, theirs = jax.default_backend(), "gpu" if torch.cuda.is_available() else "cpu"
        if ours != theirs:
            raise Unequal(f"JAX computes on a {ours} and PyTorch on a {theirs}; install both for the same device")
        version = f", torch {torch.__version__} with {torch.get_num_threads()} threads"
    scale = tuple(row for row in rows if row.what == "scale")
    results: list[Result] = []
    budget = Budget(repeats, time.monotonic() + 60 * minutes)
    print(header(), flush=True)
    for row in against:
        if results and budget.is_spent:
            break
        heard = _heard(budget, row.name)
        found = [measure_alone(row, heard)] if ours_only or row.accelerator else []
        keep(results + found)
        results += found if ours_only else [measure(row, heard)]
        print(line(results[-1]), flush=True)
        keep(results)
    left = [row.name for row in against[len(results) :]]
    if results and budget.is_spent:
        left, scale = left + [row.name for row in scale], ()
    scaled = measure_scale(scale, _heard(budget, "scale")) if scale else []
    keep(results + scaled)
    for text in (*map(line, scaled), *(scale_lines(scaled) if scaled else ())):
        print(text, flush=True)
    if left:
        print(f"left out after --minutes {minutes:g}: {', '.join(left)}")
    print(f"medians of {'up to ' * (minutes < math.inf)}{repeats} passes; {hardware()}{version}")


def _heard(budget: Budget, name: str) -> Budget:
    return budget._replace(say=lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure our stages against a PyTorch twin on the same work.")
    parser.add_argument("what", metavar="WHAT", choices=(*WHATS, "all"), help=", ".join((*WHATS, "all")))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="passes of each side that are timed (default 5)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, metavar="N", help="after which nothing more is begun (default: never)"
    )
    parser.add_argument("--only", metavar="ROW", help="one row of WHAT alone")
    parser.add_argument("--ours-only", action="store_true", help="no twin, and so no torch")
    options = parser.parse_args(arguments)
    try:
        rows = chosen(options.what, options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: must be at least 1")
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g}: must be above 0")
    if options.json:
        try:
            with tempfile.TemporaryFile(dir=options.json.parent):
                pass
        except OSError as error:
            parser.error(f"--json {options.json}: {error.strerror.lower()}; name a file in a directory that can be written")
        if options.json.is_dir():
            parser.error(f"--json {options.json}: is a directory; name a file")
    if any(row.what != "scale" for row in rows) and not options.ours_only and not has_torch():
        print("benchmark.py: the twin needs torch: pip install -e .[bench], or leave it out with --ours-only", file=sys.stderr)
        return 2

    def keep(results: list[Result]) -> None:
        if options.json:
            from mosaic_jax.io.run_directory import hardware

            record = {"hardware": hardware(), "repeats": options.repeats, "rows": [result.as_json() for result in results]}
            options.json.write_text(json.dumps(record, indent=2) + "\n")

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both sides share one GPU
    with tempfile.TemporaryDirectory(prefix="mosaic-jax-bench-") as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)  # for the processes that measure memory
        try:
            run(rows, options.repeats, options.only is not None, keep, options.minutes, options.ours_only)
        except (Mismatch, Unequal) as refused:
            print(f"benchmark.py: {refused}", file=sys.stderr)
            return 1 if isinstance(refused, Mismatch) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
